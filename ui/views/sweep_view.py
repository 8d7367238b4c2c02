"""The data of a sweep for the page: the plan, the progress, and the grid."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import gradio as gr

from pipeline import Axis, Floor, Search, Sweep, SweepResult, SweepVideo, VideoRequest
from pipeline.sweeps.sweep_result import OverSeeds
from ui.form.read import AUTOMATIC, DENSE_ONLY, SIDE_BY_SIDE, form_request, is_long, page_sentence
from ui.jobs.eta import duration_text
from ui.jobs.job import Job
from ui.jobs.sweep_job import SweepJob
from ui.look.figures import times
from ui.site import Site
from ui.views.stage import PHASES, video_file

NONE = "none"  # no second setting
COUNT = "{cells} sparse and {dense} dense videos"
COUNT_TIME = "{count}, about {time}"
NOT_KNOWN = "{count}; how long they take is known after the first video"
RUNNING = "Video {number} of {total}: {what}"
DENSE = "dense, seed {seed}, {steps} steps"
STEP = "{what} · {phase}, step {step} of {of}"
LEFT = "{text} · about {time} left"
BETWEEN_TURNS = "{tried} of {total} videos · {waiting}"
STOPPING = "Stopping at the next step…"
BETWEEN = "Comparing…"
DONE = "{made} videos in {time}"
DONE_FAILED = "{made} videos in {time}; {failed} could not be made"
STOPPED = "Stopped: {made} of {total} videos are done and kept"
FAILED = "Ended after {made} of {total} videos: {error}"
OUT_OF_ORDER = (
    "{fewer} computed less than {more} and took longer. An idle machine would not do that, so do not trust these "
    "times; make the sweep again."
)
OVER_SEEDS = (
    "over {seeds} seeds PSNR {psnr:.1f} dB ({psnr_low:.1f} to {psnr_high:.1f}), SSIM {ssim:.3f} ({ssim_low:.3f} to "
    "{ssim_high:.3f}), speed-up {speedup:.2f}× ({speedup_low:.2f} to {speedup_high:.2f})"
)
UNSURE = "The speed-up of {count} of {cells} videos is a range, because other programs were running."
NOT_LONG = "a sweep makes one video with many settings; choose another task than Long video"
RANDOM_SEED = "New seed each time is on, so the sweep draws one seed for all its videos."


def default_values(steps: int) -> dict[str, str]:
    """The default values of each setting that can be swept, as text."""
    fewer = max(1, steps // 2)
    return {
        "sparsity": "0, 0.5, 0.75, 0.9375",  # 0 keeps every block: the noise floor of the comparison
        "cdf_threshold": "0.7, 0.8, 0.9",
        "chunk": "2x4x4, 4x4x4",
        "selection": "mean, cells",
        "dense_steps": "0, 1",
        "dense_layers": "0, 2",
        "select_every": "1, 2",
        "seed": "1, 2",
        "steps": f"{fewer}, {steps}" if fewer != steps else f"{steps}, {steps + 1}",
    }


def read_sweep(site: Site, axes: tuple, form: dict[str, Any]) -> Sweep:
    """The sweep that the controls describe. Raises ValueError with one sentence for a value that cannot be used."""
    row_name, row_values, column_name, column_values = axes
    rows = Axis.of(row_name, row_values or "")
    columns = None if column_name in (NONE, None) else Axis.of(column_name, column_values or "")
    return Sweep(sparse_request(site, form), rows, columns)


def read_search(site: Site, quality: str, least: Any, form: dict[str, Any]) -> Search:
    """The search for the fastest sparsity that keeps a floor. Raises ValueError as `read_sweep` does."""
    return Search.of(sparse_request(site, form), Floor(quality, least), seconds=site.estimates.denoising)


def sparse_request(site: Site, form: dict[str, Any]) -> VideoRequest:
    """The form's request with its block sparse attention, also where the form asks for none. Raises ValueError for one
    that cannot be made, or a long video."""
    if is_long(form):
        raise ValueError(NOT_LONG)
    if form["mode"] in (DENSE_ONLY, AUTOMATIC):
        form = {**form, "mode": SIDE_BY_SIDE}
    return form_request(site.checkpoint, form)


def plan_html(site: Site, axes: tuple, form: dict[str, Any]) -> str:
    """HTML with the number of videos and the time that they will take, or the reason why they cannot be made."""
    try:
        runs = read_sweep(site, axes, {**form, "prompt": "-", "negative_prompt": "", "seed": form["seed"] or 0}).runs()
    except ValueError as error:
        return problem(error)
    dense = sum(run.row is None for run in runs)
    count = COUNT.format(cells=len(runs) - dense, dense=dense)
    estimates = [site.estimates.of(run.request) for run in runs]
    known = [one.seconds["total"] for one in estimates if one is not None and one.seconds is not None]
    if len(known) < len(runs):
        text = NOT_KNOWN.format(count=count)
    else:
        text = COUNT_TIME.format(count=count, time=duration_text(sum(known)))
    more = f" {RANDOM_SEED}" if form["randomise"] and "seed" not in (axes[0], axes[2]) else ""
    return f'<p class="notice" role="status"><b>{escape(text)}.</b>{escape(more)}</p>'


def problem(error: Exception) -> str:
    return f'<p class="notice" data-kind="error" role="alert">{escape(page_sentence(error))}</p>'


def sweep_view(job: SweepJob) -> dict[str, Any]:
    """The data with which the page draws the sweep in its present state."""
    result, request = job.result, job.request
    files = {name: job.folder / f"sweep.{name}" for name in ("csv", "json")}
    return {
        "job": job.id,
        "tried": job.tried,
        "state": state_of(job),
        "search": isinstance(job.sweep, Search),
        "axes": [
            {"label": axis.label, "values": [axis.text(index) for index in range(len(axis.values))]}
            for axis in job.sweep.axes
        ],
        "aspect": f"{request.width} / {request.height}",
        "clip": {"fps": request.fps, "frames": request.num_frames},
        "dense": [_video(job.result, video) for video in result.dense],
        "cells": [_video(job.result, video) for video in result.cells],
        "front": {
            name: [[cell.row, cell.column] for cell in result.front(name)] for name in ("psnr", "ssim", "recall")
        },
        "remark": remark(result),
        "over_seeds": [over_seeds_text(one) for one in result.over_seeds()],
        "files": {name: _file(path) for name, path in files.items() if path.is_file()},
    }


def remark(result: SweepResult) -> str:
    """Why the times of a sweep are in doubt, or ""."""
    pairs = result.out_of_order()
    if pairs:
        fewer, more = (result.sweep.describe(cell.row or 0, cell.column or 0) for cell in pairs[0])
        return OUT_OF_ORDER.format(fewer=fewer, more=more)
    unsure = [cell for cell in result.cells if cell.speed is not None and not cell.speed.sure]
    return UNSURE.format(count=len(unsure), cells=len(result.cells)) if unsure else ""


def over_seeds_text(one: OverSeeds) -> str:
    figures = {name: value for name, value in vars(one).items() if name != "setting"}
    text = OVER_SEEDS.format(**figures)
    return f"{one.setting}: {text}" if one.setting else text


def progress_view(site: Site, job: SweepJob) -> dict[str, Any]:
    """The part of the data that changes with every step."""
    run, share = job.current, (job.tried + job.share) / job.total
    place = None if run is None or run.row is None else [run.row, run.column]
    text = progress_text(site, job)
    return {
        "job": job.id,
        "tried": job.tried,
        "state": state_of(job),
        "text": text,
        "share": 1.0 if job.over and job.state == "done" else share,
        "place": place,
    }


def state_of(job: Job) -> str:
    """The job's state; one that is just ending still runs."""
    return job.state if job.over or job.state == "waiting" else "running"


def progress_text(site: Site, job: SweepJob) -> str:
    if job.over:
        return ended_text(job)
    if job.stopping:
        return STOPPING
    if job.state == "waiting":
        waiting = site.worker.waiting_text(job)
        return BETWEEN_TURNS.format(tried=job.tried, total=job.total, waiting=waiting) if job.tried else waiting
    run, update = job.current, job.update
    if run is None:
        return BETWEEN
    if run.row is None or run.column is None:
        what = DENSE.format(seed=run.request.seed, steps=run.request.steps)
    else:
        what = job.sweep.describe(run.row, run.column)
    text = RUNNING.format(number=job.tried + 1, total=job.total, what=what)
    if update is not None and update.phase != "text" and update.total > 1:
        text = STEP.format(what=text, phase=PHASES[update.phase].lower(), step=update.step, of=update.total)
    seconds = site.worker.queue.seconds_left(job)
    return text if seconds is None else LEFT.format(text=text, time=duration_text(seconds))


def ended_text(job: SweepJob) -> str:
    made = len(job.results)
    if job.state == "stopped":
        return STOPPED.format(made=made, total=job.total)
    if job.state == "failed":
        return FAILED.format(made=made, total=job.total, error=page_sentence(job.error))
    time = duration_text(job.ended - job.started)
    if isinstance(job.sweep, Search):
        verdict = page_sentence(job.sweep.verdict(tuple(job.result.videos())))
        return f"{verdict} {DONE.format(made=made, time=time)}"
    failed = job.total - made
    return DONE_FAILED.format(made=made, time=time, failed=failed) if failed else DONE.format(made=made, time=time)


def _video(result: SweepResult, video: SweepVideo) -> dict[str, Any]:
    made = video.result
    where: dict[str, Any] = {"seed": video.request.seed, "steps": video.request.steps}
    if video.row is not None:
        dense = result.dense_of(video)
        where = {"row": video.row, "column": video.column, "dense": result.dense.index(dense) if dense else None}
    return where | {
        "error": video.error,
        "video": None if made is None else video_file(made.video),
        "seconds": None if made is None else made.seconds["denoise"],
        "density": None if made is None else made.density,
        "speedup": video.speedup,
        "speed": None if video.speed is None else times(video.speed),
        "doubts": "" if video.speed is None else "; ".join(video.speed.doubts),
        "psnr": "inf" if video.psnr is not None and math.isinf(video.psnr) else video.psnr,
        "ssim": video.ssim,
        "recall": video.recall,
    }


def _file(path: Any) -> dict[str, Any]:
    return gr.FileData(path=str(path), orig_name=path.name).model_dump()
