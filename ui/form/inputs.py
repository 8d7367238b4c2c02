"""The fields of the form: one function per group of settings, which returns its components by field name."""

from __future__ import annotations

from typing import Any

import gradio as gr

from bsa import BSAConfig
from bsa.selectors import CELLS, DEFAULT_SCORES
from pipeline import CheckpointInfo
from pipeline.request.values import Adapter, read_adapters
from ui.form.read import AUTOMATIC, DENSE_ONLY, MASS, SIDE_BY_SIDE, SPARSE_ONLY, TOP_K, TOP_K_AND_MASS, keep_by
from ui.look.parts import QUIET

# For checkpoints that understand language in general. Those with a vocabulary have a palette of their own words.
EXAMPLES = {
    "Cat at the window": "A ginger cat sits at a rainy window and turns its head to the camera, soft evening light",
    "Fireworks": "Colourful fireworks explode over a city skyline and are mirrored in the river below",
    "Surfer": "A surfer rides along a turquoise wave, the camera follows from the side, spray in the sunlight",
    "Snow": "Snow falls on a mountain range in the evening light while clouds drift past the peaks",
    "Tea": "Steam rises from a cup of tea on a wooden table, close-up, shallow depth of field",
    "Old street": "A red bicycle passes through a narrow old street in the morning, tracking shot",
}

Fields = dict[str, Any]  # component by field name; Any, because Gradio adds a component's events only at run time


def prompt_field(checkpoint: CheckpointInfo) -> gr.Textbox:
    known = checkpoint.vocabulary
    return gr.Textbox(
        next(iter(EXAMPLES.values())) if known is None else known.default,
        label="Prompt",
        placeholder="Describe the video in a sentence",
        lines=3,
        max_lines=8,
        elem_id="prompt",
    )


def examples(prompt: gr.Textbox) -> None:
    gr.Examples(
        list(EXAMPLES.values()),
        prompt,
        label="Examples",
        example_labels=list(EXAMPLES),
        api_visibility="private",
        elem_id="examples",
    )


def sparsity_field(default: BSAConfig) -> Fields:
    return {
        "sparsity": gr.Slider(
            0,
            0.9875,
            value=default.sparsity if default.sparsity is not None else 0.9375,
            step=0.0125,
            label="Sparsity",
            info="Share of key blocks that each block of the video skips. 0 reads all of them, 0.9375 one in sixteen.",
            buttons=["reset"],
            elem_id="sparsity",
        ),
    }


def mode_field() -> Fields:
    return {
        "mode": gr.Radio(
            [
                ("Dense and sparse side by side", SIDE_BY_SIDE),
                ("Sparse only", SPARSE_ONLY),
                ("Dense only", DENSE_ONLY),
                ("Automatic", AUTOMATIC),
            ],
            value=SIDE_BY_SIDE,
            label="What to make",
            info="Automatic makes one video, and chooses its attention by what was measured on this machine.",
            elem_id="mode",
        ),
    }


def block_fields(default: BSAConfig) -> Fields:
    gr.Markdown(
        "The video's tokens form a grid of frames (T) × rows (H) × columns (W). "
        "A **chunk** is a small box of that grid; its tokens are selected together, as one block. "
        "Small chunks select more finely, large ones are quicker to compute. Chunks that do not divide the "
        "grid leave smaller, *ragged* blocks at its edges.",
        elem_classes="hint",
    )
    fields: Fields = {}
    for key, title, chunk in (("chunk_q", "Query", default.chunk_q), ("chunk_k", "Key", default.chunk_k)):
        with gr.Row(elem_classes="triple"):
            for axis, side in zip("thw", chunk, strict=True):
                fields[f"{key}_{axis}"] = gr.Number(
                    side, label=f"{title} {axis.upper()}", step=1, min_width=60, elem_id=f"{key}_{axis}"
                )
    fields["keep_by"] = gr.Radio(
        [("Sparsity", TOP_K), ("CDF threshold", MASS), ("Both", TOP_K_AND_MASS)],
        value=keep_by(default),
        label="Choose blocks by",
        info="Sparsity keeps a fixed number of blocks. The CDF threshold keeps the best blocks until their estimated "
        "attention adds up to it, so busy places keep more. Both keeps whichever is more.",
        elem_id="keep_by",
    )
    fields["cdf_threshold"] = gr.Slider(
        0.05,
        0.99,
        value=default.cdf_threshold if default.cdf_threshold is not None else 0.9,
        step=0.01,
        label="CDF threshold",
        visible=default.cdf_threshold is not None,
        elem_id="cdf_threshold",
    )
    fields["selection"] = gr.Radio(
        [("Their means", DEFAULT_SCORES), ("Cells inside them", CELLS)],
        value=default.selection,
        label="Score blocks by",
        info="LongCat compares the means of blocks. Comparing cells of 2 × 2 × 2 tokens takes a little longer and "
        "finds more of what dense attention looks at.",
        elem_id="selection",
    )
    with gr.Row(elem_classes="triple"):
        for name, label, info in SCHEDULE_FIELDS:
            fields[name] = gr.Number(
                getattr(default, name),
                label=label,
                info=info,
                step=1,
                min_width=60,
                elem_id=name,
            )
    return fields


FIRST = "The first ones attend to everything."
SCHEDULE_FIELDS = (
    ("dense_steps", "Dense steps", FIRST),
    ("dense_layers", "Dense layers", FIRST),
    ("select_every", "Select every", "So many steps share a choice of blocks."),
)


def video_fields(checkpoint: CheckpointInfo) -> Fields:
    defaults = checkpoint.defaults
    fields: Fields = {}
    with gr.Row(elem_classes="triple"):
        fields["width"] = gr.Number(defaults["width"], label="Width", step=16, min_width=60, elem_id="width")
        fields["height"] = gr.Number(defaults["height"], label="Height", step=16, min_width=60, elem_id="height")
        fields["num_frames"] = gr.Number(defaults["num_frames"], label="Frames", step=4, min_width=60, elem_id="frames")
    gr.Markdown(
        f"Width and height are multiples of 16, frames are 4n + 1, played at {defaults['fps']} a second. "
        f"{checkpoint.name} was made for {defaults['width']} × {defaults['height']}, {defaults['num_frames']} frames.",
        elem_classes="hint",
    )
    fields["steps"] = gr.Slider(
        1,
        100,
        value=defaults["num_inference_steps"],
        step=1,
        label="Denoising steps",
        buttons=["reset"],
        elem_id="steps",
    )
    fields["guidance_scale"] = gr.Slider(
        1,
        12,
        value=defaults["guidance_scale"],
        step=0.1,
        label="Guidance",
        info="Above 1 the prompt is followed more strictly and every step takes twice as long.",
        buttons=["reset"],
        elem_id="guidance",
    )
    fields["lora"] = gr.Dropdown(
        adapter_choices(checkpoint),
        value="",
        label="Adapter (LoRA)",
        info="Of the checkpoint's folder lora/ or the server's --lora-dir. LongCat has one for few steps and one for "
        "refinement. For two at once, write distill+style:0.7.",
        allow_custom_value=True,
        elem_id="lora",
    )
    _strength(fields["lora"])
    fields["use_distill"] = gr.Checkbox(
        bool(defaults["use_distill"]),
        label="Few-step schedule",
        info="The noise levels that distilled models know.",
        elem_id="use_distill",
    )
    fields["teacache_thresh"] = gr.Slider(
        0,
        1,
        value=0,
        step=0.01,
        label="TeaCache threshold",
        info="Skips steps that differ little from the last: the higher, the fewer run and the more the video differs. "
        "0 runs all of them.",
        buttons=["reset"],
        elem_id="teacache_thresh",
    )
    with gr.Row(elem_classes="seed"):
        fields["seed"] = gr.Number(0, label="Seed", step=1, min_width=100, elem_id="seed")
        fields["randomise"] = gr.Checkbox(True, label="New seed each time", min_width=100, elem_id="randomise")
    fields["negative_prompt"] = gr.Textbox(
        label="Negative prompt",
        info="What the video should not show. Counts only when guidance is above 1.",
        lines=1,
        max_lines=4,
        elem_id="negative_prompt",
    )
    return fields


def _strength(lora: gr.Dropdown) -> None:
    """Add a slider that writes the strength behind a single adapter's name, and shows the one that stands there."""
    strength = gr.Slider(
        -2,
        2,
        value=1,
        step=0.05,
        label="Strength of the adapter",
        info="1 is what it was trained for.",
        visible=False,
        elem_id="lora-strength",
    )

    def write(text: str, value: float) -> str:
        (one,) = read_adapters(text)
        return str(Adapter(one.name, value))

    def show(text: str) -> dict[str, Any]:
        try:
            found = read_adapters(text or None)
        except ValueError:  # said when a video is asked for
            found = ()
        if len(found) != 1:
            return gr.update(visible=False)
        return gr.update(visible=True, value=found[0].strength)

    strength.input(write, [lora, strength], lora, **QUIET)
    lora.change(show, lora, strength, **QUIET)


def adapter_choices(checkpoint: CheckpointInfo) -> list[tuple[str, str]]:
    return [("None", ""), *((name, name) for name in sorted(checkpoint.loras))]
