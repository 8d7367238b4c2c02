"""Options for launching a Triton kernel: the GPU, the tiles, and the shared memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from bsa.variants import BASELINE, Variant


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """A block whose current GPU is the tensor's, because Triton launches there. No effect on the CPU (interpreter)."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def launch_options(
    dtype: torch.dtype, head_dim: int, chunk_q: int, chunk_k: int, shared_memory: int, variant: Variant = BASELINE
) -> dict[str, Any]:
    """Choose tile shape, dot precision and pipeline depth. shared_memory: bytes that one program may use."""
    dim = max(16, triton.next_power_of_2(head_dim))
    # fp32 products run unrolled on the ordinary cores; smaller tiles keep them in registers.
    largest_q, largest_k = (32, 32) if dtype == torch.float32 else (variant.tile_q, variant.tile_k)
    tile_q = min(largest_q, max(16, triton.next_power_of_2(chunk_q)))
    tile_k = min(largest_k, max(16, triton.next_power_of_2(chunk_k)))
    q_bytes, stage_bytes = tile_q * dim * dtype.itemsize, 2 * tile_k * dim * dtype.itemsize
    return {
        "DIM": dim,
        "TILE_Q": tile_q,
        "TILE_K": tile_k,
        # "ieee" forbids TF32, because a caller with fp32 tensors expects fp32.
        "PRECISION": "ieee",
        "num_warps": variant.num_warps if tile_q == variant.tile_q else 4,
        "num_stages": max(1, min(variant.num_stages, (shared_memory - q_bytes) // stage_bytes)),
    }


def shared_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return 1 << 20  # Triton's interpreter has no such limit
    properties: Any = torch.cuda.get_device_properties(device)  # PyTorch's types lack the attribute used below
    return int(properties.shared_memory_per_block_optin)
