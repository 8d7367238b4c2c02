"""Makes the first latents of a video and the schedule that follows: from noise, alone or after an image or the end of a
clip, or from a clip to be refined.

Given frames go through the steps of `generate_i2v` and `generate_vc` in LongCat-Video's pipeline_longcat_video.py:
stretch to the video's size, encode, and put in place of the first latent frames of noise.

A clip to be refined goes through the steps of `generate_refine` there: enlarge, interpolate frames, repeat the last
frame until the last group of latent frames is full, encode, mix with noise. FastVideo's own stage is not used: it
always goes to a 720p size, rounds to the text encoder's dtype, and leaves the VAE tiled for every later video.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.machine.measure import Clock
from pipeline.media.clip import check_length, read_clip
from pipeline.media.picture import read_picture, stretch
from pipeline.model.schedule import Schedule, enhanced_schedule, refine_schedule
from pipeline.parallel.ranks import ONE_RANK, Ranks
from pipeline.request.refinement import front_padding, latent_frames
from pipeline.request.start import FromClip, FromFrames, FromImage, FromNoise
from pipeline.request.video import StepUpdate, VideoRequest


def begin(
    model: Any,
    request: VideoRequest,
    batch: Any,
    on_step: Callable[[StepUpdate], None],
    clock: Clock,
    ranks: Ranks = ONE_RANK,
) -> tuple[Tensor, Schedule]:
    """Return the first latents, fp32 [1, C, T, H, W], and the timesteps and noise levels that remain to run.

    model: a loaded `FastVideoLongCat`. batch: its state of this generation, with the text encoded.
    on_step: called with the progress of encoding what the video begins with. clock: takes the seconds of that phase.
    ranks: those that make the video together; all of them call this and get the same.

    Raises:
        ValueError: the image or clip cannot be read, or does not have the number of frames that the request expects.
    """
    start = request.start
    if isinstance(start, FromNoise):
        latents = model.initial_latents(batch)
        return latents, Schedule(model.scheduler.timesteps, model.scheduler.sigmas)
    with clock.phase("encode") as elapsed:
        model.set_timesteps(batch)
        timesteps = model.scheduler.timesteps
        if isinstance(start, FromClip):
            latents = start_latents(model, request, start, on_step, elapsed, ranks)
            return latents, refine_schedule(timesteps, start.t_thresh)
        latents = given_and_noise(model, request, start, on_step, elapsed, ranks)
        if isinstance(start, FromFrames) and start.enhance_hf:
            return latents, enhanced_schedule(timesteps)
        return latents, Schedule(timesteps, model.scheduler.sigmas)


def given_frames(start: FromImage | FromFrames) -> np.ndarray:
    """The frames that a video begins with, uint8 [T, H, W, 3].

    Raises:
        ValueError: the file cannot be read, or is too short.
    """
    if isinstance(start, FromImage):
        return read_picture(start.image)[None]
    frames = read_clip(start.video)
    check_length(start, len(frames))
    return frames[len(frames) - start.frames_needed :: start.stride]


def given_and_noise(
    model: Any,
    request: VideoRequest,
    start: FromImage | FromFrames,
    on_step: Callable[[StepUpdate], None],
    elapsed: Callable[[], float],
    ranks: Ranks,
) -> Tensor:
    """Encode the frames that a video begins with, and put noise behind them. Returns fp32 [1, C, T, H, W].

    As in the original, one generator draws the noise of all latent frames and then from the VAE's posterior; it draws
    on the CPU, from the request's seed.

    Raises ValueError as `given_frames` does.
    """
    on_step(StepUpdate("encode", 0, start.conditioning, elapsed()))
    with ranks.together():
        pixels = stretch(given_frames(start), request.height, request.width)
    generator = torch.Generator().manual_seed(request.seed)
    latents = torch.randn(1, model.transformer.in_channels, *request.latent_shape, generator=generator)
    on_frame = _counting(start.conditioning, on_step, elapsed)
    strips = ranks.strips(request.latent_shape[1])
    latents[:, :, : start.conditioning] = model.encode(pixels, generator, on_frame, strips)
    return latents


def _counting(
    total: int, on_step: Callable[[StepUpdate], None], elapsed: Callable[[], float]
) -> Callable[[], None]:
    """Reports each latent frame that is encoded."""
    done = 0

    def on_frame() -> None:
        nonlocal done
        done += 1
        on_step(StepUpdate("encode", done, total, elapsed()))

    return on_frame


def enlarge(frames: np.ndarray, num_frames: int, height: int, width: int, given: int = 0) -> Tensor:
    """Resize a clip, uint8 [T, H, W, 3], in space and time to fp32 [1, 3, T', height, width] in -1 to 1.

    Interpolates linearly in rows, columns and time, and keeps the first and last pixels and frames in place
    (align_corners). T' is 4 n - 3 for n latent frames: copies of the first frame where frames are given, `num_frames`,
    then copies of the last frame.
    """
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    video = F.interpolate(video, size=(height, width), mode="bilinear", align_corners=True)
    video = video.permute(1, 0, 2, 3).unsqueeze(0).div_(255)
    video = F.interpolate(video, size=(num_frames, height, width), mode="trilinear", align_corners=True)
    video = video.mul_(2).sub_(1)
    front = front_padding(given)
    return padded(video, front, 4 * latent_frames(num_frames, given) - 3 - num_frames - front)


def padded(video: Tensor, front: int, back: int) -> Tensor:
    """A clip [B, C, T, H, W] with copies of its first and its last frame before and after it."""
    first, last = video[:, :, :1], video[:, :, -1:]
    return torch.cat([first.expand(-1, -1, front, -1, -1), video, last.expand(-1, -1, back, -1, -1)], dim=2)


def noised(latents: Tensor, noise: Tensor, t_thresh: float) -> Tensor:
    """The point of the flow between the clip's latents and noise at the noise level `t_thresh`. All [1, C, T, H, W]."""
    return (1 - t_thresh) * latents + t_thresh * noise


def start_latents(
    model: Any,
    request: VideoRequest,
    start: FromClip,
    on_step: Callable[[StepUpdate], None],
    elapsed: Callable[[], float],
    ranks: Ranks,
) -> Tensor:
    """Read, enlarge, encode and noise the clip of a request. Returns fp32 [1, C, T, H, W].

    Frames that are refined already are encoded as well, and take the place of the first latent frames. As in the
    original, the VAE's posteriors and the noise are drawn in this order: clip, noise, refined frames; on the CPU, from
    the request's seed.

    Raises:
        ValueError: a clip cannot be read, or does not have the number of frames that the request expects.
    """
    total, strips = request.latent_shape[0] + start.conditioning, ranks.strips(request.latent_shape[1])
    on_step(StepUpdate("encode", 0, total, elapsed()))
    factor, done = start.factor, None
    with ranks.together():
        frames = read_clip(start.video)
        if factor * len(frames) != request.num_frames:
            raise ValueError(
                f"the clip has {len(frames)} frames, which a refinement makes {factor * len(frames)}, and num_frames "
                f"is {request.num_frames}; was the file replaced? Choose it again"
            )
        if start.refined is not None:
            done = read_clip(start.refined)
            if len(done) < start.cond_frames:
                count = f"{len(done)}, cond_frames is {start.cond_frames}"
                raise ValueError(f"the clip with refined frames has {count}; use a longer one")
    pixels = enlarge(frames, request.num_frames, request.height, request.width, start.cond_frames)
    generator, on_frame = torch.Generator().manual_seed(request.seed), _counting(total, on_step, elapsed)
    latents = model.encode(pixels, generator, on_frame, strips)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    latents = noised(latents, noise, start.t_thresh)
    if done is not None:
        given = padded(stretch(done[-start.cond_frames :], request.height, request.width), start.front, 0)
        latents[:, :, : start.conditioning] = model.encode(given, generator, on_frame, strips)
    return latents
