"""Boxes of tokens. Pure Python, no torch."""

from __future__ import annotations

from typing import Any, NamedTuple


class Grid(NamedTuple):
    """A box of tokens, in frames x rows x columns: a whole video, or one chunk of it."""

    t: int
    h: int
    w: int

    @property
    def volume(self) -> int:
        return self.t * self.h * self.w

    def blocks(self, chunk: Grid) -> Grid:
        """Number of chunks along each axis; the last one may be cut short by the edge."""
        return Grid(*(-(-size // step) for size, step in zip(self, chunk)))

    def ragged_blocks(self, chunk: Grid) -> int:
        """How many of those chunks the edge cuts short."""
        whole = Grid(*(size // step for size, step in zip(self, chunk)))
        return self.blocks(chunk).volume - whole.volume

    def __str__(self) -> str:
        return f"{self.t}x{self.h}x{self.w}"


def as_grid(value: Any, name: str) -> Grid:
    """Checks three positive integers and returns them as a Grid; ValueError names what was given."""
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
