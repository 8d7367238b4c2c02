"""The answers about a job, ended or not."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.jobs.job import Job, VideoJob
from ui.jobs.sweep_job import SweepJob
from ui.site import Site
from ui.tasks.chain_job import ChainJob
from ui.views.stage import video_file
from ui.views.sweep_view import state_of


def job_result(site: Site, name: str, job: Job) -> dict[str, Any]:
    """{"job_id", "state", "message": why it waits or failed, "videos": {arm or file: file}, "report": as the call
    returns it, None before, "table": of a sweep, "segments" or "windows": the finished ones of a long video or of its
    refinement}."""
    state = state_of(job)
    message = site.worker.waiting_text(job) if state == "waiting" else job.error
    answer: dict[str, Any] = {"job_id": name, "state": state, "message": message, "videos": {}, "report": None}
    if isinstance(job, VideoJob):
        answer["videos"] = {arm: video_file(result.video) for arm, result in job.results.items()}
        if job.over and set(job.results) == set(job.arms) and bool(job.comparison) == job.side_by_side:
            answer["report"] = job.report() | {"job_id": name}
        if isinstance(job, ChainJob):
            answer |= _parts(job)
            answer["report"] = answer["report"] and long_report(job) | {"job_id": name}
    elif isinstance(job, SweepJob):
        answer["videos"] = {file: video_file(result.video) for file, result in job.results.items()}
        if job.over and job.results:
            answer |= {"report": sweep_report(job), "table": table_file(job)}
    return answer


def long_report(job: ChainJob) -> dict[str, Any]:
    """The report of a long video, or of its refinement, with its segments or windows as files."""
    return job.report() | _parts(job)


def _parts(job: ChainJob) -> dict[str, list[dict[str, Any]]]:
    """{"segments" or "windows": the finished ones}, each {"prompt", "seed", "kept": whether an earlier job made it,
    "videos": {arm: file without the frames that it shares with the one before}, "seconds": {arm: see `VideoResult`}}.
    """
    parts = [
        {
            "prompt": job.plan.prompts[number],
            "seed": job.plan.seed(number),
            "kept": number < job.kept,
            "videos": {arm: video_file(result.video) for arm, result in segment.results.items()},
            "seconds": {arm: result.seconds for arm, result in segment.results.items()},
        }
        for number, segment in enumerate(job.segments)
    ]
    return {f"{job.plan.name}s": parts}


def sweep_report(job: SweepJob) -> dict[str, Any]:
    """The report with its videos as files; None for those that were not made."""
    report, files = job.report(), {file: video_file(result.video) for file, result in job.results.items()}
    for video in report["dense"] + report["cells"]:
        video["video"] = files.get(video["video"])
    return report


def table_file(job: SweepJob) -> dict[str, Any]:
    table = job.folder / "sweep.csv"
    return gr.FileData(path=str(table), orig_name=table.name).model_dump()
