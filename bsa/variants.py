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


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the attention kernel.

    descriptors: key and value tiles come through tensor descriptors (TMA, from compute capability 9.0 on).
    tile_q, tile_k: tokens per tile, at most; small chunks get smaller tiles.
    """

    name: str
    descriptors: bool
    tile_q: int
    tile_k: int
    num_warps: int
    num_stages: int


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
        Variant("descriptors-64x32-w4-s3", True, 64, 32, 4, 3),
        Variant("descriptors-64x32-w4-s5", True, 64, 32, 4, 5),
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


@lru_cache(maxsize=256)
def tuning_for(gpu: str, dtype: str, head_dim: int, chunk_q: int, chunk_k: int) -> Tuning:
    """The measured choice for a GPU's name as PyTorch gives it; the baseline where nothing was measured.

    TRITON_AUTOTUNE_ENABLE=0 in the environment means the baseline everywhere. Nothing is ever tuned on first use.
    """
    if os.environ.get("TRITON_AUTOTUNE_ENABLE") == "0":
        return Tuning()
    entry = json.loads(TUNED.read_text(encoding="utf-8")).get(gpu, {})
    entry = entry.get(tuning_key(dtype, head_dim, chunk_q, chunk_k))
    return Tuning() if entry is None else Tuning(VARIANTS[entry["variant"]], entry["fused_top_k"])
