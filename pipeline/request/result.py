"""Results: one finished video, or a dense and a sparse one with the numbers that compare them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.request.timing import Speed, Timing, speed_of
from pipeline.request.video import VideoRequest


@dataclass(frozen=True)
class VideoResult:
    """A finished video and what it took.

    Attributes:
        seconds: of "text", "denoise", "decode" and "total" (which adds writing the file); of a refinement "encode",
            too.
        peak_memory: bytes; `peak_memory_label` says of what ("CUDA allocated" or "process RSS").
        density: share of the dense query-key pairs that the self-attention worked on, 1.0 when dense.
        blocks_kept, blocks_total: key blocks per query block, kept (a mean where the cdf threshold
            decides) and in all; None when dense.
        versions: of Python and the packages that did the work, and the device's name.
        timing: the same work on a clock that other programs do not advance; None in records of earlier versions.
    """

    request: VideoRequest
    video: Path
    seconds: dict[str, float]
    peak_memory: int
    peak_memory_label: str
    density: float
    blocks_kept: float | None
    blocks_total: int | None
    bsa_active: bool
    bsa_reason: str
    versions: dict[str, str]
    timing: Timing | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        timing = None if self.timing is None else self.timing.to_dict()
        return {**self.__dict__, "request": self.request.to_dict(), "video": str(self.video), "timing": timing}

    @property
    def work(self) -> float:
        """Seconds of denoising to compare with those of another video from the same machine and version."""
        return self.seconds["denoise"] if self.timing is None else self.timing.denoise


def speed(dense: VideoResult, sparse: VideoResult) -> Speed:
    """How much faster the second was made than the first; the figure of compare, sweep, report and estimates."""
    return speed_of(dense.timing, sparse.timing, (dense.seconds["denoise"], sparse.seconds["denoise"]))


@dataclass(frozen=True)
class Comparison:
    """The same request and seed, once dense and once sparse.

    Attributes:
        speed: dense denoising seconds over sparse ones, with what there is to doubt about them.
        psnr: decibels between the decoded frames (infinite when they are equal).
        ssim: structural similarity of the decoded frames, mean over frames.
    """

    dense: VideoResult
    sparse: VideoResult
    speed: Speed
    psnr: float
    ssim: float

    @property
    def speedup(self) -> float:
        return self.speed.ratio

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, which knows no infinity: a psnr of equal videos becomes None."""
        psnr = self.psnr if math.isfinite(self.psnr) else None
        videos = {"dense": self.dense.to_dict(), "sparse": self.sparse.to_dict()}
        return {**videos, **self.speed.to_dict(), "psnr": psnr, "ssim": self.ssim}
