"""The configuration of the attention: chunk shapes and block selection. Pure Python, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from bsa.grid import Grid, as_grid
from bsa.selectors import DEFAULT_SCORES, PARAMS, SelectionWork, Selector


class BlockPlan(NamedTuple):
    """The effect of a configuration on a grid, known before anything runs.

    With conditioning frames, it is the effect on the queries of the other frames; `first` has that on their own.
    """

    q_blocks: Grid
    k_blocks: Grid
    ragged_q: int
    ragged_k: int
    min_kept: int  # least number of key blocks that any query block keeps
    kept: int | None  # key blocks that every query block keeps; None if the data decide at run time
    work: SelectionWork  # of the selection, for one head
    first: BlockPlan | None = None  # of the conditioning frames' queries, which choose among their frames' blocks

    @property
    def ragged(self) -> bool:
        """Whether some blocks of queries or keys at the grid's edge are smaller."""
        return self.ragged_q > 0 or self.ragged_k > 0

    @property
    def density(self) -> float | None:
        """Kept fraction of all pairs of query and key blocks; None if it is known only after running."""
        if self.kept is None:
            return None
        parts = [part for part in (self, self.first) if part is not None]
        kept = sum(part.q_blocks.volume * part.min_kept for part in parts)
        return kept / sum(part.q_blocks.volume * part.k_blocks.volume for part in parts)


@dataclass(frozen=True, slots=True)
class BSAConfig:
    """Configures the shape of the blocks and the rule by which each query block keeps key blocks.

    sparsity: fraction of key blocks to drop, in [0, 1). Each query block keeps the
        max(1, floor((1 - sparsity) * key blocks)) blocks with the best scores.
    cdf_threshold: softmax mass to keep, in (0, 1]. Each query block keeps the fewest best blocks whose
        estimated mass reaches it.
    With both set, a query block keeps the larger of the two counts, as in LongCat.
    chunk_q, chunk_k: chunk shapes in tokens. They need not divide the grid, match each other or be powers of two.
    selection: the score of a pair of blocks, a name in `bsa.selectors.SCORES`; "mean" is LongCat's.
    dense_steps, dense_layers: number of first denoising steps, and of first layers in every other step, with dense
        attention. A model asks `dense_layers_at`; a single call of the operation ignores them. The first steps and
        layers settle what a video shows (Sparse VideoGen, arXiv 2502.01776, keeps them dense as well).
    select_every: a selection is made in every so many sparse steps, and used again in those between, for which the
        number of blocks must not depend on the data. A model asks `selects_at`; a single call ignores it. What a block
        looks at changes little from one step to the next (AdaSpa, arXiv 2502.21079).

    Raises ValueError for values outside these ranges, or if neither rule is set.
    """

    sparsity: float | None = 0.9375
    cdf_threshold: float | None = None
    chunk_q: Grid = Grid(4, 4, 4)
    chunk_k: Grid = Grid(4, 4, 4)
    selection: str = DEFAULT_SCORES
    dense_steps: int = 0
    dense_layers: int = 0
    select_every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunk_q", as_grid(self.chunk_q, "chunk_q"))
        object.__setattr__(self, "chunk_k", as_grid(self.chunk_k, "chunk_k"))
        for name, least in SCHEDULE.items():
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise ValueError(f"{name} must be a whole number from {least} on, got {count!r}; {_LEAST[name]}")
        selector = self.selector  # raises for values that cannot be used
        if self.select_every > 1 and not selector.uniform:  # its lists may have room for every block
            raise ValueError(
                f"select_every {self.select_every} keeps the lists of blocks of all layers, whose length a "
                "cdf_threshold leaves open; use sparsity alone, or select_every 1"
            )

    def __repr__(self) -> str:
        """The call that makes this configuration, without default values of our own fields: logs and copied code stay
        as they were."""
        return f"BSAConfig({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that make this configuration, in the order of the fields."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        own = {"selection": DEFAULT_SCORES, **SCHEDULE}
        return {name: value for name, value in values.items() if name not in own or value != own[name]}

    @property
    def selector(self) -> Selector:
        """The selection rule of this configuration."""
        return Selector(self.sparsity, self.cdf_threshold, self.selection)

    def top_k(self, key_blocks: int) -> int:
        """Number of blocks kept by the sparsity rule; 1 if only the cdf threshold is set."""
        return self.selector.least(key_blocks)

    def dense_layers_at(self, step: int, layers: int) -> int:
        """Number of first layers with dense attention in a step (counted from 0) of a model with ``layers`` layers."""
        return layers if step < self.dense_steps else min(self.dense_layers, layers)

    def selects_at(self, step: int) -> bool:
        """Whether blocks are selected in a step (counted from 0), instead of taken from an earlier one."""
        return max(0, step - self.dense_steps) % self.select_every == 0

    def select_share(self, steps: int) -> float:
        """Share of the sparse steps of a generation of ``steps`` steps that select blocks."""
        sparse = range(min(self.dense_steps, steps), steps)
        return sum(map(self.selects_at, sparse)) / max(1, len(sparse))

    def dense_share(self, steps: int, layers: int) -> float:
        """Share of dense attention calls in a generation of ``steps`` steps."""
        return sum(self.dense_layers_at(step, layers) for step in range(steps)) / (steps * layers)

    def blocks(self, grid: Grid, conditioning: int = 0) -> BlockPlan:
        """The blocks on ``grid`` and the number kept.

        conditioning: see `bsa.block_sparse_attention`. Raises ValueError unless the grid's axes are positive integers.
        """
        grid, selector = as_grid(grid, "grid"), self.selector
        lead = conditioning % grid.t  # all frames are the same as none
        queries, k_blocks = grid._replace(t=grid.t - lead), grid.blocks(self.chunk_k, lead)
        return BlockPlan(
            q_blocks=queries.blocks(self.chunk_q),
            k_blocks=k_blocks,
            ragged_q=queries.ragged_blocks(self.chunk_q),
            ragged_k=grid.ragged_blocks(self.chunk_k, lead),
            min_kept=selector.least(k_blocks.volume),
            kept=selector.kept(k_blocks.volume),
            work=selector.work(grid, self.chunk_q, self.chunk_k, lead),
            first=self.blocks(grid._replace(t=lead)) if lead else None,
        )

    @classmethod
    def from_bsa_params(cls, params: Mapping[str, Any]) -> BSAConfig:
        """Read the ``bsa_params`` of a LongCat ``transformer/config.json``.

        A missing key takes this class's default, except that ``cdf_threshold`` alone means the cdf rule alone.
        Raises ValueError for an unknown key or a value that cannot be used.
        """
        unknown = sorted(set(params) - set(KNOWN_PARAMS))
        if unknown:
            raise ValueError(f"unknown bsa_params {', '.join(unknown)}; known are {', '.join(KNOWN_PARAMS)}")
        selector = Selector.from_params(params)
        chunks = {name: params[key] for key, name in _CHUNKS.items() if key in params}
        schedule = {name: params[name] for name in SCHEDULE if name in params}
        return cls(selector.sparsity, selector.cdf_threshold, selection=selector.scores, **chunks, **schedule)

    def to_bsa_params(self) -> dict[str, Any]:
        """The same settings as LongCat's ``bsa_params``, ready for JSON."""
        params = self.selector.to_params() | {key: list(getattr(self, name)) for key, name in _CHUNKS.items()}
        given = {name: getattr(self, name) for name in SCHEDULE}
        return params | {name: value for name, value in given.items() if value != SCHEDULE[name]}


# What changes from step to step, with the defaults, which are the least values. The same names in bsa_params and on the
# command line.
SCHEDULE = {"dense_steps": 0, "dense_layers": 0, "select_every": 1}
_LEAST = {**dict.fromkeys(SCHEDULE, "0 makes none of them dense"), "select_every": "1 selects in every step"}
_CHUNKS = {"chunk_3d_shape_q": "chunk_q", "chunk_3d_shape_k": "chunk_k"}
KNOWN_PARAMS = (*PARAMS, *_CHUNKS, *SCHEDULE)  # keys of bsa_params
