"""LongCat's noise levels. FastVideo's scheduler spaces them differently, so they are passed with each request."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.request.refinement import ENHANCED_BELOW, ENHANCED_STEPS

DISTILL_STEPS = 50


def longcat_sigmas(steps: int, *, use_distill: bool = False) -> list[float]:
    """Noise levels of LongCat-Video before the scheduler's shift, from 1 down.

    The regular levels are evenly spaced from 1 to 0.001. The distilled model knows 50 levels, 1.0, 0.98, ... 0.02, and
    `steps` evenly spaced ones are taken. Source: `get_timesteps_sigmas` in LongCat-Video's pipeline_longcat_video.py.

    Raises:
        ValueError: steps below 1, or above 50 when distilled.
    """
    if steps < 1 or (use_distill and steps > DISTILL_STEPS):
        limit = f" to {DISTILL_STEPS}" if use_distill else " or more"
        raise ValueError(f"steps {steps} is not possible; use 1{limit}")
    if use_distill:
        taken = np.floor(np.linspace(0, DISTILL_STEPS, num=steps, endpoint=False)).astype(int)
        return [float(DISTILL_STEPS - index) / DISTILL_STEPS for index in taken]
    return torch.linspace(1, 0.001, steps).tolist()


class Schedule(NamedTuple):
    """Timesteps [steps] and noise levels [steps + 1] of a denoising loop, fp32."""

    timesteps: Tensor
    sigmas: Tensor


def enhanced_schedule(timesteps: Tensor) -> Schedule:
    """A continuation's schedule for fine details: the timesteps above 500, and then ten even ones, 500, 450, ... 50.

    Source: `enhance_hf` of `generate_vc` in LongCat-Video's pipeline_longcat_video.py.
    """
    half = 1000 * ENHANCED_BELOW
    tail = torch.arange(ENHANCED_STEPS, 0, -1, dtype=timesteps.dtype, device=timesteps.device) * half / ENHANCED_STEPS
    timesteps = torch.cat([timesteps[timesteps > half], tail])
    return Schedule(timesteps, torch.cat([timesteps / 1000, timesteps.new_zeros(1)]))


def refine_schedule(timesteps: Tensor, t_thresh: float) -> Schedule:
    """The part of a schedule that a refinement runs: one step at noise level `t_thresh`, and all timesteps below it."""
    start = torch.tensor([1000 * t_thresh], dtype=timesteps.dtype, device=timesteps.device)
    timesteps = torch.cat([start, timesteps[timesteps < start]])
    return Schedule(timesteps, torch.cat([timesteps / 1000, timesteps.new_zeros(1)]))
