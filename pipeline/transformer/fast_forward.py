"""The forward pass of `forward.py` for inference on large videos: the same function with less memory traffic.

Tokens are put into the attention's block order once, while each is still 64 numbers, and back at the end, so no layer
copies queries, keys or values. Residuals are added in place. The feed-forward runs over parts of the tokens. Everything
besides matrix products and attention is an operation of `fused.py`. docs/hopper.md has the gains.

A transformer that `to_fp8` converted uses 8-bit products. Their inputs are quantised by the operation that made them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bsa import (
    BlockLayout,
    BlockSelection,
    BSAConfig,
    Grid,
    block_order_attention,
    full_attention,
    nested_layouts,
)
from bsa.variants import Tuning
from pipeline.parallel.sequence import ALONE, SequenceParallel
from pipeline.transformer import fused
from pipeline.transformer.forward import (
    _linear,
    _linear_fp32,
    embed_timestep,
    rope_table,
    token_grids,
    trim_text,
    unpatchify,
)
from pipeline.transformer.kept_selections import KeptSelections
from pipeline.transformer.kv_cache import KeyValues
from pipeline.weights import Net
from pipeline.weights.fp8 import Fp8Linear, Quantised, is_fp8
from pipeline.weights.offload import Offload

# Tokens per part of the feed-forward: enough for full speed of its products, and on a CPU few enough for its caches.
FFN_TOKENS = 16384
CPU_FFN_TOKENS = 1024


@torch.no_grad()
def fast_forward(
    model: Net,
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    text_mask: Tensor | None,
    config: BSAConfig | None,
    *,
    conditioning: int = 0,
    cache: KeyValues | None = None,
    kept: KeptSelections | None = None,
    dense_layers: int = 0,
    zero_text_padding: bool = False,
    backend: str = "auto",
    tuning: Tuning | None = None,
    eight_bits: bool = False,
    observe: Callable[[Tensor, Tensor, BlockSelection | None], None] | None = None,
    ffn_tokens: int | None = None,
    offload: Offload | None = None,
    parallel: SequenceParallel = ALONE,
) -> Tensor:
    """`longcat_forward` without gradients. Arguments and result are the same, with these additions:

    config: block sparse attention, or None for dense attention. One of the chunks of queries and keys must divide the
        other, as equal ones do.
    backend: "auto", "torch", "triton" or "native", for both the attention and the fused operations.
    tuning, eight_bits: see `bsa.block_order_attention`. Dense attention is not computed in 8 bits.
    kept: selections of earlier steps, for a config that uses them again.
    dense_layers: number of first layers with dense attention, in block order as well.
    observe: called in every layer with queries and keys, [B, H, N, D] in block order, and the selection, which is None
        for dense attention.
    ffn_tokens: tokens per part of the feed-forward; by default what suits the device.
    offload: brings the blocks' weights from the host, for a model that does not fit on the GPU.
    parallel: the ranks that share the tokens. All of them call this with the same arguments and get the same result;
        `observe` and the cache have this rank's heads.

    Raises ValueError as `longcat_forward` does, and for a config whose chunks share no block order.
    """
    patch = tuple(model.patch_size)
    made, grid, given = token_grids(latents, patch, conditioning, cache)
    layouts = None if config is None else nested_layouts(grid, config.chunk_q, config.chunk_k, conditioning)
    # Of the tokens that run: all, or those after the frames that a filled cache stands for.
    owns = layouts if layouts is None or made == grid else (layouts[0].rest, layouts[1].rest)
    own = None if owns is None else owns[0]
    without_text = given * grid.h * grid.w
    heads = model.blocks[0].self_attn.num_heads
    proj = model.patch_embed.proj
    dtype, device, dim = proj.weight.dtype, latents.device, proj.weight.shape[0] // heads
    ops = fused.operations(device, dim, backend, dtype)
    ffn_tokens = ffn_tokens or (CPU_FFN_TOKENS if device.type == "cpu" else FFN_TOKENS)

    if not zero_text_padding and (text_mask is None or text_mask.ndim == 2):
        text, text_mask = trim_text(text, text_mask)
    embedder = model.caption_embedder
    text = _linear(embedder.linear_2, F.gelu(_linear(embedder.linear_1, text.to(dtype)), approximate="tanh"))
    if zero_text_padding:
        assert text_mask is not None  # the encoder of such a checkpoint returns one
        text, text_mask = text * text_mask[..., None].to(dtype), None

    rope, frames = _tables(grid, made, own, dim, device)
    if timestep.ndim == 1:  # there are two at most: that of the given frames, which is 0, and that of the others
        t = embed_timestep(model, timestep, 2 if given else 1, 1 if given else 0)
        frames = (frames >= given).int() if given else torch.zeros_like(frames)
    else:
        t = embed_timestep(model, timestep, made.t)
    share = parallel.share(made.volume, heads)
    frames = frames[share.tokens]
    without_text = share.first_tokens(without_text)
    x = _patches(latents, patch)
    x = ops.embed(x[:, share.tokens] if own is None else x[:, own.order(device)[share.tokens]], proj)

    kept = kept or KeptSelections(config)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, pooled: tuple[Tensor, Tensor] | None) -> Tensor:
        if cache is not None:
            k, v = cache.join(layer, k, v, dim=1)
            if pooled is not None:
                pooled = pooled[0], cache.join_pooled(layer, pooled[1])
        if layouts is None or config is None:
            return _dense(q, k, v, conditioning * grid.h * grid.w, backend)
        if layer < dense_layers:
            out, selection = _dense(q, k, v, conditioning * grid.h * grid.w, backend), None
        else:
            options: dict[str, Any] = {"backend": backend, "tuning": tuning, "eight_bits": eight_bits}
            options["selection"] = kept.of(layer)
            if observe is None and config.select_every == 1:
                return block_order_attention(q, k, v, layouts[0], config, pooled=pooled, **options)
            out, selection = block_order_attention(
                q, k, v, layouts[0], config, pooled=pooled, return_selection=True, **options
            )
            kept.keep(layer, selection)
        if observe is not None:
            observe(q.transpose(1, 2), k.transpose(1, 2), selection)
        return out

    fp8 = is_fp8(model)
    text = ops.quantise(text) if fp8 else text
    for layer, block in enumerate(model.blocks if offload is None else offload.blocks()):
        selects = config is not None and layer >= dense_layers and kept.of(layer) is None
        pool = (owns, config.selector.by_cells) if config is not None and selects else None
        run = partial(attend, layer)
        places = (pool, run, without_text, ffn_tokens, fp8, share, backend)
        _block(ops, block, x, t, text, text_mask, rope, frames, *places)
    if cache is not None:
        cache.filled = True

    final = model.final_layer
    shift, scale = _linear_fp32(final.adaln_linear, F.silu(t)).chunk(2, dim=-1)
    parts, ops = [], fused.operations(device, dim, backend)  # fp32 as in the original
    for part in _parts(x.shape[1], ffn_tokens):  # but only part of the tokens at a time
        h = ops.residual_norm_(x[:, part].contiguous(), None, None, 1 + scale, shift.contiguous(), frames[part])
        parts.append(_linear_fp32(final.proj, h))
    x = share.gather(torch.cat(parts, dim=1))
    x = x if own is None else x[:, own.place_of_token(device)]
    return unpatchify(x, made, patch).float()


def run_without_attention(block: Net, x: Tensor, t: Tensor, text: Tensor, rope: tuple[Tensor, Tensor]) -> None:
    """Run one block on a CPU as the forward does, but with the queries as the result of self-attention; to time it.

    x [B, N, E] and text [B, L, E] in the dtype of the products; t [B, 1, adaln_tembed_dim]; rope of the N tokens.
    """
    tokens = x.shape[1]
    heads, fp8 = block.self_attn.num_heads, isinstance(block.ffn.w1, Fp8Linear)
    ops = fused.operations(x.device, x.shape[-1] // heads, dtype=x.dtype)
    frames, share = torch.zeros(tokens, dtype=torch.int32), ALONE.share(tokens, heads)
    text = ops.quantise(text) if fp8 else text
    given = (x.float(), t, text, None, rope, frames, None, lambda q, k, v, pooled: q)
    _block(ops, block, *given, 0, CPU_FFN_TOKENS, fp8, share, "auto")


def _block(
    ops, block, x, t, text, text_mask, rope, frames, pool, attend, without_text, ffn_tokens, fp8, share, backend
) -> None:
    """Run one transformer block in place on this rank's tokens, x [B, N, E]. With fp8, h and text are `Quantised`.

    pool: the layouts of queries and keys whose means the attention selects by, and whether by those of cells; or None.
    without_text: first tokens, which take nothing from the text.
    """
    modulation = _linear_fp32(block.adaln_linear_1, F.silu(t))  # [B, F, 6 E]
    shift, gain, gate, ffn_shift, ffn_gain, ffn_gate = modulation.chunk(6, dim=-1)
    gain += 1
    ffn_gain += 1

    attention = block.self_attn
    h = ops.residual_norm_(x, None, None, gain, shift, frames, fp8)
    # Between ranks, each exchange runs while the next projection or norm is computed.
    arrive_q, arrive_k, arrive_v = (
        share.heads_from_tokens(_heads(_linear(layer, h), attention))
        for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    del h
    (q_layout, k_layout), cells = pool or ((None, None), False)
    q = arrive_q()
    q_pooled = ops.head_norm_(q, attention.q_norm.weight, rope, q_layout, cells)
    k = arrive_k()
    k_pooled = ops.head_norm_(k, attention.k_norm.weight, rope, k_layout, cells)
    v = arrive_v()
    attended = share.tokens_from_heads(attend(q, k, v, None if pool is None else (q_pooled, k_pooled))).flatten(2)
    del q, k, v, arrive_q, arrive_k, arrive_v
    branch = _linear(attention.to_out, ops.quantise(attended) if fp8 else attended)
    del attended

    cross, norm = block.cross_attn, block.norm_cross
    weight, bias = (part.float()[None, None] for part in (norm.weight, norm.bias))
    h = ops.residual_norm_(x, branch, gate, weight, bias, frames, fp8)
    del branch
    from_text = _cross_attention(ops, cross, h, text, text_mask, without_text, fp8, backend)
    h = ops.residual_norm_(x, from_text, None, ffn_gain, ffn_shift, frames, fp8)
    del from_text

    ffn = block.ffn
    for part in _parts(x.shape[1], ffn_tokens):
        # One row of the batch at a time, because a part of its tokens is contiguous and can be updated in place.
        for row in range(x.shape[0]):
            some = Quantised(h.values[row, part], h.scales[row, part]) if fp8 else h[row, part]
            branch = _linear(ffn.w2, ops.swiglu_(_linear(ffn.w1, some), _linear(ffn.w3, some), fp8))
            ops.residual_norm_(x[row : row + 1, part], branch[None], ffn_gate[row : row + 1], None, None, frames[part])


def _cross_attention(ops, cross, h, text, text_mask, without_text, fp8, backend) -> Tensor | None:
    """The branch of the text, zero for the first `without_text` tokens; None where it is zero for all."""
    if without_text:
        h = Quantised(*(part[:, without_text:].contiguous() for part in h)) if fp8 else h[:, without_text:]
        if not (h.values if fp8 else h).shape[1]:
            return None
    q, k, v = (
        _heads(_linear(layer, of), cross) for layer, of in ((cross.to_q, h), (cross.to_k, text), (cross.to_v, text))
    )
    ops.head_norm_(q, cross.q_norm.weight, None, None)
    ops.head_norm_(k, cross.k_norm.weight, None, None)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if text_mask is None and not q.is_cuda:
        out = full_attention(q, k, v, backend=_of_dense(backend))
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=text_mask)
    out = out.transpose(1, 2).flatten(2)
    branch = _linear(cross.to_out, ops.quantise(out) if fp8 else out)
    return F.pad(branch, (0, 0, without_text, 0)) if without_text else branch


def _dense(q: Tensor, k: Tensor, v: Tensor, given: int = 0, backend: str = "auto") -> Tensor:
    """Dense attention on [B, N, H, D]. cuDNN's kernel is the fastest on Hopper, but PyTorch does not pick it itself.

    given: first tokens, whose queries see only their own keys; q may lack them.
    """
    if 0 < given < k.shape[1] == q.shape[1]:
        first = _dense(q[:, :given], k[:, :given], v[:, :given], backend=backend)
        return torch.cat([first, _dense(q[:, given:], k, v, backend=backend)], dim=1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if not q.is_cuda:
        return full_attention(q, k, v, backend=_of_dense(backend)).transpose(1, 2)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _of_dense(backend: str) -> str:
    """The backend of `full_attention`, which has no Triton kernel."""
    return "auto" if backend == "triton" else backend


def _heads(x: Tensor, attention: Net) -> Tensor:
    return x.unflatten(-1, (attention.num_heads, -1))


def _parts(tokens: int, at_once: int) -> list[slice]:
    return [slice(first, min(first + at_once, tokens)) for first in range(0, tokens, at_once)]


def _patches(latents: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Rearrange [B, C, T, H, W] to [B, N, C * pt * ph * pw], the inputs of a convolution with the patch as stride."""
    pt, ph, pw = patch
    x = latents.unflatten(4, (-1, pw)).unflatten(3, (-1, ph)).unflatten(2, (-1, pt))  # [B, C, t, pt, h, ph, w, pw]
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


@lru_cache(maxsize=8)
def _tables(
    grid: Grid, made: Grid, layout: BlockLayout | None, head_dim: int, device: torch.device
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Rotary angles (cosine and sine) and frame numbers (int32) of the tokens in their order, on the device.

    grid: of all keys; made: of the tokens that run, which are its last. layout: theirs.
    """
    cos, sin = (part[-made.volume :] for part in rope_table(grid, head_dim, device))
    frames = torch.arange(made.t, dtype=torch.int32, device=device).repeat_interleave(grid.h * grid.w)
    if layout is None:
        return (cos, sin), frames
    order = layout.order(device)
    return (cos[order], sin[order]), frames[order]
