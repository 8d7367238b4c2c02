"""How a query block chooses its key blocks, as a value: what it keeps, what that costs, how it is written down.

Everything outside this file asks a `Selector` instead of drawing conclusions from the numbers in it. A new way to
score pairs is an entry of `SCORES` and a function in `bsa.selection`; a new way to count, a property here. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bsa.grid import CELL, Grid

# The rules by which blocks are kept, as configurations, command line and page call them.
TOP_K, MASS, TOP_K_AND_MASS = "top-k", "mass", "top-k and mass"


class Scores(NamedTuple):
    """What pairs of blocks are ranked by.

    name: in `bsa_params`, in Python and on the command line; label: for people, as the end of a sentence.
    """

    name: str
    label: str


DEFAULT_SCORES, CELLS = "mean", "cells"
SCORES = {
    scores.name: scores
    for scores in (
        Scores(DEFAULT_SCORES, "by the means of the blocks"),
        Scores(CELLS, f"by the attention between their cells of {CELL} tokens"),
    )
}


class SelectionWork(NamedTuple):
    """What one selection computes for one head."""

    block_pairs: int  # ranked against each other, row by row
    cell_pairs: int  # scored for it; 0 where the blocks' means are


@dataclass(frozen=True, slots=True)
class Selector:
    """Which key blocks each query block keeps: the best by ``scores``, as many as the rule asks for.

    sparsity: fraction of key blocks to drop, in [0, 1), or None.
    cdf_threshold: estimated softmax mass to keep, in (0, 1], or None. With both set the larger count counts.
    scores: a name in `SCORES`.

    Raises ValueError for values outside these ranges, or when neither rule is set.
    """

    sparsity: float | None = 0.9375
    cdf_threshold: float | None = None
    scores: str = DEFAULT_SCORES

    def __post_init__(self) -> None:
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
        if not isinstance(self.scores, str) or self.scores not in SCORES:
            raise ValueError(f"selection must be one of {', '.join(SCORES)}; got {self.scores!r}")

    @property
    def rule(self) -> str:
        """`TOP_K`, `MASS` or `TOP_K_AND_MASS`."""
        if self.cdf_threshold is None:
            return TOP_K
        return MASS if self.sparsity is None else TOP_K_AND_MASS

    @property
    def uniform(self) -> bool:
        """Whether every query block keeps the same number, known before anything runs."""
        return self.cdf_threshold is None

    @property
    def mass(self) -> float:
        """Estimated softmax mass that every query block keeps; 0 where only the sparsity counts."""
        return self.cdf_threshold or 0.0

    def least(self, key_blocks: int) -> int:
        """Blocks that every query block keeps at least, and never fewer than 1."""
        if self.sparsity is None:
            return 1
        # (1 - 0.9) * 10 is 0.9999999999999998 in floating point: a millionth of a block counts as rounding.
        return max(1, math.floor((1 - self.sparsity) * key_blocks + 1e-6))

    def kept(self, key_blocks: int) -> int | None:
        """Blocks that every query block keeps; None where the data decide."""
        return self.least(key_blocks) if self.uniform else None

    def most(self, key_blocks: int) -> float:
        """A bound on the mean number kept: the best blocks hold at least their share of the mass."""
        least = self.least(key_blocks)
        return least if self.uniform else max(least, self.mass * key_blocks)

    def kept_words(self, key_blocks: int) -> str:
        """How many blocks a query block keeps, for a sentence."""
        return f"{self.kept(key_blocks)}" if self.uniform else "as many as the cdf threshold needs"

    def work(self, grid: Grid, chunk_q: Grid, chunk_k: Grid) -> SelectionWork:
        """What a selection on this grid computes."""
        pairs = cells = 1
        for chunk in (chunk_q, chunk_k):
            blocks = grid.blocks(chunk).volume
            pairs *= blocks
            cells *= blocks * Grid(*map(min, grid, chunk)).blocks(CELL).volume
        return SelectionWork(pairs, cells if self.scores == CELLS else 0)

    def to_params(self) -> dict[str, Any]:
        """Its part of LongCat's ``bsa_params``. What LongCat does not know is written only where it is not the default,
        so that a file says the same as ever where it means the same as ever."""
        params = {"sparsity": self.sparsity, "cdf_threshold": self.cdf_threshold}
        return params if self.scores == DEFAULT_SCORES else params | {"selection": self.scores}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Selector:
        """Reads its part of ``bsa_params``. A missing key takes the default, except that ``cdf_threshold`` alone means
        that rule alone."""
        threshold = params.get("cdf_threshold")
        sparsity = params.get("sparsity", cls().sparsity if threshold is None else None)
        return cls(sparsity, threshold, params.get("selection", DEFAULT_SCORES))

    @property
    def options(self) -> list[str]:
        """The same choice as words of the command line, all of it: a checkpoint may have other defaults."""
        words = {"sparsity": self.sparsity, "cdf-threshold": self.cdf_threshold, "selection": self.scores}
        return [f"--{name}={_word(value)}" for name, value in words.items()]


PARAMS = ("sparsity", "cdf_threshold", "selection")  # keys of bsa_params that `Selector.from_params` reads


def _word(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else repr(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
