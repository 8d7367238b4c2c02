"""The page: its layout and what its controls do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from bsa import BSAConfig
from pipeline import CheckpointInfo
from ui import panels
from ui.api import add_api
from ui.form import MASS, SIDE_BY_SIDE, TOP_K, form_request, new_seed, page_sentence
from ui.inspector import inspector_panel
from ui.jobs import VideoJob
from ui.live import live_panel
from ui.plan import plan_panel
from ui.report import report_panel
from ui.site import Site
from ui.stage import Stage, stage_view
from ui.static import asset
from ui.theme import theme
from ui.worker import Worker

TITLE = "Block Sparse Attention for video"
POLL_SECONDS = 0.1
# Events that only change the form: answered at once, also while a video is being made, and no part of the API.
_QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class Look:
    """What Gradio 6 takes at launch rather than with the blocks."""

    theme: gr.themes.Base
    css: str

    @classmethod
    def default(cls) -> Look:
        return cls(theme(), asset("page.css") + asset("player.css") + asset("outlook.css") + asset("inspector.css"))


def build_page(checkpoint: CheckpointInfo, worker: Worker) -> gr.Blocks:
    """The page and the named API over a worker, which may still be loading its pipeline."""
    site = Site(checkpoint, worker)
    default = checkpoint.bsa or BSAConfig()
    jobs: dict[str, VideoJob] = {}  # by browser session: the job that its Stop button stops

    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        _html("header", _header(checkpoint, worker))
        shown = gr.State("")  # id of the finished job whose videos are on the stage
        with gr.Row(elem_id="layout"):
            with gr.Column(elem_id="compose"):
                fields: panels.Fields = {"prompt": panels.prompt_field()}
                with gr.Row(elem_id="buttons"):
                    generate = gr.Button("Generate", variant="primary", elem_id="generate")
                    stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
                notice = _html("notice")
                panels.examples(fields["prompt"])
            with gr.Column(elem_id="results"):
                stage = Stage()
                live_panel(site)
                with gr.Tabs(elem_id="details"):
                    with gr.Tab("Result", id="result"):
                        report = _html("report", report_panel({}, None))
                    inspector_panel(site, shown)
            with gr.Column(elem_id="settings"):
                with gr.Group(elem_id="attention"):
                    fields |= panels.attention_fields(default)
                    plan = _html("plan")
                with gr.Accordion("Chunk shapes and block selection", open=False):
                    fields |= panels.block_fields(default)
                with gr.Accordion("Size, frames, steps, guidance, seed", open=False):
                    fields |= panels.video_fields(checkpoint)
        names = list(fields)
        inputs = list(fields.values())

        def show_plan(*values: Any) -> str:
            return plan_panel(site.checkpoint, dict(zip(names, values, strict=True)), site.estimates)

        plan.value = show_plan(*(field.value for field in inputs))
        gr.on(
            [fields[name].change for name in names if name not in ("prompt", "negative_prompt", "seed", "randomise")],
            show_plan,
            inputs,
            plan,
            trigger_mode="always_last",
            **_QUIET,
        )
        # Each video, and the calibration of a new machine, change what the plan expects of the next one.
        shown.change(show_plan, inputs, plan, **_QUIET)
        page.load(show_plan, inputs, plan, **_QUIET)
        measured = gr.Timer(2)
        measured.tick(
            lambda *values: (show_plan(*values), gr.Timer(active=site.estimates.pending)),
            inputs,
            [plan, measured],
            **_QUIET,
        )
        fields["keep_by"].change(
            lambda keep_by: (gr.update(interactive=keep_by != MASS), gr.update(visible=keep_by != TOP_K)),
            fields["keep_by"],
            [fields["sparsity"], fields["cdf_threshold"]],
            **_QUIET,
        )

        outputs = [notice, stage, report, fields["seed"], generate, stop, shown]
        run = partial(_run, site, jobs, names)

        async def press(request: gr.Request, *values: Any) -> AsyncIterator[tuple]:
            async for shown in run(request.session_hash, values):
                yield shown

        def press_stop(request: gr.Request) -> str:
            job = jobs.get(request.session_hash)
            if job is None:
                return notice_html("Nothing is running.")
            worker.stop(job)
            return notice_html("Stopping at the next step…")

        gr.on(
            [generate.click, fields["prompt"].submit],
            press,
            inputs,
            outputs,
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
        stop.click(press_stop, None, notice, **_QUIET)
        add_api(page, site)
    return page


def _html(name: str, value: str = "") -> gr.HTML:
    return gr.HTML(value, elem_id=name, elem_classes="bare", apply_default_css=False)


async def _run(
    site: Site, jobs: dict[str, VideoJob], names: list[str], session: str, values: tuple
) -> AsyncIterator[tuple]:
    """Follow one job from press to end. Yields (notice, stage, report, seed, generate button, stop button, shown job);
    whatever is skipped stays as it is on the page, so a refused press loses nothing."""
    keep, worker = gr.skip(), site.worker
    form = dict(zip(names, values, strict=True))
    if form["randomise"]:
        form["seed"] = new_seed()
    try:
        request = form_request(site.checkpoint, form)
        job = worker.submit(VideoJob(request, side_by_side=form["mode"] == SIDE_BY_SIDE, owner=session))
    except ValueError as error:
        yield notice_html(page_sentence(error), "error"), keep, keep, keep, keep, keep, keep
        return
    jobs[session] = job
    on, off = gr.update(interactive=True), gr.update(interactive=False)
    yield notice_html(worker.waiting_text(job)), stage_view(job), keep, form["seed"], off, on, keep
    try:
        told, seen, made = "", -1, 0
        while not job.over:
            if job.state == "waiting" and worker.waiting_text(job) != told:
                told = worker.waiting_text(job)
                yield notice_html(told), keep, keep, keep, keep, keep, keep
            elif job.state == "running" and job.version != seen:
                seen = job.version
                report = report_panel(job.results, job.comparison) if len(job.results) != made else keep
                made = len(job.results)
                yield notice_html(running_text(job)), stage_view(job), report, keep, keep, keep, keep
            await asyncio.sleep(POLL_SECONDS)
        report = report_panel(job.results, job.comparison) if job.results else keep
        yield ended_notice(job), stage_view(job), report, keep, on, off, job.id if job.results else keep
    finally:
        # The page was closed or reloaded: nobody is left to see the video, so do not keep the device busy.
        if not job.over:
            worker.stop(job)
        if jobs.get(session) is job:
            del jobs[session]


def running_text(job: VideoJob) -> str:
    if job.stopping:
        return "Stopping at the next step…"
    if len(job.arms) == 1:
        return f"Making the {job.arm} video…"
    if len(job.results) == 2:
        return "Comparing the two videos…"
    return f"Making video {len(job.results) + 1} of 2, the {job.arm} one…"


def ended_notice(job: VideoJob) -> str:
    if job.state == "failed":
        return notice_html(page_sentence(job.error), "error")
    if job.state == "stopped":
        return notice_html("Stopped. Finished videos are kept.")
    return notice_html(f"Done with seed {job.request.seed}.", "done")


def notice_html(text: str, kind: str = "info") -> str:
    role = "alert" if kind == "error" else "status"
    return f'<p class="notice" data-kind="{kind}" role="{role}">{escape(text)}</p>'


def _header(checkpoint: CheckpointInfo, worker: Worker) -> str:
    return (
        f"<header><div><h1>{TITLE}</h1><p>LongCat-Video makes the same clip twice: once with full attention, once with "
        "each block of the video looking only at the blocks that matter most to it.</p></div>"
        f'<p class="pill" data-state="{worker.state}" role="status"><span class="dot"></span>'
        f'<span class="pill-text">{escape(worker.message)}</span></p></header>'
    )
