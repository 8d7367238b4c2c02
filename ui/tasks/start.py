"""Fills the form for a picture or a clip that a video begins with, for segments that are kept, and for a long video to
refine.

The choice sets the size that LongCat makes of it, so that the form always shows the video that will be made.
"""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from pipeline import FromFrames, VideoRequest
from pipeline.media.clip import check_length
from pipeline.media.picture import inspect_picture
from pipeline.request.values import whole_number
from pipeline.runs.long_video import MOST_SEGMENTS
from ui.form.inputs import Fields
from ui.form.plan_panel import untrained
from ui.form.read import CLIP, IMAGE, beginning, page_sentence
from ui.form.refine import ClipChooser, look_at_clip
from ui.form.restore import fill, long_values
from ui.jobs.job import VideoJob
from ui.look.parts import QUIET, event_data, notice_html
from ui.site import Site
from ui.tasks.fields import TaskFields
from ui.tasks.form_job import after_text, find_after
from ui.tasks.long_job import LongJob
from ui.tasks.pictures import examples, look_at
from ui.tasks.windows_job import WindowsJob

PICTURE_CHOSEN = (
    "The video begins with this picture of {from_width} × {from_height} and is made in {width} × {height}."
)
CLIP_CHOSEN = "The video goes on from the last {count} of {frames} frames and is made in {width} × {height}."
CHOSEN = "start"  # kind of the notice about them, which goes with them
Changes = dict[Any, Any]  # component -> its new value

NO_VIDEO = "This video is gone; choose another one, or a file."
AFTER = "Segments kept: {kept}. To be made: {count}."
KEPT = "That long video is in the form. Change its prompts after line {kept}, if you like, and press Generate."
ANEW = "That long video is in the form. Change what you like, and press Generate to make all of it again."
DROPPED = "That long video is in the form, ending after segment {kept}. Press Generate."
FIRST, LAST = "The first frame", "The last of the given frames"
PREVIEW = '<figure class="start"><img src="{source}" alt=""><figcaption>{text}</figcaption></figure>'


class StartChooser:
    """Changes the form when a picture or clip is chosen, and when a run is gone on from."""

    def __init__(
        self, site: Site, task: TaskFields, fields: Fields, notice: gr.HTML, clips: ClipChooser
    ) -> None:
        """fields: all of the form. clips: chooses what is refined."""
        self._site, self._task, self._fields, self._notice, self._clips = site, task, fields, notice, clips

    def connect(self, stage: gr.HTML, history: gr.HTML) -> None:
        """Connect the events. stage, history: panels with buttons that go on from a video (`submit`); those of segments
        are the first one's (`edit`)."""
        task, fields = self._task, self._fields
        changed = [*fields.values(), self._notice]
        fields["image"].upload(self.take_image, fields["image"], changed, **QUIET)
        fields["clip"].upload(self.take_clip, [fields["clip"], fields["cond_frames"]], changed, **QUIET)
        task.examples.select(self.take_example, None, changed, **QUIET)
        stage.submit(self.go_on, fields["cond_frames"], changed, **QUIET)
        history.submit(self.go_on, fields["cond_frames"], changed, **QUIET)
        shape = [fields["double_frames"], fields["t_thresh"]]
        stage.edit(self.keep, shape, [*changed, self._clips.accordion], **QUIET)
        left = [*(fields[name].input for name in ("task", "begins")), fields["image"].clear, fields["clip"].clear]
        gr.on(left, self.leave, self._notice, self._notice, **QUIET)
        source = [fields[name] for name in ("task", "begins", "image", "clip")]
        gr.on([field.change for field in source], self.preview, source, task.preview, **QUIET)
        kept = [fields["after"], fields["segments"]]
        gr.on([field.change for field in kept], self.kept, kept, [task.after_row, task.after], **QUIET)
        task.clear_after.click(lambda: "", None, fields["after"], **QUIET)

    async def take_image(self, path: str | None) -> Changes:
        """Changes of the form for a picture. One that cannot be used is removed again, with the reason."""
        if not path:
            return {}
        try:
            picture = await self._site.clips.read(path, inspect_picture, path)
            request = self._site.checkpoint.image_to_video("-", picture)
        except ValueError as error:
            return {self._notice: notice_html(page_sentence(error), "error"), self._fields["image"]: None}
        said = PICTURE_CHOSEN.format(from_width=picture.width, from_height=picture.height, **_size(request))
        return self._chosen(request, {"image": str(path)}, said)

    async def take_example(self, event: gr.EventData) -> Changes:
        example = examples().get(_asked(event, "name"))
        if example is None:
            return {}
        changes = await self.take_image(str(example.path))
        return changes | {self._fields["prompt"]: example.prompt}

    async def take_clip(self, path: str | None, cond_frames: Any) -> Changes:
        """Changes of the form for a clip that is gone on from. One that cannot be used is removed again, with the
        reason."""
        if not path:
            return {}
        try:
            clip, prompt = await self._site.clips.read(path, look_at_clip, path)
            given = whole_number("cond_frames", cond_frames)
            request = self._site.checkpoint.continuation("-", clip, cond_frames=given)
            assert isinstance(request.start, FromFrames)
            check_length(request.start, clip.frames)
        except ValueError as error:
            return {self._notice: notice_html(page_sentence(error), "error"), self._fields["clip"]: None}
        said = CLIP_CHOSEN.format(count=request.start.cond_frames, frames=clip.frames, **_size(request))
        return self._chosen(request, {"clip": str(path)} | ({} if prompt is None else {"prompt": prompt}), said)

    def _chosen(self, request: VideoRequest, values: dict[str, Any], said: str) -> Changes:
        said = f"{said} {untrained(self._site.checkpoint, request.start)}".rstrip()
        return fill(self._fields, _size(request) | values) | {self._notice: notice_html(said, CHOSEN)}

    def leave(self, notice: str | None) -> Any:
        """What the notice becomes when a visitor chooses another task, or takes the picture or clip out."""
        return "" if f'data-kind="{CHOSEN}"' in (notice or "") else gr.skip()

    async def go_on(self, cond_frames: Any, event: gr.EventData, request: gr.Request) -> Changes:
        """Choose a finished video of the visitor's as the clip to go on from. The event names {"job", "arm"}."""
        job = self._site.worker.find(_asked(event, "job"), self._site.owner(request))
        made = job.results.get(_asked(event, "arm")) if isinstance(job, VideoJob) else None
        if made is None or not made.video.is_file():
            return {self._notice: notice_html(NO_VIDEO, "error")}
        changes = await self.take_clip(str(made.video), cond_frames)
        return fill(self._fields, {"task": CLIP, "refine": None, "windows": "", "after": ""}) | changes

    async def keep(
        self, double_frames: bool, t_thresh: float, event: gr.EventData, request: gr.Request
    ) -> Changes:
        """Put a long video into the form, of which the first segments are kept. The event names {"job", "kept": how
        many, "segments": of how many the next one has}; or {"job", "refine": true} to refine the whole. Of a
        refinement the first windows are kept."""
        owner = self._site.owner(request)
        job = self._site.worker.find(_asked(event, "job"), owner)
        kept, count = (_number(event, name) for name in ("kept", "segments"))
        opened = {self._clips.accordion: gr.update(open=True)}
        if isinstance(job, LongJob) and event_data(event).get("refine") is True:
            return await self._clips.take_shown(job.id, double_frames, t_thresh, request) | opened
        if isinstance(job, WindowsJob) and 0 <= kept < len(job.refinement):
            return self._clips.take_rest(job, kept) | opened
        if not isinstance(job, LongJob) or not 0 <= kept <= len(job.segments) or not 1 <= count <= MOST_SEGMENTS:
            return {self._notice: notice_html(NO_VIDEO, "error")}
        values = long_values(job.video, job.side_by_side)
        lines = values["prompt"].splitlines()[:count]
        values |= {"prompt": "\n".join(lines), "segments": count, "randomise": True}
        values |= {"after": after_text(job, kept) if kept else ""}
        said = DROPPED if kept == count else KEPT if kept else ANEW
        return fill(self._fields, values) | {self._notice: notice_html(said.format(kept=kept))}

    def kept(self, after: str, segments: Any, request: gr.Request) -> list[Any]:
        """Updates of the line that says which segments are kept."""
        if not after:
            return [gr.update(visible=False), ""]
        try:
            job, kept = find_after(self._site, after, self._site.owner(request))
        except ValueError as error:
            return [gr.update(visible=True), f"<p>{escape(page_sentence(error))}</p>"]
        more = segments - kept if isinstance(segments, int | float) and segments > kept else 0
        said = AFTER.format(kept=kept, count=int(more))
        return [gr.update(visible=True), f"<p>{escape(said)}</p>"]

    async def preview(self, task: Any, begins: Any, image: str | None, clip: str | None) -> str:
        """HTML with the picture from which the video goes on."""
        start = beginning({"task": task, "begins": begins})
        path = {IMAGE: image, CLIP: clip}.get(start)
        if not path:
            return ""
        try:
            source = await self._site.clips.read(path, look_at, path, start == CLIP)
        except ValueError as error:
            return f'<p class="notice" data-kind="error">{escape(page_sentence(error))}</p>'
        return PREVIEW.format(source=source, text=escape(LAST if start == CLIP else FIRST))


def _size(request: VideoRequest) -> dict[str, int]:
    return {"width": request.width, "height": request.height}


def _asked(event: gr.EventData, name: str) -> str:
    value = event_data(event).get(name)
    return value if isinstance(value, str) else ""


def _number(event: gr.EventData, name: str) -> int:
    value = event_data(event).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
