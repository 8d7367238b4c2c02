"""Searches for the fastest sparsity that keeps a video close to its dense one.

A search is a sweep over sparsities that decides after each video which one to make next. So it is shown, stored and
stopped like a sweep, and each of its figures is measured on a real video.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.request.values import real_number, whole_number
from pipeline.request.video import VideoRequest
from pipeline.sweeps.sweep import Made, Sweep, SweepRun
from pipeline.sweeps.sweep_axes import Axis

# Halving finds one of 15 with four videos. A sparser setting computes less, so this is also the order of their times.
SPARSITIES = (
    *(0.25, 0.375, 0.5, 0.5625, 0.625, 0.6875, 0.75, 0.8125),
    *(0.84375, 0.875, 0.90625, 0.921875, 0.9375, 0.953125, 0.96875),
)
QUALITIES = ("psnr", "ssim")
MOST = 4

FOUND = "sparsity {sparsity} is the fastest that keeps {floor}: denoising {speedup}x as fast as dense, at {reached}"
NOTHING = "no sparsity that was tried keeps {floor} and is faster than dense attention"


@dataclass(frozen=True)
class Floor:
    """The least likeness to the dense video.

    quality: "psnr", with `least` in dB, or "ssim", with `least` above 0 to 1.
    Raises ValueError for another quality, or a value outside its range.
    """

    quality: str = "psnr"
    least: float = 30.0

    def __post_init__(self) -> None:
        if self.quality not in QUALITIES:
            raise ValueError(f"the floor is of {self.quality!r}; choose among {', '.join(QUALITIES)}")
        object.__setattr__(self, "least", real_number("floor", self.least))
        most = 100.0 if self.quality == "psnr" else 1.0
        if not 0 < self.least <= most:
            usual = "30 dB is hard to see, 40 is hard to find" if self.quality == "psnr" else "0.95 is hard to see"
            raise ValueError(f"a floor of {self} is outside 0 to {most:g}; {usual}")

    @classmethod
    def parse(cls, text: str) -> Floor:
        """Read "psnr=30" or "ssim=0.95"."""
        quality, equals, least = text.partition("=")
        try:
            number = float(least)
        except ValueError:
            number = math.nan
        if not equals or math.isnan(number):
            raise ValueError(f"{text!r} is not NAME=VALUE; write psnr=30 or ssim=0.95")
        return cls(quality.strip().lower(), number)

    def __str__(self) -> str:
        return f"{self.least:g} dB PSNR" if self.quality == "psnr" else f"{self.least:g} SSIM"

    def met(self, video: Made) -> bool:
        """Whether a video keeps it. One that failed or has no dense reference does not."""
        value = getattr(video, self.quality)
        return value is not None and value >= self.least


@dataclass(frozen=True)
class Search(Sweep):
    """The dense video, then sparse ones until the fastest that keeps the floor is found; see `Search.of`.

    Likeness is taken to fall as the sparsity grows, so each video halves the sparsities that are left. It ends after
    `most` sparse videos at the latest, with the fastest that was good enough until then.
    """

    floor: Floor = Floor()
    most: int = MOST

    def __post_init__(self) -> None:
        object.__setattr__(self, "most", whole_number("number of videos", self.most))
        if self.most < 1:
            raise ValueError(f"{self.most} sparse videos find nothing; allow at least 1, {MOST} find the best of 15")
        if self.rows.name != "sparsity" or self.columns is not None:
            raise ValueError("a search goes over sparsities alone; use a sweep for other settings")
        super().__post_init__()

    @classmethod
    def of(
        cls,
        request: VideoRequest,
        floor: Floor,
        most: int = MOST,
        seconds: Callable[[VideoRequest], float | None] = lambda request: None,
    ) -> Search:
        """A search over the sparsities that make a difference for this request.

        seconds: expected denoising seconds of a request, or None. Settings that would not be faster than dense
            attention are left out.

        Raises:
            ValueError: the request is dense, or no setting is left.
        """
        bsa = request.bsa
        if bsa is None:
            raise ValueError("a search needs block sparse attention, and the request is dense; set bsa")
        request = replace(request, bsa=replace(bsa, cdf_threshold=None, sparsity=bsa.sparsity or 0.0), auto=None)
        dense = seconds(request.dense)
        by_kept: dict[int, float] = {}  # several may keep as many blocks, which is the same video
        for sparsity in SPARSITIES:
            config = replace(bsa, cdf_threshold=None, sparsity=sparsity)
            sparse = replace(request, bsa=config)
            own, work = seconds(sparse), sparse.workload
            if work.blocks is None:
                raise ValueError(f"nothing to search: {work.reason}")
            if dense is None or own is None or own < dense:
                by_kept.setdefault(work.blocks.min_kept, sparsity)
        if not by_kept:
            raise ValueError(
                f"no sparsity is expected to be faster than dense attention, which takes {dense:.3g} s of denoising; "
                "make it longer or larger"
            )
        return cls(request, Axis("sparsity", tuple(by_kept.values())), floor=floor, most=most)

    def next_run(self, made: Sequence[Made]) -> SweepRun | None:
        dense, *cells = self.runs()
        if not made:
            return dense
        if made[0].result is None or len(made) > self.most:
            return None  # without the dense video nothing can be compared
        low, high = -1, len(cells)
        for video in made[1:]:
            assert video.row is not None  # only the first is dense
            low, high = (video.row, high) if self.floor.met(video) else (low, video.row)
        return cells[(low + high) // 2] if high - low > 1 else None

    def expected(self) -> list[SweepRun]:
        dense, *cells = self.runs()
        count = min(self.most, len(cells).bit_length())
        first = (len(cells) - count) // 2
        return [dense, *cells[first : first + count]]

    def found(self, made: Sequence[Made]) -> Made | None:
        """The fastest video that keeps the floor, or None if none does or none is faster than the dense one."""
        good = [video for video in made if video.row is not None and self.floor.met(video)]
        best = max(good, key=lambda video: video.speedup or 0.0, default=None)
        return best if best is not None and (best.speedup or 0.0) > 1 else None

    def verdict(self, made: Sequence[Made]) -> str:
        """The outcome, as a sentence without its full stop."""
        best = self.found(made)
        if best is None or best.row is None or best.speedup is None:
            return NOTHING.format(floor=self.floor)
        value = getattr(best, self.floor.quality)
        reached = replace(self.floor, least=float(f"{value:.4g}")) if math.isfinite(value) else "the same video"
        sparsity = self.rows.text(best.row)
        return FOUND.format(sparsity=sparsity, speedup=f"{best.speedup:.2f}", reached=reached, floor=self.floor)

    def summary(self, made: Sequence[Made]) -> dict[str, Any]:
        best = self.found(made)
        found = None if best is None or best.row is None else [best.row + 1, 1]
        return {"search": {"quality": self.floor.quality, "floor": self.floor.least, "most": self.most, "found": found}}
