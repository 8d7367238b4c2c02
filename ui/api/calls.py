"""Runs calls of the API as jobs: their ids, their progress, their end."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import OrderedDict

import gradio as gr
from gradio.context import LocalContext

from ui.jobs.job import Job, VideoJob
from ui.jobs.sweep_job import SweepJob
from ui.site import Site
from ui.views.stage import PHASES
from ui.views.sweep_view import progress_text

POLL_SECONDS = 0.1
MOST_CALLS = 1000
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

BAD_ID = "job_id {name!r} cannot be used; take 1 to 64 letters, digits, - and _"
TAKEN = "job_id {name!r} is the id of a job that is not over; choose another"
UNKNOWN = "job_id {name!r} is not a job of yours; use the one that you gave to the call, or its report's"
STOPPED = "the job was stopped"


class Calls:
    """Finds the jobs of API calls by owner and by the id that the caller knows.

    An owner is a login, or without logins a session, which is one `gradio_client.Client`.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self._jobs: OrderedDict[tuple[str, str], Job] = OrderedDict()
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
        """Queue a job under the caller's id `name`, or under its own. Returns the id.

        Raises ValueError for an unusable id, for the id of an unfinished job, or if the worker refuses the job.
        """
        name = job.id if name is None else name
        if not isinstance(name, str) or not ID.fullmatch(name):
            raise ValueError(BAD_ID.format(name=str(name)[:80]))
        request = self.request
        key = self.site.owner(request), name
        with self._lock:
            if key in self._jobs and not self._jobs[key].over:
                raise ValueError(TAKEN.format(name=name))
            self.site.submit(job, request)
            self._jobs[key] = job
            self._jobs.move_to_end(key)
            for old in [old for old, kept in self._jobs.items() if kept.over][: max(0, len(self._jobs) - MOST_CALLS)]:
                del self._jobs[old]
        return name

    def find(self, name: object) -> Job:
        """The caller's job with this id. Raises ValueError if there is none."""
        job = self._jobs.get((self.owner, name)) if isinstance(name, str) else None
        if job is None:
            raise ValueError(UNKNOWN.format(name=str(name)[:80]))
        return job

    async def follow(self, job: Job) -> None:
        """Wait for the end of a job and report its progress to the client. Stops it if the client cancels the call.

        Raises:
            gr.Error: the job failed, or was stopped before it made anything.
        """
        progress, told = gr.Progress(), None
        try:
            while not job.over:
                # whatever is told is sent to the client, so the same again is not
                if (news := _news(self.site, job)) is not None and news != told:
                    told = news
                    place, text, unit = news
                    progress(place, desc=text, unit=unit)
                await asyncio.sleep(POLL_SECONDS)
        finally:
            if not job.over:
                self.site.worker.stop(job)
        if job.state != "done" and not (isinstance(job, SweepJob) and job.state == "stopped" and job.results):
            raise gr.Error(job.error or STOPPED, print_exception=False)


def _news(site: Site, job: Job) -> tuple[tuple[int, int], str, str] | None:
    """How far a job is, in words, and the unit of the numbers."""
    if job.state == "waiting" and not job.started:
        return (0, 1), site.worker.waiting_text(job), "jobs"
    if isinstance(job, SweepJob):
        return (job.tried, job.total), progress_text(site, job), "videos"
    if isinstance(job, VideoJob) and (update := job.update) is not None:
        return (update.step, update.total), f"{job.arm}: {PHASES[update.phase].lower()}", "steps"
    return None
