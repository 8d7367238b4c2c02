"""A trainable Wan video VAE with FastVideo's parameter names, evaluated over all frames at once.

FastVideo and diffusers run `AutoencoderKLWan` one latent frame at a time with a feature cache. That is right
for inference and slow for training. This is the same network without the cache: convolutions are causal over
the whole clip, and only the first frame skips the temporal resampling. A test holds the two to the same
result. Architecture: Wan 2.1 (arXiv 2503.20314) with the pixel-unshuffled input of Wan 2.2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


@dataclass(frozen=True)
class VAEConfig:
    """The fields of vae/config.json that define the network."""

    base_dim: int = 32
    dim_mult: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 1
    temperal_downsample: tuple[bool, ...] = (True, True)  # (sic) spelt so in the published configs
    z_dim: int = 16
    patch_size: int = 2


class CausalConv3d(nn.Conv3d):
    """A convolution over [B, C, T, H, W] that sees only the present and the past."""

    def forward(self, x: Tensor) -> Tensor:
        time, height, width = (k // 2 for k in self.kernel_size)
        if self.kernel_size[0] == 1:
            return super().forward(x)
        return F.conv3d(F.pad(x, (width, width, height, height, 2 * time, 0)), self.weight, self.bias)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, ndim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * ndim))

    def forward(self, x: Tensor) -> Tensor:
        return (F.normalize(x.float(), dim=1) * x.shape[1] ** 0.5 * self.gamma).type_as(x)


class ResidualBlock(nn.Module):
    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.norm1 = RMSNorm(in_dim, 3)
        self.conv1 = CausalConv3d(in_dim, out_dim, 3)
        self.norm2 = RMSNorm(out_dim, 3)
        self.conv2 = CausalConv3d(out_dim, out_dim, 3)
        self.conv_shortcut = CausalConv3d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h))) + self.conv_shortcut(x)


def _per_frame(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


def _to_clip(x: Tensor, batch: int) -> Tensor:
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


class AttentionBlock(nn.Module):
    """Single-head attention within each frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = _per_frame(x)
        q, k, v = self.to_qkv(self.norm(h)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(h.shape)
        return x + _to_clip(self.proj(attended), x.shape[0])


class MidBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(dim, dim), ResidualBlock(dim, dim)])
        self.attentions = nn.ModuleList([AttentionBlock(dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    def __init__(self, dim: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor) -> Tensor:
        x = _to_clip(self.resample(_per_frame(x)), x.shape[0])
        if self.time_conv is None or x.shape[2] == 1:
            return x
        return torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)


class Upsample(nn.Module):
    def __init__(self, dim: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"), nn.Conv2d(dim, dim // 2, 3, padding=1)
        )
        self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor) -> Tensor:
        if self.time_conv is not None and x.shape[2] > 1:
            later = self.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))  # [B, 2, C, T, H, W]
            later = later.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
            x = torch.cat([x[:, :, :1], later], dim=2)
        return _to_clip(self.resample(_per_frame(x)), x.shape[0])


class Encoder(nn.Module):
    def __init__(self, c: VAEConfig):
        super().__init__()
        dims = [c.base_dim * m for m in (1, *c.dim_mult)]
        self.conv_in = CausalConv3d(3 * c.patch_size**2, dims[0], 3)
        self.down_blocks = nn.ModuleList()
        for i, (in_dim, out_dim) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            self.down_blocks.append(ResidualBlock(in_dim, out_dim))
            self.down_blocks.extend(ResidualBlock(out_dim, out_dim) for _ in range(c.num_res_blocks - 1))
            if i < len(c.dim_mult) - 1:
                self.down_blocks.append(Downsample(out_dim, c.temperal_downsample[i]))
        self.mid_block = MidBlock(dims[-1])
        self.norm_out = RMSNorm(dims[-1], 3)
        self.conv_out = CausalConv3d(dims[-1], 2 * c.z_dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for layer in self.down_blocks:
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class UpBlock(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, num_res_blocks: int, temporal: bool | None):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(num_res_blocks + 1)
        )
        self.upsamplers = None if temporal is None else nn.ModuleList([Upsample(out_dim, temporal)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class Decoder(nn.Module):
    def __init__(self, c: VAEConfig):
        super().__init__()
        mult = c.dim_mult[::-1]
        dims = [c.base_dim * m for m in (mult[0], *mult)]
        temporal = [*c.temperal_downsample[::-1], None]
        self.conv_in = CausalConv3d(c.z_dim, dims[0], 3)
        self.mid_block = MidBlock(dims[0])
        self.up_blocks = nn.ModuleList(
            # the upsampler before this one has already halved the channels
            UpBlock(in_dim if i == 0 else in_dim // 2, out_dim, c.num_res_blocks, temporal[i])
            for i, (in_dim, out_dim) in enumerate(zip(dims[:-1], dims[1:], strict=True))
        )
        self.norm_out = RMSNorm(dims[-1], 3)
        self.conv_out = CausalConv3d(dims[-1], 3 * c.patch_size**2, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VideoVAE(nn.Module):
    """`AutoencoderKLWan` for training: 4 frames and 8 x 8 pixels become one latent of `z_dim` channels."""

    def __init__(self, config: VAEConfig = VAEConfig()):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, 1 + 4n, H, W] in [-1, 1] -> mean and log-variance, each [B, z_dim, 1 + n, H/8, W/8]."""
        p = self.config.patch_size
        x = video.unflatten(4, (-1, p)).unflatten(3, (-1, p))  # [B, 3, T, h, q, w, r]
        x = x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)  # channels ordered (c, r, q)
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """[B, z_dim, 1 + n, h, w] -> [B, 3, 1 + 4n, 8h, 8w], not clamped."""
        p = self.config.patch_size
        x = self.decoder(self.post_quant_conv(z)).unflatten(1, (3, p, p))  # [B, 3, r, q, T, h, w]
        return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def load_vae(folder: Path, device: str) -> tuple[VideoVAE, tuple[Tensor, Tensor]]:
    """Load the trained VAE and its latent statistics (mean, deviation) from a run or an exported checkpoint."""
    if (folder / "model_index.json").exists():
        weights, statistics = folder / "vae" / "diffusion_pytorch_model.safetensors", folder / "vae" / "config.json"
    else:
        weights, statistics = folder / "vae.safetensors", folder / "vae.json"
    vae = VideoVAE().to(device).eval()
    vae.load_state_dict(load_file(weights))
    report = json.loads(statistics.read_text())
    mean, std = (torch.tensor(report[f"latents_{name}"], device=device) for name in ("mean", "std"))
    return vae, (mean, std)
