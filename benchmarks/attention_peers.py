"""Other implementations of the attention, run on a `Case` of attention_case.py. Each needs its own package.

nvcc compiles FlashInfer's (flashinfer-python) for minutes at its first use. Run `--part warm` first, because a row that
takes so long is stopped. cuDNN's is the `BSA` of its frontend (nvidia-cudnn-frontend), which has kernels for Hopper and
for blocks of 64 or 128 tokens. The `block_mask` of cuDNN's `sdpa` needs Blackwell and blocks of 128.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

import torch
import torch.nn.functional as F
from attention_case import Case
from gpu import milliseconds
from torch import Tensor


def timed(case: Case, run: Callable[[], Tensor]) -> dict:
    """Time ``run`` after a check of its result [1, H, S, D] in block order."""

    def check(out: Tensor) -> dict:
        error = case.error(out.transpose(1, 2))
        if not error < 0.02:
            raise ValueError(f"wrong result, relative error {error}")
        return {"error": error}

    found = milliseconds(run, case.device, check=check)
    return {**found, "tflops": case.flops / found["ms"] / 1e9}


def heads_first(case: Case) -> list[Tensor]:
    return [x.transpose(1, 2).contiguous() for x in (case.q, case.k, case.v)]


def dense(case: Case, name: str) -> dict:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = case.raster()
    backend = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}[name]
    with sdpa_kernel(backend):
        found = milliseconds(lambda: F.scaled_dot_product_attention(q, k, v), case.device, repeats=5)
    return {**found, "tflops": 4 * q.shape[1] * q.shape[2] ** 2 * q.shape[3] / found["ms"] / 1e9}


def fastvideo(case: Case) -> dict:
    from fastvideo.third_party.longcat_video.block_sparse_attention.bsa_interface import flash_attn_bsa_3d

    q, k, v = case.raster()
    params, grid = case.config.to_bsa_params(), tuple(case.grid)
    found = milliseconds(lambda: flash_attn_bsa_3d(q, k, v, grid, grid, **params), case.device)
    return {**found, "tflops": case.flops / found["ms"] / 1e9}


def flex(case: Case) -> dict:
    """FlexAttention over the same blocks. Only for grids without ragged blocks, which its blocks cannot express."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    if case.layout.ragged:
        raise ValueError("FlexAttention's blocks are all of one size")
    chunk, blocks, counts = case.layout.chunk.volume, case.layout.blocks.volume, case.selection.counts
    indices = torch.zeros(*counts.shape, blocks, dtype=torch.int32, device=case.device)
    indices[..., : case.selection.indices.shape[-1]] = case.selection.indices
    nothing = torch.zeros_like(counts), torch.zeros_like(indices)  # all blocks are full, so none needs a mask inside
    given = {"BLOCK_SIZE": (chunk, chunk)}
    if case.device.type == "cuda":
        compiled = torch.compile(flex_attention)
        # by default its tiles would be larger than the blocks
        options = {"kernel_options": {"BLOCK_M": min(chunk, 128), "BLOCK_N": 64}}
    else:  # without compilation it uses only the function, not the lists
        compiled, options, kept = flex_attention, {}, case.selection.mask(blocks)
        given["mask_mod"] = lambda batch, head, query, key: kept[batch, head, query // chunk, key // chunk]
    mask = BlockMask.from_kv_blocks(*nothing, counts, indices, **given)
    q, k, v = heads_first(case)
    return timed(case, lambda: compiled(q, k, v, block_mask=mask, **options))


def flashinfer(case: Case, backend: str) -> dict:
    """FlashInfer's attention with one block mask per head and blocks of any size. "fa3" is its kernel for Hopper.

    Its "cake" kernels for Hopper are left out, because they take at most 64 key blocks per query block.
    """
    from flashinfer.sparse import VariableBlockSparseAttentionWrapper

    heads, dim = case.q.shape[2:]
    sizes = case.layout.sizes(case.device).expand(heads, -1).contiguous()
    mask = case.selection.mask(case.layout.blocks.volume)[0]
    workspace = torch.empty(128 * 2**20, dtype=torch.uint8, device=case.device)
    wrapper = VariableBlockSparseAttentionWrapper(workspace, backend=backend)
    wrapper.plan(mask, sizes, sizes, heads, heads, dim, sm_scale=case.scale, q_data_type=case.q.dtype)
    q, k, v = (x[0] for x in heads_first(case))
    return timed(case, lambda: wrapper.run(q, k, v)[None]) | {"version": metadata.version("flashinfer-python")}


def cudnn(case: Case, splits: int | str) -> dict:
    """The BSA of cuDNN's frontend. It also works only without ragged blocks.

    splits: number of parts of a key list that run one after the other, so that the keys of a part fit into the L2
        cache; "auto" lets cuDNN choose.
    """
    from cudnn import BSA

    if case.layout.ragged:
        raise ValueError("cuDNN's blocks are all of one size")
    indices, chunk = case.selection.indices.contiguous(), case.layout.chunk.volume
    if bool((case.selection.counts != indices.shape[-1]).any()):
        raise ValueError("lists of one length are expected")
    q, k, v = heads_first(case)
    options = {"sparse_block_size": chunk, "softmax_scale": case.scale, "kv_splits": splits}

    def run() -> Tensor:
        return BSA.block_sparse_attention_forward(q, k, v, indices, **options)["o_tensor"]

    return timed(case, run) | {"version": metadata.version("nvidia-cudnn-frontend")}


FLASHINFER = ("fa2", "fa3")
CUDNN = {"cuDNN BSA": 1, "cuDNN BSA, keys split": "auto"}
