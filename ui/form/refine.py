"""Chooses a clip to refine, and fills the form for it.

While a clip is chosen, Generate refines it. The choice fills the form with LongCat's settings for this clip, most of
all its size, so that the form always shows the video that will be made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from pipeline import read_settings
from pipeline.media.clip import inspect_clip
from pipeline.request.refinement import Clip
from ui.form.inputs import Fields
from ui.form.read import page_sentence
from ui.form.restore import fill, general_values
from ui.jobs.job import VideoJob
from ui.look.parts import QUIET, notice_html
from ui.site import Site

ABOUT = (
    "LongCat makes 720p clips from 480p ones: the clip is enlarged, noised half-way and denoised again from there, "
    "with an adapter trained for that and sparse attention. While a clip is chosen here, Generate refines it."
)
CHOSEN = "{frames} frames of {from_size} will become {more} of {to_size}, in {run} of {steps} steps. Press Generate."
CLEARED = "No clip is chosen any more. The form has the settings of {name} for new videos."
NO_CLIP = "There is no clip on the stage; make a video first, or choose a file."


def refine_fields() -> Fields:
    gr.Markdown(ABOUT, elem_classes="hint")
    return {
        "refine": gr.File(
            label="Clip to refine", file_types=[".mp4"], height=140, elem_id="refine-clip", type="filepath"
        ),
        "double_frames": gr.Checkbox(
            True,
            label="Twice as many frames",
            info="In-between frames are added before refining, and the video plays twice as many a second.",
            elem_id="double_frames",
        ),
        "t_thresh": gr.Slider(
            0.05,
            1,
            value=0.5,
            step=0.05,
            label="Noise level",
            info="How much of the clip is replaced by noise first. More lets more change, and takes more steps.",
            buttons=["reset"],
            elem_id="t_thresh",
        ),
    }


class ClipChooser:
    """Changes the form when a clip is chosen, replaced or cleared."""

    def __init__(self, site: Site, fields: Fields, notice: gr.HTML, shown: gr.State, accordion: gr.Accordion) -> None:
        """accordion: contains the fields, and opens when a clip is chosen elsewhere on the page."""
        self._site, self._fields, self._notice, self._shown = site, fields, notice, shown
        self._accordion = accordion
        self._from_stage = gr.Button("Use the clip on the stage", size="sm", elem_id="refine-shown")

    def on_press(self, button: gr.Button, shown: gr.State) -> None:
        """Make a button refine the chosen clip, or else the clip on the stage."""
        fields = self._fields
        button.click(
            self._press,
            [fields["refine"], shown, fields["double_frames"], fields["t_thresh"]],
            [*fields.values(), self._notice, self._accordion],
            **QUIET,
        )

    def connect(self) -> None:
        """Connect the events. Call it when all fields exist."""
        fields, shape = self._fields, [self._fields["double_frames"], self._fields["t_thresh"]]
        changed = [*fields.values(), self._notice]
        fields["refine"].upload(self.take, [fields["refine"], *shape], changed, **QUIET)
        fields["refine"].clear(self.clear, None, changed, **QUIET)
        self._from_stage.click(self.take_shown, [self._shown, *shape], changed, **QUIET)

    async def take(self, path: str | None, double_frames: bool, t_thresh: float) -> dict[Any, Any]:
        """Changes of the page for a chosen clip. A clip that cannot be refined is removed again, with the reason."""
        refine = self._fields["refine"]
        if not path:
            return self.clear()
        try:
            clip, prompt = await self._site.clips.read(path, look_at_clip, path)
            request = self._site.checkpoint.refinement("-", clip, double_frames=double_frames, t_thresh=t_thresh)
        except ValueError as error:
            return {self._notice: notice_html(page_sentence(error), "error"), refine: None}
        values = general_values(request, side_by_side=True) | {"refine": str(path)}
        if prompt is not None:
            values["prompt"] = prompt
        said = CHOSEN.format(
            frames=clip.frames,
            from_size=f"{clip.width} × {clip.height}",
            more=request.num_frames,
            to_size=f"{request.width} × {request.height}",
            run=self._site.checkpoint.steps_run(request),
            steps=request.steps,
        )
        return fill(self._fields, values) | {self._notice: notice_html(said)}

    async def take_shown(
        self, job_id: str, double_frames: bool, t_thresh: float, request: gr.Request
    ) -> dict[Any, Any]:
        """Choose the finished clip on the stage; of a pair, the dense one."""
        path = self.shown_clip(job_id, self._site.owner(request))
        if path is None:
            return {self._notice: notice_html(NO_CLIP, "error")}
        return await self.take(str(path), double_frames, t_thresh)

    async def _press(
        self, path: str | None, job_id: str, double_frames: bool, t_thresh: float, request: gr.Request
    ) -> dict[Any, Any]:
        chosen = (
            await self.take(path, double_frames, t_thresh)
            if path
            else await self.take_shown(job_id, double_frames, t_thresh, request)
        )
        return chosen | {self._accordion: gr.update(open=True)}

    def shown_clip(self, job_id: str, owner: str) -> Path | None:
        job = self._site.worker.find(job_id, owner) if job_id else None
        made = [job.results[arm].video for arm in job.arms if arm in job.results] if isinstance(job, VideoJob) else []
        return next((video for video in made if video.is_file()), None)

    def clear(self) -> dict[Any, Any]:
        """Return to new videos, with the checkpoint's own settings."""
        values = general_values(self._site.checkpoint.request("-"), side_by_side=True)
        said = CLEARED.format(name=self._site.checkpoint.name)
        return fill(self._fields, values) | {self._notice: notice_html(said)}


def look_at_clip(path: str) -> tuple[Clip, str | None]:
    """The clip and the prompt stored in it. For a clip of another program it is None, and the form's prompt is used."""
    clip = inspect_clip(path)
    try:
        return clip, read_settings(path).request.prompt
    except ValueError:
        return clip, None
