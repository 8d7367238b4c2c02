"""Makes small previews from latents without the VAE, by a linear map from latent channels to colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.request.video import LATENT_PIXELS


@dataclass(frozen=True)
class LatentColours:
    """The map colour = latents @ factors + bias, in 0 to 1. factors: fp32 [C, 3]; bias: fp32 [3]."""

    factors: Tensor
    bias: Tensor

    @classmethod
    def from_config(cls, config: dict) -> LatentColours | None:
        """Read `latent_rgb_factors` [C][3] and `latent_rgb_bias` [3] of a generation_config.json; None without them."""
        factors, bias = config.get("latent_rgb_factors"), config.get("latent_rgb_bias", [0.5, 0.5, 0.5])
        if factors is None:
            return None
        try:
            factors, bias = (torch.tensor(table, dtype=torch.float32) for table in (factors, bias))
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                "generation_config.json: latent_rgb_factors and latent_rgb_bias are not tables of numbers; leave "
                "them out to have them measured"
            ) from None
        if factors.ndim != 2 or factors.shape[1] != 3 or bias.shape != (3,):
            raise ValueError(
                f"generation_config.json: latent_rgb_factors has shape {list(factors.shape)} and latent_rgb_bias "
                f"{list(bias.shape)}; they must be [channels, 3] and [3]"
            )
        return cls(factors, bias)

    @classmethod
    @torch.no_grad()
    def fit(cls, decode: Callable[[Tensor], Tensor], channels: int, device: torch.device) -> LatentColours:
        """Fit the map by least squares to the colours that the VAE decodes from random latents.

        decode: maps normalised latents [1, channels, 1, h, w] to pixels [1, 3, 1, 8h, 8w] in 0 to 1.
        The random latents vary slowly in space, like the latents of videos.
        """
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(1, channels, 8, 8, generator=generator)
        latents = F.interpolate(coarse, size=(24, 24), mode="bilinear")
        pixels = decode(latents[:, :, None].to(device))[:, :, 0].float().cpu()
        colours = F.avg_pool2d(pixels, LATENT_PIXELS)
        x = latents.flatten(2)[0].T  # [24*24, channels]
        x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        # the ridge term keeps the factors of hardly excited channels small
        gram = x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1])
        solution = torch.linalg.solve(gram, x.T @ colours.flatten(2)[0].T)
        return cls(solution[:-1], solution[-1])

    def __call__(self, latents: Tensor) -> np.ndarray:
        """Map latents [1, C, T, H, W] to colours, uint8 [T, H, W, 3]."""
        colours = torch.einsum("cthw,cr->thwr", latents[0].float().cpu(), self.factors) + self.bias
        return (colours.clamp(0, 1) * 255).round().byte().numpy()
