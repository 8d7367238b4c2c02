"""Results: one finished video, or a dense and a sparse one with the numbers that compare them. And the interface of
whatever makes them, `Generator`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.request.timing import Speed, Timing, read_speed, speed_of
from pipeline.request.video import StepUpdate, VideoRequest

SURE = 0.9  # probability from which the classifier's answer counts; benchmarks/likeness.py measures what it is worth


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
        passes, skipped: denoising steps in which the transformer ran, and those that TeaCache skipped; None in records
            of earlier versions.
        timing: the same work on a clock that other programs do not advance; None in records of earlier versions.
        shows: what the checkpoint's classifier sees, name -> (answer, probability); None without one, or for a prompt
            that it cannot judge (see `pipeline.model.content`).
        yardstick: what a PSNR is worth for such videos (see `Yardstick`); None where it was not measured.
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
    passes: int | None = None
    skipped: int | None = None
    shows: Mapping[str, tuple[str, float]] | None = None
    yardstick: Mapping[str, tuple[float, float, float]] | None = None

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
    timing, bsa = dense.timing, sparse.request.bsa
    if timing is not None and bsa is not None and timing.reference_of != bsa.to_bsa_params():
        timing = replace(timing, reference=())  # of another sparse video
    return speed_of(timing, sparse.timing, (dense.seconds["denoise"], sparse.seconds["denoise"]))


@dataclass(frozen=True)
class Comparison:
    """The same request and seed, once dense and once sparse.

    Attributes:
        speed: dense denoising seconds over sparse ones, with what there is to doubt about them.
        psnr: decibels between the decoded frames before compression (infinite when they are equal).
        ssim: structural similarity of the same frames, mean over them.
        frames: psnr of each frame; empty in records of earlier versions.
    """

    dense: VideoResult
    sparse: VideoResult
    speed: Speed
    psnr: float
    ssim: float
    frames: tuple[float, ...] = ()

    @property
    def speedup(self) -> float:
        return self.speed.ratio

    @property
    def worst_frame(self) -> int | None:
        """Number of the least alike frame, counted from 0; None without the figures of the frames."""
        return min(range(len(self.frames)), key=self.frames.__getitem__) if self.frames else None

    @property
    def same_content(self) -> bool | None:
        """Whether both show the same thing doing the same; None where the classifier is not sure of both."""
        dense, sparse = self.dense.shows, self.sparse.shows
        if not dense or not sparse or any(odds < SURE for told in (dense, sparse) for _, odds in told.values()):
            return None
        return all(sparse[name][0] == answer for name, (answer, _) in dense.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, which knows no infinity: a psnr of equal videos becomes None."""
        videos = {"dense": self.dense.to_dict(), "sparse": self.sparse.to_dict()}
        return {**videos, **self.figures(), "same_content": self.same_content, "worst_frame": self.worst_frame}

    def figures(self) -> dict[str, Any]:
        """Plain values for `read_comparison`, which needs them beside the two videos."""
        psnr, frames = _finite(self.psnr), [_finite(value) for value in self.frames]
        return {**self.speed.to_dict(), "psnr": psnr, "ssim": self.ssim, "psnr_frames": frames}


def read_comparison(dense: VideoResult, sparse: VideoResult, values: Mapping[str, Any]) -> Comparison | None:
    """The comparison of two videos from `Comparison.figures`, also of earlier versions; None if there is none."""
    if (speed := read_speed(values)) is None:
        return None
    psnr, *frames = (math.inf if one is None else one for one in (values["psnr"], *values.get("psnr_frames", ())))
    return Comparison(dense, sparse, speed, psnr, values["ssim"], tuple(frames))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
