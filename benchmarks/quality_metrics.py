"""Compares sparse videos with dense ones, whole batches at a time, on the device that made them.

PSNR and SSIM equal those of `pipeline.media.similarity` (a test compares them). Flicker is the difference between the
frame-to-frame changes of a video and of its dense one. LPIPS is left out: its networks are downloads of hundreds of
megabytes, and no package here ships one.

The classifier of `training.judge` names the colour, shape and motion in a video. A flip is a clip for which one of them
differs from the dense one. Recall and output error compare one attention call with dense attention.
"""

from __future__ import annotations

import random
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from bsa import BlockLayout, BlockSelection
from pipeline.model.content import Judge
from training.judge import NAMES
from training.scenes import Scene

RADIUS, SIGMA = 5, 1.5  # of SSIM's window, truncated at 3.5 sigma as scikit-image does


def compare(video: Tensor, dense: Tensor) -> dict[str, list[float]]:
    """Figures of each clip against its dense one: 8-bit levels [B, 3, T, H, W], any dtype.

    psnr, worst_frame: dB, over the clip and of its least alike frame (100 for equal ones); ssim; flicker: levels.
    """
    video, dense = video.float(), dense.float()
    error = (video - dense).square().mean((1, 3, 4))  # [B, T]
    steps = (video.diff(dim=2) - dense.diff(dim=2)).abs().mean((1, 2, 3, 4))
    return {
        "psnr": _decibels(error.mean(1)),
        "worst_frame": _decibels(error.amax(1)),
        "ssim": [ssim(a, b) for a, b in zip(video, dense, strict=True)],
        "flicker": steps.tolist(),
    }


def ssim(first: Tensor, second: Tensor) -> float:
    """Structural similarity of two clips [3, T, H, W] of 8-bit levels, mean over frames; Wang et al. 2004."""
    place = torch.arange(-RADIUS, RADIUS + 1, device=first.device, dtype=first.dtype)
    window = (-place.square() / (2 * SIGMA**2)).exp()
    window = window / window.sum()

    def blur(x: Tensor) -> Tensor:  # [T, 3, H, W], only where the whole window fits
        x = x.flatten(0, 1)[:, None]
        x = F.conv2d(F.conv2d(x, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
        return x[:, 0]

    a, b = first.movedim(0, 1), second.movedim(0, 1)
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((values / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def _decibels(error: Tensor) -> list[float]:
    decibels: list[float] = (10 * (255**2 / error.clamp_min(255**2 * 1e-10)).log10()).tolist()
    return decibels


def shown(judge: Judge, video: Tensor) -> Tensor:
    """What the classifier sees in clips of 8-bit levels [B, 3, T, H, W]: int64 [B, 3], indices into `judge.NAMES`."""
    told = judge.judge(video.float() / 127.5 - 1)
    return torch.stack([told[name] for name in NAMES], dim=1)


def said(scenes: list[Scene]) -> Tensor:
    """What the prompts of scenes with one object say, as `shown` has it."""
    return torch.tensor([[NAMES[name].index(scene.attributes[f"{name}0"]) for name in NAMES] for scene in scenes])


def agreement(first: Tensor, second: Tensor) -> list[float]:
    """For each clip 1.0 where all attributes are the same, else 0.0. [B, 3] each."""
    return (first.cpu() == second.cpu()).all(1).double().tolist()


def block_masses(q: Tensor, k: Tensor, layout: BlockLayout) -> Tensor:
    """Softmax mass that each query gives to each key block: [B, H, S, D] twice to fp32 [B, H, S, key blocks].

    One head at a time, because all scores of a video would be gigabytes.
    """
    blocks = layout.block_of_token(q.device)
    masses = q.new_zeros(*q.shape[:3], layout.blocks.volume, dtype=torch.float32)
    for out, queries, keys in zip(*(x.flatten(0, 1) for x in (masses, q, k)), strict=True):
        out.index_add_(1, blocks, ((queries.float() @ keys.float().mT) * q.shape[-1] ** -0.5).softmax(-1))
    return masses


def recall(masses: Tensor, selection: BlockSelection, layout: BlockLayout) -> float:
    """Mean share of a query's softmax mass that lies in the key blocks selected for its block.

    masses: from `block_masses`. layout: of the queries.
    """
    kept = selection.mask(masses.shape[-1])[:, :, layout.block_of_token(masses.device)]
    return float((masses * kept).sum(-1).mean())


def output_error(out: Tensor, dense: Tensor) -> float:
    """Relative error of an attention's output, |out - dense| / |dense| over all values."""
    return float((out.float() - dense.float()).norm() / dense.float().norm())


def interval(values: list[float], draws: int = 2000) -> tuple[float, float]:
    """95 % of the means of resampled values (bootstrap); of paired differences, this is a paired interval."""
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]
