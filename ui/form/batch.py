"""Many videos at once: a prompt on each line, or the lines of a file, with one seed or several for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from pipeline.request.values import whole_number
from ui.form.read import filled_lines, new_seed
from ui.jobs.worker import MAX_WAITING_OF_ONE
from ui.look.parts import notice_html

ABOUT = (
    "Each line is a prompt, made with the settings of the form; with several seeds it is made that often. With New "
    "seed each time they are drawn, else they count up from the form's."
)
QUEUED = "{count} jobs are in the queue."
SOME = "{done} of {count} jobs are in the queue; the rest are not: {reason}"
NOTHING = "there is no prompt; write one on each line, or choose a file of lines"
TOO_MANY = "{count} jobs are more than the {limit} of yours that may wait; take fewer prompts or seeds"
NO_SEEDS = "{seeds} seeds for each prompt make no video; take 1 or more"
TOO_LARGE = "the file has more than {limit} KB; take one of prompts alone"
LARGEST = 256 * 1024


def batch_fields() -> tuple[gr.Textbox, gr.File, gr.Number, gr.Button]:
    """Add the fields. Call it inside an accordion. Returns the prompts, the file, the seeds and the button."""
    gr.Markdown(ABOUT, elem_classes="hint")
    prompts = gr.Textbox(label="Prompts, one on each line", lines=4, max_lines=12, elem_id="batch_prompts")
    file = gr.File(label="Or a text file", file_types=[".txt"], height=110, type="filepath", elem_id="batch_file")
    with gr.Row(elem_classes="seed"):
        seeds = gr.Number(1, label="Seeds for each", step=1, min_width=100, elem_id="batch_seeds")
        button = gr.Button("Add all to the queue", variant="secondary", elem_id="batch_run")
    return prompts, file, seeds, button


def lines_of(text: str | None, file: str | None) -> list[str]:
    """The prompts of the field and of the file, without empty lines. Raises ValueError if there are none."""
    prompts = filled_lines(text)
    if file:
        if Path(file).stat().st_size > LARGEST:
            raise ValueError(TOO_LARGE.format(limit=LARGEST // 1024))
        prompts += filled_lines(Path(file).read_text(encoding="utf-8", errors="replace"))
    if not prompts:
        raise ValueError(NOTHING)
    return prompts


def batch_forms(form: dict[str, Any], prompts: list[str], seeds: Any) -> Iterator[dict[str, Any]]:
    """The form for every prompt and seed, by prompt. Raises ValueError before the first if there are too many."""
    times = whole_number("seeds for each", seeds)
    if times < 1:
        raise ValueError(NO_SEEDS.format(seeds=times))
    if (count := len(prompts) * times) > MAX_WAITING_OF_ONE:
        raise ValueError(TOO_MANY.format(count=count, limit=MAX_WAITING_OF_ONE))
    for prompt in prompts:
        for number in range(times):
            seed = new_seed() if form["randomise"] else form["seed"] + number
            yield {**form, "prompt": prompt, "seed": seed}


def batch_notice(done: int, count: int, reason: str = "") -> str:
    if reason:
        return notice_html(SOME.format(done=done, count=count, reason=reason), "error")
    return notice_html(QUEUED.format(count=count), "done")
