"""Forwards with conditioning frames, against a transformer written out on a dense mask in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F
from random_dit import random_dit, random_inputs

from bsa import BlockLayout, BSAConfig, Grid, block_sparse_attention
from pipeline.transformer.fast_forward import fast_forward
from pipeline.transformer.forward import attend_dense, longcat_forward, rope_table
from pipeline.transformer.kv_cache import KeyValues
from pipeline.weights.fp8 import to_fp8
from pipeline.weights.offload import Offload

HALF = BSAConfig(0.5)
ROWS = [  # token grid, conditioning frames, attention
    pytest.param((4, 4, 6), 1, None, id="dense-image"),
    pytest.param((6, 4, 4), 4, None, id="dense-clip"),
    pytest.param((5, 8, 8), 1, HALF, id="sparse-image"),
    pytest.param((8, 8, 8), 4, HALF, id="sparse-clip"),
    pytest.param((7, 5, 6), 3, BSAConfig(0.6, None, (2, 3, 4), (2, 3, 4)), id="sparse-ragged"),
    pytest.param((5, 5, 6), 2, BSAConfig(None, 0.7, (2, 2, 2), (2, 2, 2)), id="sparse-threshold"),
    pytest.param((5, 6, 6), 1, BSAConfig(0.7, None, (4, 4, 4), (4, 4, 4), "cells"), id="sparse-cells"),
]


def attention(config):
    if config is None:
        return attend_dense
    return lambda q, k, v, grid, conditioning: block_sparse_attention(q, k, v, grid, config, conditioning=conditioning)


def plain(model, inputs, config, **kwargs):
    with torch.no_grad():
        return longcat_forward(model, *inputs, attention(config), **kwargs)


def fast(model, inputs, config, **kwargs):
    return fast_forward(model, *inputs, config, **kwargs)


def relative_error(value, expected):
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def oracle(model, latents, timestep, text, mask, grid, given, config):
    """The forward of the paper in fp64: masks say who sees whom, and every token takes part in everything else."""
    model = model.double()
    grid, tokens, frame = Grid(*grid), math.prod(grid), math.prod(grid[1:])
    heads = model.blocks[0].self_attn.num_heads
    first = torch.arange(tokens) < given * frame
    may_see = ~(first[:, None] & ~first[None])

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def attend(q, k, v, mask):
        return (
            ((q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -math.inf).softmax(-1) @ v).transpose(1, 2).flatten(2)
        )

    def normed(x):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    steps = timestep.double()[:, None].repeat(1, grid.t)
    steps[:, :given] = 0
    time = model.time_embedder
    half = time.frequency_embedding_size // 2
    # in fp32 as everywhere: the angles of the embedding are not what is tested here
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = steps.float()[..., None] * frequencies
    angles = torch.cat([angles.cos(), angles.sin()], -1).double()
    t = F.silu(time.linear_2(F.silu(time.linear_1(angles)))).repeat_interleave(frame, 1)
    caption = model.caption_embedder
    text = caption.linear_2(F.gelu(caption.linear_1(text.double()), approximate="tanh"))
    cos, sin = (part.double() for part in rope_table(grid, model.config.hidden_size // heads, text.device))

    def rotate(x):
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)

    patch = model.patch_embed.proj
    x = F.conv3d(latents.double(), patch.weight, patch.bias, stride=tuple(model.patch_size)).flatten(2).mT
    for block in model.blocks:
        shift, scale, gate, *ffn = block.adaln_linear_1(t).chunk(6, -1)
        own = block.self_attn
        h = normed(x) * (1 + scale) + shift
        q, k = (
            rotate(norm(split(linear(h)), n.weight)) for linear, n in ((own.to_q, own.q_norm), (own.to_k, own.k_norm))
        )
        seen = may_see
        if config is not None:
            _, selection = block_sparse_attention(
                q, k, k, grid, config, conditioning=given, backend="reference", return_selection=True
            )
            layout = BlockLayout(grid, config.chunk_q, given)
            blocks = layout.block_of_token(x.device)
            seen = selection.mask(layout.blocks.volume)[:, :, blocks][..., blocks]
            assert not (seen & ~may_see).any()
        x = x + gate * own.to_out(attend(q, k, split(own.to_v(h)), seen))
        cross = block.cross_attn
        h = normed(x) * block.norm_cross.weight + block.norm_cross.bias
        q, k = norm(split(cross.to_q(h)), cross.q_norm.weight), norm(split(cross.to_k(text)), cross.k_norm.weight)
        branch = cross.to_out(attend(q, k, split(cross.to_v(text)), mask[:, None, None].bool()))
        x = x + branch * ~first[:, None]
        shift, scale, gate = ffn
        h = normed(x) * (1 + scale) + shift
        x = x + gate * block.ffn.w2(F.silu(block.ffn.w1(h)) * block.ffn.w3(h))
    shift, scale = model.final_layer.adaln_linear(t).chunk(2, -1)
    x = model.final_layer.proj(normed(x) * (1 + scale) + shift)
    pt, ph, pw = model.patch_size
    x = x.view(len(x), *grid, pt, ph, pw, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("forward", [plain, fast])
@pytest.mark.parametrize(("grid", "given", "config"), ROWS)
def test_matches_the_forward_on_a_dense_mask(forward, grid, given, config):
    inputs = random_inputs(random_dit(), grid)
    out = forward(random_dit(), inputs, config, conditioning=given)
    with torch.no_grad():
        expected = oracle(random_dit(), *inputs, grid, given, config)
    # fp32 against fp64 through two blocks; one token that sees what it should not is an error above 1e-3.
    assert relative_error(out, expected) < 5e-6


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("forward", [plain, fast])
@pytest.mark.parametrize(("grid", "given", "config"), ROWS)
def test_kept_keys_and_values_stand_for_their_frames(forward, grid, given, config, on_host):
    model, (latents, timestep, text, mask) = random_dit(), random_inputs(random_dit(), grid)
    latents[1, :, :given] = latents[0, :, :given]  # both rows of guidance begin alike
    expected = forward(model, (latents, timestep, text, mask), config, conditioning=given)[:, :, given:]
    cache = KeyValues(on_host)
    forward(model, (latents[:1, :, :given], timestep[:1], text[:1], mask[:1]), config, conditioning=given, cache=cache)
    assert cache.filled
    least = 2 * len(model.blocks) * given * math.prod(grid[1:]) * model.config.hidden_size * 4
    assert least <= cache.bytes <= 1.5 * least  # and the means of blocks, where there are any
    for _ in range(2):
        made = latents[:, :, given:], timestep, text, mask
        out = forward(model, made, config, conditioning=given, cache=cache)
        # The same sums: only the rows that products are done in differ.
        assert relative_error(out, expected) < 1e-6


@pytest.mark.parametrize("forward", [plain, fast])
def test_what_is_made_changes_nothing_in_what_is_given(forward):
    model, inputs = random_dit(), random_inputs(random_dit(), (4, 4, 6))
    out = forward(model, inputs, None, conditioning=2)
    other = inputs[0].clone()
    other[:, :, 2:] *= -1
    changed = forward(model, (other, inputs[1] / 2, inputs[2] + 1, inputs[3]), None, conditioning=2)
    torch.testing.assert_close(out[:, :, :2], changed[:, :, :2], rtol=1e-5, atol=1e-6)
    assert relative_error(out[:, :, 2:], changed[:, :, 2:]) > 0.1


@pytest.mark.parametrize("cached", [False, True])
def test_8_bit_weights(cached):
    """The fast forward of 8-bit weights is the plain one of the same weights, up to activations that round the other
    way, as without conditioning frames (see test_pipeline_fp8.py)."""
    model, (latents, timestep, text, mask) = to_fp8(random_dit()), random_inputs(random_dit(), (5, 7, 6))
    made = []
    for forward in (plain, fast):
        cache = KeyValues() if cached else None
        if cached:
            clean = latents[:1, :, :2], timestep[:1], text[:1], mask[:1]
            forward(model, clean, HALF, conditioning=2, cache=cache)
        given = latents[:, :, 2:] if cached else latents
        made.append(forward(model, (given, timestep, text, mask), HALF, conditioning=2, cache=cache))
    assert relative_error(*made) < 0.01


def test_offloaded_blocks():
    model, inputs = random_dit(depth=3), random_inputs(random_dit(), (5, 8, 8))
    expected = fast(model, inputs, HALF, conditioning=1)
    assert torch.equal(fast(model, inputs, HALF, conditioning=1, offload=Offload(model, torch.device("cpu"))), expected)


def test_per_frame_timesteps_are_used_as_they_are():
    model, (latents, timestep, text, mask) = random_dit(), random_inputs(random_dit(), (4, 4, 6))
    frames = timestep[:, None].repeat(1, 4)
    frames[:, :2] = 0
    expected = plain(model, (latents, timestep, text, mask), None, conditioning=2)
    assert torch.equal(plain(model, (latents, frames, text, mask), None, conditioning=2), expected)


def test_gradients_reach_every_weight_of_the_given_frames():
    """Training runs the same code: the loss on the frames that are made depends on the frames that are given."""
    model, (latents, timestep, text, mask) = random_dit().requires_grad_(True), random_inputs(random_dit(), (5, 8, 8))
    latents.requires_grad_(True)
    out = longcat_forward(model, latents, timestep, text, mask, attention(BSAConfig(0.25)), conditioning=1)
    out[:, :, 1:].square().mean().backward()
    assert latents.grad[:, :, :1].abs().max() > 0
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
