"""Shows memory over time beside the videos, and the worker's state. The page polls it about once a second.

The page calls `poll` directly on the component and not through the event queue, so readings arrive during a video and
in every open tab. A thread of the server takes the readings: a sleeping page misses none, and peaks do not depend on
its timer.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from typing import Any

import gradio as gr

from pipeline import Resources
from ui.jobs.monitor import Monitor
from ui.look.parts import QUIET, Drawn
from ui.site import Site

POINTS = 900  # largest number of points in one answer; more than the chart has pixels


class LivePanel(Drawn):
    """Value: {"ticket", "job", "since"}: the visitor, the finished job on the stage, and the time it was put there."""

    def __init__(self, site: Site, **kwargs: Any) -> None:
        self._site = site
        super().__init__("live", ["live_chart.js", "live.js"], {}, [poll_function(site)], **kwargs)

    def connect(self, page: gr.Blocks, visitor: gr.BrowserState, shown: gr.State) -> None:
        """Connect the events. visitor: the browser's ticket. shown: id of the finished job on the stage."""
        visitors = self._site.visitors

        def look(request: gr.Request, ticket: Any, job: str) -> dict[str, Any]:
            if request.username or visitors.owner_of(ticket):
                visitors.greet(request, ticket)
            return {"ticket": visitors.ticket(request), "job": job, "since": time.time()}

        changes = [page.load, visitor.change, shown.change]
        gr.on(changes, look, [visitor, shown], self, trigger_mode="always_last", **QUIET)  # loses none


def poll_function(site: Site) -> Any:
    monitor = site.monitor

    def poll(ask: Any = None) -> dict[str, Any]:
        return {"worker": site.worker.status(), **answer(site, monitor, ask if isinstance(ask, dict) else {})}

    return poll


def answer(site: Site, monitor: Monitor, ask: dict[str, Any]) -> dict[str, Any]:
    """Answer a poll. Where there are several engines, it is about the one that makes, or made, the visitor's job.

    ask: {"ticket", "job", "picked": from the panel's value; "from": start of the chart in seconds before now, or "run";
        "last": time of the newest sample that the page has; "shows": the subject of these samples}.

    Returns {"now"; "machine": the newest values; "job": see `job_view`, or None; "shows"; "span": [start, end] of the
    chart; "fresh": whether the samples replace those of the page; "times"; "series"}.
    """
    owner = site.visitors.owner_of(ask.get("ticket"))
    job = monitor.current(owner, _text(ask.get("job")), _number(ask.get("picked"))) if owner else None
    sampler = monitor.sampler(job)
    latest = sampler.latest
    if latest is None:
        return {"machine": None}
    trace = monitor.trace(job) if job is not None else None
    window = _number(ask.get("from"))
    if window > 0 or trace is None or job is None:
        start, end, source = latest.time - (window or 120), latest.time, None
        shows = f"last {window:g} {monitor.samplers.index(sampler)}"
    else:
        start, end = trace["started"], trace["ended"] or latest.time
        source = trace if "times" in trace else None
        shows = f"{job.id} {job.over}"
    fresh = shows != ask.get("shows") or not start <= _number(ask.get("last")) <= end
    since = start if fresh else _number(ask.get("last"))
    if source is not None:
        times, series = _after(source, since if not fresh else -math.inf)
    else:
        history = sampler.history(since, end, POINTS if fresh else None)
        times, series = history.times, history.series
    return {
        "now": latest.time,
        "machine": machine_view(latest),
        "job": job_view(job.id, trace) if job is not None and trace is not None else None,
        "shows": shows,
        "span": [start, end],
        "fresh": fresh,
        "times": times,
        "series": series,
    }


def job_view(job_id: str, trace: dict[str, Any]) -> dict[str, Any]:
    """A visitor's own job for the page: {"id", "ended", "gpus", "spans", "peaks"}, see `Monitor.trace`."""
    return {"id": job_id, **{name: trace[name] for name in ("started", "ended", "gpus", "spans", "peaks")}}


def machine_view(latest: Resources) -> dict[str, Any]:
    """The newest values: {"gpus": [{"key", "label", "name", "total", "limit"}], "torch_gpu", "host_total", "note",
    "values": by series}."""
    return {
        "gpus": [
            {"key": gpu.key, "label": gpu.label, "name": gpu.name, "total": gpu.total, "limit": gpu.power_limit}
            for gpu in latest.gpus
        ],
        "torch_gpu": latest.torch_gpu,
        "host_total": latest.host_total,
        "note": latest.note,
        "values": latest.series(),
    }


def _after(trace: dict[str, Any], since: float) -> tuple[list[float], dict[str, list[float | None]]]:
    first = bisect_right(trace["times"], since)
    return trace["times"][first:], {name: values[first:] for name, values in trace["series"].items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float:
    """A value from the browser as a finite number, or 0 if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return float(value)
