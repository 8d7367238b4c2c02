"""The LongCat transformer as plain torch.nn modules under FastVideo's names; `pipeline.transformer.forward` runs it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class DiTConfig:
    """The fields of transformer/config.json that define the network."""

    hidden_size: int = 256
    num_attention_heads: int = 4
    depth: int = 10
    caption_channels: int = 256
    adaln_tembed_dim: int = 128
    frequency_embedding_size: int = 256
    mlp_ratio: int = 4
    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)

    def to_json(self) -> dict:
        return asdict(self) | {"attention_head_dim": self.hidden_size // self.num_attention_heads}


class _Norm(nn.Module):
    def __init__(self, dim: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        if bias:
            self.bias = nn.Parameter(torch.zeros(dim))


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim) for _ in range(4))
        self.q_norm, self.k_norm = _Norm(dim // num_heads), _Norm(dim // num_heads)


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w1, self.w3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)


class _Block(nn.Module):
    def __init__(self, c: DiTConfig):
        super().__init__()
        hidden = 256 * -(-int(c.hidden_size * c.mlp_ratio * 2 / 3) // 256)  # LongCat rounds up to 256
        self.adaln_linear_1 = nn.Linear(c.adaln_tembed_dim, 6 * c.hidden_size)
        self.self_attn = _Attention(c.hidden_size, c.num_attention_heads)
        self.cross_attn = _Attention(c.hidden_size, c.num_attention_heads)
        self.norm_cross = _Norm(c.hidden_size, bias=True)
        self.ffn = _FeedForward(c.hidden_size, hidden)


class _Embedder(nn.Module):
    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.frequency_embedding_size = in_dim
        self.linear_1, self.linear_2 = nn.Linear(in_dim, out_dim), nn.Linear(out_dim, out_dim)


class _PatchEmbed(nn.Module):
    def __init__(self, c: DiTConfig):
        super().__init__()
        self.proj = nn.Conv3d(c.in_channels, c.hidden_size, c.patch_size, stride=c.patch_size)


class _FinalLayer(nn.Module):
    def __init__(self, c: DiTConfig):
        super().__init__()
        self.adaln_linear = nn.Linear(c.adaln_tembed_dim, 2 * c.hidden_size)
        pt, ph, pw = c.patch_size
        self.proj = nn.Linear(c.hidden_size, pt * ph * pw * c.out_channels)


class LongCatDiT(nn.Module):
    """The parameters of LongCatTransformer3DModel. `longcat_forward` of `pipeline.transformer.forward` runs them."""

    def __init__(self, config: DiTConfig = DiTConfig()):
        super().__init__()
        self.config, self.patch_size = config, config.patch_size
        self.patch_embed = _PatchEmbed(config)
        self.time_embedder = _Embedder(config.frequency_embedding_size, config.adaln_tembed_dim)
        self.caption_embedder = _Embedder(config.caption_channels, config.hidden_size)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.final_layer = _FinalLayer(config)
        # adaLN-zero (arXiv 2212.09748): every block starts as the identity, the output as zero
        layers: list[Any] = [block.adaln_linear_1 for block in self.blocks]
        for layer in (*layers, self.final_layer.adaln_linear, self.final_layer.proj):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
