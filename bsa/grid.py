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

    def blocks(self, chunk: Grid, lead: int = 0) -> Grid:
        """Number of chunks along each axis. The last one may be smaller.

        lead: first frames that are cut apart from the rest, so that no chunk holds frames of both.
        """
        frames = sum(-(-length // chunk.t) for length in (lead, self.t - lead))
        return Grid(frames, -(-self.h // chunk.h), -(-self.w // chunk.w))

    def clip(self, chunk: Grid, lead: int = 0) -> Grid:
        """The chunk, no longer than what it cuts, which changes no block."""
        return Grid(min(chunk.t, max(lead, self.t - lead)), min(chunk.h, self.h), min(chunk.w, self.w))

    def ragged_blocks(self, chunk: Grid, lead: int = 0) -> int:
        """Number of chunks that are smaller because they lie at the edge, or at the end of the first `lead` frames."""
        frames = lead // chunk.t + (self.t - lead) // chunk.t
        return self.blocks(chunk, lead).volume - Grid(frames, self.h // chunk.h, self.w // chunk.w).volume

    def nests(self, first: Grid, second: Grid, lead: int = 0) -> bool:
        """Whether one of two chunks divides the other on this grid, so that every block of it lies in one block."""
        sides, chunks = self.clip(self, lead), (self.clip(first, lead), self.clip(second, lead))
        return any(
            all(step <= size and (size % step == 0 or size == side) for step, size, side in zip(*pair, sides))
            for pair in (chunks, chunks[::-1])
        )

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
