"""Times one forward pass of the LongCat transformer (real size, random weights) shared by several GPUs of one host.

    torchrun --standalone --nproc-per-node 4 benchmarks/multi_gpu.py     # writes benchmarks/results/multi_gpu.json
    python benchmarks/multi_gpu.py --smoke                               # tiny, one process on the CPU

Every row is measured beside the same forward pass on one GPU, which all GPUs run at the same time, each by itself.
"ms" is the slowest rank's median. "sent_gb" is what rank 0 handed to the collectives for others, "counted_gb" the count
from the shapes alone. "error" is the relative distance to one GPU, and "same_blocks" the share of its chosen key blocks
that rank 0 chooses too, in the first, the middle and the last layer. In the mode "waiting", exchanges overlap with
nothing. "exchange" is one all-to-all of queries, there and back.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from dit import Models, grid_of, inputs
from gpu import Rows, arguments, wait

from bsa import BSAConfig, Grid
from pipeline.parallel.ranks import Group
from pipeline.parallel.sequence import SequenceParallel, Share
from pipeline.transformer.fast_forward import fast_forward

REPEATS, LIMIT = 3, 15  # runs, and the seconds after which no further one starts
# size, frames, sparse, form, rows of guidance; the most wanted first
CASES = (
    ("704p", 93, True, "bf16", 1),
    ("704p", 93, True, "bf16", 2),
    ("704p", 93, False, "bf16", 1),
    ("720p", 93, True, "bf16", 1),
    ("720p", 93, False, "bf16", 1),
    ("704p", 93, True, "fp8", 1),
    ("720p", 93, True, "fp8", 1),
    ("720p", 189, True, "bf16", 1),
    ("704p", 189, True, "bf16", 1),
    ("720p", 189, True, "fp8", 1),
)


class Waiting(SequenceParallel):
    """Waits for every exchange at once, so that nothing overlaps."""

    def share(self, tokens: int, heads: int) -> Share:
        share = super().share(tokens, heads)
        begin = share.heads_from_tokens

        def at_once(x: torch.Tensor) -> Callable[[], torch.Tensor]:
            arrived = begin(x)()
            return lambda: arrived

        share.heads_from_tokens = at_once
        return share


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Yields a dictionary whose "bytes" grow by what collectives send to other ranks."""
    sent, before = {"bytes": 0}, (dist.all_to_all_single, dist.all_gather_into_tensor)

    def exchange(out, given, received, sizes, group=None, async_op=False):
        others = sum(sizes) - sizes[dist.get_rank(group)]
        sent["bytes"] += others * given.element_size()
        return before[0](out, given, received, sizes, group=group, async_op=async_op)

    def gather(out, given, group=None):
        sent["bytes"] += (dist.get_world_size(group) - 1) * given.numel() * given.element_size()
        return before[1](out, given, group=group)

    dist.all_to_all_single, dist.all_gather_into_tensor = exchange, gather
    try:
        yield sent
    finally:
        dist.all_to_all_single, dist.all_gather_into_tensor = before


class Comparison:
    """The rows of one host. All ranks make the same calls; rank 0 decides which rows are measured, and keeps them."""

    def __init__(self, ranks: Group, rows: Rows | None, budget: float, smoke: bool) -> None:
        self._ranks, self._rows, self._end = ranks, rows, time.monotonic() + budget
        self._device, self._smoke = ranks.device, smoke
        self._models = Models(ranks.device, smoke)
        # a group is made by all ranks, also by those outside
        counts = [count for count in (2, 4, 8) if 2 * count <= ranks.size] + [ranks.size]
        self._groups = {count: dist.new_group(range(count)) for count in counts}

    def case(self, size: str, frames: int, sparse: bool, form: str, rows: int) -> None:
        grid = Grid(5, 6, 8) if self._smoke else grid_of(size, frames)
        config = BSAConfig(0.5 if self._smoke else 0.9375) if sparse else None
        key = {"size": size, "frames": frames, "grid": str(grid), "what": "sparse" if sparse else "dense"}
        key |= {"form": form, "rows": rows}
        counts = self._groups if rows == 1 else (self._ranks.size,)
        if not self._wanted(*({**key, "mode": "shared", "gpus": count} for count in counts)):
            return
        model, _ = self._models(form)
        given = inputs(model, grid, self._device, rows)
        self._layers = _sampled(model.config.depth)
        forward = partial(fast_forward, model)
        chosen: list = []
        reference = forward(*given, config, observe=partial(self._keep, chosen))
        self._row(key | {"mode": "alone", "gpus": 1}, lambda: self._timed(partial(forward, *given, config)))
        if rows == 2:
            self._guided(key, partial(forward, config=config), given, reference)
            return
        for count, group in self._groups.items():
            parallel = SequenceParallel(group) if self._ranks.rank < count else None
            run = None if parallel is None else partial(forward, *given, config, parallel=parallel)

            def measure(count=count, parallel=parallel, run=run) -> dict:
                found = self._compared(run, reference) | {"counted_gb": _counted(model, grid, count)}
                found |= self._timed(run)
                if sparse and parallel is not None:
                    heads = parallel.share(grid.volume, model.blocks[0].self_attn.num_heads).heads
                    found["same_blocks"] = self._same_blocks(run, chosen, heads)
                return found

            self._row(key | {"mode": "shared", "gpus": count}, measure)
        count, group = max(self._groups.items())
        run = partial(forward, *given, config, parallel=Waiting(group))
        self._row(key | {"mode": "waiting", "gpus": count}, lambda: self._timed(run))

    def exchange(self) -> None:
        """The all-to-all alone, of the queries of 704p, there and back."""
        count, group = max(self._groups.items())
        tokens, heads, dim = (240, 4, 16) if self._smoke else (grid_of("704p", 93).volume, 32, 128)
        share = SequenceParallel(group).share(tokens, heads)
        dtype = torch.float32 if self._smoke else torch.bfloat16
        x = torch.randn(1, share.tokens.stop - share.tokens.start, heads, dim, device=self._device, dtype=dtype)
        sent = 2 * x.numel() * x.element_size() * (1 - (share.heads.stop - share.heads.start) / heads)

        def measure() -> dict:
            timed = self._timed(lambda: share.tokens_from_heads(share.heads_from_tokens(x)()), repeats=20)
            return timed | {"gb_per_s": sent / 1e6 / timed["ms"]}

        self._row({"what": "exchange", "gpus": count}, measure)

    def _guided(self, key: dict, forward: Callable, given: tuple, reference: torch.Tensor) -> None:
        """Two rows of guidance: halves of the ranks take one each where their number is even."""
        parallel = self._ranks.sequence(2)

        def velocity(*inputs: torch.Tensor) -> torch.Tensor:
            return forward(*inputs, parallel=parallel)

        run = partial(self._ranks.divide(velocity, 2), *given)
        self._row(
            key | {"mode": "shared", "gpus": self._ranks.size},
            lambda: self._compared(run, reference) | self._timed(run),
        )

    def _compared(self, run: Callable | None, reference: torch.Tensor) -> dict:
        if run is None:
            return {}
        with counting() as sent:
            out = run()
            wait(self._device)
        return {"error": float((out - reference).norm() / reference.norm()), "sent_gb": sent["bytes"] / 1e9}

    def _keep(self, chosen: list, q, k, selection) -> None:
        layer = len(chosen)
        kept = selection is not None and layer in self._layers
        chosen.append(selection.indices.to(torch.int32).cpu() if kept else None)

    def _same_blocks(self, run: Callable, alone: list, heads: slice) -> list[float]:
        mine: list = []
        run(observe=partial(self._keep, mine))
        pairs = [(mine[layer], alone[layer][:, heads]) for layer in self._layers]
        return [round(_common(own, whole), 6) for own, whole in pairs]

    def _wanted(self, *keys: dict) -> bool:
        rows = self._rows
        return self._agreed(rows is not None and any(map(rows.missing, keys)) and time.monotonic() < self._end)

    @staticmethod
    def _agreed(answer: bool) -> bool:
        """Rank 0's answer, on every rank."""
        message = torch.tensor([answer])
        dist.broadcast(message, 0)
        return bool(message)

    def _row(self, key: dict, measure: Callable[[], dict]) -> None:
        if not self._wanted(key):
            return

        def whole() -> dict:
            try:
                return measure()
            except Exception as error:  # the other ranks would wait for this one for ever
                print(f"rank {self._ranks.rank}: {type(error).__name__}: {error}", flush=True)
                raise SystemExit(1) from error

        if self._rows is None:
            whole()
        else:
            self._rows.measure(key, whole)

    def _timed(self, run: Callable | None, repeats: int = REPEATS) -> dict:
        """Median milliseconds of the slowest rank, and the peak of memory of each. run: None on a rank without a part.

        Everything was run once before, so nothing is compiled here.
        """
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        times: list[float] = []
        began = time.monotonic()
        while self._agreed(len(times) < repeats and (len(times) < 2 or time.monotonic() - began < LIMIT)):
            wait(self._device)
            start = time.perf_counter()
            if run is not None:
                run()
            wait(self._device)
            times.append(1e3 * (time.perf_counter() - start))
        peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
        every: list = [None] * self._ranks.size
        dist.all_gather_object(every, (statistics.median(times) if run is not None else 0.0, peak))
        return {"ms": max(ms for ms, _ in every), "runs": len(times), "peak_gib": [round(gib, 2) for _, gib in every]}


def _sampled(depth: int) -> list[int]:
    return sorted({0, depth // 2, depth - 1})


def _common(own: torch.Tensor, whole: torch.Tensor) -> float:
    """The share of the blocks of `whole` that `own` has too; both list block numbers in the last axis."""
    width = int(max(own.max(), whole.max())) + 1
    a, b = (torch.zeros(*x.shape[:-1], width, dtype=torch.bool).scatter_(-1, x.long(), True) for x in (own, whole))
    return float((a & b).sum() / b.sum())


def _counted(model, grid: Grid, count: int) -> float:
    """GB that a rank with an even share sends: queries, keys, values and results of every layer, and the output."""
    config, size = model.config, model.patch_embed.proj.weight.element_size()
    layers = 4 * config.depth * grid.volume * config.hidden_size * size * (count - 1) / count**2
    output = math.prod(model.patch_size) * config.out_channels * 4 * grid.volume * (count - 1) / count
    return (layers + output) / 1e9


def join(smoke: bool) -> Group:
    device = torch.device("cpu") if smoke else torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if not smoke:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "gloo" if smoke else "cpu:gloo,cuda:nccl"
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timedelta(minutes=5))
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return Group(device)


def about(device: torch.device) -> dict:
    if device.type != "cuda":
        return {"gpus": []}
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"gpus": names, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}


@torch.no_grad()
def main() -> None:
    parser = arguments(__doc__, "multi_gpu")
    args = parser.parse_args()
    if not args.smoke and "LOCAL_RANK" not in os.environ:
        parser.error("start it with torchrun, one process for each GPU; --smoke tests this program on the CPU")
    ranks = join(args.smoke)
    # the clock is read by this program, because all ranks have to leave out the same rows
    budget, args.budget = args.budget, math.inf
    rows = Rows(args, ranks.device, about(ranks.device)) if ranks.rank == 0 else None
    compare = Comparison(ranks, rows, budget, args.smoke)
    compare.exchange()
    for case in CASES[:2] + CASES[-1:] if args.smoke else CASES:
        compare.case(*case)
    if rows is not None:
        rows.finish()
    if "RANK" in os.environ and ranks.size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
