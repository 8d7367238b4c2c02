"""Calls of the API as jobs: their ids, their progress, their end, and what becomes of them when the caller is gone."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import OrderedDict
from weakref import WeakKeyDictionary

import gradio as gr
from gradio.context import LocalContext

from ui.access.presence import Presence
from ui.jobs.job import Job, VideoJob
from ui.jobs.sweep_job import SweepJob
from ui.site import Site
from ui.views.stage import PHASES
from ui.views.sweep_view import progress_text

POLL_SECONDS = 0.1
MOST_CALLS = 1000
SECRET = 32  # characters of an id that nobody guesses, such as uuid.uuid4().hex
GRACE_SECONDS = 120.0  # that a job goes on without its caller
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

BAD_ID = "job_id {name!r} cannot be used; take 1 to 64 letters, digits, - and _"
TAKEN = "job_id {name!r} is the id of a job that is not over; choose another"
UNKNOWN = (
    "job_id {name!r} is not a job of yours; use the one that you gave to the call, or its report's. Over another "
    "connection an id of your own must have 32 characters or more"
)
STOPPED = "the job was stopped"


class Calls:
    """The jobs of API calls by their owner and the id that the caller knows them by.

    An owner is a login, or without one a session: one `gradio_client.Client`, or one REST call. An id that nobody
    guesses, a long one of the caller's or the job's own, is known to whoever asks with it; with logins to its owner's.
    """

    def __init__(self, site: Site, presence: Presence) -> None:
        self.site = site
        self.presence = presence
        self._jobs: OrderedDict[tuple[str, str], Job] = OrderedDict()
        self._asked: WeakKeyDictionary[Job, float] = WeakKeyDictionary()  # when somebody asked for a job by its id
        self._lock = threading.Lock()

    @property
    def request(self) -> gr.Request:
        """The one that is answered now."""
        request = LocalContext.request.get()
        assert request is not None  # a call has one
        return request

    @property
    def owner(self) -> str:
        """Whose the call is that is answered now."""
        return self.site.owner(self.request)

    def submit(self, job: Job, name: str | None) -> str:
        """Queue a job under the caller's id, or the job's own. Returns the id; raises ValueError."""
        name = job.id if name is None else name
        if not isinstance(name, str) or not ID.fullmatch(name):
            raise ValueError(BAD_ID.format(name=str(name)[:80]))
        job.owner = self.owner
        key = job.owner, name
        with self._lock:
            if key in self._jobs and not self._jobs[key].over:
                raise ValueError(TAKEN.format(name=name))
            self.site.worker.submit(job)
            self._jobs[key] = job
            self._jobs.move_to_end(key)
            for old in [old for old, kept in self._jobs.items() if kept.over][: max(0, len(self._jobs) - MOST_CALLS)]:
                del self._jobs[old]
        return name

    def find(self, name: object) -> Job:
        """The job that the caller may know by that id; ValueError when there is none. Keeps it from being given up."""
        owner = self.owner
        job = (self._jobs.get((owner, name)) or self._by_secret(name, owner)) if isinstance(name, str) else None
        if job is None:
            raise ValueError(UNKNOWN.format(name=str(name)[:80]))
        self._asked[job] = self.presence.clock()
        return job

    def _by_secret(self, name: str, owner: str) -> Job | None:
        if len(name) < SECRET:
            job = self.site.worker.find_any(name)
        else:
            with self._lock:
                job = next((job for (_, known), job in reversed(self._jobs.items()) if known == name), None)
        if job is None or job.errand or (job.owner != owner and job.owner.startswith("login:")):
            return None
        return job

    def _away(self, job: Job, session: str, begun: float) -> float:
        """Seconds for which there was no sign of the caller."""
        return self.presence.clock() - max(begun, self.presence.seen(session), self._asked.get(job, begun))

    async def follow(self, job: Job) -> None:
        """Wait for a job's end and tell the client its progress; stop it when the client cancels the call, or is gone
        and neither comes back nor asks for the job for a while.

        Raises:
            gr.Error: it failed, or was stopped before anything was made.
        """
        progress, worker = gr.Progress(), self.site.worker
        seen, session, begun = -1, str(self.request.session_hash), self.presence.clock()
        try:
            while not job.over:
                if not job.stopping and self._away(job, session, begun) > GRACE_SECONDS:
                    worker.stop(job)
                if job.state == "waiting" and not job.started:
                    progress((0, 1), desc=worker.waiting_text(job), unit="jobs")
                elif job.version != seen or job.state == "waiting":
                    seen = job.version
                    _tell(progress, self.site, job)
                await asyncio.sleep(POLL_SECONDS)
        finally:
            if not job.over:
                worker.stop(job)
        if job.state != "done" and not (isinstance(job, SweepJob) and job.state == "stopped" and job.results):
            raise gr.Error(job.error or STOPPED, print_exception=False)


def _tell(progress: gr.Progress, site: Site, job: Job) -> None:
    if isinstance(job, SweepJob):
        progress((job.tried, job.total), desc=progress_text(site, job), unit="videos")
    elif isinstance(job, VideoJob) and job.update is not None:
        step, total = job.update.step, job.update.total
        progress((step, total), desc=f"{job.arm}: {PHASES[job.update.phase].lower()}", unit="steps")
