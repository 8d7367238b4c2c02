"""The results of a sweep: numbers per video, the Pareto front, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bsa.config import SCHEDULE
from pipeline.machine.whole_files import write_whole
from pipeline.request.result import VideoResult
from pipeline.request.timing import Speed
from pipeline.request.video import VideoRequest
from pipeline.sweeps.sweep import Sweep
from pipeline.sweeps.sweep_axes import value_text

FEWER, LONGER = 0.95, 1.05  # factors from which a cell computed less, and took longer, than another

# What the dense video would score against itself.
QUALITIES = {"psnr": math.inf, "ssim": 1.0, "recall": 1.0}

UNITS = {
    "text_seconds": "s",
    "denoise_seconds": "s",
    "decode_seconds": "s",
    "total_seconds": "s",
    "work_seconds": "s on the clock of the speed-up",
    "speedup": "dense / sparse denoising seconds",
    "density": "share of query-key pairs",
    "peak_memory": "bytes",
    "psnr": "dB",
    "ssim": "-1 to 1",
    "recall": "share of softmax mass",
}


@dataclass(frozen=True)
class SweepVideo:
    """One video of a sweep, made or failed.

    Attributes:
        row, column: its cell, counted from 0; None for a dense reference.
        result: of the generation, None when it failed.
        error: why it failed, or "".
        speed: denoising seconds of its dense reference over its own, and what there is to doubt about them.
        psnr, ssim: against the frames of the dense reference; psnr in dB, infinite when they are equal.
        recall: mean share of the softmax mass inside the kept blocks, where the attention was recorded.
            All four are None where they could not be measured.
    """

    row: int | None
    column: int | None
    request: VideoRequest
    result: VideoResult | None = None
    error: str = ""
    speed: Speed | None = None
    psnr: float | None = None
    ssim: float | None = None
    recall: float | None = None

    @property
    def speedup(self) -> float | None:
        return None if self.speed is None else self.speed.ratio

    def values(self) -> dict[str, Any]:
        """Every column of the table by its name; None for what is not known."""
        request, result = self.request, self.result
        bsa = request.bsa
        seconds = result.seconds if result is not None else {}
        return {
            "attention": "dense" if bsa is None else "sparse",
            "row": None if self.row is None else self.row + 1,
            "column": None if self.column is None else self.column + 1,
            "sparsity": None if bsa is None else bsa.sparsity,
            "cdf_threshold": None if bsa is None else bsa.cdf_threshold,
            "chunk_q": None if bsa is None else str(bsa.chunk_q),
            "chunk_k": None if bsa is None else str(bsa.chunk_k),
            "selection": None if bsa is None else bsa.selection,
            **{name: None if bsa is None else getattr(bsa, name) for name in SCHEDULE},
            "seed": request.seed,
            "steps": request.steps,
            **{f"{phase}_seconds": seconds.get(phase) for phase in ("text", "denoise", "decode", "total")},
            "work_seconds": None if result is None or result.timing is None else result.timing.denoise,
            "speedup": self.speedup,
            "speedup_low": None if self.speed is None else self.speed.low,
            "speedup_high": None if self.speed is None else self.speed.high,
            "density": None if result is None else result.density,
            "peak_memory": None if result is None else result.peak_memory,
            "peak_memory_of": None if result is None else result.peak_memory_label,
            "psnr": self.psnr,
            "ssim": self.ssim,
            "recall": self.recall,
            "video": None if result is None else Path(result.video).name,
            "error": self.error or None,
            "doubts": None if self.speed is None else "; ".join(self.speed.doubts) or None,
        }


@dataclass(frozen=True)
class OverSeeds:
    """Figures of the same setting over several seeds: mean, least and greatest. psnr in dB.

    setting: the other swept value in words, "" if there is none.
    """

    setting: str
    seeds: int
    psnr: float
    psnr_low: float
    psnr_high: float
    ssim: float
    ssim_low: float
    ssim_high: float
    speedup: float
    speedup_low: float
    speedup_high: float

    @classmethod
    def of(cls, setting: str, cells: Sequence[SweepVideo]) -> OverSeeds:
        figures: dict[str, float] = {}
        for name in ("psnr", "ssim", "speedup"):
            values = [value for cell in cells if (value := getattr(cell, name)) is not None]
            figures |= {name: statistics.fmean(values), f"{name}_low": min(values), f"{name}_high": max(values)}
        return cls(setting, len(cells), **figures)


@dataclass(frozen=True)
class SweepResult:
    """The videos of a sweep so far, in the order in which they were made."""

    sweep: Sweep
    dense: tuple[SweepVideo, ...]
    cells: tuple[SweepVideo, ...]

    def add(self, video: SweepVideo) -> SweepResult:
        if video.row is None:
            return replace(self, dense=(*self.dense, video))
        return replace(self, cells=(*self.cells, video))

    def videos(self) -> Iterator[SweepVideo]:
        yield from self.dense
        yield from self.cells

    def dense_of(self, cell: SweepVideo) -> SweepVideo | None:
        """The dense reference of a cell."""
        key = cell.request.seed, cell.request.steps
        return next((video for video in self.dense if (video.request.seed, video.request.steps) == key), None)

    def front(self, quality: str) -> list[SweepVideo]:
        """The cells that nothing beats in both speed-up and `quality` ("psnr", "ssim" or "recall"), fastest first.

        The dense video takes part, with a speed-up of 1 and the quality of a perfect copy, so a cell that is slower
        than dense is never on the front.
        """
        cells = [
            (cell.speedup, getattr(cell, quality), cell)
            for cell in self.cells
            if cell.speedup is not None and getattr(cell, quality) is not None
        ]
        points = [*((speedup, value) for speedup, value, _ in cells), (1.0, QUALITIES[quality])]
        best = [cells[index] for index in pareto_front(points) if index < len(cells)]
        return [cell for _, _, cell in sorted(best, key=lambda one: -one[0])]

    def out_of_order(self) -> list[tuple[SweepVideo, SweepVideo]]:
        """Pairs of cells of which the first computed fewer pairs of tokens and took longer all the same.

        Only cells of the same chunks, scores, steps and seed are compared. On an idle machine there are no such pairs,
        so where there are, something else decided the times.
        """
        timed = [(cell, cell.result) for cell in self.cells if cell.result is not None]
        return [
            (fewer, more)
            for fewer, less in timed
            for more, result in timed
            if _alike(fewer.request, more.request)
            and less.density < FEWER * result.density
            and less.work > LONGER * result.work
        ]

    def over_seeds(self) -> list[OverSeeds]:
        """Mean and spread of each other setting where the seed is swept, from two compared videos on."""
        place = next((place for place, axis in enumerate(self.sweep.axes) if axis.name == "seed"), None)
        groups: dict[int, list[SweepVideo]] = {}
        for cell in self.cells if place is not None else ():
            if cell.psnr is not None and cell.row is not None and cell.column is not None:
                groups.setdefault(cell.column if place == 0 else cell.row, []).append(cell)
        others = [axis for axis in self.sweep.axes if axis.name != "seed"]
        return [
            OverSeeds.of(", ".join(f"{axis.label} {axis.text(index)}" for axis in others), cells)
            for index, cells in sorted(groups.items())
            if len(cells) > 1
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, which knows no infinity: the psnr of equal videos becomes None."""
        return {
            "request": self.sweep.request.to_dict(),
            "axes": [
                {"name": axis.name, "values": [_plain(value) for value in axis.values]} for axis in self.sweep.axes
            ],
            "units": UNITS,
            "dense": [_finite(video.values()) for video in self.dense],
            "cells": [_finite(video.values()) for video in self.cells],
            "over_seeds": [_finite(asdict(one)) for one in self.over_seeds()],
            "out_of_order": [
                [_place(fewer), _place(more)]
                for fewer, more in self.out_of_order()  # of [row, column]
            ],
            "pareto_front": {
                quality: [
                    [cell.row + 1, cell.column + 1]
                    for cell in self.front(quality)
                    if cell.row is not None and cell.column is not None
                ]
                for quality in QUALITIES
            },
            **self.sweep.summary(tuple(self.videos())),
        }

    def to_csv(self) -> str:
        """A table with one line per video; names of columns carry their units."""
        table = [video.values() for video in self.videos()]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if table:
            writer.writerow([f"{name} [{UNITS[name]}]" if name in UNITS else name for name in table[0]])
        writer.writerows(["" if value is None else value for value in values.values()] for values in table)
        return text.getvalue()

    def write(self, folder: Path) -> None:
        """Write sweep.json and sweep.csv, each of them whole."""
        write_whole(folder / "sweep.json", json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")
        write_whole(folder / "sweep.csv", self.to_csv())


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point dominates, in their order; more is better in both coordinates.

    A point dominates another when it is at least as good in both and better in one, so equal points never
    dominate each other. A point with a coordinate that is not a number takes no part.
    """
    valid = [index for index, point in enumerate(points) if not any(map(math.isnan, point))]

    def dominates(first: int, second: int) -> bool:
        (a, b), (c, d) = points[first], points[second]
        return a >= c and b >= d and (a > c or b > d)

    return [index for index in valid if not any(dominates(other, index) for other in valid)]


def _alike(first: VideoRequest, second: VideoRequest) -> bool:
    """Whether two cells differ only in how many pairs of tokens they compute."""

    def kind(request: VideoRequest) -> VideoRequest:
        assert request.bsa is not None
        bsa = replace(request.bsa, sparsity=0.5, cdf_threshold=None, dense_steps=0, dense_layers=0)
        return replace(request, bsa=bsa)

    return kind(first) == kind(second)


def _place(cell: SweepVideo) -> list[int]:
    return [(cell.row or 0) + 1, (cell.column or 0) + 1]


def _plain(value: Any) -> Any:
    return value_text(value) if isinstance(value, tuple) else value


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
