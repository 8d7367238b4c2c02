"""What every part of the page works on."""

from __future__ import annotations

from dataclasses import dataclass, field

import gradio as gr

from pipeline import CheckpointInfo
from ui.visitor import Visitors
from ui.worker import Worker


@dataclass(frozen=True)
class Site:
    """One served page.

    checkpoint: the one whose defaults the form has; worker: what runs the jobs; visitors: who the requests are from.
    """

    checkpoint: CheckpointInfo
    worker: Worker
    visitors: Visitors = field(default_factory=Visitors)

    def owner(self, request: gr.Request) -> str:
        """Whose jobs an event may see: pass it to `worker.find`, and as `owner` to a new job."""
        return self.visitors.owner(request)
