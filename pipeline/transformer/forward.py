"""Forward pass of the LongCat-Video transformer, for inference and training alike.

The functions read the weights of any module tree with FastVideo's attribute names (``patch_embed.proj``,
``blocks.N.self_attn.to_q``, ...). So the model that FastVideo loads and the plain ``torch.nn`` model of `training/`
both run through exactly this code.

It differs from FastVideo 0.2.1's forward pass in three points, the first two as in the original LongCat-Video code:
padded text tokens are masked out of the cross-attention unless the checkpoint was trained to see them as zeros,
timestep embedding and modulation are computed in fp32, and the self-attention is an argument instead of a flag.

The first latent frames may be given instead of made (conditioning): an image, or the end of a clip. As in the original,
they have timestep 0, their queries see only their own keys, and they take nothing from the text. So nothing in them
depends on the other frames, and their keys and values can be kept from one forward to the next.

Method: LongCat-Video technical report, arXiv 2510.22200; rotary embedding: arXiv 2104.09864.

Shape letters: B batch, C latent channels, T H W latent frames, rows and columns, N tokens
(N = t*h*w of the token grid), L text tokens, E hidden size, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bsa import Grid, full_attention
from pipeline.transformer.kv_cache import KeyValues
from pipeline.weights import Net


class Attend(Protocol):
    """Self-attention of one block."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, conditioning: int) -> Tensor:
        """Return the output, like q.

        k, v: [B, heads, N, D], tokens in raster (T, H, W) order of grid. q: the same, or only the tokens after the
        conditioning frames. Queries of these first `conditioning` frames see their own keys, all others every key.
        """


class Modulation(NamedTuple):
    """Per-frame shift, scale and gate of one residual branch, fp32 [B, t, 1, E]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class Stages(NamedTuple):
    """The two halves of a block, before and after its self-attention. Compiled ones speed up training."""

    before: Callable
    after: Callable


def attend_dense(q: Tensor, k: Tensor, v: Tensor, grid: Grid, conditioning: int = 0) -> Tensor:
    """Full attention over all tokens that a query may see. Used as `Attend` by requests without BSA."""
    given = conditioning * grid.h * grid.w
    if given in (0, k.shape[2]) or q.shape[2] < k.shape[2]:
        return full_attention(q, k, v)
    first = full_attention(q[:, :, :given], k[:, :, :given], v[:, :, :given])
    return torch.cat([first, full_attention(q[:, :, given:], k, v)], dim=2)


def embed_patches(patches: Tensor, proj: Net) -> Tensor:
    """The first residual of a forward, [B, N, E]: the convolution `proj` of patches [B, N, C * pt * ph * pw]."""
    return F.linear(patches.to(proj.weight.dtype), proj.weight.flatten(1), proj.bias)


def _linear(layer: Net, x: Any) -> Tensor:
    """Apply a linear layer and its adapter. x: a tensor [..., in], or a `Quantised` for an `Fp8Linear`."""
    # FastVideo's linear layers return (output, bias), nn.Linear only the output.
    out = layer(x)
    out = out[0] if isinstance(out, tuple) else out
    lora = getattr(layer, "lora", None)  # see pipeline.weights.lora
    return out if lora is None else lora.add_(out, x)


def _linear_fp32(layer: Net, x: Tensor) -> Tensor:
    # The original evaluates the modulation in fp32, for any dtype of the weights.
    with torch.autocast(x.device.type, enabled=False):
        out = F.linear(x.float(), layer.weight.float(), layer.bias.float())
        lora = getattr(layer, "lora", None)
        return out if lora is None else lora.add_(out, x)


def _rms_norm(x: Tensor, norm: Net) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], eps=1e-6).type_as(x) * norm.weight.type_as(x)


def _modulate(x: Tensor, mod: Modulation) -> Tensor:
    """LayerNorm without weights, followed by ``x * (1 + scale) + shift`` per frame. x [B, N, E]."""
    frames = mod.shift.shape[1]
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6).unflatten(1, (frames, -1))
    return (normed * (1 + mod.scale) + mod.shift).flatten(1, 2).type_as(x)


def _add_gated(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    gated = branch.float().unflatten(1, (gate.shape[1], -1)) * gate
    return (x.float() + gated.flatten(1, 2)).type_as(x)


@lru_cache(maxsize=8)
def rope_table(grid: Grid, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the 3D rotary embedding, each fp32 [N, D/2].

    The head is split into D - 4*(D//6) temporal channels and 2*(D//6) channels for each of rows and columns. The two
    channels of a neighbouring pair share an angle.
    """
    spatial = 2 * (head_dim // 6)
    angles = []
    for axis, (length, dim) in enumerate(zip(grid, (head_dim - 2 * spatial, spatial, spatial), strict=True)):
        frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angle = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = length
        angles.append(angle.view(shape).expand(*grid, dim // 2))
    table = torch.cat(angles, dim=-1).flatten(0, 2).to(device)
    return table.cos(), table.sin()


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rope
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).type_as(x)


def _heads(x: Tensor, attention: Net) -> Tensor:
    """[B, N, E] -> [B, heads, N, D]."""
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def before_attention(
    block: Net, x: Tensor, t: Tensor, rope: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Modulation]:
    """First half of a block: modulation, projections, per-head RMSNorm, rotary embedding.

    x [B, N, E]; t fp32 [B, t, adaln_tembed_dim]. Returns q, k, v [B, heads, N, D], the gate of the
    attention branch and the modulation of the feed-forward branch.
    """
    shift, scale, gate, *ffn = _linear_fp32(block.adaln_linear_1, F.silu(t)).unsqueeze(2).chunk(6, dim=-1)
    attention = block.self_attn
    h = _modulate(x, Modulation(shift, scale, gate))
    q = _rms_norm(_heads(_linear(attention.to_q, h), attention), attention.q_norm)
    k = _rms_norm(_heads(_linear(attention.to_k, h), attention), attention.k_norm)
    v = _heads(_linear(attention.to_v, h), attention)
    return _rotate(q, rope), _rotate(k, rope), v, gate, Modulation(*ffn)


def after_attention(
    block: Net,
    x: Tensor,
    attended: Tensor,
    gate: Tensor,
    ffn: Modulation,
    text: Tensor,
    text_mask: Tensor | None,
    given: int = 0,
) -> Tensor:
    """Second half of a block: output projection, cross-attention to the text, SwiGLU feed-forward.

    attended [B, heads, N, D]; text [B, L, E]; text_mask bool [B, 1, 1, L] or None.
    given: first tokens, which take nothing from the text.
    Returns [B, N, E].
    """
    x = _add_gated(x, _linear(block.self_attn.to_out, attended.transpose(1, 2).flatten(2)), gate)
    if not given:
        x = x + _cross_attention(block, x, text, text_mask)
    elif given < x.shape[1]:
        x = torch.cat([x[:, :given], x[:, given:] + _cross_attention(block, x[:, given:], text, text_mask)], dim=1)

    h = _modulate(x, ffn)
    h = _linear(block.ffn.w2, F.silu(_linear(block.ffn.w1, h)) * _linear(block.ffn.w3, h))
    return _add_gated(x, h, ffn.gate)


def _cross_attention(block: Net, x: Tensor, text: Tensor, text_mask: Tensor | None) -> Tensor:
    cross = block.cross_attn
    norm = block.norm_cross
    h = F.layer_norm(x.float(), x.shape[-1:], norm.weight.float(), norm.bias.float(), eps=1e-6).type_as(x)
    q = _rms_norm(_heads(_linear(cross.to_q, h), cross), cross.q_norm)
    k = _rms_norm(_heads(_linear(cross.to_k, text), cross), cross.k_norm)
    v = _heads(_linear(cross.to_v, text), cross)
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=text_mask)
    return _linear(cross.to_out, h.transpose(1, 2).flatten(2))


EAGER = Stages(before_attention, after_attention)


def trim_text(text: Tensor, text_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Drop the padding that no row of the batch needs.

    text [B, L, C]; text_mask [B, L], non-zero at real tokens. Returns the shorter text and its mask as bool
    [B, 1, 1, L'], or None if no row has padding left. Reading the lengths waits for the device.
    """
    if text_mask is None:
        return text, None
    lengths = text_mask.ne(0).sum(dim=1).tolist()
    longest = max(lengths)
    if min(lengths) == 0:
        raise ValueError(f"a prompt of the batch has no text tokens (lengths {lengths}); encode at least the end token")
    mask = None if min(lengths) == longest else text_mask[:, None, None, :longest].ne(0)
    return text[:, :longest], mask


def embed_timestep(model: Net, timestep: Tensor, frames: int, conditioning: int = 0) -> Tensor:
    """Sinusoidal embedding and MLP. timestep [B] or [B, frames], 0 to 1000 -> fp32 [B, frames, adaln_tembed_dim].

    conditioning: first frames, whose timestep is 0 where timestep is [B].
    """
    embedder = model.time_embedder
    half = embedder.frequency_embedding_size // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
    if timestep.ndim == 1:
        made = torch.arange(frames, device=timestep.device) >= conditioning
        timestep = timestep[:, None] * made
    angles = timestep.float()[..., None] * frequencies
    h = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return _linear_fp32(embedder.linear_2, F.silu(_linear_fp32(embedder.linear_1, h)))


def token_grids(
    latents: Tensor, patch: tuple[int, ...], conditioning: int, cache: KeyValues | None
) -> tuple[Grid, Grid, int]:
    """The token grid of the latents, the grid of all keys, and the number of given frames among the latents.

    Raises ValueError if a latent size is not a multiple of the patch.
    """
    size = latents.shape[2:]
    if any(length % p for length, p in zip(size, patch, strict=True)):
        raise ValueError(f"latent size {tuple(size)} is not a multiple of the patch {patch}")
    grid = Grid(*(length // p for length, p in zip(size, patch, strict=True)))
    if cache is None or not cache.filled:
        return grid, grid, conditioning
    return grid, grid._replace(t=conditioning + grid.t), 0


def unpatchify(x: Tensor, grid: Grid, patch: tuple[int, int, int]) -> Tensor:
    """[B, N, pt*ph*pw*C] -> [B, C, t*pt, h*ph, w*pw]."""
    x = x.unflatten(-1, (*patch, -1)).unflatten(1, tuple(grid))  # [B, t, h, w, pt, ph, pw, C]
    x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def longcat_forward(
    model: Net,
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    text_mask: Tensor | None,
    attend: Attend | Sequence[Attend] = attend_dense,
    *,
    conditioning: int = 0,
    cache: KeyValues | None = None,
    zero_text_padding: bool = False,
    stages: Stages = EAGER,
) -> Tensor:
    """Predict the flow of a batch of noisy latents, which is ``clean - noise`` in LongCat's sign convention.

    Args:
        model: module tree with FastVideo's LongCat attribute names.
        latents: [B, C, T, H, W]; T, H, W must be multiples of the patch size.
        timestep: [B] or [B, t], 0 (clean) to 1000 (noise).
        text: encoder states [B, L, text channels]; text_mask: [B, L], or an attention mask [B, 1, 1, L] that is used
            unchanged (without waiting for the device), or None if all tokens are valid.
        attend: self-attention over tokens [B, heads, N, D] in raster order: one for all blocks, or a list of one each.
        conditioning: number of first frames that are given; their latents are clean.
        cache: an empty one is filled with the keys and values of the given frames, of which all frames then must be,
            [1, C, conditioning, H, W]; a filled one stands for these frames, and `latents` has those after them.
        zero_text_padding: treat padding as zero vectors that are attended to, for models that were trained so
            (`text_tokens_zero_pad` in config.json). Needs text_mask [B, L].
        stages: the block halves, eager or compiled.

    Returns:
        The flow, fp32 [B, C, T, H, W]; without meaning in the given frames.

    Raises:
        ValueError: a latent size is not a multiple of the patch, or a text row is empty.
    """
    patch = tuple(model.patch_size)
    made, grid, given = token_grids(latents, patch, conditioning, cache)
    proj = model.patch_embed.proj
    dtype = proj.weight.dtype

    x = F.conv3d(latents.to(dtype), proj.weight, proj.bias, stride=patch).flatten(2).transpose(1, 2)
    t = embed_timestep(model, timestep, made.t, given)
    if not zero_text_padding and (text_mask is None or text_mask.ndim == 2):
        text, text_mask = trim_text(text, text_mask)
    embedder = model.caption_embedder
    text = _linear(embedder.linear_2, F.gelu(_linear(embedder.linear_1, text.to(dtype)), approximate="tanh"))
    if zero_text_padding:
        assert text_mask is not None  # the encoder of such a checkpoint returns one
        text, text_mask = text * text_mask[..., None].to(dtype), None

    rope = rope_table(grid, x.shape[-1] // model.blocks[0].self_attn.num_heads, x.device)
    rope = rope[0][-made.volume :], rope[1][-made.volume :]
    without_text = given * grid.h * grid.w
    each = attend if isinstance(attend, Sequence) else [attend] * len(model.blocks)
    for layer, (block, attend_block) in enumerate(zip(model.blocks, each, strict=True)):
        q, k, v, gate, ffn = stages.before(block, x, t, rope)
        if cache is not None:
            k, v = cache.join(layer, k, v, dim=2)
        attended = attend_block(q, k, v, grid, conditioning)
        x = stages.after(block, x, attended, gate, ffn, text, text_mask, without_text)
    if cache is not None:
        cache.filled = True

    final = model.final_layer
    shift, scale = _linear_fp32(final.adaln_linear, F.silu(t)).unsqueeze(2).chunk(2, dim=-1)
    x = _linear_fp32(final.proj, _modulate(x, Modulation(shift, scale, scale)))  # fp32 as in the original
    return unpatchify(x, made, patch).float()
