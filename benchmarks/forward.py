"""Times one forward of the whole LongCat transformer (real size, random weights) on a GPU, dense and sparse.

    python benchmarks/forward.py              # 704p x 93 frames; writes benchmarks/results/forward.json
    python benchmarks/forward.py --curve      # 1 to 189 frames at four sizes; writes benchmarks/results/cost_curve.json
    python benchmarks/forward.py --memory     # peak by option; writes benchmarks/results/memory.json
    python benchmarks/forward.py --smoke      # tiny, on the CPU

"plain" is pipeline/forward.py with one PyTorch kernel per operation, "fast" is pipeline/fast_forward.py; the relative
difference of the two is in the row. --memory needs --limit-gib to show that a card of that size suffices.
"""

from functools import partial

import torch
from dit import build, grid_of, inputs
from gpu import RESULTS, Rows, arguments, device_for, milliseconds, peak_gib

from bsa import BSAConfig, Grid, block_sparse_attention
from bsa.variants import BASELINE, VARIANTS, Tuning
from pipeline.fast_forward import FFN_TOKENS, fast_forward
from pipeline.forward import attend_dense, longcat_forward

CURVE = {
    "480p": (1, 5, 13, 29, 61, 93, 189),
    "704p": (1, 13, 29, 61, 93, 189),
    "720p": (1, 29, 93),
    "1080p": (1, 29, 61, 93),
}


@torch.no_grad()
def plain(model, given, config):
    if config is None:
        return longcat_forward(model, *given, attend_dense)
    return longcat_forward(model, *given, lambda q, k, v, grid: block_sparse_attention(q, k, v, grid, config))


def relative(a, b) -> float:
    return float((a - b).norm() / b.norm())


def timed(run, device, repeats=3, reference=None) -> dict:
    result = {}
    if reference is not None:
        result["difference"] = relative(run(), reference)
    weights = torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else None
    result |= milliseconds(run, device, repeats=repeats, limit=40)
    peak = peak_gib(run, device)
    return result | {"peak_gib": peak, "held_before_gib": weights}


def comparison(rows, model, device, size, grid, config, tunings) -> None:
    given = inputs(model, grid, device)
    key = {"size": size, "grid": str(grid), "sparsity": config.sparsity}
    for name, chosen in (("sparse", config), ("dense", None)):
        reference = plain(model, given, chosen)
        for tuning in tunings if chosen is not None else tunings[:1]:
            what = "fast, " + name
            if tuning != Tuning() and chosen is not None:
                what += f", {tuning.variant.name}{', fused top-k' if tuning.fused_top_k else ''}"
            run = partial(fast_forward, model, *given, chosen, tuning=tuning)
            rows.measure(key | {"what": what}, partial(timed, run, device, reference=reference))
        rows.measure(key | {"what": f"plain, {name}"}, partial(timed, partial(plain, model, given, chosen), device, 1))
        del reference


def curve(rows, model, device, sizes, config, tuning) -> None:
    """Small videos first, so that a run that is cut off still has whole lines."""
    points = sorted(((grid_of(s, f), s, f) for s, counts in sizes.items() for f in counts), key=lambda p: p[0].volume)
    for grid, size, frames in points:
        given = inputs(model, grid, device)
        for name, chosen in (("sparse", config), ("dense", None)):
            if chosen is not None and grid.t == 1:
                continue  # LongCat attends densely within a single frame
            run = partial(fast_forward, model, *given, chosen, tuning=tuning)
            repeats = 3 if grid.volume < 50_000 else 1
            key = {"size": size, "frames": frames, "grid": str(grid), "tokens": grid.volume, "what": name}
            rows.measure(key, partial(milliseconds, run, device, repeats=repeats, limit=5))


def memory(rows, model, device, size, grid, config, tuning, limit) -> None:
    given = inputs(model, grid, device)
    for name, chosen in (("sparse", config), ("dense", None)):
        for part in (FFN_TOKENS, 4096, grid.volume):
            run = partial(fast_forward, model, *given, chosen, tuning=tuning, ffn_tokens=part)
            key = {"size": size, "grid": str(grid), "what": f"fast, {name}", "ffn_tokens": part, "limit_gib": limit}
            rows.measure(key, lambda run=run: {"peak_gib": peak_gib(run, device)})
        key = {"size": size, "grid": str(grid), "what": f"plain, {name}", "ffn_tokens": None, "limit_gib": limit}
        run = partial(plain, model, given, chosen)
        rows.measure(key, lambda run=run: {"peak_gib": peak_gib(run, device)})


def main() -> None:
    parser = arguments(__doc__, "forward")
    parser.add_argument("--size", choices=["480p", "704p", "720p", "1080p"], default="704p")
    parser.add_argument("--frames", type=int, default=93)
    parser.add_argument("--variant", choices=sorted(VARIANTS), help="also this attention variant")
    parser.add_argument("--fused-top-k", action="store_true", help="with --variant: the fused top-k as well")
    parser.add_argument("--curve", action="store_true", help="time against frames and size instead")
    parser.add_argument("--memory", action="store_true", help="peak memory instead")
    parser.add_argument("--limit-gib", type=float, help="forbid PyTorch to hold more than so much")
    args = parser.parse_args()
    device = device_for(parser, args.smoke)
    if args.output == RESULTS / "forward.json" and (args.curve or args.memory):
        args.output = RESULTS / ("cost_curve.json" if args.curve else "memory.json")
    if args.limit_gib and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(args.limit_gib * 2**30 / total, device)
    rows = Rows(args, device)
    model = build(device, args.smoke)
    grid = Grid(5, 6, 8) if args.smoke else grid_of(args.size, args.frames)
    config = BSAConfig(0.5 if args.smoke else 0.9375)
    chosen = Tuning(VARIANTS[args.variant] if args.variant else BASELINE, args.fused_top_k)
    if args.curve:
        sizes = {"480p": (1,)} if args.smoke else CURVE
        curve(rows, model, device, sizes, config, chosen)
    elif args.memory:
        memory(rows, model, device, args.size, grid, config, chosen, args.limit_gib)
    else:
        tunings = [Tuning()] if chosen == Tuning() else [Tuning(), chosen]
        comparison(rows, model, device, args.size, grid, config, tunings)


if __name__ == "__main__":
    main()
