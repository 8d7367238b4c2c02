"""Measures the similarity of two videos: PSNR and SSIM."""

from __future__ import annotations

import numpy as np


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 videos [T, H, W, 3], infinite if they are equal.

    Raises ValueError for videos of different shapes.
    """
    return psnr_of_frames(first, second)[0]


def psnr_of_frames(first: np.ndarray, second: np.ndarray) -> tuple[float, tuple[float, ...]]:
    """`psnr` of two videos, and of each of their frames. The first is that of the mean error, not the mean of them."""
    _check_shapes(first, second)
    # frame by frame: a 720p video in float64 would take gigabytes
    squares = [float(np.square(a.astype(np.float64) - b).mean()) for a, b in zip(first, second, strict=True)]
    return _decibels(float(np.mean(squares))), tuple(map(_decibels, squares))


def _decibels(error: float) -> float:
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two uint8 videos [T, H, W, 3], the mean over their frames.

    Computed by scikit-image with the Gaussian window (sigma 1.5) of Wang et al. 2004.
    Raises ValueError for videos of different shapes.
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
