"""What to compute: chunk shapes and how blocks are selected. Pure Python, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from bsa.grid import Grid, as_grid
from bsa.selectors import DEFAULT_SCORES, PARAMS, SelectionWork, Selector


class BlockPlan(NamedTuple):
    """What a config does to a grid, known before anything runs."""

    q_blocks: Grid
    k_blocks: Grid
    ragged_q: int
    ragged_k: int
    min_kept: int  # key blocks every query block keeps at least
    kept: int | None  # key blocks every query block keeps; None when the data decide at run time
    work: SelectionWork  # of choosing them, for one head

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
        max(1, floor((1 - sparsity) * key blocks)), the best by score.
    cdf_threshold: softmax mass to keep, in (0, 1]; each query block keeps the fewest best blocks whose
        estimated mass reaches it.
    With both set, a query block keeps the larger of the two counts, as LongCat does.
    chunk_q, chunk_k: chunk shapes in tokens. They need not divide the grid, match each other or be powers of two.
    selection: how pairs of blocks are scored, a name in `bsa.selectors.SCORES`; "mean" is LongCat's.
    dense_steps, dense_layers: so many denoising steps, and so many layers in every other step, attend to everything
        before block sparse attention begins. A model asks `dense_layers_at`; one call of the operation ignores them.
        The first steps and layers settle what a video shows (Sparse VideoGen, arXiv 2502.01776, does the same).

    Raises ValueError for values outside these ranges, or when neither rule is set.
    """

    sparsity: float | None = 0.9375
    cdf_threshold: float | None = None
    chunk_q: Grid = Grid(4, 4, 4)
    chunk_k: Grid = Grid(4, 4, 4)
    selection: str = DEFAULT_SCORES
    dense_steps: int = 0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunk_q", as_grid(self.chunk_q, "chunk_q"))
        object.__setattr__(self, "chunk_k", as_grid(self.chunk_k, "chunk_k"))
        for name in SCHEDULE:
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f"{name} must be a whole number from 0 on, got {count!r}; 0 makes none of them dense")
        _ = self.selector  # refuses what cannot be

    def __repr__(self) -> str:
        """As Python would write it, without what LongCat does not know and is not asked for: logs and code to copy stay
        what they were."""
        return f"BSAConfig({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"

    @property
    def arguments(self) -> dict[str, Any]:
        """What makes this configuration when called with, in the order of the fields."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        own = {"selection": DEFAULT_SCORES, **dict.fromkeys(SCHEDULE, 0)}
        return {name: value for name, value in values.items() if name not in own or value != own[name]}

    @property
    def selector(self) -> Selector:
        """How blocks are chosen, as the value that answers for it."""
        return Selector(self.sparsity, self.cdf_threshold, self.selection)

    def top_k(self, key_blocks: int) -> int:
        """Blocks kept by the sparsity rule; 1 when only the cdf threshold is set."""
        return self.selector.least(key_blocks)

    def dense_layers_at(self, step: int, layers: int) -> int:
        """How many of the first layers attend to everything in this step, counted from 0, of a model of ``layers``."""
        return layers if step < self.dense_steps else min(self.dense_layers, layers)

    def dense_share(self, steps: int, layers: int) -> float:
        """Share of all layers of all steps that attend to everything."""
        return sum(self.dense_layers_at(step, layers) for step in range(steps)) / (steps * layers)

    def blocks(self, grid: Grid) -> BlockPlan:
        """The number of blocks on ``grid`` and how many are kept. ValueError for an impossible grid."""
        grid, selector = as_grid(grid, "grid"), self.selector
        k_blocks = grid.blocks(self.chunk_k)
        return BlockPlan(
            q_blocks=grid.blocks(self.chunk_q),
            k_blocks=k_blocks,
            ragged_q=grid.ragged_blocks(self.chunk_q),
            ragged_k=grid.ragged_blocks(self.chunk_k),
            min_kept=selector.least(k_blocks.volume),
            kept=selector.kept(k_blocks.volume),
            work=selector.work(grid, self.chunk_q, self.chunk_k),
        )

    @classmethod
    def from_bsa_params(cls, params: Mapping[str, Any]) -> BSAConfig:
        """Reads the ``bsa_params`` of a LongCat ``transformer/config.json``.

        A missing key takes this class's default, except that ``cdf_threshold`` alone means the cdf rule alone.
        ValueError for an unknown key.
        """
        known = [*PARAMS, *_CHUNKS, *SCHEDULE]
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise ValueError(f"unknown bsa_params {', '.join(unknown)}; known are {', '.join(known)}")
        selector = Selector.from_params(params)
        chunks = {name: params[key] for key, name in _CHUNKS.items() if key in params}
        schedule = {name: params[name] for name in SCHEDULE if name in params}
        return cls(selector.sparsity, selector.cdf_threshold, selection=selector.scores, **chunks, **schedule)

    def to_bsa_params(self) -> dict[str, Any]:
        """The same settings as LongCat's ``bsa_params``; JSON-ready."""
        params = self.selector.to_params() | {key: list(getattr(self, name)) for key, name in _CHUNKS.items()}
        return params | {name: getattr(self, name) for name in SCHEDULE if getattr(self, name)}


SCHEDULE = ("dense_steps", "dense_layers")  # names of the fields, in bsa_params and on the command line alike
_CHUNKS = {"chunk_3d_shape_q": "chunk_q", "chunk_3d_shape_k": "chunk_k"}
