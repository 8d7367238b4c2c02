"""Follows jobs on a page: after a press of a button, after a reload, in a second tab, or after a lost connection.

A page never owns a job. It only looks at one, so closing or reloading it ends nothing, and every tab of a visitor may
look at the same job. One tab gets its news on a stream, the others ask now and then: a browser opens six
connections to a server, and streams in that many tabs would leave none for the Stop button.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ui.form.read import page_sentence
from ui.form.words import unknown_sentence
from ui.jobs.job import Job, VideoJob
from ui.look.parts import Drawn, notice_html
from ui.site import Site
from ui.storage.store import Store
from ui.views.report import report_panel
from ui.views.stage import StageViews

POLL_SECONDS = 0.1
GONE = "This run is gone."
SERVER = secrets.token_hex(4)  # another value means that the server was restarted
Changes = dict[Any, Any]  # component -> its new value; other components stay unchanged


def watch_for_jobs(site: Site) -> gr.HTML:
    """Invisible: notices that a job of this visitor runs and this page does not follow it, and triggers `retry`; on a
    page that follows one without a stream, `peek` whenever there is news.

    Value: {"ticket", "server", "job", "version", "streams"}: the visitor's ticket, the server's process, and the job
    that the page follows, how much of it the page has seen, and whether it is told the rest on a stream.
    """

    def look(ask: dict[str, str]) -> dict[str, Any]:
        return {"server": SERVER, **seen_from(site, ask)}

    return Drawn("watch", ["watch.js"], {}, [look])


def seen_from(site: Site, ask: Any) -> dict[str, Any]:
    """The job that a page should follow, and its version: {"job", "version"}, with job "" for none.

    ask: {"ticket", "job"} from the browser.
    """
    ask = ask if isinstance(ask, dict) else {}
    owner = site.visitors.owner_of(ask.get("ticket"))
    job = job_to_follow(site, owner, ask.get("job")) if owner else None
    return {"job": job.id if job else "", "version": job.version if job else 0}


def job_to_follow(site: Site, owner: str, named: Any) -> VideoJob | None:
    """The job with the id `named` if it is not over, else the owner's next one."""
    live = live_videos(site, owner)
    return next((job for job in live if job.id == named), live[0] if live else None)


def live_videos(site: Site, owner: str) -> list[VideoJob]:
    return [job for job in site.worker.live(owner) if isinstance(job, VideoJob)]


@dataclass
class Follower:
    """Updates the parts of the page that show a job while it waits, runs and ends.

    visitor: the ticket in the browser. shown: id of the finished job whose videos are on the stage. views: makes the
    stage's values.
    """

    site: Site
    store: Store
    visitor: gr.BrowserState
    watch: gr.HTML
    notice: gr.HTML
    stage: gr.HTML
    report: gr.HTML
    generate: gr.Button
    stop: gr.Button
    shown: gr.State
    views: StageViews
    _aside: set[str] = field(default_factory=set)  # sessions that look at an older run while a job is being made
    _streaming: set[str] = field(default_factory=set)  # owners of whom a page gets the news on a stream

    @property
    def parts(self) -> list[Any]:
        return [self.visitor, self.watch, self.notice, self.stage, self.report, self.generate, self.stop, self.shown]

    def greet(self, request: gr.Request, ticket: Any) -> tuple[str, Changes]:
        """Identify the visitor who opened the page. Returns the owner, and the changes that store the ticket."""
        ticket = self.site.visitors.greet(request, ticket)
        kept = {} if request.username else {self.visitor: ticket}
        return self.site.owner(request), kept | {self.watch: self._watch(request)}

    async def arrive(
        self, request: gr.Request, ticket: Any, watched: Any, fill: Callable[[VideoJob], Changes]
    ) -> AsyncIterator[Changes]:
        """Serve a page that was opened or lost its job: follow the running job, or show the last finished one.

        fill: returns the changes that put a job's settings into the form.
        """
        owner, kept = self.greet(request, ticket)
        named = watched.get("job") if isinstance(watched, dict) else ""
        fresh = not (isinstance(watched, dict) and watched.get("ticket"))
        job = job_to_follow(self.site, owner, named)
        if job is not None:
            yield kept | (fill(job) if fresh else {})
            async for changes in self.follow(request, job, again=job.id == named):
                yield changes
            return
        # All at once, so that the form does not arrive later and overwrite something that was typed meanwhile.
        changes = kept | {self.generate: gr.update(interactive=True)}
        # The record of jobs may be on a slow disk.
        found = await asyncio.to_thread(self.site.worker.find, named, owner) if named else None
        if isinstance(found, VideoJob):
            changes |= self.ended(request, found)
        elif fresh and (job := await asyncio.to_thread(self.last, owner)) is not None:
            changes |= fill(job) | self.show(job)
        elif fresh and (first := self.site.shown_first.job) is not None:
            changes |= self.show(first)
        yield changes

    def last(self, owner: str) -> VideoJob | None:
        """The owner's newest run that still has a video."""
        for record in self.store.runs(owner, limit=20):
            job = self.find(record.id, owner)
            if isinstance(job, VideoJob) and job.playable:
                return job
        return None

    def find(self, job_id: str, owner: str) -> Job | None:
        """A job, with the videos that are still on the disk."""
        worker = self.site.worker
        job = worker.find(job_id, owner)
        if isinstance(job, VideoJob) and job.over and not all(made.video.is_file() for made in job.results.values()):
            worker.forget(job_id)
            job = worker.find(job_id, owner)
        return job

    async def follow(self, request: gr.Request, job: VideoJob, again: bool = False) -> AsyncIterator[Changes]:
        """Yield the changes of the page until the job has ended; only the current state for further pages of its owner.

        again: the page has followed it before.
        """
        session, worker = str(request.session_hash), self.site.worker
        if not again:
            self._aside.discard(session)
        buttons = {self.generate: gr.update(interactive=True), self.stop: gr.update(interactive=True)}
        yield self._now(request, job) | buttons
        if job.owner in self._streaming:
            yield {self.watch: self._watch(request, job, streams=False)}
            return
        self._streaming.add(job.owner)
        try:
            told, seen, made = "", -1, 0
            while not job.over:
                if job.state == "waiting" and (first := job_to_follow(self.site, job.owner, "")) not in (job, None):
                    job, told, seen, made = first, "", -1, 0  # another of the owner's has got the earlier turn
                elif job.state == "waiting" and worker.waiting_text(job) != told:
                    told = worker.waiting_text(job)
                    yield {self.notice: notice_html(told), self.watch: self._watch(request, job)}
                elif job.state == "running" and (job.version != seen or len(job.results) != made):
                    seen = job.version
                    yield self._now(request, job, report=len(job.results) != made)
                    if session not in self._aside:
                        made = len(job.results)
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self._streaming.discard(job.owner)
        self._aside.discard(session)
        yield self.ended(request, job)
        if (following := job_to_follow(self.site, job.owner, "")) is not None:
            async for changes in self.follow(request, following):
                yield changes

    def peek(self, request: gr.Request, watched: Any) -> Changes:
        """How the job is now that a page follows without a stream; once its owner has none, the page may get it."""
        named = watched.get("job") if isinstance(watched, dict) else ""
        owner = self.site.owner(request)
        job = job_to_follow(self.site, owner, named)
        if job is None or job.id != named:
            return {self.watch: gr.skip()}  # its end is told by `arrive`
        return self._now(request, job, report=True, streams=owner not in self._streaming)

    def _now(self, request: gr.Request, job: VideoJob, report: bool = False, streams: bool = True) -> Changes:
        """A job that waits or runs, except on the stage of a page that shows an older run. report: with the table.

        A job that waits leaves the stage to what was finished before.
        """
        text = running_text(job) if job.state == "running" else self.site.worker.waiting_text(job)
        changes = {self.notice: notice_html(text), self.watch: self._watch(request, job, streams)}
        if request.session_hash not in self._aside and job.state == "running":
            changes[self.stage] = self.views.of(job)
            if report:
                changes[self.report] = report_panel(job.results, job.comparison)
        return changes

    def ended(self, request: gr.Request, job: VideoJob) -> Changes:
        """Changes of the page at the end of the job that it followed."""
        said = job.request.prompt if job.long is None else "\n".join(job.long.prompts)
        changes = {
            self.notice: ended_notice(job, unknown_sentence(self.site.checkpoint, said)),
            self.watch: self._watch(request),
            self.generate: gr.update(interactive=True),
            self.stop: gr.update(interactive=False),
        }
        return changes | (self.show(job) if job.playable else {self.stage: self.views.of(job)})

    def show(self, job: VideoJob) -> Changes:
        """Changes that put a finished job on the stage."""
        return {
            self.stage: self.views.of(job),
            self.report: report_panel(job.results, job.comparison),
            self.shown: job.id,
        }

    def open(self, request: gr.Request, job_id: str) -> Changes:
        """Changes that put an earlier run on the stage, or return the running job to it."""
        job = self.find(job_id, self.site.owner(request))
        if not isinstance(job, VideoJob):
            return {self.notice: notice_html(GONE, "error")}
        if not job.over:
            self._aside.discard(str(request.session_hash))
            return {self.stage: self.views.of(job)}
        if not job.playable:
            return {self.notice: notice_html("The videos of this run are gone; its settings are still here.", "error")}
        if live_videos(self.site, job.owner):
            self._aside.add(str(request.session_hash))
        return self.show(job)

    def press_stop(self, request: gr.Request, watched: Any) -> Any:
        """Stop the job that the page follows, or the visitor's oldest one if the page does not know its id yet.

        Only `follow` reports the result. A second report from here could arrive after the end of the job was shown.
        """
        owner = self.site.owner(request)
        named = watched.get("job") if isinstance(watched, dict) else ""
        job = self.site.worker.find(named, owner) if named else job_to_follow(self.site, owner, named)
        if job is None or job.over:
            return notice_html("Nothing is running.")
        self.site.worker.stop(job)
        return gr.skip()

    def _watch(self, request: gr.Request, job: Job | None = None, streams: bool = True) -> dict[str, Any]:
        following = {"job": job.id, "version": job.version} if job is not None else {"job": "", "version": 0}
        return {"ticket": self.site.visitors.ticket(request), "server": SERVER, "streams": streams, **following}


def running_text(job: VideoJob) -> str:
    if job.stopping:
        return "Stopping at the next step…"
    if job.long is not None:
        return f"{job.place}: making the {job.arm} video…"
    if len(job.arms) == 1:
        return f"Making the {job.arm} video…"
    if len(job.results) == 2:
        return "Comparing the two videos…"
    return f"Making video {len(job.results) + 1} of 2, the {job.arm} one…"


def ended_notice(job: VideoJob, more: str = "") -> str:
    """The sentence about a job's end. more: a further one, about a video that was made."""
    if job.state == "failed":
        return notice_html(page_sentence(job.error), "error")
    if job.state == "stopped":
        return notice_html("Stopped. Finished videos are kept.")
    return notice_html(f"Done with seed {job.request.seed}. {more}".strip(), "done")
