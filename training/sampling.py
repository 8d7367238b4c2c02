"""LongCat's flow matching: schedule, classifier-free guidance, and Euler sampling of the model in training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bsa import BSAConfig, Grid, block_sparse_attention
from pipeline.model.schedule import longcat_sigmas
from pipeline.transformer.forward import EAGER, Attend, Stages, attend_dense, longcat_forward

SHIFT = 8.0  # of the timesteps; goes into scheduler_config.json
# A shape's place and direction are settled while nearly everything is noise: over the many tokens of one object even a
# thousandth of the signal stands out. So training must see those levels often: logit(sigma) ~ N(MEAN, STD).
LOGIT_MEAN, LOGIT_STD = 2.2, 2.0
PURE_NOISE = 0.02  # share of the clips at sigma 1, where sampling starts


def shifted_sigmas(steps: int, device: torch.device | str) -> Tensor:
    """Noise levels [steps + 1] of the distilled schedule after the shift, 1 first and 0 last."""
    return shifted(torch.tensor([*longcat_sigmas(steps, use_distill=True), 0.0], device=device))


def shifted(levels: Tensor) -> Tensor:
    """Noise levels after the checkpoint's shift."""
    return SHIFT * levels / (1 + (SHIFT - 1) * levels)


def draw_sigmas(count: int, device: torch.device | str) -> Tensor:
    """Noise levels [count] to train at, in (0, 1]."""
    sigma = torch.sigmoid(LOGIT_MEAN + LOGIT_STD * torch.randn(count, device=device))
    return torch.where(torch.rand(count, device=device) < PURE_NOISE, 1.0, sigma)


def attend_sparse(config: BSAConfig) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, grid: Grid, conditioning: int) -> Tensor:
        return block_sparse_attention(q, k, v, grid, config, conditioning=conditioning, backend="torch")

    return attend


class TextToVideo(nn.Module):
    """UMT5 encoder and LongCat transformer, trained together."""

    def __init__(self, text_encoder: nn.Module, transformer: nn.Module, stages: Stages = EAGER):
        super().__init__()
        self.text_encoder, self.transformer, self.stages = text_encoder, transformer, stages

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    def velocity(
        self, x: Tensor, sigma: Tensor, text: Tensor, mask: Tensor, attend: Attend = attend_dense, given: int = 0
    ) -> Tensor:
        """LongCat's prediction ``clean - noise``. sigma [B] in [0, 1]; mask [B, L].

        given: first latent frames of `x` that are clean, and of which the prediction means nothing.
        """
        valid = mask[:, None, None].bool()
        return longcat_forward(
            self.transformer, x, sigma * 1000, text, valid, attend, conditioning=given, stages=self.stages
        )


def euler(x: Tensor, velocity: Tensor, sigma: Tensor, target: Tensor) -> Tensor:
    """Move from noise level `sigma` [B] to `target` [B]; a velocity points from noise to clean."""
    return x + (sigma - target).view(-1, 1, 1, 1, 1) * velocity


@torch.no_grad()
def sample(
    predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int, given: Tensor | None = None
) -> Tensor:
    """Integrate ``predict(x, sigma)`` from pure noise to a clean latent.

    given: clean latents of the first frames, which take the place of noise and stay as they are.
    """
    sigmas = shifted_sigmas(steps, noise.device)
    x = with_given(noise, given)
    for sigma, target in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = euler(x, predict(x, sigma.expand(len(x))), sigma.expand(len(x)), target.expand(len(x)))
        x = with_given(x, given)
    return x


def with_given(x: Tensor, given: Tensor | None) -> Tensor:
    """`x` [B, C, T, h, w] with its first frames replaced by `given`."""
    return x if given is None else torch.cat([given, x[:, :, given.shape[2] :]], dim=2)
