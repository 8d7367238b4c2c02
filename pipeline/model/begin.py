"""Makes the first latents of a video and the schedule that follows: from noise, or from a clip to be refined.

A clip goes through the steps of `generate_refine` in LongCat-Video's pipeline_longcat_video.py: enlarge, interpolate
frames, repeat the last frame until the last group of latent frames is full, encode, mix with noise. FastVideo's own
stage is not used: it always goes to a 720p size, rounds to the text encoder's dtype, and leaves the VAE tiled for every
later video.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.machine.measure import Clock
from pipeline.media.clip import read_clip
from pipeline.model.schedule import Schedule, refine_schedule
from pipeline.parallel.ranks import Ranks
from pipeline.request.refinement import latent_frames
from pipeline.request.start import FromClip
from pipeline.request.video import StepUpdate, VideoRequest


def begin(
    model: Any,
    request: VideoRequest,
    batch: Any,
    on_step: Callable[[StepUpdate], None],
    clock: Clock,
    ranks: Ranks = Ranks(),
) -> tuple[Tensor, Schedule]:
    """Return the first latents, fp32 [1, C, T, H, W], and the timesteps and noise levels that remain to run.

    model: a loaded `FastVideoLongCat`. batch: its state of this generation, with the text encoded.
    on_step: called with the progress of encoding a clip. clock: takes the seconds of that phase.
    ranks: those that make the video together; all of them call this and get the same.

    Raises:
        ValueError: the clip cannot be read, or does not have the number of frames that the request expects.
    """
    start = request.start
    if not isinstance(start, FromClip):
        latents = model.initial_latents(batch)
        return latents, Schedule(model.scheduler.timesteps, model.scheduler.sigmas)
    with clock.phase("encode") as elapsed:
        model.set_timesteps(batch)
        schedule = refine_schedule(model.scheduler.timesteps, start.t_thresh)
        latents = start_latents(model, request, start, on_step, elapsed, ranks)
    return latents, schedule


def enlarge(frames: np.ndarray, num_frames: int, height: int, width: int) -> Tensor:
    """Resize a clip, uint8 [T, H, W, 3], in space and time to fp32 [1, 3, T', height, width] in -1 to 1.

    Interpolates linearly in rows, columns and time, and keeps the first and last pixels and frames in place
    (align_corners). T' is 4 n - 3 for n latent frames: `num_frames`, then copies of the last frame.
    """
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    video = F.interpolate(video, size=(height, width), mode="bilinear", align_corners=True)
    video = video.permute(1, 0, 2, 3).unsqueeze(0).div_(255)
    video = F.interpolate(video, size=(num_frames, height, width), mode="trilinear", align_corners=True)
    video = video.mul_(2).sub_(1)
    padding = 4 * latent_frames(num_frames) - 3 - num_frames
    return torch.cat([video, video[:, :, -1:].expand(-1, -1, padding, -1, -1)], dim=2)


def noised(latents: Tensor, noise: Tensor, t_thresh: float) -> Tensor:
    """The point of the flow between the clip's latents and noise at the noise level `t_thresh`. All [1, C, T, H, W]."""
    return (1 - t_thresh) * latents + t_thresh * noise


def start_latents(
    model: Any,
    request: VideoRequest,
    start: FromClip,
    on_step: Callable[[StepUpdate], None],
    elapsed: Callable[[], float],
    ranks: Ranks = Ranks(),
) -> Tensor:
    """Read, enlarge, encode and noise the clip of a request. Returns fp32 [1, C, T, H, W].

    The VAE's posterior and the noise are both drawn on the CPU from the request's seed.

    Raises:
        ValueError: the clip cannot be read, or does not have the number of frames that the request expects.
    """
    on_step(StepUpdate("encode", 0, request.latent_shape[0], elapsed()))
    factor = start.factor
    with ranks.together():
        frames = read_clip(start.video)
        if factor * len(frames) != request.num_frames:
            raise ValueError(
                f"the clip has {len(frames)} frames, which a refinement makes {factor * len(frames)}, and num_frames "
                f"is {request.num_frames}; was the file replaced? Choose it again"
            )
    pixels = enlarge(frames, request.num_frames, request.height, request.width)
    generator = torch.Generator().manual_seed(request.seed)
    done = 0

    def on_frame() -> None:
        nonlocal done
        done += 1
        on_step(StepUpdate("encode", done, request.latent_shape[0], elapsed()))

    latents = model.encode(pixels, generator, on_frame, ranks.strips(request.latent_shape[1]))
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    return noised(latents, noise, start.t_thresh)
