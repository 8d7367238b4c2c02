"""Chinese for the page: the catalogue and the script with which the browser replaces English texts.

The server writes everything in English. So the API, the command line, the log and stored files have only one language,
and two people can look at the same job in two languages. `static/language.js` translates every text on the page,
including Gradio's own, with the catalogue `locales/zh.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

from ui.static import asset

CATALOGUE = Path(__file__).parents[1] / "locales" / "zh.json"
SWITCH = (
    '<div class="languages joined" role="group" aria-label="Language">'
    '<button type="button" data-language="en" lang="en" translate="no" aria-pressed="true">English</button>'
    '<button type="button" data-language="zh" lang="zh-CN" translate="no" aria-pressed="false">中文</button></div>'
)


def catalogue() -> dict[str, str]:
    """English text -> Chinese text. In both, {#a} is a number, {=a} is kept unchanged, and {a} is itself translated."""
    return json.loads(CATALOGUE.read_text(encoding="utf-8"))


def language_script() -> str:
    """The script with its catalogue, for the page's head."""
    words = json.dumps(catalogue(), ensure_ascii=False).replace("</", "<\\/")
    return f"<script>{asset('language.js').replace('/* catalogue */', words)}</script>"
