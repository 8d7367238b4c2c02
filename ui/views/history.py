"""The visitor's earlier runs: pictures, figures, and buttons for each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from pipeline import VideoRequest
from pipeline.request.timing import read_speed
from pipeline.runs.long_video import LongVideo
from ui.form.inputs import Fields
from ui.form.read import page_sentence
from ui.form.restore import RESTORED_RUN, fill, form_values, long_values, remarks, windows_values
from ui.jobs.job import ARMS, VideoJob
from ui.look.figures import decibels
from ui.look.parts import QUIET, Drawn, event_data, notice_html
from ui.storage.store import INTERRUPTED, Record
from ui.tasks.windows_job import windows_plan
from ui.views.follow import GONE, Changes, Follower, live_videos
from ui.views.stage import pair_view
from ui.views.sweep_panel import SWEEP_TAB, SweepPanel

PAGE = 24  # runs shown at first, and more with every press of "Show more"

TASKS = {
    "long": "Long video",
    "windows": "Refined long video",
    "from_image": "From a picture",
    "from_frames": "Going on from a clip",
    "refine": "Refined",
}
KINDS = {"both": "Dense and sparse", "dense": "Dense", "sparse": "Sparse", "sweep": "Sweep"}
STATES = {"stopped": "Stopped", "failed": "Failed", INTERRUPTED: "Interrupted: the server ended"}
SPEEDUP = "{value:.2f}× faster"
SLOWER = "{value:.2f}× the speed"
RANGE = "{low:.1f} to {high:.1f}× the speed, not certain"
PSNR = "PSNR {value}"
SIZE = "{width} × {height}, {frames} frames, {steps} steps, seed {seed}"
SPARSITY = "sparsity {value:g}"
MASS = "CDF threshold {value:g}"
SCORED = "scored by {value}"
STEPS_FIRST, LAYERS_FIRST, EVERY = "dense steps: {value}", "dense layers: {value}", "select every {value}"


class History(Drawn):
    """The gallery. Its value is `history_view`.

    Events: select shows a run, apply two of them as a pair, edit uses the settings of one, submit goes on from one of
    its videos, delete removes it, clear removes all runs, expand shows more.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("history", ["history.js"], {"runs": [], "more": False, "shown": ""}, **kwargs)


def history_panel(
    follower: Follower, fields: Fields, sweep: SweepPanel, tabs: gr.Tabs
) -> tuple[Callable[..., dict[str, Any]], list[Any], History]:
    """Add the gallery and the events of its buttons. A sweep is shown in its own tab.

    Returns the function and the components that refresh the gallery, for `event.then(*refresh)`.
    """
    site, store, notice = follower.site, follower.store, follower.notice
    history = History()
    length = gr.State(PAGE)

    def refresh(shown: str, limit: int, request: gr.Request) -> dict[str, Any]:
        return history_view(follower, site.owner(request), shown, limit)

    def select(event: gr.EventData, request: gr.Request) -> Changes:
        record = store.read(_id(event))
        if record is None or record.kind != "sweep" or record.owner != site.owner(request):
            return follower.open(request, _id(event))
        try:
            return sweep.open(request, record.id) | {tabs: gr.Tabs(selected=SWEEP_TAB)}
        except ValueError as error:
            return {notice: notice_html(str(error), "error")}

    def together(event: gr.EventData, request: gr.Request) -> Changes:
        asked = event_data(event).get("jobs")
        names = asked if isinstance(asked, list) and len(asked) == 2 else []
        jobs = [follower.find(name, site.owner(request)) for name in names if isinstance(name, str)]
        made = [job for job in jobs if isinstance(job, VideoJob) and job.results]
        if len(made) < 2:
            return {notice: notice_html(GONE, "error")}
        try:
            return {follower.stage: pair_view(*made)}
        except ValueError as error:
            return {notice: notice_html(page_sentence(error), "error")}

    def settings(event: gr.EventData, request: gr.Request) -> Changes:
        record = store.read(_id(event))
        if record is None or record.owner != site.owner(request) or not record.request:
            return {notice: notice_html(GONE, "error")}
        try:
            wanted, values, long = _settings(record, store.output_dir / record.folder)
        except ValueError as error:
            return {notice: notice_html(str(error), "error")}
        said = [RESTORED_RUN, *remarks(site, fields, wanted, {}, long)]
        return fill(fields, values) | {notice: notice_html(" ".join(said))}

    def delete(event: gr.EventData, shown: str, limit: int, request: gr.Request) -> dict[str, Any]:
        return _delete(follower, site.owner(request), _id(event), shown, limit)

    def clear(shown: str, limit: int, request: gr.Request) -> dict[str, Any]:
        return _delete(follower, site.owner(request), None, shown, limit)

    def expand(shown: str, limit: int, request: gr.Request) -> tuple[dict[str, Any], int]:
        return refresh(shown, limit + PAGE, request), limit + PAGE

    where = [follower.shown, length]
    parts = [notice, follower.stage, follower.report, follower.shown, tabs, *sweep.parts]
    history.select(select, None, parts, **QUIET).then(refresh, where, history, **QUIET)
    history.apply(together, None, [notice, follower.stage], **QUIET)
    history.edit(settings, None, [notice, *fields.values()], **QUIET)
    history.delete(delete, where, history, **QUIET)
    history.clear(clear, where, history, **QUIET)
    history.expand(expand, where, [history, length], **QUIET)
    return refresh, where, history


def _settings(record: Record, folder: Path) -> tuple[VideoRequest, dict[str, Any], LongVideo | None]:
    """The request of a recorded run, the form's values for it, and its plan if it is a long video; the request is then
    that of the first segment, or window."""
    values = dict(record.request or {})
    side_by_side, long = values.pop("side_by_side", False), values.pop("long", None)
    values.pop("kept", None)
    if (windows := values.pop("windows", None)) is not None:
        plan = windows_plan(windows, folder)
        return plan.request, windows_values(record.id, plan, side_by_side), None
    if long is not None:
        video = LongVideo.from_dict(long)
        return video.request, long_values(video, side_by_side), video
    wanted = VideoRequest.from_dict(values)
    return wanted, form_values(wanted, side_by_side), None


def _id(event: gr.EventData) -> str:
    job = event_data(event).get("job")
    return job if isinstance(job, str) else ""


def _delete(follower: Follower, owner: str, job_id: str | None, shown: str, limit: int) -> dict[str, Any]:
    for gone in follower.store.delete(owner, job_id):
        follower.site.worker.forget(gone)
    return history_view(follower, owner, shown, limit)


def history_view(follower: Follower, owner: str, shown: str, limit: int) -> dict[str, Any]:
    """The data that the page draws: {"runs", "more", "shown"}. Running jobs come first, without pictures."""
    records = follower.store.runs(owner, limit + 1)
    live = [live_view(job) for job in reversed(live_videos(follower.site, owner))]
    runs = live + [run_view(record) for record in records[:limit]]
    return {"runs": runs, "more": len(records) > limit, "shown": shown}


def live_view(job: VideoJob) -> dict[str, Any]:
    return _view(job.id, "both" if job.side_by_side else job.arms[0], job.asked(), job.submitted) | {
        "live": True,
        "state": "Being made" if job.state == "running" else "Waiting",
        "playable": True,
    }


def run_view(record: Record) -> dict[str, Any]:
    """One run for the page, as plain text without markup."""
    request, report, posters = record.request or {}, record.report or {}, record.posters or {}
    both = request.get("side_by_side")
    kind = record.kind
    if kind in ("video", "long", "windows"):
        kind = "both" if both else "sparse" if request.get("bsa") else "dense"
    view = _view(record.id, kind, request, record.submitted) | {
        "state": STATES.get(record.state, ""),
        "error": record.error,
        "posters": [[arm, posters[arm]] for arm in sorted(posters)][:2],
        "playable": any(report.get(name) for name in ("dense", "sparse", "videos", "playable")),
        "arms": [arm for arm in ARMS if report.get(arm)],
        "comparable": any(report.get(name) for name in ("dense", "sparse")),
    }
    speed = read_speed(report)
    if speed is not None:
        psnr = float("inf") if report.get("psnr") is None else report["psnr"]
        text = RANGE if not speed.sure else SPEEDUP if speed.ratio >= 1 else SLOWER
        said = text.format(value=speed.ratio, low=speed.low, high=speed.high)
        view["figures"] = [said, PSNR.format(value=decibels(psnr))]
    return view


def _view(job_id: str, kind: str, request: dict[str, Any], submitted: float) -> dict[str, Any]:
    detail = ""
    if request:
        size = {name: request.get(name) for name in ("width", "height", "steps", "seed")}
        detail = SIZE.format(**size, frames=request.get("num_frames"))
    tasks = [text for name, text in TASKS.items() if request.get(name)]
    rules = request.get("bsa") or {}
    rule = [(SPARSITY, "sparsity"), (MASS, "cdf_threshold"), (SCORED, "selection"), (STEPS_FIRST, "dense_steps")]
    rule += [(LAYERS_FIRST, "dense_layers"), (EVERY, "select_every")]
    texts = [(text, rules.get(name)) for text, name in rule]
    prompts = (request.get("long") or request.get("windows") or {}).get("prompts", [request.get("prompt", "")])
    return {
        "job": job_id,
        "kind": ": ".join([*tasks[:1], KINDS.get(kind, kind.capitalize())]),
        "prompt": " / ".join(dict.fromkeys(prompts)),
        "rule": ", ".join(text.format(value=value) for text, value in texts if value is not None),
        "detail": detail,
        "time": submitted,
        "settings": bool(request),
        "live": False,
        "state": "",
        "error": "",
        "posters": [],
        "figures": [],
        "playable": False,
        "arms": [],
    }
