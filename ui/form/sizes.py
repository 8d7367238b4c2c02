"""Sizes in the terms of people: a shape instead of width and height, seconds instead of frames."""

from __future__ import annotations

from typing import Any

import gradio as gr

from pipeline import CheckpointInfo
from pipeline.request.sizes import video_size
from ui.form.inputs import Fields
from ui.look.parts import QUIET
from ui.site import Site

SHAPES = {"16:9": (16, 9), "4:3": (4, 3), "1:1": (1, 1), "3:4": (3, 4), "9:16": (9, 16)}
OWN = "As entered"
MOST_SECONDS = 60.0


def size_helpers(site: Site, fields: Fields) -> None:
    """Add a choice of shapes and a number of seconds, which fill the fields of width, height and frames."""
    with gr.Row(elem_classes="triple"):
        shape = gr.Dropdown([OWN, *SHAPES], value=OWN, label="Shape", min_width=110, elem_id="shape")
        length = gr.Number(
            seconds_of(site.checkpoint, site.checkpoint.defaults["num_frames"]),
            label="Seconds",
            step=0.1,
            min_width=90,
            elem_id="length",
        )

    def take_shape(chosen: str) -> tuple[Any, Any]:
        return shaped(site.checkpoint, chosen) if chosen in SHAPES else (gr.skip(), gr.skip())

    shape.input(take_shape, shape, [fields["width"], fields["height"]], **QUIET)
    length.input(lambda seconds: frames_of(site.checkpoint, seconds), length, fields["num_frames"], **QUIET)
    for name in ("width", "height"):
        fields[name].input(lambda: OWN, None, shape, **QUIET)
    fields["num_frames"].input(
        lambda frames: seconds_of(site.checkpoint, frames), fields["num_frames"], length, **QUIET
    )


def shaped(checkpoint: CheckpointInfo, shape: str) -> tuple[int, int]:
    """Width and height of this shape, with about as many pixels as the checkpoint was made for."""
    wide, high = SHAPES[shape]
    height, width = video_size(high, wide, checkpoint.defaults["width"] * checkpoint.defaults["height"])
    return width, height


def frames_of(checkpoint: CheckpointInfo, seconds: Any) -> Any:
    """The number of frames nearest to so many seconds, of the form 4n + 1; no change for what is no duration."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MOST_SECONDS:
        return gr.skip()
    return 4 * max(0, round((seconds * checkpoint.defaults["fps"] - 1) / 4)) + 1


def seconds_of(checkpoint: CheckpointInfo, frames: Any) -> Any:
    """How long so many frames play, to a tenth of a second; no change for what is no number."""
    if isinstance(frames, bool) or not isinstance(frames, int | float):
        return gr.skip()
    return round(frames / checkpoint.defaults["fps"], 1)
