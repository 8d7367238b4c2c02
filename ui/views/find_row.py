"""The row of the sweep tab that searches for the fastest sparsity above a floor."""

from __future__ import annotations

import gradio as gr

from ui.look.parts import QUIET

HINT = (
    "Or name a floor: the dense video and a few sparse ones find the fastest sparsity of this prompt that keeps it, "
    "with the chunks and scores of the form."
)
DEFAULTS = {"psnr": 30.0, "ssim": 0.95}


class FindRow:
    """The controls. The panel that holds them starts the search."""

    def __init__(self) -> None:
        gr.Markdown(HINT, elem_classes="hint")
        with gr.Row(elem_id="sweep_find"):
            self.quality = gr.Dropdown(
                [("PSNR", "psnr"), ("SSIM", "ssim")],
                value="psnr",
                label="Likeness to dense",
                elem_id="find_quality",
                min_width=120,
            )
            self.floor = gr.Number(DEFAULTS["psnr"], label="At least", elem_id="find_floor", min_width=120)
            self.button = gr.Button("Find my sparsity", elem_id="find_run", min_width=160)
        self.quality.change(lambda quality: DEFAULTS[quality], self.quality, self.floor, **QUIET)
