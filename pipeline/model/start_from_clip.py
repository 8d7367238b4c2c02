"""From a clip to the noised latents that its refinement starts from.

The steps of `generate_refine` in LongCat-Video's pipeline_longcat_video.py: enlarge, interpolate frames, repeat the
last one until whole groups of latent frames are full, encode, mix with noise. FastVideo's stage for this always goes to
a 720p size, rounds to the text encoder's dtype and leaves the VAE tiled for every later video, so it is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.media.clip import read_clip
from pipeline.request.refinement import latent_frames
from pipeline.request.video import StepUpdate, VideoRequest


def enlarge(frames: np.ndarray, num_frames: int, height: int, width: int) -> Tensor:
    """A clip, uint8 [T, H, W, 3], in another size and length, fp32 [1, 3, T', height, width] in -1 to 1.

    Linear in rows, columns and time, with first and last pixels and frames in place (align_corners). T' is 4 n - 3 for
    n latent frames: `num_frames` and copies of the last one.
    """
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    video = F.interpolate(video, size=(height, width), mode="bilinear", align_corners=True)
    video = video.permute(1, 0, 2, 3).unsqueeze(0).div_(255)
    video = F.interpolate(video, size=(num_frames, height, width), mode="trilinear", align_corners=True)
    video = video.mul_(2).sub_(1)
    padding = 4 * latent_frames(num_frames) - 3 - num_frames
    return torch.cat([video, video[:, :, -1:].expand(-1, -1, padding, -1, -1)], dim=2)


def noised(latents: Tensor, noise: Tensor, t_thresh: float) -> Tensor:
    """What the flow has at that noise level between the clip's latents and noise."""
    return (1 - t_thresh) * latents + t_thresh * noise


def start_latents(
    model: Any, request: VideoRequest, on_step: Callable[[StepUpdate], None], elapsed: Callable[[], float]
) -> Tensor:
    """Read, enlarge, encode and noise the clip of a request; fp32 [1, C, T, H, W].

    Both draws, of the VAE's posterior and of the noise, come from the request's seed, on the CPU.

    Raises:
        ValueError: the clip cannot be read, or has not as many frames as the request says.
    """
    wanted = request.refine
    assert wanted is not None  # the caller asks only for such a request
    on_step(StepUpdate("encode", 0, request.latent_shape[0], elapsed()))
    frames = read_clip(wanted.video)
    factor = 2 if wanted.double_frames else 1
    if factor * len(frames) != request.num_frames:
        raise ValueError(
            f"the clip has {len(frames)} frames, which a refinement makes {factor * len(frames)}, and num_frames is "
            f"{request.num_frames}; was the file replaced? Choose it again"
        )
    pixels = enlarge(frames, request.num_frames, request.height, request.width)
    generator = torch.Generator().manual_seed(request.seed)
    done = 0

    def on_frame() -> None:
        nonlocal done
        done += 1
        on_step(StepUpdate("encode", done, request.latent_shape[0], elapsed()))

    latents = model.encode(pixels, generator, on_frame)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    return noised(latents, noise, wanted.t_thresh)
