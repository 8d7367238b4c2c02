"""Chooses a clip to refine, and fills the form for it.

While a clip is chosen, Generate refines it. The choice fills the form with LongCat's settings for this clip, most of
all its size, so that the form always shows the video that will be made. A long video of one's own is chosen as a whole:
it is refined in windows, which the form then describes.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipeline import read_settings
from pipeline.media.clip import inspect_clip
from pipeline.request.refinement import Clip
from pipeline.runs.long_refinement import LongRefinement
from pipeline.runs.long_video import LongVideo
from ui.form.inputs import Fields
from ui.form.read import Windows, page_sentence, windows_of
from ui.form.restore import fill, general_values, long_values, windows_values
from ui.jobs.job import VideoJob
from ui.look.parts import QUIET, box, notice_html
from ui.site import Site

ABOUT = (
    "LongCat makes 720p clips from 480p ones: the clip is enlarged, noised half-way and denoised again from there, "
    "with an adapter trained for that and sparse attention. While a clip is chosen here, Generate refines it."
)
CHOSEN = "{frames} frames of {from_size} will become {more} of {to_size}, in {run} of {steps} steps. Press Generate."
WHOLE_CHOSEN = (
    "{frames} frames of {from_size} in {count} segments will become {more} of {to_size}, each window in {run} of "
    "{steps} steps. Press Generate."
)
REST_CHOSEN = "That refinement is in the form, and its finished windows are kept. Press Generate to make the rest."
WINDOWS = "The long video is refined in windows, each with a line of the prompt. Windows: {count}. Kept: {kept}."
IS_REFINED = "That long video is refined already; choose the one that it was made from."
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
        "windows": gr.Textbox("", visible=False),
    }


class ClipChooser:
    """Changes the form when a clip is chosen, replaced or cleared."""

    def __init__(self, site: Site, fields: Fields, notice: gr.HTML, shown: gr.State, accordion: gr.Accordion) -> None:
        """accordion: contains the fields, and is to open when a clip is chosen elsewhere on the page."""
        self._site, self._fields, self._notice, self._shown = site, fields, notice, shown
        self.accordion = accordion
        self._windows = box("refine-windows")
        self._from_stage = gr.Button("Use the clip on the stage", size="sm", elem_id="refine-shown")

    def on_press(self, button: gr.Button, shown: gr.State) -> None:
        """Make a button refine the chosen clip, or else the clip on the stage."""
        fields = self._fields
        button.click(
            self._press,
            [fields["refine"], shown, fields["double_frames"], fields["t_thresh"]],
            [*fields.values(), self._notice, self.accordion],
            **QUIET,
        )

    def connect(self) -> None:
        """Connect the events. Call it when all fields exist."""
        fields, shape = self._fields, [self._fields["double_frames"], self._fields["t_thresh"]]
        changed = [*fields.values(), self._notice]
        fields["refine"].upload(self.take, [fields["refine"], *shape], changed, **QUIET)
        fields["refine"].clear(self.clear, None, changed, **QUIET)
        self._from_stage.click(self.take_shown, [self._shown, *shape], changed, **QUIET)
        fields["windows"].change(_windows_text, [fields["windows"], fields["refine"]], self._windows, **QUIET)

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
        values = general_values(request, side_by_side=True) | {"refine": str(path), "windows": ""}
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
        """Choose the finished clip on the stage; of a pair, the dense one. A long video is chosen as a whole."""
        owner = self._site.owner(request)
        path = self.shown_clip(job_id, owner)
        if path is None:
            return {self._notice: notice_html(NO_CLIP, "error")}
        job = self._site.worker.find(job_id, owner)
        if isinstance(job, VideoJob) and job.long is not None:
            return self.take_whole(job, path, double_frames, t_thresh)
        return await self.take(str(path), double_frames, t_thresh)

    def take_whole(self, job: VideoJob, path: Path, double_frames: bool, t_thresh: float) -> dict[Any, Any]:
        """Changes of the page for a finished long video, which is refined in windows. path: its file."""
        video = job.long
        if not isinstance(video, LongVideo):
            return {self._notice: notice_html(IS_REFINED, "error")}
        made = video.request
        segment = Clip(path, made.num_frames, made.height, made.width, made.fps)
        try:
            first = self._site.checkpoint.refinement(
                "-", segment, double_frames=double_frames, t_thresh=t_thresh, seed=made.seed
            )
        except ValueError as error:
            return {self._notice: notice_html(page_sentence(error), "error")}
        values = general_values(first, side_by_side=True) | {"prompt": long_values(video)["prompt"]}
        values["windows"] = str(Windows(job.id, 0, len(video), made.num_frames, video.carried))
        said = WHOLE_CHOSEN.format(
            count=len(video),
            frames=video.frames,
            from_size=f"{made.width} × {made.height}",
            more=video.frames * first.num_frames // made.num_frames,
            to_size=f"{first.width} × {first.height}",
            run=self._site.checkpoint.steps_run(first),
            steps=first.steps,
        )
        return fill(self._fields, values) | {self._notice: notice_html(said)}

    def take_rest(self, job: VideoJob, kept: int) -> dict[Any, Any]:
        """Changes of the page for a refinement of a long video that was not finished: the rest of it is made."""
        assert isinstance(job.long, LongRefinement)
        values = windows_values(job.id, job.long, job.side_by_side, kept)
        return fill(self._fields, values) | {self._notice: notice_html(REST_CHOSEN)}

    async def _press(
        self, path: str | None, job_id: str, double_frames: bool, t_thresh: float, request: gr.Request
    ) -> dict[Any, Any]:
        chosen = (
            await self.take(path, double_frames, t_thresh)
            if path
            else await self.take_shown(job_id, double_frames, t_thresh, request)
        )
        return chosen | {self.accordion: gr.update(open=True)}

    def shown_clip(self, job_id: str, owner: str) -> Path | None:
        job = self._site.worker.find(job_id, owner) if job_id else None
        made = [job.results[arm].video for arm in job.arms if arm in job.results] if isinstance(job, VideoJob) else []
        return next((video for video in made if video.is_file()), None)

    def clear(self) -> dict[Any, Any]:
        """Return to new videos, with the checkpoint's own settings."""
        values = general_values(self._site.checkpoint.request("-"), side_by_side=True)
        said = CLEARED.format(name=self._site.checkpoint.name)
        return fill(self._fields, values) | {self._notice: notice_html(said)}


def _windows_text(text: str, clip: str | None) -> str:
    """HTML that says in how many windows a long video is refined; "" for anything else."""
    try:
        windows = windows_of({"windows": text, "refine": clip})
    except ValueError as error:
        return f"<p>{escape(page_sentence(error))}</p>"
    return "" if windows is None else f"<p>{escape(WINDOWS.format(count=windows.count, kept=windows.kept))}</p>"


def look_at_clip(path: str) -> tuple[Clip, str | None]:
    """The clip and the prompt stored in it. For a clip of another program it is None, and the form's prompt is used."""
    clip = inspect_clip(path)
    try:
        return clip, read_settings(path).request.prompt
    except ValueError:
        return clip, None
