"""The named endpoints for `gradio_client`: /generate, /compare, /refine, /sweep, /find, /estimate, /inspect,
/resources, /result and /cancel; and, in `ui.api.tasks`, /image_to_video, /continue, /long and /refine_long.

They share one table of parameters, from which the documented signature is made, and the page's worker, so a call
and a press of the button wait for each other.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from pipeline import Axis, Floor, Resources, Search, Sweep, read_resources
from pipeline.estimate.estimator import Estimate
from pipeline.media.attention_record import AttentionRecord
from pipeline.media.clip import inspect_clip
from pipeline.request.values import whole_number
from pipeline.sweeps.search import MOST
from pipeline.sweeps.sweep_axes import LABELS
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
from ui.api.publish import REQUIRED, Page, publish
from ui.api.results import job_result, sweep_report, table_file
from ui.api.tasks import add_tasks
from ui.form.read import new_seed
from ui.jobs.job import VideoJob, plain
from ui.jobs.sweep_job import SweepJob
from ui.site import Site
from ui.views.inspector import read_record
from ui.views.stage import video_file

KNOWN_ID = ("job_id", str, REQUIRED, "What you named the job, or what its report says")
SETTINGS = Literal[tuple(LABELS)]  # type: ignore[valid-type]  # made from the table
NO_COLUMNS = "column_values are given without columns; name the setting that they are of, such as 'steps'"
NO_VIDEO = "job_id {name!r} has no finished video of /generate, /compare or /refine"
NOT_ESTIMATED = "the model that runs here does not say how large it is, so nothing can be estimated"


def add_api(page: Page, site: Site) -> None:
    """Add the endpoints to the page, which is still being built."""
    calls, shared = Calls(site, page.presence), parameters(site.checkpoint)
    attention = ("attention", ATTENTION, "sparse", ATTENTION_HELP)

    async def generate(attention: str, job_id: str | None, **values: Any) -> tuple[Any, ...]:
        """Make one video. Returns the video (MP4, H.264) and a report: the request with its seed, seconds for text,
        denoising, decoding and in total, peak memory, key blocks kept, and whether BSA was active and why."""
        job = VideoJob(asked_request(site, values, attention), side_by_side=False)
        name = await calls.run(job, job_id)
        return video_file(job.results[job.arms[0]].video), job.report() | {"job_id": name}

    async def compare(job_id: str | None, **values: Any) -> tuple[Any, ...]:
        """Make the same clip from the same seed twice, with dense and with block sparse attention. Returns both videos
        (MP4, H.264) and a report: the report of /generate for each, the denoising speed-up, PSNR and SSIM."""
        job = VideoJob(asked_request(site, values), side_by_side=True)
        name = await calls.run(job, job_id)
        dense, sparse = (video_file(job.results[arm].video) for arm in ("dense", "sparse"))
        return dense, sparse, job.report() | {"job_id": name}

    async def refine(
        clip: str, prompt: str | None, t_thresh: float, double_frames: bool, attention: str, **values: Any
    ) -> tuple[Any, ...]:
        """Make a larger, finer version of a clip from /generate, /compare or /refine, as LongCat goes from 480p to
        720p. Needs the checkpoint's refinement adapter. Returns the video (MP4, H.264) and a report like /generate."""
        source = calls.finished(clip, NO_VIDEO)
        job_id, seed, bsa = values.pop("job_id"), values.pop("seed"), asked_attention(site, values, attention)
        request = site.checkpoint.refinement(
            source.request.prompt if prompt is None else prompt,
            await site.clips.read(source.video, inspect_clip, source.video),
            t_thresh=t_thresh,
            double_frames=double_frames,
            seed=new_seed() if seed is None else seed,
            bsa=bsa,
        )
        job = VideoJob(site.estimates.choose(request) if attention == "auto" else request, side_by_side=False)
        name = await calls.run(job, job_id)
        return video_file(job.results[job.arms[0]].video), job.report() | {"job_id": name}

    async def sweep(
        rows: str, row_values: list, columns: str | None, column_values: list | None, job_id: str | None, **values: Any
    ) -> tuple[Any, ...]:
        """Make a grid of sparse videos over one or two settings, and a dense video for every seed and number of steps.
        Returns a report (seconds, speed-up, density, PSNR in dB, SSIM, recall and file of every video; the Pareto
        front) and the same as CSV. A sweep stopped by /cancel returns its finished videos; a failed video says why."""
        if columns is None and column_values:
            raise ValueError(NO_COLUMNS)
        axes = Axis.of(rows, row_values), None if columns is None else Axis.of(columns, column_values or [])
        job = SweepJob(Sweep(asked_request(site, values), *axes))
        name = await calls.run(job, job_id)
        return sweep_report(job) | {"job_id": name, "state": job.state}, table_file(job)

    async def find(quality: str, floor: float, most_videos: int, job_id: str | None, **values: Any) -> tuple[Any, ...]:
        """Find the fastest sparsity with which this prompt and seed come close enough to the dense video. Makes the
        dense video, then a few sparse ones, each halving the sparsities that are left. Returns the report of /sweep,
        whose "search" says which cell was found, or null if none is close enough and faster; and the same as CSV."""
        request = asked_request(site, values | {"sparsity": 0.0, "cdf_threshold": None})
        job = SweepJob(Search.of(request, Floor(quality, floor), most_videos, site.estimates.denoising))
        name = await calls.run(job, job_id)
        return sweep_report(job) | {"job_id": name, "state": job.state}, table_file(job)

    async def estimate(**values: Any) -> dict[str, Any]:
        """Estimate a video on this machine, dense and sparse: seconds by phase, peak memory in bytes, and the basis of
        these numbers; and what attention "auto" would choose, and why. Makes nothing. Fails with the numbers if the
        video cannot fit."""
        request = asked_request(site, {"prompt": "-", "negative_prompt": "", "seed": 0} | values)
        plans = {"dense": site.estimates.plan(request.dense), "sparse": site.estimates.plan(request)}
        dense, sparse = plans["dense"].estimate, plans["sparse"].estimate
        if sparse is None or dense is None:
            raise ValueError(NOT_ESTIMATED)
        chosen = site.estimates.choose(request)
        return {
            "dense": _estimate(dense),
            "sparse": _estimate(sparse),
            "speedup": site.estimates.ratio(request) if dense.seconds and sparse.seconds else None,
            "available_memory": site.estimates.available(),
            "bsa_active": plans["sparse"].work.sparse,
            "bsa_reason": plans["sparse"].work.reason,
            "auto": {"bsa": None if chosen.bsa is None else chosen.bsa.to_bsa_params(), "why": chosen.auto},
        }

    async def inspect_(job_id: str, step: int, layer: int, head: int, query_block: int) -> dict[str, Any]:
        """Inspect the sparse attention of a finished /generate or /compare. Returns its mean recall (share of the
        softmax mass inside the kept blocks) and density, by layer, by step and as [layers][steps]; and the key blocks
        that one query block of one step, layer and head keeps, as [frame, row, column] in the grid of key blocks, with
        the recall of one of its tokens. A job_id that nobody guesses may be inspected by whoever has it."""
        job = calls.find(job_id)
        if not isinstance(job, VideoJob) or "sparse" not in job.results:
            raise ValueError(f"job_id {job_id!r} has no finished sparse video of /generate or /compare")
        record = await asyncio.to_thread(read_record, job)
        return _selection(record, step, layer, head, query_block)

    async def resources() -> dict[str, Any]:
        """Read memory and load of every GPU (NVML), of the host, and of the process that runs the model. Values are in
        bytes, percent, degrees Celsius and watts; null if the machine does not report them. Of several engines, which
        "engines" lists with their states, the reading is that of the first one's process, or machine."""
        worker = site.worker
        memory, there = worker.torch_memory(), worker.runners[0].engine.reading()
        if there is None:
            reading: Resources | None = await asyncio.to_thread(read_resources, worker.engine_pid, memory)
        else:
            reading = there.resources
        engines = [
            {"state": runner.state, "message": runner.message, "torch_memory": runner.engine.torch_memory()}
            for runner in worker.runners
        ]
        told = {"worker": worker.status(), "torch_memory": memory, "engines": engines}
        return plain((asdict(reading) if reading else {}) | told)

    async def result(job_id: str) -> dict[str, Any]:
        """A job by its job_id, over or not, also when the connection was lost that began it: its state (waiting,
        running, done, stopped or failed), why it waits or failed, the videos made so far, and its report. Asking keeps
        a job alive whose client is gone; else it is stopped after two minutes."""
        return job_result(site, job_id, calls.find(job_id))

    async def cancel(job_id: str) -> dict[str, str]:
        """Stop a job of yours, at once while it waits and at its next step when it runs. Jobs are yours when the same
        client, or the same login, began them, or when their job_id is one that nobody guesses."""
        job = calls.find(job_id)
        if not job.over:
            site.worker.stop(job)
        return {"job_id": job_id, "state": job.state if job.over else "stopping"}

    inspect_.__name__ = "inspect"
    report = ("report", dict)
    sizes = [entry for entry in shared if entry[0] not in ("prompt", "negative_prompt", "seed")]
    grid = [
        ("rows", SETTINGS, "sparsity", "What varies from row to row"),
        (
            "row_values",
            list,
            [0, 0.5, 0.75, 0.9375],
            "Its values; sparsity 0 keeps every block and is the noise floor; a "
            "chunk is written 4x4x4, or 4x4x4/4x4x8 for query/key",
        ),
        ("columns", SETTINGS | None, None, "What varies from column to column, or null"),
        ("column_values", list | None, None, "Its values"),
    ]
    goal = [
        ("quality", Literal["psnr", "ssim"], "psnr", "Likeness to the dense video"),
        ("floor", float, 30.0, "The least of it: decibels of PSNR, or SSIM up to 1"),
        ("most_videos", int, MOST, "Sparse videos that are made at most"),
    ]
    searched = [entry for entry in shared if entry[0] not in ("sparsity", "cdf_threshold")]
    place = [
        ("step", int, 0, "Denoising step, counted from 0"),
        ("layer", int, 0, "Transformer layer, counted from 0"),
        ("head", int, 0, "Attention head, counted from 0"),
        ("query_block", int, 0, "Query block in frame, row, column order, counted from 0"),
    ]
    clip = [
        ("clip", str, REQUIRED, "job_id of the finished video to refine; of a pair the dense one"),
        ("prompt", str | None, None, "What it shows; null for the prompt that it was made with"),
        *refinement_parameters(),
    ]
    made = [("video file", str), report]
    publish(page, generate, [*shared, attention, JOB_ID], made)
    publish(page, compare, [*shared, JOB_ID], [("dense video", str), ("sparse video", str), report])
    publish(page, refine, [*clip, *attention_parameters(site.checkpoint.sparse), attention, JOB_ID], made)
    add_tasks(page, site, calls)
    publish(page, sweep, [*shared, *grid, JOB_ID], [report, ("CSV file", str)])
    publish(page, find, [*searched, *goal, JOB_ID], [report, ("CSV file", str)])
    publish(page, estimate, sizes, [("estimate", dict)])
    publish(page, inspect_, [KNOWN_ID, *place], [("attention", dict)])
    publish(page, resources, [], [("resources", dict)])
    publish(page, result, [KNOWN_ID], [("job", dict)])
    publish(page, cancel, [KNOWN_ID], [("job", dict)])


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        "seconds": estimate.seconds,
        "memory": estimate.memory,
        "memory_of": estimate.memory_label,
        "basis": estimate.basis,
        **({"at_most": True} if estimate.seconds and estimate.at_most else {}),
    }


def _selection(record: AttentionRecord, step: int, layer: int, head: int, query_block: int) -> dict[str, Any]:
    step, layer, head = whole_number("step", step), whole_number("layer", layer), whole_number("head", head)
    query_block = whole_number("query_block", query_block)
    kept = record.kept(step, layer, head, query_block)
    recall = float(record.recall_of(step, layer, query_block)[record.sampled.heads.index(head)])
    blocks = np.stack(np.unravel_index(kept, record.k_blocks), axis=-1)
    return plain(
        record.summary()
        | {
            "query_blocks": list(record.q_blocks),
            "stored": {name: list(numbers) for name, numbers in record.sampled._asdict().items()},
            "block": {"kept": blocks.tolist(), "recall": recall, "recall_tokens": 1},
        }
    )
