"""English and Chinese: what the page needs to put one in the place of the other, in the browser.

Everything is written in English, so the API, the command line, the log and what is stored know one language only, and
two people may look at the same job in two. `static/language.js` translates what appears on the page, Gradio's own
words too, with the catalogue `locales/zh.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

from ui.static import asset

CATALOGUE = Path(__file__).parent / "locales" / "zh.json"
SWITCH = (
    '<div class="languages joined" role="group" aria-label="Language">'
    '<button type="button" data-language="en" lang="en" translate="no" aria-pressed="true">English</button>'
    '<button type="button" data-language="zh" lang="zh-CN" translate="no" aria-pressed="false">中文</button></div>'
)


def catalogue() -> dict[str, str]:
    """English text -> Chinese text. {#a} in both is a number, {=a} is kept as it is, {a} is translated in turn."""
    return json.loads(CATALOGUE.read_text(encoding="utf-8"))


def language_script() -> str:
    """For the page's head."""
    words = json.dumps(catalogue(), ensure_ascii=False).replace("</", "<\\/")
    return f"<script>{asset('language.js').replace('/* catalogue */', words)}</script>"
