"""What every part of the page works on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import gradio as gr

from pipeline import CheckpointInfo
from ui.access.visitor import Visitors
from ui.jobs.clips import ClipReader
from ui.jobs.estimates import Estimates
from ui.jobs.monitor import Monitor
from ui.jobs.worker import AnyJob, Worker


@dataclass(eq=False)
class Site:
    """One served page.

    checkpoint: the one whose defaults the form has; worker: what runs the jobs; visitors: who the requests are from;
    device: what the worker's pipeline was told to run on; model_switch: whether visitors may load another model, which
    reads any folder that the server can read; clips: reads those that are to be refined.
    """

    checkpoint: CheckpointInfo
    worker: Worker
    visitors: Visitors = field(default_factory=Visitors)
    device: str = "auto"
    model_switch: bool = False
    clips: ClipReader = field(default_factory=ClipReader)

    def owner(self, request: gr.Request) -> str:
        """Whose jobs an event may see: pass it to `worker.find`."""
        return self.visitors.owner(request)

    def submit(self, job: AnyJob, request: gr.Request) -> AnyJob:
        """Queue a job for who sends the request. Raises ValueError as `worker.submit` does."""
        job.owner, job.address = self.owner(request), self.visitors.address(request)
        return self.worker.submit(job)

    @cached_property
    def estimates(self) -> Estimates:
        """Time and memory before a run; the first use begins to watch the worker's jobs."""
        return Estimates(self.checkpoint, self.worker, self.device)

    @cached_property
    def monitor(self) -> Monitor:
        """The machine over time; the first use begins to sample it and to watch the worker's jobs."""
        return Monitor(self.worker)

    def use(self, checkpoint: CheckpointInfo) -> None:
        """The worker has another checkpoint now: requests get its defaults, and estimates are for it."""
        self.checkpoint = checkpoint
        self.estimates.use(checkpoint)
