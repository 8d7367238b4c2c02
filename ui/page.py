"""The page: its layout, and the events of its controls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from bsa import BSAConfig
from pipeline import CheckpointInfo
from ui.access.visitor import Visitors
from ui.api.endpoints import add_api
from ui.api.publish import Page
from ui.enhance import Enhancer
from ui.form.batch import batch_fields, batch_forms, batch_notice, lines_of
from ui.form.inputs import Fields, block_fields, examples, mode_field, prompt_field, sparsity_field, video_fields
from ui.form.model import model_field
from ui.form.own_presets import own_presets
from ui.form.plan_panel import plan_error, plan_panel
from ui.form.presets import PresetList
from ui.form.read import MASS, TOP_K, file_of, new_seed, page_sentence
from ui.form.refine import ClipChooser, refine_fields
from ui.form.restore import OF_ONE_VIDEO, code_panel, fill, job_values, settings_drop
from ui.form.sizes import size_helpers
from ui.form.words import enhance_button, reading_box, word_palette
from ui.jobs.job import VideoJob
from ui.jobs.records import keep_record_of
from ui.jobs.worker import Worker
from ui.look.language import SWITCH, language_script
from ui.look.parts import QUIET, box, notice_html
from ui.look.theme import theme
from ui.premade import NOTHING, Premade
from ui.site import Site
from ui.static import asset
from ui.storage.disk import Disk
from ui.storage.store import Store
from ui.tasks.fields import TaskFields
from ui.tasks.form_job import job_of_form
from ui.tasks.start import StartChooser
from ui.views.follow import Changes, Follower, live_videos, watch_for_jobs
from ui.views.history import history_panel
from ui.views.inspector import Keys, inspector_panel
from ui.views.live import LivePanel
from ui.views.queue_panel import QueuePanel
from ui.views.report import report_panel
from ui.views.stage import Stage, StageViews
from ui.views.sweep_panel import SWEEP_TAB, SweepPanel

TITLE = "Block Sparse Attention for video"
STYLES = (
    *("page", "wide", "language", "player", "live", "outlook", "presets", "inspector", "code", "history", "sweep"),
    *("words", "queue", "timeline", "tasks"),
)


@dataclass(frozen=True)
class Look:
    """The settings of appearance that Gradio 6 takes at launch instead of with the blocks."""

    theme: gr.themes.Base
    css: str
    head: str

    @classmethod
    def default(cls) -> Look:
        return cls(theme(), "".join(asset(f"{name}.css") for name in STYLES), language_script())


def build_page(
    checkpoint: CheckpointInfo,
    worker: Worker,
    disk: Disk | None = None,
    *,
    device: str = "auto",
    model_switch: bool = False,
    shown_first: Premade = NOTHING,
    enhancer: Enhancer | None = None,
) -> Page:
    """The page and the named API over a worker, which may still be loading its pipeline.

    disk: how much all that the app writes may take, before the oldest results are removed.
    device: what the worker's pipeline runs on, for the estimates. model_switch: whether visitors may load other models.
    shown_first: the pair on the page of a visitor without runs; whoever serves the page has to serve its folder.
    enhancer: rewrites prompts where a visitor asks for it; None leaves the button out.
    """
    site = Site(
        checkpoint,
        worker,
        Visitors(worker.output_dir),
        device,
        model_switch,
        shown_first=shown_first,
        enhancer=enhancer,
    )
    keys = Keys(site)
    views = StageViews(site, keys)
    store = Store(worker.output_dir, disk)
    keep_record_of(store, worker)
    default = checkpoint.bsa or BSAConfig()

    with Page(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        add_api(page, site)  # before the page's own events, which Gradio names after their functions: names are unique
        box("header", _header(checkpoint, worker))
        measured = gr.Timer(2)  # runs until the machine is calibrated
        shown = gr.State("")  # id of the finished job whose videos are on the stage
        visitor = gr.BrowserState("", storage_key="longcat-bsa-visitor", secret=site.visitors.browser_secret)
        watch = watch_for_jobs(site)
        with gr.Row(elem_id="layout"):
            with gr.Column(elem_id="compose"):
                task = TaskFields()
                fields: Fields = {**task.fields, "prompt": prompt_field(checkpoint)}
                with gr.Row(elem_id="buttons"):
                    generate = gr.Button("Generate", variant="primary", interactive=False, elem_id="generate")
                    stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
                notice = box("notice")
                reading_box()
                enhance_button(site, fields["prompt"], notice)
                queue = QueuePanel(site)
                fields |= sparsity_field(default)
            with gr.Column(elem_id="results"):
                stage = Stage(keys)
                live = LivePanel(site)
                with gr.Tabs(elem_id="details", overflow_behavior="wrap") as tabs:
                    with gr.Tab("Result", id="result"):
                        report = box("report", report_panel({}))
                        code_panel(site, shown)
                    inspector_panel(keys, shown)
                    history_tab = gr.Tab("History", id="history")
                    with gr.Tab("Sweep", id=SWEEP_TAB):
                        sweep = SweepPanel(site, store)
            with gr.Column(elem_id="words-and-examples"):
                word_palette(site, page, shown)
                if checkpoint.vocabulary is None:
                    examples(fields["prompt"])
            with gr.Column(elem_id="settings"):
                with gr.Group(elem_id="attention"):
                    fields |= mode_field()
                    plan = box("plan")
                with gr.Accordion("Chunk shapes and block selection", open=False):
                    fields |= block_fields(default)
                with gr.Accordion("Size, frames, steps, guidance, seed", open=False):
                    fields |= video_fields(checkpoint)
                    size_helpers(site, fields)
                with gr.Accordion("Refine a clip", open=False, elem_id="refine") as refine:
                    fields |= refine_fields()
                    clips = ClipChooser(site, fields, notice, shown, refine)
                    clips.connect()
                with gr.Accordion("Presets and model", open=False, elem_id="presets"):
                    preset_list = PresetList(site, fields, clips, shown)
                    own_presets(site, fields, notice)
                    model_field(site, fields, preset_list, measured)
                with gr.Accordion("Many prompts, many seeds", open=False, elem_id="batch"):
                    prompts, lines, seeds, add_all = batch_fields()
                settings_drop(site, store, fields, notice)
        live.connect(page, visitor, shown)
        queue.connect(page, visitor)
        sweep.connect(fields, visitor, stage, report, shown, page, views)
        names = list(fields)
        inputs = list(fields.values())

        async def show_plan(*values: Any) -> tuple[str, gr.Timer]:
            form = dict(zip(names, values, strict=True))
            try:
                shown = await site.clips.read(file_of(form), plan_panel, site.checkpoint, form, site.estimates)
            except ValueError as error:
                shown = plan_error(error)
            return shown, gr.Timer(active=site.estimates.pending)

        start = {name: field.value for name, field in fields.items()}
        plan.value = plan_panel(site.checkpoint, start, site.estimates)
        # Every finished video, and the calibration of a new machine, change the estimates in the plan. They share one
        # event, because with two the older answer could arrive last.
        edited = [fields[name].change for name in names if name not in OF_ONE_VIDEO]
        gr.on(
            [page.load, *edited, shown.change, measured.tick],
            show_plan,
            inputs,
            [plan, measured],
            trigger_mode="always_last",
            **QUIET,
        )
        preset_list.connect(page, shown)
        fields["keep_by"].change(
            lambda keep_by: (gr.update(interactive=keep_by != MASS), gr.update(visible=keep_by != TOP_K)),
            fields["keep_by"],
            [fields["sparsity"], fields["cdf_threshold"]],
            **QUIET,
        )

        follower = Follower(site, store, visitor, watch, notice, stage, report, generate, stop, shown, views)
        with history_tab:
            refresh = history_panel(follower, fields, sweep, tabs)
        history_tab.select(*refresh, **QUIET)
        task.connect(page)
        StartChooser(site, task, fields, notice, clips).connect(stage, refresh[2])

        async def press(request: gr.Request, ticket: Any, *values: Any) -> AsyncIterator[Changes]:
            form = dict(zip(names, values, strict=True))
            owner, kept = follower.greet(request, ticket)
            if form["randomise"]:
                form["seed"] = new_seed()
            busy = bool(live_videos(site, owner))
            try:
                job = site.submit(await site.clips.read(file_of(form), job_of_form, site, form, owner), request)
            except ValueError as error:
                yield kept | {notice: notice_html(page_sentence(error), "error")}
                return
            yield kept | {fields["seed"]: form["seed"]}
            if busy:  # whoever follows the others comes to it
                return
            async for changes in follower.follow(request, job):
                yield changes

        async def press_batch(
            request: gr.Request, ticket: Any, text: Any, file: Any, times: Any, *values: Any
        ) -> AsyncIterator[Changes]:
            form = dict(zip(names, values, strict=True))
            owner, kept = follower.greet(request, ticket)
            busy, jobs, reason = bool(live_videos(site, owner)), [], ""
            try:
                forms = batch_forms({**form, "after": ""}, lines_of(text, file), times)
                wanted = [await site.clips.read(file_of(one), job_of_form, site, one, owner) for one in forms]
            except ValueError as error:
                yield kept | {notice: notice_html(page_sentence(error), "error")}
                return
            for one in wanted:
                try:
                    jobs.append(site.submit(one, request))
                except ValueError as error:
                    reason = page_sentence(error)
                    break
            yield kept | {notice: batch_notice(len(jobs), len(wanted), reason)}
            if jobs and not busy:
                async for changes in follower.follow(request, jobs[0]):
                    yield changes

        async def arrive(request: gr.Request, ticket: Any, watched: Any) -> AsyncIterator[Changes]:
            def settings(job: VideoJob) -> Changes:
                values = job_values(job)
                del values["randomise"]
                return fill(fields, values)

            async for changes in follower.arrive(request, ticket, watched, settings):
                yield changes

        lasting: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
        gr.on(
            [generate.click, fields["prompt"].submit],
            press,
            [visitor, *inputs],
            [*follower.parts, fields["seed"]],
            trigger_mode="multiple",  # a press during a run adds to the queue
            **lasting,
        ).then(*refresh, **QUIET)
        add_all.click(
            press_batch, [visitor, prompts, lines, seeds, *inputs], follower.parts, trigger_mode="multiple", **lasting
        ).then(*refresh, **QUIET)
        gr.on(
            [page.load, watch.retry],
            arrive,
            [visitor, watch],
            [*follower.parts, *inputs],
            trigger_mode="multiple",
            **lasting,
        ).then(*refresh, **QUIET)
        watch.peek(follower.peek, watch, follower.parts, **QUIET)
        stop.click(follower.press_stop, watch, notice, **QUIET)
    return page


def _header(checkpoint: CheckpointInfo, worker: Worker) -> str:
    return (
        f"<header><div><h1>{TITLE}</h1><p>LongCat-Video makes the same clip twice: once with full attention, once with "
        "each block of the video looking only at the blocks that matter most to it.</p></div>"
        f'<div class="aside">{SWITCH}<p class="pill" data-state="{worker.state}" role="status">'
        f'<span class="dot"></span><span class="pill-text">{escape(worker.message)}</span></p></div></header>'
    )
