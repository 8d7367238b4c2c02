"""The denoising loop: LongCat's guidance and update rule, for any velocity model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

# (latents [B, C, T, H, W], timestep [B], text [B, L, E], text_mask [B, L]) -> velocity fp32 [B, C, T, H, W]
Velocity = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
# (steps done, total steps, estimate of the clean latents, or None before the first step)
OnDenoise = Callable[[int, int, Tensor | None], None]
# (timestep fp32 [1]) -> whether the model runs in the step that begins
Due = Callable[[Tensor], bool]


class Scheduler(Protocol):
    """The two members of a flow-matching Euler scheduler that the loop needs."""

    @property
    def timesteps(self) -> Tensor: ...
    @property
    def sigmas(self) -> Tensor: ...


def check_finite(values: Tensor, after: str, lora: str | None) -> None:
    """Raise ValueError, with the part of the run and the adapter in use, if values are NaN or infinite."""
    low, high = values.aminmax()  # which NaN runs through; a mask would take as many bytes as there are values
    if not (low.isfinite() & high.isfinite()):
        adapter = "no adapter was on" if lora is None else f"the adapter {lora!r} was on: try without it"
        raise ValueError(
            f"after {after}, values are NaN or infinite ({adapter}); a weight is damaged or too large, so copy or "
            "download the files again"
        )


def guide(velocity: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance with CFG-Zero*'s optimised scale (arXiv 2503.18886).

    velocity [2B, C, T, H, W]: the unconditional half, then the conditional half. Returns [B, C, T, H, W].
    The unconditional prediction is first scaled to fit the conditional one in the least-squares sense.
    """
    unconditional, conditional = velocity.chunk(2)
    flat = unconditional.flatten(1)
    fit = (conditional.flatten(1) * flat).sum(1) / (flat.square().sum(1) + 1e-8)
    unconditional = unconditional * fit.view(-1, 1, 1, 1, 1)
    return unconditional + scale * (conditional - unconditional)


@torch.no_grad()
def denoise(
    velocity: Velocity,
    scheduler: Scheduler,
    latents: Tensor,
    text: Tensor,
    text_mask: Tensor | None,
    *,
    guidance_scale: float,
    dtype: torch.dtype,
    on_step: OnDenoise,
    conditioning: int = 0,
    cached: bool = False,
    due: Due = lambda timestep: True,
) -> Tensor:
    """Integrate the flow from noise to clean latents with Euler steps.

    Args:
        latents: fp32 noise [1, C, T, H, W].
        conditioning: number of first latent frames that are clean and stay as they are. As in the original, guidance is
            fitted over all frames that `velocity` gets.
        cached: `velocity` takes the frames after these only.
        due: is asked in each step whether `velocity` is to be called; where not, the flow of the last call is used
            again. Must say yes in the first step. See `TeaCache`.
        text, text_mask: [1, L, E] and [1, L]; with guidance (scale above 1) two rows, the negative prompt first.
        dtype: as in the original, latents and timesteps are rounded to it, the transformer's, only on input to the
            model; the integrated state stays fp32. A timestep of 700 has an error of up to 2 in bfloat16.
        on_step: called before the first step and after every step. It may raise to stop.

    Returns:
        The clean latents, fp32 [1, C, T, H, W].
    """
    guided = guidance_scale > 1
    timesteps, sigmas = scheduler.timesteps, scheduler.sigmas
    given, latents = latents[:, :, :conditioning], latents[:, :, conditioning:]
    flow = latents
    on_step(0, len(timesteps), None)
    for index, timestep in enumerate(timesteps):
        if due(timestep.to(latents.device, torch.float32).expand(1)):
            inputs = latents if cached or not conditioning else torch.cat([given, latents], dim=2)
            inputs = torch.cat([inputs] * 2) if guided else inputs
            rounded = timestep.to(latents.device, dtype).expand(inputs.shape[0])
            flow = velocity(inputs.to(dtype), rounded, text, text_mask)
            if guided:
                flow = guide(flow, guidance_scale)
            flow = flow[:, :, -latents.shape[2] :]
        # LongCat predicts flow = clean - noise, so latents = clean - sigma * flow. A step to the next sigma adds
        # (sigma - next) * flow, and a step down to 0 gives the estimate of the clean latents.
        clean = latents + sigmas[index] * flow
        latents = latents + (sigmas[index] - sigmas[index + 1]) * flow
        on_step(index + 1, len(timesteps), torch.cat([given, clean], dim=2) if conditioning else clean)
    return torch.cat([given, latents], dim=2) if conditioning else latents
