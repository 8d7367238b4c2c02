"""The objects that all parts of the page share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import gradio as gr

from pipeline import CheckpointInfo
from ui.access.clips import ClipReader
from ui.access.visitor import Visitors
from ui.enhance import Enhancer
from ui.jobs.estimates import Estimates
from ui.jobs.monitor import Monitor
from ui.jobs.worker import AnyJob, Worker
from ui.premade import NOTHING, Premade


@dataclass(eq=False)
class Site:
    """One served page.

    checkpoint: source of the form's defaults.
    worker: runs the jobs.
    visitors: identifies the visitors behind requests.
    device: the device that the worker's pipeline was asked to use.
    model_switch: whether visitors may load another model, which can read any folder that the server can read.
    clips: reads the clips that are to be refined.
    shown_first: the pair that visitors without runs of their own see.
    enhancer: rewrites prompts; None without an endpoint for it.
    """

    checkpoint: CheckpointInfo
    worker: Worker
    visitors: Visitors = field(default_factory=Visitors)
    device: str = "auto"
    model_switch: bool = False
    clips: ClipReader = field(default_factory=ClipReader)
    shown_first: Premade = NOTHING
    enhancer: Enhancer | None = None

    def __post_init__(self) -> None:
        if self.shown_first.job is not None:
            self.worker.public[self.shown_first.job.id] = self.shown_first.job

    def owner(self, request: gr.Request) -> str:
        """The owner whose jobs an event may see, for `worker.find`."""
        return self.visitors.owner(request)

    def submit(self, job: AnyJob, request: gr.Request) -> AnyJob:
        """Queue a job for who sends the request. Raises ValueError as `worker.submit` does."""
        job.owner, job.address = self.owner(request), self.visitors.address(request)
        return self.worker.submit(job)

    @cached_property
    def estimates(self) -> Estimates:
        """Estimates of time and memory. The first use starts watching the worker's jobs."""
        return Estimates(self.checkpoint, self.worker, self.device)

    @cached_property
    def monitor(self) -> Monitor:
        """Readings of the machine over time. The first use starts sampling it and watching the worker's jobs."""
        return Monitor(self.worker)

    def use(self, checkpoint: CheckpointInfo) -> None:
        """Take the worker's new checkpoint: requests get its defaults, and estimates are made for it."""
        self.checkpoint = checkpoint
        self.estimates.use(checkpoint)
