"""The segments of a long video, or the windows in which one is refined, as data for the page: the prompt and the state
of each."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.jobs.job import VideoJob
from ui.tasks.chain_job import ChainJob, picture_of

DONE, BEING_MADE, WAITING, MISSING = "", "Being made", "Waiting", "Not made"
TIME = "{start:.1f} to {end:.1f} s"


def timeline(job: VideoJob) -> dict[str, Any] | None:
    """{"over", "part": "segment" or "window", "segments"} of a long video or a refined one; None for any other.

    A segment is {"number": from 1, "prompt", "state", "kept": whether an earlier run made it, "time": where it plays,
    "frame": its first, "arms": {arm: {"picture", "clip"}}}, the files of those that are finished.
    """
    if not isinstance(job, ChainJob):
        return None
    segments = [_segment(job, number) for number in range(len(job.plan))]
    return {"over": job.over, "part": job.plan.name, "segments": segments}


def _segment(job: ChainJob, number: int) -> dict[str, Any]:
    video, fps = job.plan, job.plan.request.fps
    first, end = video.frames_of(number), video.frames_of(number + 1)
    files, state = {}, WAITING
    if number < len(job.segments):
        files, state = _files(job, number), DONE
    elif job.over:
        state = MISSING
    elif job.state == "running" and number == job.number:
        state = BEING_MADE
    return {
        "number": number + 1,
        "prompt": video.prompts[number],
        "state": state,
        "kept": number < job.kept,
        "time": TIME.format(start=first / fps, end=end / fps),
        "frame": first,
        "arms": files,
    }


def _files(job: ChainJob, number: int) -> dict[str, Any]:
    found = {}
    for arm, result in job.segments[number].results.items():
        picture = picture_of(result.video)
        files = {"picture": (picture, "image/jpeg"), "clip": (result.video, "video/mp4")}
        found[arm] = {
            name: gr.FileData(path=str(path), mime_type=kind).model_dump() for name, (path, kind) in files.items()
        }
    return found
