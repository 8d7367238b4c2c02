"""A grid of sparse videos over one or two settings, each measured against a dense video of the same seed and steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from bsa import Grid
from bsa.config import SCHEDULE
from bsa.selectors import TOP_K_AND_MASS
from pipeline.request.video import VideoRequest
from pipeline.sweeps.sweep_axes import Axis, Chunks

logger = logging.getLogger("pipeline")

MAX_CELLS = 64


@dataclass(frozen=True)
class SweepRun:
    """One video to make. row, column: its cell, counted from 0; None for a dense reference. name: of its file."""

    row: int | None
    column: int | None
    request: VideoRequest

    @property
    def name(self) -> str:
        if self.row is None or self.column is None:
            return f"dense-seed{self.request.seed}-steps{self.request.steps}.mp4"
        return f"sparse-row{self.row + 1}-column{self.column + 1}.mp4"


class Made(Protocol):
    """A video of a sweep, made or failed: what a sweep reads of a `SweepVideo` to go on."""

    @property
    def row(self) -> int | None: ...
    @property
    def result(self) -> object | None: ...
    @property
    def speedup(self) -> float | None: ...
    @property
    def psnr(self) -> float | None: ...
    @property
    def ssim(self) -> float | None: ...


@dataclass(frozen=True)
class Sweep:
    """The videos to make: one sparse video for every pair of a row's and a column's value.

    A swept sparsity or cdf threshold decides alone when the request only has the other rule; when the request has
    both, or both are swept, the rule that keeps more wins, as in `BSAConfig`.

    Attributes:
        request: everything that is not swept; its attention must be sparse.
        rows, columns: what is swept; without columns the grid has one column.

    Raises:
        ValueError: the grid is too large, or a cell cannot be made; the sentence names the first such cell.
    """

    request: VideoRequest
    rows: Axis
    columns: Axis | None = None

    def __post_init__(self) -> None:
        if self.columns is not None and self.columns.name == self.rows.name:
            raise ValueError(f"rows and columns both sweep the {self.rows.label}; choose two different settings")
        if self.request.bsa is None:
            raise ValueError("a sweep needs block sparse attention, and the request is dense; set bsa")
        height, width = self.shape
        if height * width > MAX_CELLS:
            raise ValueError(
                f"{height} x {width} values make {height * width} cells, the limit is {MAX_CELLS}; leave some out"
            )
        for row in range(height):
            for column in range(width):
                try:
                    request = self._cell(row, column)
                    work = request.workload
                except ValueError as error:
                    raise ValueError(f"the cell {self.describe(row, column)} cannot be made: {error}") from None
                if not work.sparse:
                    raise ValueError(f"nothing to sweep: {work.reason}")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return len(self.rows.values), 1 if self.columns is None else len(self.columns.values)

    @property
    def axes(self) -> tuple[Axis, ...]:
        return (self.rows,) if self.columns is None else (self.rows, self.columns)

    def describe(self, row: int, column: int) -> str:
        """The swept values of a cell, such as "sparsity 0.75, seed 3"."""
        return ", ".join(f"{axis.label} {axis.text(index)}" for axis, index in zip(self.axes, (row, column)))

    def runs(self) -> list[SweepRun]:
        """All videos in the order in which they are made: each dense reference, then the cells that it is for."""
        return list(self._runs)

    @cached_property
    def _runs(self) -> tuple[SweepRun, ...]:
        groups: dict[tuple[int, int], list[SweepRun]] = {}
        height, width = self.shape
        for row in range(height):
            for column in range(width):
                request = self._cell(row, column)
                dense = SweepRun(None, None, request.dense)
                group = groups.setdefault((request.seed, request.steps), [dense])
                group.append(SweepRun(row, column, request))
        return tuple(run for group in groups.values() for run in group)

    def next_run(self, made: Sequence[Made]) -> SweepRun | None:
        """The video to make after those in ``made``, the dense ones first; None at the end."""
        runs = self.runs()
        return runs[len(made)] if len(made) < len(runs) else None

    def expected(self) -> list[SweepRun]:
        """The videos that will be made, as far as that is known before."""
        return self.runs()

    def summary(self, made: Sequence[Made]) -> dict[str, Any]:
        """The report's entries besides the videos, ready for JSON."""
        return {}

    def _cell(self, row: int, column: int) -> VideoRequest:
        swept = {axis.name: axis.values[index] for axis, index in zip(self.axes, (row, column))}
        bsa = self.request.bsa
        assert bsa is not None  # as the sweep itself has checked
        rules: dict[str, Any] = {name: swept[name] for name in ("sparsity", "cdf_threshold") if name in swept}
        if len(rules) == 1 and bsa.selector.rule != TOP_K_AND_MASS:
            rules = {"sparsity": None, "cdf_threshold": None} | rules
        if "chunk" in swept:
            chunks: Chunks = swept["chunk"]
            rules |= {"chunk_q": Grid(*chunks[0]), "chunk_k": Grid(*chunks[1])}
        rules |= {name: swept[name] for name in ("selection", *SCHEDULE) if name in swept}
        plain = {name: swept[name] for name in ("seed", "steps") if name in swept}
        return replace(self.request, bsa=replace(bsa, **rules), **plain)
