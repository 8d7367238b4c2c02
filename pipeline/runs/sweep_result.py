"""The results of a sweep: numbers per video, the Pareto front, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bsa.config import SCHEDULE
from pipeline.machine.whole_files import write_whole
from pipeline.request.result import VideoResult
from pipeline.request.video import VideoRequest
from pipeline.runs.sweep import Sweep
from pipeline.runs.sweep_axes import value_text

# What the dense video would score against itself.
QUALITIES = {"psnr": math.inf, "ssim": 1.0, "recall": 1.0}

UNITS = {
    "text_seconds": "s",
    "denoise_seconds": "s",
    "decode_seconds": "s",
    "total_seconds": "s",
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
        speedup: denoising seconds of its dense reference over its own.
        psnr, ssim: against the frames of the dense reference; psnr in dB, infinite when they are equal.
        recall: mean share of the softmax mass inside the kept blocks, where the attention was recorded.
            All four are None where they could not be measured.
    """

    row: int | None
    column: int | None
    request: VideoRequest
    result: VideoResult | None = None
    error: str = ""
    speedup: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    recall: float | None = None

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
            "speedup": self.speedup,
            "density": None if result is None else result.density,
            "peak_memory": None if result is None else result.peak_memory,
            "peak_memory_of": None if result is None else result.peak_memory_label,
            "psnr": self.psnr,
            "ssim": self.ssim,
            "recall": self.recall,
            "video": None if result is None else Path(result.video).name,
            "error": self.error or None,
        }


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


def _plain(value: Any) -> Any:
    return value_text(value) if isinstance(value, tuple) else value


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
