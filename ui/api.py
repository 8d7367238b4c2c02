"""The named endpoints for `gradio_client`: /generate and /compare.

They share one table of parameters, from which the documented signature is made, and the page's worker, so a call
and a press of the button wait for each other.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Literal

import gradio as gr

from bsa import BSAConfig
from pipeline import CheckpointInfo
from ui.form import bsa_config, new_seed, video_request
from ui.jobs import VideoJob
from ui.site import Site
from ui.stage import PHASES, video_file

POLL_SECONDS = 0.1
REQUIRED = inspect.Parameter.empty


def parameters(checkpoint: CheckpointInfo) -> list[tuple[str, Any, Any, str]]:
    """(name, type, default, description) of what both endpoints take; the defaults are the checkpoint's own."""
    size, bsa = checkpoint.defaults, checkpoint.bsa or BSAConfig()
    return [
        ("prompt", str, REQUIRED, "What the video shows, in a sentence or two"),
        ("negative_prompt", str, "", "What it should not show; counts only when guidance_scale is above 1"),
        ("width", int, size["width"], "Pixels, a multiple of 16"),
        ("height", int, size["height"], "Pixels, a multiple of 16"),
        ("num_frames", int, size["num_frames"], "Frames, of the form 4n + 1"),
        ("steps", int, size["num_inference_steps"], "Denoising steps"),
        ("guidance_scale", float, size["guidance_scale"], "Classifier-free guidance, 1 for none"),
        ("seed", int | None, None, "Seed of the initial noise; null draws one, which the report states"),
        ("sparsity", float | None, bsa.sparsity, "Share of key blocks skipped, 0 to below 1, or null"),
        ("cdf_threshold", float | None, bsa.cdf_threshold, "Estimated attention mass kept, above 0 to 1, or null"),
        ("chunk_q", list[int], list(bsa.chunk_q), "Query chunk: latent frames, token rows, token columns"),
        ("chunk_k", list[int], list(bsa.chunk_k), "Key chunk: latent frames, token rows, token columns"),
    ]


def add_api(page: gr.Blocks, site: Site) -> None:
    """Add /generate and /compare to the page, which is still being built."""
    shared = parameters(site.checkpoint)
    attention = ("attention", Literal["sparse", "dense"], "sparse", "Block sparse attention (BSA) or dense attention")

    async def generate(attention: str, **values: Any) -> tuple[Any, ...]:
        """Make one video. Returns the video (MP4, H.264) and a report: the request with the seed used, seconds for
        text, denoising, decoding and in all, peak memory, key blocks kept, and whether BSA was active and why."""
        if attention not in ("sparse", "dense"):
            raise gr.Error(f"attention {attention!r} is unknown; use 'sparse' or 'dense'", print_exception=False)
        job = await _follow(site, values, sparse=attention == "sparse", side_by_side=False)
        return video_file(job.results[attention].video), job.report()

    async def compare(**values: Any) -> tuple[Any, ...]:
        """Make the same clip from the same seed twice, with dense and with block sparse attention. Returns both videos
        (MP4, H.264) and a report: everything of /generate for each, the denoising speed-up, PSNR and SSIM."""
        job = await _follow(site, values, sparse=True, side_by_side=True)
        dense, sparse = (video_file(job.results[arm].video) for arm in ("dense", "sparse"))
        return dense, sparse, job.report()

    report = ("report", dict)
    _publish(page, generate, [*shared, attention], [("video file", str), report])
    _publish(page, compare, shared, [("dense video", str), ("sparse video", str), report])


def _publish(
    page: gr.Blocks, handler: Callable, table: list[tuple[str, Any, Any, str]], returns: list[tuple[str, type]]
) -> None:
    """Give the handler the table's signature and register it under its own name.

    Gradio derives the types from the signature and would label the values "1st", "2nd"; the labels are ours.
    """

    async def endpoint(*values: Any) -> tuple[Any, ...]:
        return await handler(**{name: value for (name, *_), value in zip(table, values, strict=True)})

    endpoint.__name__ = handler.__name__
    endpoint.__doc__ = handler.__doc__
    endpoint.__annotations__ = {name: kind for name, kind, _, _ in table}
    endpoint.__signature__ = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
            for name, kind, default, _ in table
        ],
        return_annotation=tuple[tuple(kind for _, kind in returns)],
    )
    event = gr.api(
        endpoint,
        api_name=handler.__name__,
        api_description=" ".join(handler.__doc__.split()),
        concurrency_limit=None,
    )
    function = page.fns[event["id"]]
    for component, label in zip(function.inputs, (text for *_, text in table), strict=True):
        component.label = label
    for component, label in zip(function.outputs, (name for name, _ in returns), strict=True):
        component.label = label


async def _follow(site: Site, values: dict[str, Any], *, sparse: bool, side_by_side: bool) -> VideoJob:
    """Submit a call and wait for its end, reporting progress to the client.

    Every failure is a `gr.Error`, because of other exceptions the client only learns that there was one.
    """
    progress, worker = gr.Progress(), site.worker
    rule = {name: values.pop(name) for name in ("sparsity", "cdf_threshold", "chunk_q", "chunk_k")}
    if values["seed"] is None:
        values["seed"] = new_seed()
    try:
        request = video_request(site.checkpoint, **values, bsa=bsa_config(**rule) if sparse else None)
        job = worker.submit(VideoJob(request, side_by_side))
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None
    seen = -1
    try:
        while not job.over:
            if job.state == "waiting":
                progress((0, 1), desc=worker.waiting_text(job), unit="jobs")
            elif job.version != seen and job.update is not None:
                seen = job.version
                step, total = job.update.step, job.update.total
                progress((step, total), desc=f"{job.arm}: {PHASES[job.update.phase].lower()}", unit="steps")
            await asyncio.sleep(POLL_SECONDS)
    finally:
        if not job.over:  # the client cancelled the call
            worker.stop(job)
    if job.state != "done":
        raise gr.Error(job.error or "the job was stopped", print_exception=False)
    return job
