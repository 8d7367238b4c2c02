"""Boxes of tokens. Pure Python, no torch."""

from __future__ import annotations

from typing import Any, NamedTuple


class Grid(NamedTuple):
    """A box of tokens, in frames x rows x columns: a whole video, or one chunk."""

    t: int
    h: int
    w: int

    @property
    def volume(self) -> int:
        return self.t * self.h * self.w

    def blocks(self, chunk: Grid) -> Grid:
        """Number of chunks along each axis. The last one may be smaller."""
        return Grid(*(-(-size // step) for size, step in zip(self, chunk)))

    def ragged_blocks(self, chunk: Grid) -> int:
        """Number of chunks that are smaller because they lie at the edge."""
        whole = Grid(*(size // step for size, step in zip(self, chunk)))
        return self.blocks(chunk).volume - whole.volume

    def __str__(self) -> str:
        return f"{self.t}x{self.h}x{self.w}"


def as_grid(value: Any, name: str) -> Grid:
    """Return three positive integers as a Grid. Raises ValueError with the given value for anything else."""
    try:
        sides = tuple(value)
        whole = tuple(int(side) for side in sides)
    except (TypeError, ValueError, OverflowError):
        sides, whole = (), None
    if len(sides) != 3 or whole != sides or min(whole) < 1:
        raise ValueError(
            f"{name} must be three positive integers (frames, rows, columns), such as 4,4,4; got {sides or value!r}"
        )
    return Grid(*whole)


CELL = Grid(2, 2, 2)  # the boxes that blocks are compared by, where their means say too little; see `bsa.cells`
