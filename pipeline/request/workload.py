"""The work that a request means for the transformer: tokens, rows of the batch, and sparse or dense attention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from bsa import BlockPlan, BSAConfig, Grid

DENSE = "dense attention was asked for"
ONE_FRAME = (
    "num_frames {frames} is a single latent frame, for which LongCat always uses dense attention; ask for at least 5 "
    "frames"
)
KEEPS = "each query block keeps {kept} of {blocks} key blocks"
DENSE_FIRST = "; dense steps first: {steps}, dense layers first: {layers}"
EVERY = "; blocks are selected in every {steps} steps"


@dataclass(frozen=True)
class Workload:
    """Decided once from a request and carried from there on.

    grid: tokens in frames, rows and columns.
    conditioning: number of its first frames that are given, not made.
    cached: whether their keys and values are computed once, and a step runs the other frames only.
    rows: of the batch; 2 with classifier-free guidance.
    bsa, blocks: the block sparse attention that runs and what it does to the grid; None where attention is dense.
    reason: why it is sparse or dense, as a sentence without its full stop.
    """

    grid: Grid
    rows: int
    bsa: BSAConfig | None
    blocks: BlockPlan | None
    reason: str
    conditioning: int = 0
    cached: bool = False

    @classmethod
    def of(
        cls,
        grid: Grid,
        guidance_scale: float,
        bsa: BSAConfig | None,
        num_frames: int,
        conditioning: int = 0,
        cached: bool = False,
        auto: str | None = None,
    ) -> Workload:
        """From the values of a request; `VideoRequest.workload` calls it. auto: why dense attention was chosen."""
        make = partial(cls, grid, 2 if guidance_scale > 1 else 1, conditioning=conditioning, cached=cached)
        if bsa is None:
            return make(bsa=None, blocks=None, reason=auto or DENSE)
        if grid.t == 1:
            return make(bsa=None, blocks=None, reason=ONE_FRAME.format(frames=num_frames))
        blocks = bsa.blocks(grid, conditioning)
        if cached:
            blocks = blocks._replace(first=None)
        key_blocks = blocks.k_blocks.volume
        reason = KEEPS.format(kept=bsa.selector.kept_words(key_blocks), blocks=key_blocks)
        if bsa.dense_steps or bsa.dense_layers:
            reason += DENSE_FIRST.format(steps=bsa.dense_steps, layers=bsa.dense_layers)
        if bsa.select_every > 1:
            reason += EVERY.format(steps=bsa.select_every)
        return make(bsa=bsa, blocks=blocks, reason=reason)

    @property
    def step_grid(self) -> Grid:
        """The tokens that run in every step."""
        return self.grid._replace(t=self.grid.t - self.conditioning) if self.cached else self.grid

    @property
    def fewest_tokens(self) -> int:
        """Tokens of the smallest forward pass: one of a step, or that of the given frames where they run apart."""
        given = self.grid._replace(t=self.conditioning).volume
        return min(self.step_grid.volume, given) if self.cached else self.step_grid.volume

    @property
    def sparse(self) -> bool:
        """Whether block sparse attention runs."""
        return self.bsa is not None

    def check_comparison(self) -> None:
        """ValueError where dense and sparse would be the same video."""
        if self.bsa is None:
            raise ValueError(f"nothing to compare: {self.reason}")

    @property
    def mixed_chunks(self) -> str | None:
        """Why the fast forward cannot run it, as the end of a sentence: it has one block order for all tokens."""
        if self.bsa is None:
            return None
        chunks = self.bsa.chunk_q, self.bsa.chunk_k
        if self.grid.nests(*chunks, self.conditioning):
            return None
        return f"neither of the chunks of queries and keys, {chunks[0]} and {chunks[1]} tokens, divides the other"
