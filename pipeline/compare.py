"""Dense against sparse: the same request and seed twice, with speed and similarity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.memory import release_memory
from pipeline.request import Comparison, VideoRequest
from pipeline.video import prepare_output, temporary_folder

if TYPE_CHECKING:
    from pipeline.longcat import LongCatPipeline, OnStep


def compare(
    pipeline: LongCatPipeline,
    request: VideoRequest,
    on_step: OnStep | None = None,
    output_dir: Path | str | None = None,
) -> Comparison:
    """Generate `request` with dense attention, then as it is, into dense.mp4 and sparse.mp4.

    on_step: gets the updates of the first generation, then those of the second; may raise to stop.

    Raises:
        ValueError: BSA would not be active, so there is nothing to compare; or as `generate` raises.
    """
    active, reason = request.bsa_status()
    if not active:
        raise ValueError(f"nothing to compare: {reason}")
    folder = temporary_folder() if output_dir is None else Path(output_dir)
    outputs = [prepare_output(folder / name) for name in ("dense.mp4", "sparse.mp4")]

    dense, dense_frames = pipeline.generate_frames(replace(request, bsa=None), on_step, outputs[0])
    release_memory()  # what the first run left in the allocator's cache must not help or burden the second
    sparse, sparse_frames = pipeline.generate_frames(request, on_step, outputs[1])
    return Comparison(
        dense=dense,
        sparse=sparse,
        speedup=dense.seconds["denoise"] / sparse.seconds["denoise"],
        psnr=psnr(dense_frames, sparse_frames),
        ssim=ssim(dense_frames, sparse_frames),
    )


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 videos [T, H, W, 3]; infinite when they are equal."""
    _check_shapes(first, second)
    # frame by frame: a 720p video in float64 would take gigabytes
    squares = [np.square(a.astype(np.float64) - b).mean() for a, b in zip(first, second, strict=True)]
    mean = float(np.mean(squares))
    return float("inf") if mean == 0 else float(10 * np.log10(255**2 / mean))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two uint8 videos [T, H, W, 3], mean over frames.

    Wang et al. 2004 with its Gaussian window (sigma 1.5), as scikit-image computes it.
    """
    from skimage.metrics import structural_similarity

    _check_shapes(first, second)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    values = [
        structural_similarity(a, b, channel_axis=-1, data_range=255, **window)
        for a, b in zip(first, second, strict=True)
    ]
    return float(np.mean(values))


def _check_shapes(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"the videos have different shapes, {first.shape} and {second.shape}; compare equal sizes and lengths"
        )
