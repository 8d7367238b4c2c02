"""Checks and times the Triton backend on a GPU.

    python benchmarks/kernel_check.py --output kernel_check.json

Needs only torch, triton and this repository. Every case runs the public steps (layout, selection, kernel) on a real
LongCat grid, writes into an output filled with NaN, and compares a sample of query blocks with float64 attention over
the same selected tokens. The yardstick is the same attention in the input's precision, with every operation rounded.
The exit status is 1 if a case fails.

`--device cpu` runs the same code on toy grids in Triton's interpreter, to test this program itself.
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bsa import BlockLayout, BlockSelection, BSAConfig, Grid, block_sparse_attention, select_blocks
from bsa.attention import tuning_of
from bsa.selection import select_pooled

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
    # Triton's interpreter multiplies bf16 wrongly, so the CPU checks only fp32 and fp16.
    dtypes = ("float32", "float16") if cpu else ("bfloat16", "float16", "float32")
    cases = [Case(Grid(4, 9, 8), C64, C64, dtype, 32, 0.5) for dtype in dtypes]
    cases += [Case(Grid(4, 8, 8), C128, C64, "float32", 16, 0.75), Case(Grid(3, 6, 8), C105, C105, "float16", 40, 0.5)]
    return [*cases, Case(Grid(4, 5, 8), C64, C64, "float32", 16, None, 0.6)]


def random_qkv(heads: int, tokens: int, dim: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    # spread the scores, because nearly equal attention weights would hide a wrong block
    q, k, v = (torch.randn(1, heads, tokens, dim, device=device) for _ in range(3))
    return [(2 * q).to(dtype), k.to(dtype), v.to(dtype)]


def sampled_errors(q, k, v, out, selection: BlockSelection, q_layout: BlockLayout, k_layout: BlockLayout, count: int):
    """Relative Frobenius errors of ``out`` and of stepwise rounded attention against float64, on sampled blocks."""
    q_number, k_number = q_layout.block_of_token(q.device), k_layout.block_of_token(q.device)
    mask = selection.mask(k_layout.blocks.volume)
    blocks = q_layout.blocks.volume
    # the last block is the smallest one
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
    """Share of selected block pairs that float64 scores also select. Only near-ties make it less than 1."""
    blocks = q_layout.to_blocks(q.double()), k_layout.to_blocks(k.double())
    exact = select_blocks(*blocks, q_layout, k_layout, config, q.shape[-1] ** -0.5)
    ours, theirs = (chosen.mask(k_layout.blocks.volume) for chosen in (selection, exact))
    return float((ours & theirs).sum() / (ours | theirs).sum())


def check(case: Case, device: str, heads: int, sample: int) -> dict:
    from bsa.kernels.attend import attend_tokens
    from bsa.kernels.order import from_order, to_order

    start = time.perf_counter()
    dtype, config = getattr(torch, case.dtype), case.config
    q, k, v = random_qkv(heads, case.grid.volume, case.dim, dtype, device)
    q_layout, k_layout = BlockLayout(case.grid, case.chunk_q), BlockLayout(case.grid, case.chunk_k)
    (q_order, q_means), (k_order, k_means) = to_order(q, q_layout), to_order(k, k_layout)
    v_order, _ = to_order(v, k_layout, means=False)
    scale, tuning = case.dim**-0.5, tuning_of(q, q_layout, k_layout)
    selection = select_pooled(q_means, k_means, q_layout, k_layout, config, scale, fused=tuning.fused_top_k)
    poisoned = torch.full_like(q_order, float("nan"))
    attend_tokens(q_order, k_order, v_order, selection, q_layout, k_layout, scale, poisoned, variant=tuning.variant)
    out = from_order(poisoned, q_layout)
    public = block_sparse_attention(q, k, v, case.grid, config, backend="triton")
    error, rounded = sampled_errors(q, k, v, out, selection, q_layout, k_layout, sample)
    # Half precision must be no worse than rounding every step. In fp32 the sums' order differs, hence a small bound.
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
        "variant": tuning.variant.name,
        "passed": written and error <= limit and agreement > 0.999 and bool(torch.equal(out, public)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: toy grids, interpreted")
    parser.add_argument("--smoke", action="store_true", help="toy grids on the GPU too")
    args = parser.parse_args()
    cpu = args.device == "cpu"
    if cpu:
        os.environ["TRITON_INTERPRET"] = "1"  # read when bsa.kernels.pointers first imports Triton
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

    passed = all(row["passed"] for row in checks)
    seconds = time.perf_counter() - began
    print(f"\n{sum(row['passed'] for row in checks)} of {len(checks)} cases passed in {seconds:.0f} s")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        report = {**machine, "passed": passed, "seconds": seconds, "checks": checks}
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
