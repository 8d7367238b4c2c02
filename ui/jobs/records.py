"""Turns each kind of ended job into a record, and a record into a job again."""

from __future__ import annotations

import filecmp
import logging
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pipeline import Axis, Floor, Search, Sweep, SweepVideo, VideoRequest, VideoResult
from pipeline.request.result import read_comparison
from pipeline.request.timing import read_speed, read_timing
from ui.jobs.job import ARMS, Job, VideoJob, plain
from ui.jobs.sweep_job import SweepJob
from ui.storage.files import job_folder, poster
from ui.storage.store import INTERRUPTED, LIVE, Record, Store

log = logging.getLogger("ui")

GONE = "its video is no longer there"
MEASURES = ("psnr", "ssim", "recall")  # of a cell of a sweep, compared with its dense reference

Restore = Callable[[Record, Path], Job]
# kind of job -> function that restores it from its record and folder; a kind without an entry is not restored
RESTORE: dict[str, Restore] = {}


def keep_record_of(store: Store, worker: Any) -> None:
    """Write every job of the worker to the store, and let the worker find jobs there that it no longer remembers."""

    def write(job: Job) -> None:
        if not job.errand:
            store.write(record_of(job))

    worker.on_submit.append(write)
    worker.on_part.append(write)
    worker.listeners.append(write)
    worker.on_close.append(store.flush)
    worker.archive = lambda job_id: restored(store, job_id)


def record_of(job: Job) -> Record:
    over = job.state not in LIVE
    return Record(
        id=job.id,
        owner=job.owner,
        kind=kind_of(job),
        state=job.state,
        error=job.error,
        request=_asked(job),
        report=_report(job) if over or isinstance(job, SweepJob) else {},
        posters=_posters(job) if over else {},
        folder=job.folder.name,
        submitted=job.submitted,
        started=job.started,
        ended=job.ended,
    )


def _asked(job: Job) -> dict[str, Any]:
    if isinstance(job, VideoJob):
        return job.asked()
    request = getattr(job, "request", None)
    return {} if request is None else request.to_dict() | {"side_by_side": False}


def kind_of(job: Job) -> str:
    return type(job).__name__.removesuffix("Job").lower()


def restored(store: Store, job_id: str) -> Job | None:
    """The job as it was at its end, with its remaining videos. None if it cannot be restored."""
    record = store.read(job_id)
    if record is None or record.state in LIVE or record.kind not in RESTORE:
        return None
    try:
        job = RESTORE[record.kind](record, store.output_dir / record.folder)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("job %s could not be read back: %s", job_id, error)
        return None
    job.id, job.owner, job.state, job.error = record.id, record.owner, record.state, record.error
    if record.state == INTERRUPTED:
        job.state, job.error = "failed", "the server ended while this was being made"
    job.submitted, job.started, job.ended = record.submitted, record.started, record.ended
    job.folder = store.output_dir / record.folder
    return job


def made_by(store: Store, owner: str, video: Path) -> Job | None:
    """The owner's run that made this file, byte for byte, wherever the file came from; None if there is none."""
    for record in store.runs(owner):
        folder = job_folder(store.output_dir, record.folder)
        if folder is not None and any(_same(video, folder / f"{arm}.mp4") for arm in ARMS):
            return restored(store, record.id)
    return None


def _same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _restore_video(record: Record, folder: Path) -> VideoJob:
    values, report = dict(record.request or {}), record.report or {}
    side_by_side = values.pop("side_by_side")
    job = VideoJob(VideoRequest.from_dict(values), side_by_side)
    present = job_folder(folder.parent, folder.name) is not None
    for arm in job.arms:
        result = stored_result(report.get(arm), folder) if present else None
        if result is not None:
            job.results[arm] = result
    if len(job.results) == 2:
        job.comparison = read_comparison(job.results["dense"], job.results["sparse"], report)
    return job


def _restore_sweep(record: Record, folder: Path) -> SweepJob:
    values = {name: value for name, value in (record.request or {}).items() if name != "side_by_side"}
    report = record.report or {}
    axes = [Axis.of(axis["name"], axis["values"]) for axis in report["axes"]]
    search, sweep = report.get("search"), Sweep(VideoRequest.from_dict(values), *axes)
    if search is not None:
        floor = Floor(search["quality"], search["floor"])
        sweep = Search(sweep.request, sweep.rows, floor=floor, most=search["most"])
    job = SweepJob(sweep)
    present = job_folder(folder.parent, folder.name) is not None
    for made in report["videos"]:
        result = stored_result(made["result"], folder) if present else None
        measures = {name: made[name] for name in MEASURES}
        measures["speed"] = read_speed(made)
        if measures["speed"] is not None and measures["psnr"] is None:
            measures["psnr"] = float("inf")  # JSON has no infinity
        gone = "" if result is not None or made["error"] else GONE
        video = SweepVideo(made["row"], made["column"], VideoRequest.from_dict(made["request"]), result)
        job.result = job.result.add(replace(video, error=made["error"] or gone, **measures))
    return job


RESTORE["video"] = _restore_video
RESTORE["sweep"] = _restore_sweep


def stored_result(values: dict[str, Any] | None, folder: Path) -> VideoResult | None:
    """A finished video from its record, or None if its file is gone."""
    if not values or not (video := folder / Path(values["video"]).name).is_file():
        return None
    known = {name: value for name, value in values.items() if name in {field.name for field in fields(VideoResult)}}
    read = {"request": VideoRequest.from_dict(values["request"]), "timing": read_timing(values.get("timing"))}
    return VideoResult(**known | read | {"video": video})


def _report(job: Job) -> dict[str, Any]:
    """The job's report. For a stopped or failed video job, the finished videos by arm."""
    if isinstance(job, SweepJob):
        return plain(_sweep_report(job))
    if not isinstance(job, VideoJob):
        return plain(job.report())
    report: dict[str, Any] = {arm: result.to_dict() for arm, result in job.results.items()}
    if job.long is not None:
        report["playable"] = job.playable
    if job.comparison is not None:
        report |= job.comparison.figures()
    return plain(report)


def _sweep_report(job: SweepJob) -> dict[str, Any]:
    """The values that restore the sweep with its videos so far. They say more about each video than sweep.json."""
    videos = [
        {name: getattr(video, name) for name in ("row", "column", "error", *MEASURES)}
        | ({} if video.speed is None else video.speed.to_dict())
        | {"request": video.request.to_dict(), "result": None if video.result is None else video.result.to_dict()}
        for video in job.result.videos()
    ]
    return {"axes": job.report()["axes"], "videos": videos} | job.sweep.summary(tuple(job.result.videos()))


def _posters(job: Job) -> dict[str, str]:
    """{name of a video: picture from its middle}: the videos of a video job by arm, of others the first two files."""
    if isinstance(job, VideoJob) and (job.results or job.long is None):
        middle = job.request.num_frames // 2 / job.request.fps
        videos = {arm: result.video for arm, result in job.results.items()}
    else:
        middle = 0.0
        found = sorted(job.folder.glob("**/*.mp4"))
        if isinstance(job, VideoJob) and job.long is not None:  # without its end: what there is of its first part
            found = [file for file in found if file.name == f"{job.long.name}-001.mp4"]
        videos = {file.parent.name if isinstance(job, VideoJob) else file.stem: file for file in found[:2]}
    made = {name: poster(file, middle) for name, file in videos.items()}
    return {name: picture for name, picture in made.items() if picture}
