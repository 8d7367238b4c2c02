"""How a Triton kernel is launched: on which GPU, with which tiles and how much shared memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from bsa.variants import BASELINE, Variant


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current GPU, which need not be the tensor's. The interpreter's tensors are on the CPU."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def launch_options(
    dtype: torch.dtype, head_dim: int, chunk_q: int, chunk_k: int, shared_memory: int, variant: Variant = BASELINE
) -> dict[str, Any]:
    """Tile shape, dot precision and pipeline depth; shared_memory: bytes one program may use."""
    dim = max(16, triton.next_power_of_2(head_dim))
    # fp32 products run on the ordinary cores, unrolled: smaller tiles keep them in registers.
    largest_q, largest_k = (32, 32) if dtype == torch.float32 else (variant.tile_q, variant.tile_k)
    tile_q = min(largest_q, max(16, triton.next_power_of_2(chunk_q)))
    tile_k = min(largest_k, max(16, triton.next_power_of_2(chunk_k)))
    q_bytes, stage_bytes = tile_q * dim * dtype.itemsize, 2 * tile_k * dim * dtype.itemsize
    return {
        "DIM": dim,
        "TILE_Q": tile_q,
        "TILE_K": tile_k,
        # "ieee" forbids TF32: an fp32 caller asked for fp32.
        "PRECISION": "ieee",
        "num_warps": variant.num_warps if tile_q == variant.tile_q else 4,
        "num_stages": max(1, min(variant.num_stages, (shared_memory - q_bytes) // stage_bytes)),
    }


def shared_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return 1 << 20  # Triton's interpreter has no such limit.
    properties: Any = torch.cuda.get_device_properties(device)  # PyTorch's types lack the one that is wanted
    return int(properties.shared_memory_per_block_optin)
