"""The rule by which a query block selects key blocks, as a value: the blocks kept, the cost, and the written form.

All other files ask a `Selector` and draw no conclusions from its numbers. A new score for pairs of blocks needs an
entry in `SCORES` and a branch in `bsa.selection.select_pooled`; every backend then runs it, in PyTorch until it has a
kernel. A new rule for the number kept needs a property here. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bsa.grid import CELL, Grid

# Names of the rules that decide how many blocks are kept, in configurations, on the command line and on the page.
TOP_K, MASS, TOP_K_AND_MASS = "top-k", "mass", "top-k and mass"


class Scores(NamedTuple):
    """A score by which pairs of blocks are ranked.

    name: used in `bsa_params`, in Python and on the command line. label: for people, as the end of a sentence.
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
    """The work of one selection for one head."""

    block_pairs: int  # pairs that are ranked row by row
    cell_pairs: int  # pairs of cells that are compared for it; 0 if the blocks' means are


@dataclass(frozen=True, slots=True)
class Selector:
    """Selects, for each query block, the best key blocks by ``scores``, as many as the rule says.

    sparsity: fraction of key blocks to drop, in [0, 1), or None.
    cdf_threshold: estimated softmax mass to keep, in (0, 1], or None. With both set, the larger count is kept.
    scores: a name in `SCORES`.

    Raises ValueError for values outside these ranges, or if neither rule is set.
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
        """Whether every query block keeps the same number of blocks, known before anything runs."""
        return self.cdf_threshold is None

    @property
    def by_means(self) -> bool:
        """Whether the plain means of the blocks are compared, which kernels compute on their way."""
        return self.scores == DEFAULT_SCORES

    @property
    def by_cells(self) -> bool:
        """Whether the means of cells inside the blocks are compared."""
        return self.scores == CELLS

    @property
    def mass(self) -> float:
        """Estimated softmax mass that every query block keeps, or 0 if only the sparsity is set."""
        return self.cdf_threshold or 0.0

    def least(self, key_blocks: int) -> int:
        """Least number of blocks that any query block keeps; never less than 1."""
        if self.sparsity is None:
            return 1
        # (1 - 0.9) * 10 is 0.9999999999999998 in floating point, so a millionth of a block counts as rounding.
        return max(1, math.floor((1 - self.sparsity) * key_blocks + 1e-6))

    def kept(self, key_blocks: int) -> int | None:
        """Number of blocks that every query block keeps, or None if the data decide."""
        return self.least(key_blocks) if self.uniform else None

    def most(self, key_blocks: int) -> float:
        """Upper bound on the mean number of blocks kept: the best blocks hold at least their share of the mass."""
        least = self.least(key_blocks)
        return least if self.uniform else max(least, self.mass * key_blocks)

    def kept_words(self, key_blocks: int) -> str:
        """The number of blocks that a query block keeps, in words for a sentence."""
        return f"{self.kept(key_blocks)}" if self.uniform else "as many as the cdf threshold needs"

    def work(self, grid: Grid, chunk_q: Grid, chunk_k: Grid, lead: int = 0) -> SelectionWork:
        """The work of a selection on this grid, for the queries after the first `lead` frames."""
        queries = grid._replace(t=grid.t - lead)
        pairs = queries.blocks(chunk_q).volume * grid.blocks(chunk_k, lead).volume
        cells = queries.clip(chunk_q).blocks(CELL).volume * grid.clip(chunk_k, lead).blocks(CELL).volume
        return SelectionWork(pairs, pairs * cells if self.by_cells else 0)

    def to_params(self) -> dict[str, Any]:
        """Its part of LongCat's ``bsa_params``.

        Keys that LongCat does not know are written only if they differ from the default, so that files stay compatible.
        """
        params = {"sparsity": self.sparsity, "cdf_threshold": self.cdf_threshold}
        return params if self.by_means else params | {"selection": self.scores}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Selector:
        """Read its part of ``bsa_params``.

        A missing key takes the default, except that ``cdf_threshold`` alone means that rule alone.
        """
        threshold = params.get("cdf_threshold")
        sparsity = params.get("sparsity", cls().sparsity if threshold is None else None)
        return cls(sparsity, threshold, params.get("selection", DEFAULT_SCORES))

    @property
    def options(self) -> list[str]:
        """The same rule as words of the command line. All are named: a checkpoint may have other defaults."""
        words = {"sparsity": self.sparsity, "cdf-threshold": self.cdf_threshold, "selection": self.scores}
        return [f"--{name}={_word(value)}" for name, value in words.items()]


PARAMS = ("sparsity", "cdf_threshold", "selection")  # keys of bsa_params that `Selector.from_params` reads


def _word(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else repr(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
