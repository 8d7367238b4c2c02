"""Times block sparse attention on a GPU: kernels, selection and the whole operation, beside other implementations.

    python benchmarks/attention.py                # writes benchmarks/results/attention_gpu.json
    python benchmarks/attention.py --part warm    # only compiles, all variants at once; fills Triton's cache
    python benchmarks/attention.py --part small --output benchmarks/results/attention_small.json
    python benchmarks/attention.py --part eight-bits --output benchmarks/results/attention_eight_bits.json
    python benchmarks/attention.py --smoke        # tiny, on the CPU

"ours" runs the kernels that bsa/tuned.json names (see tune.py), "ours, baseline" the plain ones. Every kernel is
checked against float64 on sampled query blocks before it is timed; the row has the error. TFLOP/s count only the
selected query-key pairs. An interrupted run can be started again: existing rows are kept.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import attention_peers as peers
import torch
from attention_case import Case
from gpu import Rows, arguments, device_for, milliseconds

from bsa import Grid, block_order_attention, block_sparse_attention
from bsa.attention import tuning_of
from bsa.selection import select_pooled
from bsa.variants import BASELINE, EIGHT_BIT_VARIANTS, EIGHT_BITS, SMALL_BLOCKS, VARIANTS, EightBits, Tuning, Variant

GRIDS = [Grid(24, 44, 80), Grid(24, 45, 80), Grid(24, 30, 52)]  # 704p, 720p (ragged), 480p (ragged); 93 frames
CHUNKS = [Grid(4, 4, 4), Grid(4, 4, 8), Grid(2, 8, 8), Grid(4, 8, 8)]
REAL, SMOKE = (32, 128, torch.bfloat16), (2, 32, torch.float32)  # heads, head size, dtype
SPARSITIES = [0.5, 0.75, 0.875, 0.9375, 0.97]
SMALL = [(Grid(4, 4, 8), Grid(2, 2, 4)), (Grid(4, 4, 4), Grid(2, 2, 4))]  # chunks of queries and smaller ones of keys


def kernel(case: Case, variant: Variant | EightBits, bound: float = 0.02) -> dict:
    """bound: of the relative error. A variant in 8 bits also quantises, which `quantising` has alone."""
    from bsa.kernels.attend import attend_tokens

    out = torch.full_like(case.q, float("nan"))
    q, k, v, filled = (x.transpose(1, 2) for x in (case.q, case.k, case.v, out))

    def run():
        attend_tokens(q, k, v, case.selection, case.layout, case.k_layout, case.scale, filled, variant=variant)

    run()
    error = case.error(out)
    if not error < bound:
        raise ValueError(f"wrong result, relative error {error}")
    timed = milliseconds(run, case.device)
    return {**timed, "tflops": case.flops / timed["ms"] / 1e9, "error": error}


def quantising(case: Case, variant: EightBits) -> dict:
    from bsa.kernels.eight_bits import quantise

    q, k, v = (x.transpose(1, 2) for x in (case.q, case.k, case.v))
    return milliseconds(lambda: quantise(q, k, v, case.layout, case.k_layout, case.scale, variant), case.device)


def operation(case: Case, tuning: Tuning | None, backend: str, means: bool, eight_bits: bool = False) -> dict:
    def run():
        given = case.means if means else None
        return block_order_attention(
            case.q, case.k, case.v, case.layout, case.config,
            pooled=given, backend=backend, tuning=tuning, eight_bits=eight_bits,
        )  # fmt: skip

    error = case.error(run())
    timed = milliseconds(run, case.device)
    return {**timed, "tflops": case.flops / timed["ms"] / 1e9, "error": error}


def raster_operation(case: Case, backend: str) -> dict:
    q, k, v = case.raster()
    timed = milliseconds(lambda: block_sparse_attention(q, k, v, case.grid, case.config, backend=backend), case.device)
    return {**timed, "tflops": case.flops / timed["ms"] / 1e9}


def selection(case: Case, fused: bool) -> dict:
    def run():
        return select_pooled(*case.means, case.layout, case.k_layout, case.config, case.scale, fused=fused)

    blocks = case.k_layout.blocks.volume
    same = (run().mask(blocks) == case.selection.mask(blocks)).double().mean().item()
    return {**milliseconds(run, case.device), "agreement": same}


def warm(name: str) -> str:
    """Compile one variant for all parts, in a separate process."""
    device = torch.device("cuda")
    for grid, chunk, sparsity in cases("variants", False):
        case = Case(grid, chunk, sparsity, *REAL, device)
        if VARIANTS[name].tile_q <= chunk.volume and VARIANTS[name].kernel != SMALL_BLOCKS:
            out = torch.empty_like(case.q)
            q, k, v, filled = (x.transpose(1, 2) for x in (case.q, case.k, case.v, out))
            selection = select_pooled(*case.means, case.layout, case.layout, case.config, case.scale, fused=True)
            from bsa.kernels.attend import attend_tokens

            given = selection, case.layout, case.layout, case.scale, filled
            attend_tokens(q, k, v, *given, variant=VARIANTS[name])
    torch.cuda.synchronize()
    return name


def warm_peer(name: str) -> str:
    peers.flashinfer(Case(Grid(8, 8, 8), CHUNKS[0], 0.5, *REAL, torch.device("cuda")), name)
    return f"FlashInfer, {name}"


def warm_all() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(VARIANTS), os.cpu_count() or 1), mp_context=context) as pool:
        jobs = [pool.submit(warm_peer, name) for name in peers.FLASHINFER]
        for done in jobs + [pool.submit(warm, name) for name in VARIANTS]:
            error = done.exception()
            print("compiled " + done.result() if error is None else f"failed: {error}", flush=True)


def small_blocks(rows: Rows, device: torch.device) -> None:
    """The kernels for small key blocks, and the plain kernel with the same blocks."""
    for grid, (chunk, chunk_k) in [(grid, pair) for grid in GRIDS[:2] for pair in SMALL]:
        case = Case(grid, chunk, 0.9375, *REAL, device, chunk_k)
        key = {"grid": str(grid), "chunk": str(chunk), "chunk_k": str(chunk_k), "sparsity": 0.9375}
        for variant in VARIANTS.values():
            if (variant.kernel == SMALL_BLOCKS or variant == BASELINE) and variant.tile_q <= chunk.volume:
                rows.measure(key | {"what": f"kernel {variant.name}"}, lambda case=case, v=variant: kernel(case, v))
        for fused, name in ((False, "sorted"), (True, "fused top-k")):
            rows.measure(key | {"what": f"selection, {name}"}, lambda case=case, fused=fused: selection(case, fused))


def eight_bits(rows: Rows, device: torch.device) -> None:
    """Attention in 8 bits beside bf16 and cuDNN's block-sparse kernel."""
    for grid in GRIDS:
        case = Case(grid, CHUNKS[0], 0.9375, *REAL, device)
        key = {"grid": str(grid), "chunk": str(CHUNKS[0]), "sparsity": 0.9375}
        tuned = tuning_of(case.q, case.layout, case.k_layout)
        rows.measure(key | {"what": "kernel, bf16"}, lambda case=case, tuned=tuned: kernel(case, tuned.variant))
        rows.measure(key | {"what": "quantising"}, lambda case=case: quantising(case, EIGHT_BITS))
        for variant in EIGHT_BIT_VARIANTS.values():
            if variant.tile_q <= CHUNKS[0].volume:
                what = {"what": f"quantising and kernel {variant.name}"}
                rows.measure(key | what, lambda case=case, variant=variant: kernel(case, variant, 0.1))
        for lossy in (False, True):
            what = {"what": f"operation, means given, {'8 bits' if lossy else 'bf16'}"}
            rows.measure(key | what, lambda case=case, lossy=lossy: operation(case, None, "triton", True, lossy))
        for what, splits in peers.CUDNN.items():
            rows.measure(key | {"what": what}, lambda case=case, splits=splits: peers.cudnn(case, splits))


def cases(part: str, smoke: bool):
    """Yield (grid, chunk, sparsity) for the cases of one part."""
    if smoke:
        grids, chunks, sparsities = [Grid(4, 8, 8), Grid(4, 7, 8)], CHUNKS[:1], [0.5]
    else:
        grids, chunks, sparsities = GRIDS, CHUNKS, SPARSITIES
    usual = 0.5 if smoke else 0.9375
    if part == "sweep":
        return [(grids[0], chunk, sparsity) for chunk in chunks for sparsity in sparsities]
    if part == "peers":
        return [(grid, chunks[0], usual) for grid in grids]
    # The largest chunk too: a chunk that is not measured would run on the baseline.
    return [(grid, chunk, usual) for grid in grids for chunk in chunks[:2]] + [(grids[0], chunks[-1], usual)]


def main() -> None:
    parser = arguments(__doc__, "attention_gpu")
    parts = ["warm", "variants", "peers", "sweep", "small", "eight-bits"]
    parser.add_argument("--part", choices=parts, help="only this part")
    args = parser.parse_args()
    device = device_for(parser, args.smoke)
    if args.part == "warm":
        return None if args.smoke else warm_all()
    smoke, rows = args.smoke, Rows(args, device)
    if args.part == "small":
        small_blocks(rows, device)
        return rows.finish()
    if args.part == "eight-bits":
        eight_bits(rows, device)
        return rows.finish()
    backend, shape = ("torch", SMOKE) if smoke else ("triton", REAL)
    for part in ("variants", "peers", "sweep") if args.part is None else (args.part,):
        for grid, chunk, sparsity in cases(part, smoke):
            case = Case(grid, chunk, sparsity, *shape, device)
            key = {"grid": str(grid), "chunk": str(chunk), "sparsity": sparsity}

            def measure(what, run, key=key):
                return rows.measure(key | {"what": what}, run)

            if part == "variants":
                for variant in () if smoke else VARIANTS.values():
                    if variant.tile_q <= chunk.volume and variant.kernel != SMALL_BLOCKS:
                        measure(f"kernel {variant.name}", lambda case=case, variant=variant: kernel(case, variant))
                measure("selection, sorted", lambda case=case: selection(case, False))
                if not smoke:
                    measure("selection, fused top-k", lambda case=case: selection(case, True))
                continue
            for means in (False, True):
                what = "ours" + (", means given" if means else "")
                measure(what, lambda case=case, means=means: operation(case, None, backend, means))
            measure("ours, baseline", lambda case=case: operation(case, Tuning(), backend, False))
            for name in ("math",) if smoke else ("cuDNN", "flash") if part == "peers" else ():
                measure(f"dense, {name}", lambda case=case, name=name: peers.dense(case, name))
            if part == "peers":
                measure("ours, raster order", lambda case=case: raster_operation(case, backend))
                measure("FlexAttention", lambda case=case: peers.flex(case))
                if smoke:  # the peers' kernels need a GPU
                    continue
                measure("FastVideo BSA", lambda case=case: peers.fastvideo(case))
                for name in peers.FLASHINFER:
                    measure(f"FlashInfer, {name}", lambda case=case, name=name: peers.flashinfer(case, name))
                for what, splits in peers.CUDNN.items():
                    measure(what, lambda case=case, splits=splits: peers.cudnn(case, splits))
    rows.finish()


if __name__ == "__main__":
    main()
