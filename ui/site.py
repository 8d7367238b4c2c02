"""What every part of the page works on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import gradio as gr

from pipeline import CheckpointInfo
from ui.estimates import Estimates
from ui.visitor import Visitors
from ui.worker import Worker


@dataclass(frozen=True)
class Site:
    """One served page.

    checkpoint: the one whose defaults the form has; worker: what runs the jobs; visitors: who the requests are from;
    device: what the worker's pipeline was told to run on.
    """

    checkpoint: CheckpointInfo
    worker: Worker
    visitors: Visitors = field(default_factory=Visitors)
    device: str = "auto"

    def owner(self, request: gr.Request) -> str:
        """Whose jobs an event may see: pass it to `worker.find`, and as `owner` to a new job."""
        return self.visitors.owner(request)

    @cached_property
    def estimates(self) -> Estimates:
        """Time and memory before a run; the first use begins to watch the worker's jobs."""
        return Estimates(self.checkpoint, self.worker, self.device)
