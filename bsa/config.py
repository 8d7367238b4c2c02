"""What to compute: grids, chunk shapes and the selection rule. Pure Python, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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


class BlockPlan(NamedTuple):
    """What a config does to a grid, known before anything runs."""

    q_blocks: Grid
    k_blocks: Grid
    ragged_q: int
    ragged_k: int
    min_kept: int  # key blocks every query block keeps at least
    kept: int | None  # key blocks every query block keeps; None when the cdf threshold decides at run time

    @property
    def ragged(self) -> bool:
        """Whether the grid's edge cuts blocks of queries or keys short."""
        return self.ragged_q > 0 or self.ragged_k > 0

    @property
    def density(self) -> float | None:
        """Kept fraction of the query-block x key-block pairs; None when only known after running."""
        return None if self.kept is None else self.kept / self.k_blocks.volume


@dataclass(frozen=True, slots=True)
class BSAConfig:
    """Which key blocks each query block keeps, and the shape of the blocks.

    sparsity: fraction of key blocks to drop, in [0, 1); each query block keeps
        max(1, floor((1 - sparsity) * key blocks)), the best by pooled score.
    cdf_threshold: softmax mass to keep, in (0, 1]; each query block keeps the fewest best blocks whose
        estimated mass reaches it.
    With both set, a query block keeps the larger of the two counts, as LongCat does.
    chunk_q, chunk_k: chunk shapes in tokens. They need not divide the grid, match each other or be powers of two.

    Raises ValueError for values outside these ranges, or when neither rule is set.
    """

    sparsity: float | None = 0.9375
    cdf_threshold: float | None = None
    chunk_q: Grid = Grid(4, 4, 4)
    chunk_k: Grid = Grid(4, 4, 4)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunk_q", as_grid(self.chunk_q, "chunk_q"))
        object.__setattr__(self, "chunk_k", as_grid(self.chunk_k, "chunk_k"))
        if self.sparsity is None and self.cdf_threshold is None:
            raise ValueError("sparsity and cdf_threshold are both unset; set one, for example sparsity=0.9375")
        if self.sparsity is not None and not (_is_number(self.sparsity) and 0 <= self.sparsity < 1):
            raise ValueError(
                f"sparsity must be at least 0 and below 1, got {self.sparsity!r}; "
                "0 keeps every block, 0.9375 keeps 1 in 16"
            )
        if self.cdf_threshold is not None and not (_is_number(self.cdf_threshold) and 0 < self.cdf_threshold <= 1):
            raise ValueError(
                f"cdf_threshold must be above 0 and at most 1, got {self.cdf_threshold!r}; "
                "it is the softmax mass to keep, such as 0.9"
            )

    def top_k(self, key_blocks: int) -> int:
        """Blocks kept by the sparsity rule; 1 when only the cdf threshold is set."""
        if self.sparsity is None:
            return 1
        # (1 - 0.9) * 10 is 0.9999999999999998 in floating point: a millionth of a block counts as rounding.
        return max(1, math.floor((1 - self.sparsity) * key_blocks + 1e-6))

    def blocks(self, grid: Grid) -> BlockPlan:
        """The number of blocks on ``grid`` and how many are kept. ValueError for an impossible grid."""
        grid = as_grid(grid, "grid")
        q_blocks, k_blocks = grid.blocks(self.chunk_q), grid.blocks(self.chunk_k)
        min_kept = self.top_k(k_blocks.volume)
        return BlockPlan(
            q_blocks=q_blocks,
            k_blocks=k_blocks,
            ragged_q=grid.ragged_blocks(self.chunk_q),
            ragged_k=grid.ragged_blocks(self.chunk_k),
            min_kept=min_kept,
            kept=min_kept if self.cdf_threshold is None else None,
        )

    @classmethod
    def from_bsa_params(cls, params: Mapping[str, Any]) -> BSAConfig:
        """Reads the ``bsa_params`` of a LongCat ``transformer/config.json``.

        A missing key takes this class's default, except that ``cdf_threshold`` alone means the cdf rule alone.
        ValueError for an unknown key.
        """
        unknown = sorted(set(params) - set(_PARAM_FIELDS))
        if unknown:
            raise ValueError(f"unknown bsa_params {', '.join(unknown)}; known are {', '.join(_PARAM_FIELDS)}")
        fields = {_PARAM_FIELDS[key]: value for key, value in params.items()}
        if fields.get("cdf_threshold") is not None:
            fields.setdefault("sparsity", None)
        return cls(**fields)

    def to_bsa_params(self) -> dict[str, Any]:
        """The same settings as LongCat's ``bsa_params``; JSON-ready."""
        return {
            "sparsity": self.sparsity,
            "cdf_threshold": self.cdf_threshold,
            "chunk_3d_shape_q": list(self.chunk_q),
            "chunk_3d_shape_k": list(self.chunk_k),
        }


_PARAM_FIELDS = {
    "sparsity": "sparsity",
    "cdf_threshold": "cdf_threshold",
    "chunk_3d_shape_q": "chunk_q",
    "chunk_3d_shape_k": "chunk_k",
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
