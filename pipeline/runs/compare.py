"""Dense against sparse: the same request and seed twice, with speed and similarity."""

from __future__ import annotations

from pathlib import Path

from pipeline.machine.memory import release_memory
from pipeline.machine.paths import temporary_folder
from pipeline.media.similarity import psnr_of_frames, ssim
from pipeline.media.write import prepare_output
from pipeline.request.result import Comparison, Generator, OnStep, speed
from pipeline.request.video import VideoRequest


def compare(
    pipeline: Generator,
    request: VideoRequest,
    on_step: OnStep | None = None,
    output_dir: Path | str | None = None,
) -> Comparison:
    """Generate `request` with dense attention, then as it is, into dense.mp4 and sparse.mp4.

    on_step: gets the updates of the first generation, then those of the second; may raise to stop.

    Raises:
        ValueError: BSA would not be active, so there is nothing to compare; or as `generate` raises.
    """
    request.workload.check_comparison()
    folder = temporary_folder() if output_dir is None else Path(output_dir)
    outputs = [prepare_output(folder / name) for name in ("dense.mp4", "sparse.mp4")]

    dense, dense_frames = pipeline.generate_frames(request.dense, on_step, outputs[0])
    release_memory()  # what the first run left in the allocator's cache must not help or burden the second
    sparse, sparse_frames = pipeline.generate_frames(request, on_step, outputs[1])
    whole, frames = psnr_of_frames(dense_frames, sparse_frames)
    return Comparison(
        dense=dense,
        sparse=sparse,
        speed=speed(dense, sparse),
        psnr=whole,
        ssim=ssim(dense_frames, sparse_frames),
        frames=frames,
    )
