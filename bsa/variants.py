"""The attention kernels and tile shapes that exist, and the ones that were measured to be best.

`tuned.json` is written from measurements (`python benchmarks/attention.py`). What it does not list runs on
`BASELINE`: a kernel is not chosen because it ought to be faster.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

TUNED = Path(__file__).with_name("tuned.json")
# One processor under several names: they differ in memory, power and clocks, not in what a kernel sees of them.
SAME_CHIP = ("H100", "H200", "GH200")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the attention kernel.

    descriptors: key and value tiles come through tensor descriptors (TMA, from compute capability 9.0 on).
    tile_q, tile_k: tokens per tile, at most; small chunks get smaller tiles.
    q_in_registers: the query tile leaves shared memory, which then has room for more programs or tiles of keys.
    serpentine: neighbouring waves of programs go through their lists in opposite directions.
    max_registers: of a thread; fewer let more programs share a multiprocessor. None leaves it to the compiler.
    """

    name: str
    descriptors: bool
    tile_q: int
    tile_k: int
    num_warps: int
    num_stages: int
    q_in_registers: bool = False
    max_registers: int | None = None
    serpentine: bool = False


BASELINE = Variant("pointers-64x64-w4-s3", False, 64, 64, 4, 3)
# The index list costs the pipeline two stages: s3 keeps two key and value tiles in shared memory, s5 three.
VARIANTS = {
    variant.name: variant
    for variant in (
        BASELINE,
        Variant("pointers-64x64-w4-s5", False, 64, 64, 4, 5),
        Variant("pointers-64x32-w4-s3", False, 64, 32, 4, 3),
        Variant("pointers-128x64-w8-s3", False, 128, 64, 8, 3),
        Variant("descriptors-64x64-w4-s3", True, 64, 64, 4, 3),
        Variant("descriptors-64x64-w4-s5", True, 64, 64, 4, 5),
        Variant("descriptors-64x64-w4-s5-q", True, 64, 64, 4, 5, True),
        Variant("descriptors-64x64-w4-s5-qz", True, 64, 64, 4, 5, True, None, True),
        # 65 KB and 168 registers: three programs on a multiprocessor of Hopper
        Variant("descriptors-64x64-w4-s3-q168", True, 64, 64, 4, 3, True, 168),
        Variant("descriptors-64x32-w4-s3", True, 64, 32, 4, 3),
        Variant("descriptors-64x32-w4-s5", True, 64, 32, 4, 5),
        Variant("descriptors-64x32-w4-s7-q168", True, 64, 32, 4, 7, True, 168),
        Variant("descriptors-128x64-w8-s3", True, 128, 64, 8, 3),
        Variant("descriptors-128x64-w8-s5", True, 128, 64, 8, 5),
        Variant("descriptors-128x128-w8-s3", True, 128, 128, 8, 3),
    )
}


@dataclass(frozen=True, slots=True)
class Tuning:
    """What "auto" uses on one kind of GPU: the attention variant, and whether top-k is the fused kernel."""

    variant: Variant = BASELINE
    fused_top_k: bool = False


def tuning_key(dtype: str, head_dim: int, chunk_q: int, chunk_k: int) -> str:
    """How `tuned.json` names a case; chunks in tokens."""
    return f"{dtype} d{head_dim} q{chunk_q} k{chunk_k}"


def measured_as(gpu: str) -> str | None:
    """The GPU in tuned.json whose measurements count for one of this name: itself, or another with the same chip."""
    known = json.loads(TUNED.read_text(encoding="utf-8"))
    if gpu in known:
        return gpu
    return next(filter(_same_chip, known), None) if _same_chip(gpu) else None


def _same_chip(gpu: str) -> bool:
    return any(name in gpu.split() for name in SAME_CHIP)


@lru_cache(maxsize=256)
def tuning_for(gpu: str, dtype: str, head_dim: int, chunk_q: int, chunk_k: int) -> Tuning:
    """The measured choice for a GPU's name as PyTorch gives it (see `measured_as`), else the baseline.

    TRITON_AUTOTUNE_ENABLE=0 in the environment means the baseline everywhere. Nothing is ever tuned on first use.
    """
    if os.environ.get("TRITON_AUTOTUNE_ENABLE") == "0":
        return Tuning()
    entry = json.loads(TUNED.read_text(encoding="utf-8")).get(measured_as(gpu), {})
    entry = entry.get(tuning_key(dtype, head_dim, chunk_q, chunk_k))
    return Tuning() if entry is None else Tuning(VARIANTS[entry["variant"]], entry["fused_top_k"])
