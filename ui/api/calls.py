"""Runs calls of the API as jobs: their ids, their progress, their end, and their fate when the caller is gone."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import OrderedDict
from weakref import WeakKeyDictionary

import gradio as gr
from gradio.context import LocalContext

from pipeline import VideoResult
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
TAKEN = "job_id {name!r} was given to another job of yours, which is {state}; choose another, or null to have one drawn"
UNKNOWN = (
    "job_id {name!r} is not a job of yours; use the one that you gave to the call, or its report's. Over another "
    "connection an id of your own must have 32 characters or more"
)
STOPPED = "the job was stopped"


class Calls:
    """Finds the jobs of API calls by owner and by the id that the caller knows.

    An owner is a login, or without logins a session, which is one `gradio_client.Client` or one REST call. An id that
    nobody can guess (a long one of the caller's, or the job's own) gives access to whoever asks with it; with logins,
    only to the owner.
    """

    def __init__(self, site: Site, presence: Presence) -> None:
        self.site = site
        self.presence = presence
        self._jobs: OrderedDict[tuple[str, str], Job] = OrderedDict()
        self._asked: WeakKeyDictionary[Job, float] = WeakKeyDictionary()  # when somebody asked for a job by its id
        self._lock = threading.Lock()

    @property
    def request(self) -> gr.Request:
        """The request that is being answered."""
        request = LocalContext.request.get()
        assert request is not None  # a call has one
        return request

    @property
    def owner(self) -> str:
        """The owner of the call that is being answered."""
        return self.site.owner(self.request)

    async def run(self, job: Job, name: str | None) -> str:
        """Queue a job under the caller's id `name`, or under its own, and wait for its end. Returns the id.

        Reports the progress to the client. Stops the job if the client cancels the call, or is gone and neither comes
        back nor asks for the job.

        Raises:
            ValueError: the id is unusable or was used before, or the worker refuses the job.
            gr.Error: the job failed, or was stopped before it made anything.
        """
        name = self._submit(job, name)
        await self._follow(job)
        return name

    def finished(self, name: str, missing: str) -> VideoResult:
        """The finished video of a job that the caller may know: of a pair the dense one.

        Raises ValueError if there is no such job, or with `missing`, in which {name} is the id, if it has no video.
        """
        job = self.find(name)
        results = job.results if isinstance(job, VideoJob) else {}
        if not results:
            raise ValueError(missing.format(name=name))
        return results.get("dense") or results["sparse"]

    def _submit(self, job: Job, name: str | None) -> str:
        name = job.id if name is None else name
        if not isinstance(name, str) or not ID.fullmatch(name):
            raise ValueError(BAD_ID.format(name=str(name)[:80]))
        request = self.request
        key = self.site.owner(request), name
        with self._lock:
            if key in self._jobs:
                raise ValueError(TAKEN.format(name=name, state=self._jobs[key].state))
            self.site.submit(job, request)
            self._jobs[key] = job
            self._jobs.move_to_end(key)
            for old in [old for old, kept in self._jobs.items() if kept.over][: max(0, len(self._jobs) - MOST_CALLS)]:
                del self._jobs[old]
        return name

    def find(self, name: object) -> Job:
        """The job that the caller may know by this id, and keeps it alive. Raises ValueError if there is none."""
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

    async def _follow(self, job: Job) -> None:
        progress, told = gr.Progress(), None
        session, begun = str(self.request.session_hash), self.presence.clock()
        try:
            while not job.over:
                if not job.stopping and self._away(job, session, begun) > GRACE_SECONDS:
                    self.site.worker.stop(job)
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
    """The progress of a job: numbers, words, and the unit of the numbers."""
    if job.state == "waiting" and not job.started:
        return (0, 1), site.worker.waiting_text(job), "jobs"
    if isinstance(job, SweepJob):
        return (job.tried, job.total), progress_text(site, job), "videos"
    if isinstance(job, VideoJob) and (update := job.update) is not None:
        place = f"{job.place.lower()}, " if job.place else ""
        return (update.step, update.total), f"{place}{job.arm}: {PHASES[update.phase].lower()}", "steps"
    return None
