"""The choice of a task, and the fields that it needs beside the prompt."""

from __future__ import annotations

from typing import Any

import gradio as gr

from pipeline.request.start import LATENT_FRAMES
from pipeline.runs.long_video import COND_FRAMES
from ui.form.inputs import Fields
from ui.form.read import CLIP, IMAGE, LONG, TEXT, beginning
from ui.jobs.job import PICTURES
from ui.look.parts import QUIET, box
from ui.tasks.pictures import ExamplePictures

SEGMENTS = 3  # that the form asks for at first
MOST_FRAMES = 33  # of the slider; a request may have more
HINT = (
    "Each line of the prompt is a segment; the last line holds for the rest. Every segment goes on from the last "
    "frames of the one before, and can be seen while the next is made."
)


class TaskFields:
    """The fields, of which a task shows its own. Create it where they shall stand, above the prompt.

    fields: by name, for the form. examples: pictures to begin with. after: says which segments are kept.
    """

    def __init__(self) -> None:
        self.fields: Fields = {
            "task": gr.Radio(
                [("Text to video", TEXT), ("Image to video", IMAGE), ("Go on from a clip", CLIP), ("Long video", LONG)],
                value=TEXT,
                label="Task",
                elem_id="task",
            )
        }
        with gr.Column(visible=False, elem_id="task-long") as self._long:
            gr.Markdown(HINT, elem_classes="hint")
            with gr.Row(elem_classes="triple"):
                self.fields["segments"] = gr.Number(
                    SEGMENTS, label="Segments", step=1, min_width=90, elem_id="segments"
                )
                self.fields["begins"] = gr.Radio(
                    [("Text", TEXT), ("Picture", IMAGE), ("Clip", CLIP)],
                    value=TEXT,
                    label="Begins with",
                    elem_id="begins",
                )
            self.fields["after"] = gr.Textbox("", visible=False)
            with gr.Row(visible=False, elem_id="after") as self.after_row:
                self.after = box("after-text")
                self.clear_after = gr.Button("Make all segments", size="sm", elem_id="after-clear")
        with gr.Column(visible=False, elem_id="task-image") as self._image:
            self.fields["image"] = gr.File(
                label="Picture to begin with",
                file_types=list(PICTURES),
                height=120,
                elem_id="start-image",
                type="filepath",
            )
            self.examples = ExamplePictures()
        with gr.Column(visible=False, elem_id="task-clip") as self._clip:
            self.fields["clip"] = gr.File(
                label="Clip to go on from", file_types=[".mp4"], height=120, elem_id="start-clip", type="filepath"
            )
        self.preview = box("start-preview")
        with gr.Column(visible=False, elem_id="task-frames") as self._frames:
            self.fields["cond_frames"] = gr.Slider(
                1,
                MOST_FRAMES,
                value=COND_FRAMES,
                step=LATENT_FRAMES,
                label="Conditioning frames",
                info="So many last frames are given to the model, 4n + 1; LongCat goes on from 13.",
                buttons=["reset"],
                elem_id="cond_frames",
            )

    def connect(self, page: gr.Blocks) -> None:
        """Connect the events that show a task's own fields."""
        choice = [self.fields["task"], self.fields["begins"]]
        groups = [self._long, self._image, self._clip, self._frames, self.preview]
        gr.on([page.load, *(field.change for field in choice)], _shown, choice, groups, **QUIET)


def _shown(task: Any, begins: Any) -> list[Any]:
    """Updates of the groups: long, image, clip, frames, and the preview of what the video begins with."""
    long, start = task == LONG, beginning({"task": task, "begins": begins})
    shown = [long, start == IMAGE, start == CLIP, long or start == CLIP, start != TEXT]
    return [gr.update(visible=one) for one in shown]
