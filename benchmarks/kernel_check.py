"""Checks and times the Triton backend on a GPU.

    python benchmarks/kernel_check.py --output kernel_check.json

Needs torch, triton and this repository, nothing else. Every case runs the public steps (layout, selection,
kernel) at a real LongCat grid, writes into a NaN-filled output and compares a sample of query blocks with
attention in float64 over the same selected tokens. The yardstick beside it is the same attention in the
input's own precision, one rounded operation after another. Exit status 1 when a case fails.

`--device cpu` runs the same code on toy grids through Triton's interpreter, to test the program itself.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bsa import BlockLayout, BlockSelection, BSAConfig, Grid, block_sparse_attention, select_blocks

C64, C128, C105 = Grid(4, 4, 4), Grid(4, 4, 8), Grid(3, 5, 7)
TOP_K = BSAConfig(0.9375)


@dataclass(frozen=True)
class Case:
    grid: Grid
    chunk_q: Grid
    chunk_k: Grid
    dtype: str = "bfloat16"
    dim: int = 128
    sparsity: float | None = 0.9375
    cdf_threshold: float | None = None

    @property
    def config(self) -> BSAConfig:
        return BSAConfig(self.sparsity, self.cdf_threshold, self.chunk_q, self.chunk_k)

    def __str__(self) -> str:
        rule = f"top-k {self.sparsity}" if self.sparsity is not None else ""
        rule += f" cdf {self.cdf_threshold}" if self.cdf_threshold is not None else ""
        return f"{self.grid} q {self.chunk_q} k {self.chunk_k} d{self.dim} {self.dtype} {rule.strip()}"


def real_cases() -> list[Case]:
    """704p, 720p (45 rows: ragged), 480p (ragged) and 480x848x121 (ragged on every axis)."""
    grids = [Grid(24, 44, 80), Grid(24, 45, 80), Grid(24, 30, 52), Grid(31, 30, 53)]
    chunks = [(C64, C64), (C128, C128), (C105, C105), (C64, C128)]
    cases = [Case(grid, q, k) for grid in grids for q, k in chunks]
    cases += [Case(grid, C64, C64, dtype="float16") for grid in grids]
    cases += [Case(grid, C64, C64, dtype="float32", dim=64) for grid in grids[:2]]
    small = grids[2]
    cases += [Case(small, C64, C64, dim=dim) for dim in (16, 40, 64, 256)]
    cases += [Case(small, Grid(2, 3, 3), C105, sparsity=0.75)]
    cases += [Case(small, C64, C64, sparsity=None, cdf_threshold=0.5), Case(small, C64, C64, cdf_threshold=0.2)]
    return cases


def toy_cases(cpu: bool) -> list[Case]:
    # Triton's interpreter multiplies bf16 wrongly, so the CPU checks fp32 and fp16 only.
    dtypes = ("float32", "float16") if cpu else ("bfloat16", "float16", "float32")
    cases = [Case(Grid(4, 9, 8), C64, C64, dtype, 32, 0.5) for dtype in dtypes]
    cases += [Case(Grid(4, 8, 8), C128, C64, "float32", 16, 0.75), Case(Grid(3, 6, 8), C105, C105, "float16", 40, 0.5)]
    return [*cases, Case(Grid(4, 5, 8), C64, C64, "float32", 16, None, 0.6)]


def random_qkv(heads: int, tokens: int, dim: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    # Spread-out scores: nearly equal attention weights would hide a wrong block.
    q, k, v = (torch.randn(1, heads, tokens, dim, device=device) for _ in range(3))
    return [(2 * q).to(dtype), k.to(dtype), v.to(dtype)]


def sampled_errors(q, k, v, out, selection: BlockSelection, q_layout: BlockLayout, k_layout: BlockLayout, count: int):
    """Relative Frobenius errors of ``out`` and of stepwise-rounded attention against float64, on sampled blocks."""
    q_number, k_number = q_layout.block_of_token(q.device), k_layout.block_of_token(q.device)
    mask = selection.mask(k_layout.blocks.volume)
    blocks = q_layout.blocks.volume
    # The last block is the most ragged one.
    sample = torch.randperm(blocks, generator=torch.Generator().manual_seed(0))[: count - 1].tolist() + [blocks - 1]
    scale = q.shape[-1] ** -0.5
    squared = torch.zeros(3, dtype=torch.float64, device=q.device)
    for head in range(q.shape[1]):
        for block in sample:
            queries = (q_number == block).nonzero().flatten()
            keys = mask[0, head, block].index_select(0, k_number).nonzero().flatten()
            b_q, b_k, b_v = q[0, head, queries], k[0, head, keys], v[0, head, keys]
            exact = (scale * (b_q.double() @ b_k.double().T)).softmax(-1) @ b_v.double()
            rounded = (scale * (b_q @ b_k.T)).softmax(-1) @ b_v
            squared[0] += (out[0, head, queries].double() - exact).square().sum()
            squared[1] += (rounded.double() - exact).square().sum()
            squared[2] += exact.square().sum()
    kernel, rounded, norm = squared.sqrt().tolist()
    return kernel / norm, rounded / norm


def selection_agreement(q, k, selection, q_layout, k_layout, config) -> float:
    """Share of selected block pairs that float64 scores select too; below 1 only for near-ties."""
    blocks = q_layout.to_blocks(q.double()), k_layout.to_blocks(k.double())
    exact = select_blocks(*blocks, q_layout, k_layout, config, q.shape[-1] ** -0.5)
    ours, theirs = (chosen.mask(k_layout.blocks.volume) for chosen in (selection, exact))
    return float((ours & theirs).sum() / (ours | theirs).sum())


def check(case: Case, device: str, heads: int, sample: int) -> dict:
    from bsa.triton_kernel import attend_blocks

    start = time.perf_counter()
    dtype, config = getattr(torch, case.dtype), case.config
    q, k, v = random_qkv(heads, case.grid.volume, case.dim, dtype, device)
    q_layout, k_layout = BlockLayout(case.grid, case.chunk_q), BlockLayout(case.grid, case.chunk_k)
    q_blocks, k_blocks, v_blocks = q_layout.to_blocks(q), k_layout.to_blocks(k), k_layout.to_blocks(v)
    scale = case.dim**-0.5
    selection = select_blocks(q_blocks, k_blocks, q_layout, k_layout, config, scale)
    poisoned = torch.full_like(q_blocks, float("nan"))
    attend_blocks(q_blocks, k_blocks, v_blocks, selection, q_layout, k_layout, scale, out=poisoned)
    out = q_layout.from_blocks(poisoned)
    public = block_sparse_attention(q, k, v, case.grid, config, backend="triton")
    error, rounded = sampled_errors(q, k, v, out, selection, q_layout, k_layout, sample)
    # Half precision: no worse than rounding every step. fp32: the sums' order differs, so a fixed small bound.
    limit = 2e-6 if dtype == torch.float32 else rounded
    agreement = selection_agreement(q, k, selection, q_layout, k_layout, config)
    written = bool(out.isfinite().all())
    return {
        "case": str(case),
        **asdict(case),
        "q_blocks": q_layout.blocks.volume,
        "k_blocks": k_layout.blocks.volume,
        "ragged": q_layout.ragged or k_layout.ragged,
        "density": float(selection.density(k_layout.blocks.volume)),
        "error": error,
        "rounded_math_error": rounded,
        "limit": limit,
        "selection_agreement": agreement,
        "every_row_written": written,
        "public_op_identical": bool(torch.equal(out, public)),
        "seconds": time.perf_counter() - start,
        "passed": written and error <= limit and agreement > 0.999 and bool(torch.equal(out, public)),
    }


def median_ms(function, device: str, repeats: int) -> float:
    for _ in range(2):
        function()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            begin = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def cudnn_only(device: str):
    if device != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.CUDNN_ATTENTION)


@torch.inference_mode()
def time_op(grid: Grid, heads: int, dim: int, dtype: torch.dtype, device: str, repeats: int, dense: bool) -> list[dict]:
    """Medians for dense attention, the whole op and its parts at sparsity 0.9375, 4x4x4 chunks."""
    from bsa.triton_kernel import attend_blocks

    config, scale = TOP_K, dim**-0.5
    q, k, v = random_qkv(heads, grid.volume, dim, dtype, device)
    layout = BlockLayout(grid, config.chunk_q)
    q_blocks, k_blocks, v_blocks = layout.to_blocks(q), layout.to_blocks(k), layout.to_blocks(v)
    selection = select_blocks(q_blocks, k_blocks, layout, layout, config, scale)
    dense_flops = 4 * heads * grid.volume**2 * dim
    # Padding rows and columns are computed too, but only useful work is counted.
    sizes = layout.sizes(q.device).double()
    pairs = float((sizes[selection.indices].sum(-1) * sizes).sum())
    rows = [
        ("whole op", lambda: block_sparse_attention(q, k, v, grid, config, backend="triton"), pairs * 4 * dim),
        (
            "kernel",
            lambda: attend_blocks(q_blocks, k_blocks, v_blocks, selection, layout, layout, scale),
            pairs * 4 * dim,
        ),
        ("selection", lambda: select_blocks(q_blocks, k_blocks, layout, layout, config, scale), None),
        ("one layout copy in", lambda: layout.to_blocks(q), None),
        ("layout copy out", lambda: layout.from_blocks(q_blocks), None),
    ]
    results = []
    if dense:
        with cudnn_only(device):
            ms = median_ms(lambda: F.scaled_dot_product_attention(q, k, v), device, max(1, repeats // 4))
        results.append({"what": "dense SDPA, cuDNN", "ms": ms, "tflops": dense_flops / ms / 1e9})
    for name, function, flops in rows:
        ms = median_ms(function, device, repeats)
        results.append({"what": name, "ms": ms, "tflops": flops / ms / 1e9 if flops else None})
    shape = {"grid": str(grid), "heads": heads, "dim": dim, "dtype": str(dtype).removeprefix("torch.")}
    return [{**shape, **row} for row in results]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: toy grids, interpreted")
    parser.add_argument("--smoke", action="store_true", help="toy grids on the GPU too")
    args = parser.parse_args()
    cpu = args.device == "cpu"
    if cpu:
        os.environ["TRITON_INTERPRET"] = "1"  # read when bsa.triton_kernel first imports Triton
    elif not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu checks this program on toy grids")
    import triton

    began = time.perf_counter()
    machine = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": platform.processor() or platform.machine() if cpu else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": None if cpu else torch.version.cuda,
        "cudnn": None if cpu else torch.backends.cudnn.version(),
        "python": platform.python_version(),
    }
    print(json.dumps(machine))

    toy = cpu or args.smoke
    print(f"{'case':72} {'error':>9} {'rounded':>9} {'agree':>8} {'kept':>7} {'s':>5}")
    checks = []
    for case in toy_cases(cpu) if toy else real_cases():
        row = check(case, args.device, heads=2, sample=8 if toy else 64)
        checks.append(row)
        print(
            f"{row['case']:72} {row['error']:9.2e} {row['rounded_math_error']:9.2e} "
            f"{row['selection_agreement']:8.5f} {row['density']:7.4f} {row['seconds']:5.1f} "
            f"{'ok' if row['passed'] else 'FAILED'}",
            flush=True,
        )

    timing = []
    dtype = torch.float32 if cpu else torch.bfloat16
    grids = [Grid(4, 8, 8), Grid(4, 9, 8)] if toy else [Grid(24, 44, 80), Grid(24, 45, 80)]
    for number, grid in enumerate(grids):
        shape = {"heads": 2, "dim": 32} if toy else {"heads": 32, "dim": 128}
        timing += time_op(grid, **shape, dtype=dtype, device=args.device, repeats=3 if cpu else 20, dense=number == 0)
    print(f"\n{'shape':40} {'what':20} {'ms':>9} {'TFLOP/s':>9}")
    for row in timing:
        shape = f"{row['grid']} {row['heads']} heads d{row['dim']} {row['dtype']}"
        print(f"{shape:40} {row['what']:20} {row['ms']:9.3f} " + (f"{row['tflops']:9.1f}" if row["tflops"] else ""))

    passed = all(row["passed"] for row in checks)
    seconds = time.perf_counter() - began
    print(f"\n{sum(row['passed'] for row in checks)} of {len(checks)} cases passed in {seconds:.0f} s")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        report = {**machine, "passed": passed, "seconds": seconds, "checks": checks, "timing": timing}
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
