"""Shows both videos in one player, with the latent preview and the progress of the video being made."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.jobs.job import VideoJob
from ui.look.parts import Drawn
from ui.views.figures import seconds
from ui.views.preview_strip import preview_strip

PHASES = {"text": "Reading the prompt", "encode": "Encoding the clip", "denoise": "Denoising", "decode": "Decoding"}
SCRIPTS = ("sync.js", "heat.js", "blind.js", "player.js", "stage.js")


class Stage(Drawn):
    """The player. Its value is `stage_view` of a job. The page keeps a video until a new one replaces it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("stage", SCRIPTS, **kwargs)


def stage_view(job: VideoJob) -> dict[str, Any]:
    """The data with which the page draws the job in its present state."""
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
        **progress(job),
        "videos": {arm: video_file(result.video) for arm, result in job.results.items()},
        "captions": {arm: caption(result) for arm, result in job.results.items()},
    }


def video_file(path: Any) -> dict[str, Any]:
    """A file of a job, which is served where it is; its path must be absolute."""
    return gr.FileData(path=str(path), mime_type="video/mp4", orig_name=path.name).model_dump()


def progress(job: VideoJob) -> dict[str, Any]:
    """Progress of the video being made: {"label", "step", "total"}. total is 0 in a phase without steps."""
    update = job.update
    if update is None:
        return {"label": "Starting", "step": 0, "total": 0}
    name = PHASES.get(update.phase, update.phase)
    if update.phase == "text" or update.total < 2:
        return {"label": name, "step": 0, "total": 0}
    label = f"{name}, step {update.step} of {update.total} · {seconds(update.seconds)}"
    return {"label": label, "step": update.step, "total": update.total}


def caption(result: Any) -> str:
    spent = f"{seconds(result.seconds['denoise'])} denoising"
    if result.bsa_active:
        return f"{result.density:.1%} of attention computed · {spent}"
    return f"all of attention computed · {spent}"
