"""The visitor's jobs that run and wait, in their order, with buttons to change it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.jobs.eta import duration_text
from ui.jobs.job import Job, VideoJob
from ui.jobs.sweep_job import SweepJob
from ui.look.parts import QUIET, Drawn
from ui.site import Site

RUNNING = "Being made"
PLACE = "Number {place} of all that wait"
STARTS = "{place}, starts in about {time}"
STOPPING = "Being stopped"
LEFT = "{state}, about {time} left"
PARTS = {"segment": "{count} segments", "window": "{count} windows"}  # of a long video, and of its refinement
SWEEP = "Sweep of {total} videos"
PAIR, DENSE, SPARSE = "dense and sparse", "dense", "sparse"


class QueuePanel(Drawn):
    """The list. Its value is {"ticket"}: the page asks `look` now and then, and `move` and `remove` when pressed.

    All three return the list as `queue_view` gives it.
    """

    def __init__(self, site: Site, **kwargs: Any) -> None:
        self._site = site
        super().__init__("queue", ["queue.js"], {}, _functions(site), **kwargs)

    def connect(self, page: gr.Blocks, visitor: gr.BrowserState) -> None:
        """Connect the events. visitor: the browser's ticket."""
        visitors = self._site.visitors

        def ticket(request: gr.Request, given: Any) -> dict[str, str]:
            if request.username or visitors.owner_of(given):
                visitors.greet(request, given)
            return {"ticket": visitors.ticket(request)}

        gr.on([page.load, visitor.change], ticket, visitor, self, trigger_mode="always_last", **QUIET)


def _functions(site: Site) -> list[Any]:
    def owner_of(ask: Any) -> str:
        return site.visitors.owner_of(ask.get("ticket")) if isinstance(ask, dict) else ""

    def chosen(ask: Any) -> Job | None:
        owner = owner_of(ask)
        return next((job for job in site.worker.live(owner) if job.id == ask.get("job")), None) if owner else None

    def look(ask: Any) -> list[dict[str, Any]]:
        owner = owner_of(ask)
        return queue_view(site, owner) if owner else []

    def move(ask: Any) -> list[dict[str, Any]]:
        job = chosen(ask)
        if job is not None and ask.get("by") in (-1, 1):
            site.worker.queue.move(job, ask["by"])
        return look(ask)

    def remove(ask: Any) -> list[dict[str, Any]]:
        job = chosen(ask)
        if job is not None:
            site.worker.stop(job)
        return look(ask)

    return [look, move, remove]


def queue_view(site: Site, owner: str) -> list[dict[str, Any]]:
    """The owner's jobs in the order in which they run, as plain text: {"job", "what", "detail", "state", "running"}."""
    return [
        {
            "job": job.id,
            "what": job.request.prompt,
            "detail": detail(job),
            "state": state_text(site, job),
            "running": job.state == "running",
        }
        for job in site.worker.live(owner)
        if isinstance(job, VideoJob | SweepJob)
    ]


def detail(job: VideoJob | SweepJob) -> str:
    if isinstance(job, SweepJob):
        return SWEEP.format(total=job.total)
    what = PAIR if job.side_by_side else DENSE if job.request.bsa is None else SPARSE
    parts = "" if job.long is None else f"{PARTS[job.long.name].format(count=len(job.long))} · "
    return f"{parts}{what} · seed {job.request.seed}"


def state_text(site: Site, job: Job) -> str:
    queue = site.worker.queue
    if job.stopping:
        return STOPPING
    if job.state == "running":
        left = queue.seconds_left(job)
        return RUNNING if left is None else LEFT.format(state=RUNNING, time=duration_text(left))
    place = PLACE.format(place=queue.place(job))
    # while a model is loaded none runs, and how long that takes is not known
    wait = queue.wait_seconds(job) if queue.running else None
    return place if wait is None else STARTS.format(place=place, time=duration_text(wait))
