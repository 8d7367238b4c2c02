"""The attention kernels and tile shapes that exist, and the best ones by measurement.

`tuned.json` is written from measurements (`python benchmarks/attention.py`). Cases that it does not list run on
`BASELINE`: a kernel is never chosen only because it ought to be faster.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

TUNED = Path(__file__).with_name("tuned.json")
# The same processor under several names. They differ in memory, power and clocks, but are the same for a kernel.
SAME_CHIP = ("H100", "H200", "GH200")


POINTERS, DESCRIPTORS, SMALL_BLOCKS = "pointers", "descriptors", "small-blocks"  # the kernels


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant of the attention kernel.

    kernel: one of `POINTERS`, `DESCRIPTORS` (key and value tiles through TMA, compute capability 9.0 and up) and
        `SMALL_BLOCKS` (a tile holds several key blocks).
    tile_q, tile_k: most tokens per tile; small chunks get smaller tiles.
    q_in_registers: keep the query tile in registers, which frees shared memory for more programs or key tiles.
    serpentine: neighbouring waves of programs go through their lists in opposite directions.
    max_registers: most registers per thread; fewer let more programs share a multiprocessor. None: compiler's choice.
    """

    name: str
    kernel: str
    tile_q: int
    tile_k: int
    num_warps: int
    num_stages: int
    q_in_registers: bool = False
    max_registers: int | None = None
    serpentine: bool = False


BASELINE = Variant("pointers-64x64-w4-s3", POINTERS, 64, 64, 4, 3)
# The index list takes two stages of the pipeline: s3 keeps two key and value tiles in shared memory, s5 three.
VARIANTS = {
    variant.name: variant
    for variant in (
        BASELINE,
        Variant("pointers-64x64-w4-s5", POINTERS, 64, 64, 4, 5),
        Variant("pointers-64x32-w4-s3", POINTERS, 64, 32, 4, 3),
        Variant("pointers-128x64-w8-s3", POINTERS, 128, 64, 8, 3),
        Variant("descriptors-64x64-w4-s3", DESCRIPTORS, 64, 64, 4, 3),
        Variant("descriptors-64x64-w4-s5", DESCRIPTORS, 64, 64, 4, 5),
        Variant("descriptors-64x64-w4-s5-q", DESCRIPTORS, 64, 64, 4, 5, True),
        Variant("descriptors-64x64-w4-s5-qz", DESCRIPTORS, 64, 64, 4, 5, True, None, True),
        # 65 KB and 168 registers fit three programs on a multiprocessor of Hopper
        Variant("descriptors-64x64-w4-s3-q168", DESCRIPTORS, 64, 64, 4, 3, True, 168),
        Variant("descriptors-64x32-w4-s3", DESCRIPTORS, 64, 32, 4, 3),
        Variant("descriptors-64x32-w4-s5", DESCRIPTORS, 64, 32, 4, 5),
        Variant("descriptors-64x32-w4-s7-q168", DESCRIPTORS, 64, 32, 4, 7, True, 168),
        Variant("descriptors-128x64-w8-s3", DESCRIPTORS, 128, 64, 8, 3),
        Variant("descriptors-128x64-w8-s5", DESCRIPTORS, 128, 64, 8, 5),
        Variant("descriptors-128x128-w8-s3", DESCRIPTORS, 128, 128, 8, 3),
        Variant("small-blocks-64x64-w4-s3", SMALL_BLOCKS, 64, 64, 4, 3),
        Variant("small-blocks-128x64-w4-s3", SMALL_BLOCKS, 128, 64, 4, 3),
        Variant("small-blocks-128x64-w4-s4", SMALL_BLOCKS, 128, 64, 4, 4),
        Variant("small-blocks-128x128-w8-s3", SMALL_BLOCKS, 128, 128, 8, 3),
    )
}


@dataclass(frozen=True, slots=True)
class EightBits:
    """One variant of the kernel in 8 bits (`bsa.kernels.eight_bits`).

    tile_q, tile_k: most tokens per tile; small chunks get smaller tiles.
    descriptors: key and value tiles through TMA, compute capability 9.0 and up.
    exact_sums: add e4m3 products to sums in fp32 after every 32 keys, not after every tile. Hopper's own sums, which
        the products are in until then, have 14 bits or so.
    """

    name: str
    tile_q: int
    tile_k: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    exact_sums: bool = True

    def tiles(self, chunk_q: int, chunk_k: int) -> tuple[int, int]:
        """Tokens per tile of queries and of keys, for chunks of so many tokens."""
        return _tile(self.tile_q, chunk_q, least=16), _tile(self.tile_k, chunk_k, least=32)


def _tile(most: int, tokens: int, least: int) -> int:
    return min(most, max(least, 1 << (tokens - 1).bit_length()))


EIGHT_BITS = EightBits("pointers-64x64-w4-s3", 64, 64, 4, 3)
EIGHT_BIT_VARIANTS = {
    variant.name: variant
    for variant in (
        EIGHT_BITS,
        EightBits("pointers-64x64-w4-s4", 64, 64, 4, 4),
        EightBits("pointers-64x64-w4-s5", 64, 64, 4, 5),
        EightBits("descriptors-64x64-w4-s3", 64, 64, 4, 3, True),
        EightBits("descriptors-64x64-w4-s4", 64, 64, 4, 4, True),
        EightBits("descriptors-64x64-w4-s5", 64, 64, 4, 5, True),
        EightBits("pointers-64x64-w4-s3-sums", 64, 64, 4, 3, False, False),
        EightBits("descriptors-64x64-w4-s3-sums", 64, 64, 4, 3, True, False),
        EightBits("descriptors-64x64-w4-s5-sums", 64, 64, 4, 5, True, False),
        EightBits("descriptors-128x64-w8-s4-sums", 128, 64, 8, 4, True, False),
    )
}


@dataclass(frozen=True, slots=True)
class Tuning:
    """The choice of "auto" for one kind of GPU: the attention variant, whether to use the fused top-k kernel, and the
    attention variant for 8 bits."""

    variant: Variant = BASELINE
    fused_top_k: bool = False
    eight_bits: EightBits = EIGHT_BITS

    def attention(self, eight_bits: bool) -> Variant | EightBits:
        """The attention variant for 8 bits, or for the tensors' dtype."""
        return self.eight_bits if eight_bits else self.variant


def tuning_key(dtype: str, head_dim: int, chunk_q: int, chunk_k: int) -> str:
    """The name of a case in `tuned.json`. chunk_q, chunk_k: tokens per chunk."""
    return f"{dtype} d{head_dim} q{chunk_q} k{chunk_k}"


def measured_as(gpu: str) -> str | None:
    """The GPU in tuned.json whose measurements apply to this name: the same, or another with the same chip, or None."""
    return next((name for name, _ in _measurements(gpu)), None)


def _measurements(gpu: str) -> list[tuple[str, dict[str, Any]]]:
    """The GPUs in tuned.json that count for this one, with their cases: itself first, then others of its chip."""
    known = json.loads(TUNED.read_text(encoding="utf-8"))
    alike = [name for name in known if name != gpu and _same_chip(name)] if _same_chip(gpu) else []
    return [(name, known[name]) for name in (gpu, *alike) if name in known]


def _same_chip(gpu: str) -> bool:
    return any(name in gpu.split() for name in SAME_CHIP)


@lru_cache(maxsize=256)
def tuning_for(gpu: str, dtype: str, head_dim: int, chunk_q: int, chunk_k: int) -> Tuning:
    """The measured choice for a GPU, or the baseline. gpu: the name that PyTorch gives it, see `measured_as`.

    TRITON_AUTOTUNE_ENABLE=0 in the environment selects the baseline everywhere. Nothing is ever tuned at first use.
    """
    if os.environ.get("TRITON_AUTOTUNE_ENABLE") == "0":
        return Tuning()
    key = tuning_key(dtype, head_dim, chunk_q, chunk_k)
    for _, cases in _measurements(gpu):
        if entry := cases.get(key):
            eight_bits = EIGHT_BIT_VARIANTS[entry.get("eight_bits", EIGHT_BITS.name)]
            return Tuning(VARIANTS[entry["variant"]], entry["fused_top_k"], eight_bits)
    return Tuning()
