"""The interface of anything that makes videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.request.result import VideoResult
from pipeline.request.video import StepUpdate, VideoRequest

OnStep = Callable[[StepUpdate], None]


class Generator(Protocol):
    """A pipeline for those who only want videos of it: `LongCatPipeline`, or `EngineProcess` in another process.

    device: a `torch.device`, or what has its `type` and `index`.
    """

    @property
    def device(self) -> Any: ...

    def generate_frames(
        self, request: VideoRequest, on_step: OnStep | None, output: Path
    ) -> tuple[VideoResult, np.ndarray]: ...
