"""The named endpoints that begin from a picture or a clip, and those that make and refine long videos."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline import VideoRequest
from pipeline.media.clip import inspect_clip
from pipeline.request.values import whole_number
from pipeline.runs.long_video import COND_FRAMES, LongVideo, prompts_for
from ui.api.calls import Calls
from ui.api.parameters import (
    ATTENTION,
    ATTENTION_HELP,
    JOB_ID,
    asked_attention,
    asked_request,
    attention_parameters,
    parameters,
    refinement_parameters,
)
from ui.api.publish import REQUIRED, Page, Upload, publish, uploaded
from ui.api.results import long_report
from ui.form.plan_panel import untrained
from ui.form.read import new_seed
from ui.jobs.job import VideoJob
from ui.site import Site
from ui.tasks.chain_job import ChainJob
from ui.tasks.form_job import long_job, segments_of, whole_of, windows_job
from ui.tasks.long_job import LongJob
from ui.tasks.windows_job import WindowsJob
from ui.views.stage import video_file

NO_VIDEO = "job_id {name!r} has no finished video to go on from"
TWO_STARTS = "image and clip are two ways to begin a long video; leave one out"
NO_LONG = "job_id {name!r} is no long video with finished segments; use that of a call to /long"
NO_WHOLE = "job_id {name!r} is no long video; use that of a call to /long, or to /refine_long"
NO_WINDOWS = "job_id {name!r} is no refinement with finished windows; use that of a call to /refine_long"
NO_PROMPTS = "prompts {prompts!r} is no list of texts; give a prompt for each segment, such as ['a red ball bounces']"
NOT_KEPT = "keep {keep} is outside 1 to {count}, the finished segments of job_id {name!r}; leave after out to keep none"


def add_tasks(page: Page, site: Site, calls: Calls) -> None:
    """Add the endpoints to the page, which is still being built."""

    async def image_to_video(image: Any, attention: str, job_id: str | None, **values: Any) -> tuple[Any, ...]:
        """Make a video that begins with a picture (PNG, JPEG, WebP, BMP, TIFF), as gradio_client's handle_file uploads
        it. Returns the video (MP4, H.264) and a report like /generate."""
        path = uploaded("image", image)
        request = await site.clips.read(path, asked_request, site, values | {"image": path}, attention)
        return await _made(site, calls, request, job_id)

    async def continue_(clip: Any, attention: str, job_id: str | None, **values: Any) -> tuple[Any, ...]:
        """Go on from the last frames of a clip: an MP4 file, as gradio_client's handle_file uploads it, or a finished
        video of yours. The video begins with these frames. Returns the video (MP4, H.264) and a report like
        /generate."""
        path = _clip(calls, clip)
        request = await site.clips.read(path, asked_request, site, values | {"clip": path}, attention)
        return await _made(site, calls, request, job_id)

    async def long(
        prompts: Any, segments: Any, after: Any, keep: Any, attention: str, job_id: str | None, **values: Any
    ) -> tuple[Any, ...]:
        """Make a long video of segments, of which each goes on from the last frames of the one before. The progress
        tells segment and step; /result has the finished segments meanwhile, and after a stop or a failure, too. Returns
        the whole (MP4, H.264) and a report: that of /generate for the whole, and "segments" with the file of each."""
        request, video = await _long_request(site, calls, prompts, segments, attention, values)
        cond_frames = whole_number("cond_frames", values["cond_frames"])
        plan = LongVideo(request, video, cond_frames, enhance_hf=not request.use_distill)
        job = long_job(site, plan, False, _before(calls, after, keep))
        name = await calls.run(job, job_id)
        return video_file(job.results[job.arms[0]].video), _said(site, job.video.request, long_report(job), name)

    async def refine_long(
        video: str, prompts: Any, t_thresh: float, double_frames: bool, after: Any, attention: str, **values: Any
    ) -> tuple[Any, ...]:
        """Make a larger, finer version of a long video from /long, in windows that each reach over one segment and
        begin with the refined end of the one before. Needs the checkpoint's refinement adapter. The progress tells
        window and step; /result has the finished windows meanwhile, and after a stop or a failure, too. Returns the
        whole (MP4, H.264) and a report: that of /refine for the whole, and "windows" with the file of each."""
        source = calls.find(video)
        if not isinstance(source, ChainJob):
            raise ValueError(NO_WHOLE.format(name=str(video)[:80]))
        job_id, seed, bsa = values.pop("job_id"), values.pop("seed"), asked_attention(site, values, attention)
        before = _windows_before(calls, after)
        if seed is None:
            seed = new_seed() if before is None else before.refinement.request.seed
        (plan, _), whole = segments_of(source), whole_of(source)
        made = await site.clips.read(whole, inspect_clip, whole)
        request = site.checkpoint.refinement(
            plan.prompts[0],
            replace(made, frames=plan.request.num_frames),
            t_thresh=t_thresh,
            double_frames=double_frames,
            seed=seed,
            bsa=bsa,
        )
        request = site.estimates.choose(request) if attention == "auto" else request
        given = () if prompts is None else tuple(map(site.checkpoint.in_english, _prompts(prompts, len(plan))))
        after_windows = None if before is None else (before, len(before.segments))
        job = windows_job(site, source, request, given, False, after_windows)
        name = await calls.run(job, job_id)
        return video_file(job.results[job.arms[0]].video), long_report(job) | {"job_id": name}

    continue_.__name__ = "continue"
    shared, attention = parameters(site.checkpoint), ("attention", ATTENTION, "sparse", ATTENTION_HELP)
    sized = [_by_shape(entry) for entry in shared]
    frames = ("cond_frames", int, COND_FRAMES, "Last frames that are given to the model, 4n + 1; LongCat uses 13")
    clip_help = "MP4 file to go on from, by handle_file, or the job_id of a finished video (of a pair the dense one)"
    made = [("video file", str), ("report", dict)]
    image = ("image", Upload, REQUIRED, "Picture that the video begins with, by handle_file")
    publish(page, image_to_video, [image, *sized, attention, JOB_ID], made)
    publish(page, continue_, [("clip", Upload | str, REQUIRED, clip_help), *sized, frames, attention, JOB_ID], made)
    story = [
        ("prompts", list[str], REQUIRED, "A prompt for each segment; the last one holds for the rest"),
        ("segments", int | None, None, "Number of segments; null for as many as there are prompts"),
        ("image", Upload | None, None, "Picture that the first segment begins with, by handle_file, or null"),
        ("clip", Upload | str | None, None, "Clip that the first segment goes on from, as in /continue, or null"),
        frames,
        ("after", str | None, None, "job_id of an earlier long video whose first segments are kept, or null"),
        ("keep", int | None, None, "How many of them; null for all that are finished"),
    ]
    publish(page, long, [*story, *sized[1:], attention, JOB_ID], made)
    whole = [
        ("video", str, REQUIRED, "job_id of the long video, of a pair the dense one; or of an earlier refinement"),
        ("prompts", list[str] | None, None, "A prompt for each window; null for those of the segments"),
        *refinement_parameters(),
        ("after", str | None, None, "job_id of an earlier refinement whose finished windows are kept, or null"),
    ]
    rule = attention_parameters(site.checkpoint.sparse)
    publish(page, refine_long, [*whole, *rule, attention, JOB_ID], made)


async def _made(site: Site, calls: Calls, request: VideoRequest, job_id: str | None) -> tuple[Any, ...]:
    job = VideoJob(request, side_by_side=False)
    name = await calls.run(job, job_id)
    return video_file(job.results[job.arms[0]].video), _said(site, request, job.report(), name)


def _said(site: Site, request: VideoRequest, report: dict[str, Any], name: str) -> dict[str, Any]:
    """The report with the job's name, and what is to be said of a checkpoint that was not trained for this."""
    note = untrained(site.checkpoint, request.start, long="segments" in report)
    return report | {"job_id": name} | ({"note": note} if note else {})


async def _long_request(
    site: Site, calls: Calls, prompts: Any, segments: Any, attention: str, values: dict[str, Any]
) -> tuple[VideoRequest, tuple[str, ...]]:
    """The request of the first segment, and the prompts of all."""
    all_prompts = _prompts(prompts, None if segments is None else whole_number("segments", segments))
    image, clip = values.pop("image"), values.pop("clip")
    if image is not None and clip is not None:
        raise ValueError(TWO_STARTS)
    asked = values | {"prompt": all_prompts[0]}
    if image is not None:
        asked["image"] = uploaded("image", image)
    elif clip is not None:
        asked["clip"] = _clip(calls, clip)
    else:
        size = {name: site.checkpoint.defaults[name] for name in ("width", "height") if asked[name] is None}
        asked |= size
    path = asked.get("image") or asked.get("clip")
    request = await site.clips.read(path, asked_request, site, asked, attention)
    return request, tuple(map(site.checkpoint.in_english, all_prompts))


def _prompts(prompts: Any, count: int | None) -> tuple[str, ...]:
    """One for each of so many segments or windows; None for as many as there are. Raises ValueError for no list."""
    if not isinstance(prompts, list) or not prompts:
        raise ValueError(NO_PROMPTS.format(prompts=prompts))
    return prompts_for(prompts, count)


def _by_shape(entry: tuple[str, Any, Any, str]) -> tuple[str, Any, Any, str]:
    """A parameter, of a size by default what LongCat makes of the picture's or clip's shape."""
    name, kind, default, about = entry
    if name not in ("width", "height"):
        return name, kind, default, about
    return name, int | None, None, f"{about}; null for LongCat's of the shape of what it begins with"


def _clip(calls: Calls, clip: Any) -> str:
    """The path of an uploaded clip, or of a finished video that is named by its job_id."""
    if not isinstance(clip, str):
        return uploaded("clip", clip)
    return str(calls.finished(clip, NO_VIDEO).video)


def _windows_before(calls: Calls, after: Any) -> WindowsJob | None:
    if after is None:
        return None
    job = calls.find(after)
    if not isinstance(job, WindowsJob) or not job.segments:
        raise ValueError(NO_WINDOWS.format(name=str(after)[:80]))
    return job


def _before(calls: Calls, after: Any, keep: Any) -> tuple[LongJob, int] | None:
    if after is None:
        return None
    job = calls.find(after)
    if not isinstance(job, LongJob) or not job.segments:
        raise ValueError(NO_LONG.format(name=str(after)[:80]))
    count = len(job.segments)
    kept = count if keep is None else whole_number("keep", keep)
    if not 0 < kept <= count:
        raise ValueError(NOT_KEPT.format(keep=kept, count=count, name=str(after)[:80]))
    return job, kept
