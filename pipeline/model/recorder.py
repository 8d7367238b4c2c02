"""Records the selections of block sparse attention and their recall while a video is generated.

The recorder gets queries, keys and the selection after every attention call. It computes recall in fp32 over all keys,
for one token in each of several query blocks. Step and layer alone determine these blocks and tokens; no global random
state is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bsa import BlockLayout, BlockSelection, nested_layouts
from pipeline.machine.measure import Stopwatch
from pipeline.media.attention_record import AttentionRecord, Sampled
from pipeline.request.video import VideoRequest
from pipeline.transformer.self_attention import layouts_of, token_density

STORED_BYTES = 64 << 20  # bound on the selections of one video, before compression
FEW_BLOCKS = 16  # sampled query blocks per head if the selection is not stored
MANY_BLOCKS = 2048  # sampled query blocks per head if it is stored, or all if there are fewer
WORKING_BYTES = 128 << 20  # scores held at one time; less than the attention itself held just before


class AttentionRecorder:
    """Collects the record of one generation. It is an `Observer` for `SparseAttention`.

    It expects one call per layer in every step that runs, in order. It records the last row of a batch, which is the
    conditional one under classifier-free guidance. On CUDA, calls do not wait for the device.
    """

    def __init__(
        self,
        request: VideoRequest,
        layers: int,
        stored_bytes: int = STORED_BYTES,
        steps: int | None = None,
        block_order: bool = False,
        heads: tuple[int, slice] | None = None,
        at: Callable[[], int] | None = None,
    ) -> None:
        """Prepare a record.

        request: a request with BSA.
        layers: attention calls per step.
        stored_bytes: bound on the stored selections.
        steps: steps that will run; None for the request's number.
        block_order: whether queries and keys come in block order instead of raster order.
        heads: the number of all heads, and those that come here; None if all do.
        at: returns the step at hand, counted from 0, where some are skipped; None if all of them run.
        """
        assert request.bsa is not None
        self._request = request
        self._block_order = block_order
        self._shape = steps or request.steps, layers
        self._stored_bytes = stored_bytes
        work = request.workload
        self._q_layout, self._k_layout = layouts_of(work, request.bsa)
        self._whole = BlockLayout(work.grid, request.bsa.chunk_q, work.conditioning)
        # Where the keys of conditioning frames were kept, their queries do not come, and their blocks stay unsampled.
        first = self._whole.first if self._whole.lead else None
        self._begin = first.blocks.volume if first is not None and work.cached else 0
        # Otherwise their queries see only the keys of so many tokens.
        self._first_blocks, self._first_tokens = 0, 0
        if first is not None and not work.cached:
            self._first_blocks, self._first_tokens = first.blocks.volume, first.grid.volume
        self._heads = heads
        self._at = at
        self._ran: list[int] = []
        self._calls = 0
        self._spans: list[tuple[int, Any, Any]] = []  # step, and the marks at both ends of a call

    def __call__(self, q: Tensor, k: Tensor, selection: BlockSelection) -> None:
        """Record one attention call. q, k: [B, H, S, D], its inputs; selection: the blocks that it selected."""
        if self._calls == 0:
            self._stopwatch = Stopwatch(q.device)
        began = self._stopwatch.mark()
        if self._calls == 0:
            self._allocate(q)
        run, layer = divmod(self._calls, self._shape[1])
        self._calls += 1
        if layer == 0:
            self._ran.append(run if self._at is None else self._at())
        step = self._ran[-1]
        q, k, selection = q[-1], k[-1], BlockSelection(selection.indices[-1], selection.counts[-1])
        self._density[step, layer, self._own] = token_density(selection, self._q_layout, self._k_layout)
        random = np.random.default_rng((step, layer))
        others = self._all_heads
        if step in self._sampled.steps and layer in self._sampled.layers:
            self._store(step, layer, q, k, selection, random)
            others = self._other_heads
        if len(others):
            blocks = random.integers(self._q_layout.blocks.volume, size=FEW_BLOCKS)
            mass, weights = self._mass(q, k, selection, others, blocks, random)
            self._recall[step, layer].index_copy_(0, others, mass @ weights)
        self._spans.append((step, began, self._stopwatch.mark()))

    def seconds(self) -> float:
        """Seconds spent recording so far. On CUDA this is device time, and the kernels must have ended."""
        return sum(self._stopwatch.wall(began, ended) for _, began, ended in self._spans)

    def work(self) -> list[float]:
        """Seconds of work spent recording in each step, on the clock of `Stopwatch`."""
        spent = [0.0] * self._shape[0]
        for step, began, ended in self._spans:
            spent[step] += self._stopwatch.work(began, ended)
        return spent

    def record(self, versions: dict[str, str]) -> AttentionRecord:
        """Return the finished record. Call it after the last step; it waits for the device."""
        skipped = sorted(set(range(self._shape[0])) - set(self._ran))
        self._density[skipped] = float("nan")
        stored = [place for place, step in enumerate(self._sampled.steps) if step in self._ran]
        sampled = self._sampled._replace(steps=tuple(self._sampled.steps[place] for place in stored))
        return AttentionRecord(
            grid=self._k_layout.grid,
            conditioning=self._k_layout.lead,
            chunk_q=self._whole.chunk,
            chunk_k=self._k_layout.chunk,
            sampled=sampled,
            density=self._density.cpu().numpy(),
            recall=self._recall.cpu().numpy(),
            block_recall=self._block_recall.cpu().numpy()[stored],
            selections=self._selections.numpy()[stored],  # complete, because the copies to .cpu() above waited
            request=self._request.to_dict(),
            versions=versions,
        )

    def _allocate(self, q: Tensor) -> None:
        device, (heads, own) = q.device, self._heads or (q.shape[1], slice(0, q.shape[1]))
        self._own = own
        q_blocks, k_blocks = self._whole.blocks.volume, self._k_layout.blocks.volume
        width = -(-k_blocks // 8)
        self._sampled = Sampled.within(*self._shape, heads, self._stored_bytes // (q_blocks * width))
        stored = tuple(map(len, self._sampled))
        # pinned, so that copies into it do not wait
        self._selections = torch.zeros(*stored, q_blocks, width, dtype=torch.uint8, pin_memory=q.is_cuda)
        self._block_recall = torch.full((*stored, q_blocks), float("nan"), device=device)
        self._recall = torch.full((*self._shape, heads), float("nan"), device=device)
        self._density = torch.zeros(*self._shape, heads, device=device)
        here = range(heads)[own]
        self._all_heads = torch.arange(own.start, own.stop, device=device)
        self._rows = [row for row, head in enumerate(self._sampled.heads) if head in here]
        here_stored = [self._sampled.heads[row] for row in self._rows]
        self._stored_heads = torch.tensor(here_stored, dtype=torch.long, device=device)
        others = sorted(set(here) - set(here_stored))
        self._other_heads = torch.tensor(others, dtype=torch.long, device=device)
        self._bits = 2 ** torch.arange(8, dtype=torch.uint8, device=device)
        self._key_block = self._k_layout.block_of_token(device)
        # query block n has _sizes[n] tokens, from _first[n] on
        self._tokens = self._q_layout.order(torch.device("cpu")).numpy()
        if self._block_order:
            whole = self._whole
            layout, _ = nested_layouts(whole.grid, whole.chunk, self._k_layout.chunk, whole.lead)
            self._key_block = self._key_block[layout.order(device)]
            own = layout.rest if self._begin else layout
            self._tokens = own.place_of_token(torch.device("cpu")).numpy()[self._tokens]
        self._sizes = self._q_layout.sizes(torch.device("cpu")).numpy()
        self._first = self._sizes.cumsum() - self._sizes

    def _store(self, step, layer, q, k, selection, random) -> None:
        place = self._sampled.steps.index(step), self._sampled.layers.index(layer)
        for row in self._rows:
            mask = _part(selection, self._sampled.heads[row] - self._own.start).mask(self._k_layout.blocks.volume)
            bits = torch.nn.functional.pad(mask, (0, -mask.shape[-1] % 8)).unflatten(-1, (-1, 8))
            packed = (bits.byte() * self._bits).sum(-1, dtype=torch.uint8)
            self._selections[(*place, row)][self._begin :].copy_(packed, non_blocking=True)
        count = self._q_layout.blocks.volume
        blocks = np.linspace(0, count - 1, min(count, MANY_BLOCKS)).round().astype(int)
        mass, weights = self._mass(q, k, selection, self._stored_heads, blocks, random)
        rows = torch.tensor(self._rows, dtype=torch.long).to(q.device, non_blocking=True)
        self._block_recall[place][rows[:, None], _upload(self._begin + blocks, q.device)] = mass
        self._recall[step, layer].index_copy_(0, self._stored_heads, mass @ weights)

    def _mass(self, q, k, selection, heads, blocks, random) -> tuple[Tensor, Tensor]:
        """Recall of one token in each of `blocks`, [heads, blocks], and the weights of these blocks, [blocks]."""
        sizes = self._sizes[blocks]
        tokens = self._tokens[self._first[blocks] + (random.random(len(blocks)) * sizes).astype(int)]
        tokens, rows = _upload(tokens, q.device), _upload(blocks, q.device)
        scale = q.shape[-1] ** -0.5
        per_row = k.shape[1] * 9  # scores, probabilities and the kept keys of one token
        step = max(1, WORKING_BYTES // per_row)
        together = max(1, WORKING_BYTES // (min(step, len(tokens)) * per_row + k[0].numel() * 4))
        mass = []
        for some in heads.split(together):
            some = some - self._own.start
            keys = k[some].float().mT
            parts = []
            for token, row in zip(tokens.split(step), rows.split(step)):
                scores = scale * q[some[:, None], token].float() @ keys
                if self._first_blocks:
                    unseen = torch.arange(keys.shape[-1], device=q.device) >= self._first_tokens
                    scores.masked_fill_((row < self._first_blocks)[:, None] & unseen, -torch.inf)
                probabilities = scores.softmax(-1)
                chosen = (some[:, None], row)
                mask = _part(selection, chosen).mask(self._k_layout.blocks.volume)
                parts.append((probabilities * mask[..., self._key_block]).sum(-1))
            mass.append(torch.cat(parts, dim=-1))
        return torch.cat(mass), _upload((sizes / sizes.sum()).astype(np.float32), q.device)


def joined(records: list[AttentionRecord]) -> AttentionRecord:
    """One record of the heads that several recorders got of the same generation. They may share no head."""
    whole = records[0]
    for other in records[1:]:
        recall, block_recall = (
            np.where(np.isnan(mine), theirs, mine)
            for mine, theirs in ((whole.recall, other.recall), (whole.block_recall, other.block_recall))
        )
        whole = replace(
            whole,
            selections=whole.selections | other.selections,
            density=whole.density + other.density,
            recall=recall,
            block_recall=block_recall,
        )
    return whole


def _part(selection: BlockSelection, chosen: Any) -> BlockSelection:
    return BlockSelection(selection.indices[chosen], selection.counts[chosen])


def _upload(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)
