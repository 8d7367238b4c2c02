"""The words of a small checkpoint: a palette that builds a prompt from them, and a note on unknown words in a prompt.

A checkpoint that understands language in general has no vocabulary, and the panel stays away.
"""

from __future__ import annotations

import asyncio
from typing import Any

import gradio as gr

from pipeline import CheckpointInfo
from pipeline.checkpoint.vocabulary import Vocabulary
from pipeline.runs.long_video import MOST_SEGMENTS
from ui.form.read import page_sentence
from ui.look.parts import QUIET, Drawn, box, notice_html
from ui.site import Site

UNKNOWN = "Words that {name} does not know: {words}."
EMPTY = "Write a prompt first, or a few words of one."
# near the prompt, because on a phone the palette is far below it
READING = '<p class="words-read" role="status"></p><p class="words-unknown" role="status"></p>'
LONGEST = 5000  # letters of a prompt that are looked at while somebody types


class WordPalette(Drawn):
    """The panel. Its value is `palette_view` of the checkpoint."""

    def __init__(self, site: Site, **kwargs: Any) -> None:
        def reading(prompts: Any) -> dict[str, Any]:
            return read_prompts(site.checkpoint, prompts)

        super().__init__("words", ["words.js"], palette_view(site.checkpoint), [reading], **kwargs)


def read_prompts(checkpoint: CheckpointInfo, prompts: Any) -> dict[str, Any]:
    """{"english": what the model makes of prompts of which one is Chinese, else "", "unknown": words that it does not
    know}. A long video has a prompt for each segment, and each is read by itself."""
    texts = [text[:LONGEST] for text in prompts if isinstance(text, str)] if isinstance(prompts, list) else []
    known = checkpoint.vocabulary
    reads = [None if known is None else known.read(text) for text in texts[:MOST_SEGMENTS]]
    english, unknown = list[str](), list[str]()
    for text, read in zip(texts, reads, strict=False):
        english.append(text if read is None else read.english or "…")
        unknown += unknown_words(checkpoint, text) if read is None else read.unknown
    return {"english": " / ".join(english) if any(reads) else "", "unknown": list(dict.fromkeys(unknown))}


def reading_box() -> gr.HTML:
    """Add the lines in which the palette says how the prompt is read, and which words are not known."""
    return box("reading", READING)


def word_palette(site: Site, page: gr.Blocks, shown: gr.State) -> None:
    """Add the panel. It follows the model: another one may be loaded in any tab."""
    palette = WordPalette(site)
    gr.on([page.load, shown.change], lambda: palette_view(site.checkpoint), None, palette, **QUIET)


def enhance_button(site: Site, prompt: gr.Textbox, notice: gr.HTML) -> None:
    """Add a button that has the prompt rewritten, where the server has an endpoint for that."""
    if site.enhancer is None:
        return
    button = gr.Button("Improve the prompt", size="sm", elem_id="enhance")

    async def improve(text: str) -> dict[Any, Any]:
        assert site.enhancer is not None  # or there would be no button
        if not (text or "").strip():
            return {notice: notice_html(EMPTY, "error")}
        try:
            return {prompt: await asyncio.to_thread(site.enhancer.rewrite, text, site.checkpoint), notice: ""}
        except ValueError as error:
            return {notice: notice_html(page_sentence(error), "error")}

    button.click(
        improve, prompt, [prompt, notice], concurrency_limit=2, show_progress="minimal", api_visibility="private"
    )


def palette_view(checkpoint: CheckpointInfo) -> dict[str, Any]:
    """The data that the page draws; {} without a vocabulary."""
    known = checkpoint.vocabulary
    if known is None:
        return {}
    return {
        "name": checkpoint.name,
        "millions": round(checkpoint.parameters / 1e6, 1),
        "about": known.about,
        "template": known.template,
        "groups": [[name, list(phrases)] for name, phrases in known.groups.items()],
        "optional": list(known.optional),
        "avoid": [list(phrases) for phrases in known.avoid],
        "sentences": list(known.sentences),
        "default": known.default,
        "chinese": _chinese_of(known, known.default),
    }


def _chinese_of(known: Vocabulary, prompt: str) -> str:
    """The Chinese that its table has for a whole prompt, "" for none."""
    return next((word for words in known.chinese.values() for word, said in words.items() if said == prompt), "")


def unknown_words(checkpoint: CheckpointInfo, prompt: str) -> list[str]:
    """The words of a prompt that the checkpoint was never shown; none for one without a vocabulary."""
    return [] if checkpoint.vocabulary is None else checkpoint.vocabulary.unknown(prompt)


def unknown_sentence(checkpoint: CheckpointInfo, prompt: str) -> str:
    """A sentence about these words, "" if there are none."""
    words = unknown_words(checkpoint, prompt)
    return UNKNOWN.format(name=checkpoint.name, words=", ".join(words[:12])) if words else ""
