"""Shows both videos in one player, with the latent preview, the progress of the video being made, and the figures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import gradio as gr

from pipeline import VideoRequest
from ui.form.preset_rules import NO_REFINEMENT
from ui.jobs.eta import duration_text
from ui.jobs.job import ARMS, VideoJob
from ui.look.figures import figures, seconds
from ui.look.parts import Drawn
from ui.site import Site
from ui.tasks.timeline import timeline
from ui.views.inspector import Keys, server_functions
from ui.views.preview_strip import preview_strip

PHASES = {"text": "Reading the prompt", "encode": "Encoding the clip", "denoise": "Denoising", "decode": "Decoding"}
PLACES = ("First run", "Second run")
UNLIKE = (
    "one has {first} {what} and the other {second}, so they cannot play together; choose two that are alike in that"
)
LEFT = "about {time} left"
SCRIPTS = (
    *("sync.js", "heat.js", "blind.js", "blocks.js", "overlay.js", "lens.js", "player.js", "timeline.js"),
    "stage.js",
)
CANNOT_REFINE = "Refining needs {what}, which is missing here."
NAME_LENGTH = 60  # letters of the prompt in the name of a download


class Stage(Drawn):
    """The player. Its value is `StageViews.of` a job. The page keeps a video until a new one replaces it.

    Events: submit goes on from a video and brings {"job", "arm"}; edit brings what the next long video keeps of this
    one, {"job", "kept", "segments"}, or {"job", "refine": true} to refine the whole.
    """

    def __init__(self, keys: Keys, **kwargs: Any) -> None:
        super().__init__("stage", SCRIPTS, None, server_functions(keys, pictures=False), **kwargs)


@dataclass(frozen=True)
class StageViews:
    """Makes the stage's values: what a job is, and what the site adds to it."""

    site: Site
    keys: Keys

    def of(self, job: VideoJob) -> dict[str, Any]:
        """`stage_view` of the job with the time that is left, and a key to its attention record when it is over."""
        left = None if job.over else self.site.worker.queue.seconds_left(job)
        view = stage_view(job, left)
        if view["timeline"] and "refine" not in self.site.checkpoint.loras:
            view["timeline"]["lacks"] = CANNOT_REFINE.format(what=NO_REFINEMENT)
        return view | {
            "inside": self.keys.issue(job).get("key", "") if job.over else "",
            "about": self.site.shown_first.about if job is self.site.shown_first.job else "",
        }


def stage_view(job: VideoJob, left: float | None = None) -> dict[str, Any]:
    """The data with which the page draws the job in its present state. left: seconds until it is done, if known."""
    request = job.request
    return {
        "job": job.id,
        "arms": list(job.arms),
        "arm": job.arm if job.state == "running" else "",
        "over": job.over,
        "aspect": f"{request.width} / {request.height}",
        "fps": request.fps * max(1, (request.num_frames - 1) // 4) / request.num_frames,
        "clip": {"fps": request.fps, "frames": request.num_frames},
        "preview": preview_strip(job.preview) if job.state == "running" else None,
        **progress(job, left),
        "videos": {arm: video_file(result.video, download_name(result.request)) for arm, result in job.results.items()},
        "captions": {arm: caption(result) for arm, result in job.results.items()},
        "figures": [] if job.comparison is None else figures(job.comparison),
        "timeline": timeline(job),
    }


def pair_view(first: VideoJob, second: VideoJob) -> dict[str, Any]:
    """The data with which the page draws one video each of two runs as a pair: the sparse one where there is one.

    Raises ValueError if they cannot play together.
    """
    one, two = (job.results.get("sparse") or job.results["dense"] for job in (first, second))
    for what, name in (("frames", "num_frames"), ("frames a second", "fps")):
        values = [getattr(result.request, name) for result in (one, two)]
        if values[0] != values[1]:
            raise ValueError(UNLIKE.format(first=values[0], second=values[1], what=what))
    names = differences(one.request, two.request)
    view = stage_view(second) | {"job": f"{first.id} {second.id}", "arms": list(ARMS), "arm": "", "over": True}
    results = dict(zip(ARMS, (one, two), strict=True))
    return view | {
        "names": names,
        "videos": {arm: video_file(result.video, download_name(result.request)) for arm, result in results.items()},
        "captions": {arm: caption(result) for arm, result in results.items()},
        "figures": [],
        "preview": None,
        "timeline": None,
    }


def differences(one: VideoRequest, two: VideoRequest) -> list[str]:
    """A name for each of two videos: what the other has differently, or their places if nothing."""
    texts = [_traits(request) for request in (one, two)]
    unlike = [name for name in texts[0] if texts[0][name] != texts[1][name]]
    return [", ".join(text[name] for name in unlike) or place for text, place in zip(texts, PLACES, strict=True)]


def _traits(request: VideoRequest) -> dict[str, str]:
    rule = "dense"
    if request.bsa is not None:
        given = {"sparsity": request.bsa.sparsity, "CDF threshold": request.bsa.cdf_threshold}
        rule = ", ".join(f"{name} {value:g}" for name, value in given.items() if value is not None)
    return {
        "prompt": request.prompt[:NAME_LENGTH],
        "attention": rule,
        "seed": f"seed {request.seed}",
        "steps": f"{request.steps} steps",
        "size": f"{request.width} × {request.height}",
    }


def video_file(path: Any, name: str = "") -> dict[str, Any]:
    """A file of a job, which is served where it is; its path must be absolute. name: what a download is called."""
    return gr.FileData(path=str(path), mime_type="video/mp4", orig_name=name or path.name).model_dump()


def download_name(request: VideoRequest) -> str:
    """A file name that says what the video is: a-red-ball-bounces-seed7-sparsity0.75.mp4, or -dense.mp4."""
    words = re.sub(r"[^\w]+", "-", request.prompt.lower()).strip("-_")
    words = words[:NAME_LENGTH].rpartition("-")[0] or words[:NAME_LENGTH] if len(words) > NAME_LENGTH else words
    rule = "dense"
    if request.bsa is not None:
        given = {"sparsity": request.bsa.sparsity, "cdf": request.bsa.cdf_threshold}
        rule = "-".join(f"{name}{value:g}" for name, value in given.items() if value is not None)
    return f"{words or 'video'}-seed{request.seed}-{rule}.mp4"


def progress(job: VideoJob, left: float | None = None) -> dict[str, Any]:
    """Progress of the video being made: {"label", "step", "total"}. total is 0 in a phase without steps."""
    update, place = job.update, f"{job.place} · " if job.place else ""
    more = "" if left is None else f" · {LEFT.format(time=duration_text(left))}"
    if update is None:
        return {"label": f"{place}Starting{more}", "step": 0, "total": 0}
    name = place + PHASES.get(update.phase, update.phase)
    if update.phase == "text" or update.total < 2:
        return {"label": f"{name}{more}", "step": 0, "total": 0}
    label = f"{name}, step {update.step} of {update.total} · {seconds(update.seconds)}{more}"
    return {"label": label, "step": update.step, "total": update.total}


def caption(result: Any) -> str:
    spent = f"{seconds(result.seconds['denoise'])} denoising"
    if result.bsa_active:
        return f"{result.density:.1%} of attention computed · {spent}"
    return f"all of attention computed · {spent}"
