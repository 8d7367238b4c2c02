"""The segments of a long video, as data for the page: the prompt and the state of each."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.jobs.job import VideoJob
from ui.tasks.long_job import LongJob, picture_of

DONE, BEING_MADE, WAITING, MISSING = "", "Being made", "Waiting", "Not made"
TIME = "{start:.1f} to {end:.1f} s"


def timeline(job: VideoJob) -> dict[str, Any] | None:
    """{"over", "segments"} of a long video; None for any other.

    A segment is {"number": from 1, "prompt", "state", "kept": whether an earlier run made it, "time": where it plays,
    "frame": its first, "arms": {arm: {"picture", "clip"}}}, the files of those that are finished.
    """
    if not isinstance(job, LongJob):
        return None
    return {"over": job.over, "segments": [_segment(job, number) for number in range(len(job.video))]}


def _segment(job: LongJob, number: int) -> dict[str, Any]:
    video, fps = job.video, job.video.request.fps
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


def _files(job: LongJob, number: int) -> dict[str, Any]:
    found = {}
    for arm, result in job.segments[number].results.items():
        picture = picture_of(result.video)
        files = {"picture": (picture, "image/jpeg"), "clip": (result.video, "video/mp4")}
        found[arm] = {
            name: gr.FileData(path=str(path), mime_type=kind).model_dump() for name, (path, kind) in files.items()
        }
    return found
