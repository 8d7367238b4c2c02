"""The model field: changes to another checkpoint, from a folder or the Hugging Face Hub, without a restart."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipeline import Cancelled, inspect_checkpoint
from pipeline.checkpoint.download import Progress, fetch_checkpoint
from pipeline.estimate.refusal import check_weights_fit
from pipeline.request.sentences import one_line
from ui.form.inputs import Fields
from ui.form.plan_panel import gib
from ui.form.presets import PresetList
from ui.form.read import page_sentence
from ui.form.restore import fill, general_values
from ui.jobs.daemon import DaemonThread
from ui.look.parts import QUIET, box
from ui.site import Site

POLL_SECONDS = 0.2
OFF = (
    "The model is chosen when the server is started. The page can change it only where it is served to this computer "
    "alone, or with --model-switch."
)
LOOKING = "Looking at {name}…"
FETCHING = "Downloading {name}: {done} of {total}, {file}"
LOADING = "Loading {name}, after the videos that wait now…"
LOADED = "{name} is loaded. The form has its settings now."
CANCELLED = "The download was cancelled. What is here already is kept, and continued next time."
BUSY = "another model is being fetched or loaded; wait for it, or cancel it"
EMPTY = "name a checkpoint folder, or a model on the Hub such as org/model"


class Busy(ValueError):
    """Another change of the model is in progress."""


class ModelChange:
    """Fetches and loads a model. Only one change runs at a time on the whole server."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._turn = threading.Lock()
        self._cancelled = threading.Event()
        self._progress: Progress | None = None

    def cancel(self) -> None:
        """Stop waiting for the download, which ends at its next piece."""
        self._cancelled.set()

    async def run(self, name: str, owner: str) -> AsyncIterator[tuple[str, float | None]]:
        """Change to the model `name`. Yields sentences with the share that is done, or None if it is unknown.

        Raises ValueError if the model cannot be fetched or loaded, and `Busy` during another change.
        """
        if not name:
            raise ValueError(EMPTY)
        if not self._turn.acquire(blocking=False):
            raise Busy(BUSY)
        cancelled = self._cancelled = threading.Event()  # a new event, because an earlier download may still be ending
        self._progress = None
        try:
            yield LOOKING.format(name=one_line(name)), None
            thread = DaemonThread("model")
            try:
                fetching = thread.submit(self._fetch, name, cancelled)
                while not fetching.done():
                    if cancelled.is_set():
                        raise Cancelled
                    yield self._fetched(name)
                    await asyncio.sleep(POLL_SECONDS)
            finally:
                cancelled.set()  # also if the page was closed; the next attempt resumes the download
                thread.close()
            path = fetching.result()
            info = inspect_checkpoint(path, self._site.checkpoint.lora_dir)
            job = self._site.worker.load(path, owner)
            while not job.over:
                yield LOADING.format(name=info.name), None
                await asyncio.sleep(POLL_SECONDS)
            if job.state != "done":
                raise ValueError(job.error or CANCELLED)
            self._site.use(info)
        finally:
            self._turn.release()

    def _fetch(self, name: str, cancelled: threading.Event) -> Path:
        def note(progress: Progress) -> None:
            if cancelled.is_set():
                raise Cancelled
            self._progress = progress

        estimates = self._site.estimates
        where: dict[str, Any] = {"device": estimates.device, "held": estimates.held()}
        check = partial(check_weights_fit, weights=self._site.worker.weights, **where)
        return fetch_checkpoint(name, check, note)

    def _fetched(self, name: str) -> tuple[str, float | None]:
        progress = self._progress
        if progress is None or not progress.total:
            return LOOKING.format(name=one_line(name)), None
        sizes = {"done": gib(progress.done), "total": gib(progress.total)}
        return FETCHING.format(name=name, file=progress.file, **sizes), progress.done / progress.total


def model_field(site: Site, fields: Fields, presets: PresetList, measured: gr.Timer) -> None:
    """Add the field with its buttons, or the reason why there is none. measured: the timer that refreshes the plan."""
    if not site.model_switch:
        box(value=f'<p class="hint">{escape(OFF)}</p>')
        return
    change = ModelChange(site)
    name = gr.Textbox(
        label="Model",
        info="A checkpoint folder on this computer, or org/model on the Hugging Face Hub.",
        placeholder=site.checkpoint.name,
        max_lines=1,
        elem_id="model",
    )
    with gr.Row(elem_id="model-buttons"):
        load = gr.Button("Load model", size="sm", elem_id="model-load")
        cancel = gr.Button("Cancel", size="sm", interactive=False, elem_id="model-cancel")
    status = box("model-status")

    async def press(text: str, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        on, off = gr.update(interactive=True), gr.update(interactive=False)
        yield {load: off, cancel: on}
        ended = {load: on, cancel: off}
        try:
            wanted = text.strip() if isinstance(text, str) else ""
            async for said, share in change.run(wanted, site.owner(request)):
                yield {status: _status(said, "busy", share)}
        except Cancelled:
            yield ended | {status: _status(CANCELLED, "info")}
        except Busy as error:  # the page that started it may be closed, so everybody may cancel it
            yield {load: on, cancel: on, status: _status(page_sentence(error), "error")}
        except ValueError as error:
            yield ended | {status: _status(page_sentence(error), "error")}
        else:
            values = general_values(site.checkpoint.request("-"), side_by_side=True)
            loaded = _status(LOADED.format(name=site.checkpoint.name), "done")
            changed = dict(zip(presets.parts, presets.view("", None, request)))
            changed[fields["lora"]]["value"] = values.pop("lora")
            yield ended | fill(fields, values) | changed | {status: loaded, measured: gr.Timer(active=True)}

    gr.on(
        [load.click, name.submit],
        press,
        name,
        [status, load, cancel, measured, *fields.values(), *presets.parts],
        concurrency_limit=None,
        show_progress="hidden",
        api_visibility="private",
    )
    cancel.click(change.cancel, None, None, **QUIET)


def _status(text: str, kind: str, share: float | None = None) -> str:
    role = "alert" if kind == "error" else "status"
    bar = ""
    if share is not None:
        percent = f"{100 * share:.0f}"
        bar = (
            f'<span class="share" role="progressbar" aria-label="Download" aria-valuenow="{percent}">'
            f'<i style="width:{percent}%"></i></span>'
        )
    return f'<p class="notice" data-kind="{kind}" role="{role}">{escape(text)}{bar}</p>'
