"""What every part of the page works on."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import CheckpointInfo
from ui.worker import Worker


@dataclass(frozen=True)
class Site:
    """One served page. checkpoint: the one whose defaults the form has; worker: what runs the jobs."""

    checkpoint: CheckpointInfo
    worker: Worker
