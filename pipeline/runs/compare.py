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
    *,
    sparse_first: bool = False,
) -> Comparison:
    """Generate `request` with dense attention and as it is, into dense.mp4 and sparse.mp4.

    on_step: gets the updates of the first generation, then those of the second; may raise to stop.
    sparse_first: make the sparse video first, for those who watch: it is mostly there sooner. The comparison is the
        same.

    Raises:
        ValueError: BSA would not be active, so there is nothing to compare; or as `generate` raises.
    """
    request.workload.check_comparison()
    folder = temporary_folder() if output_dir is None else Path(output_dir)
    arms = {"dense.mp4": request.dense, "sparse.mp4": request}
    videos = {prepare_output(folder / name): asked for name, asked in arms.items()}

    made = {}
    for output in reversed(videos) if sparse_first else videos:
        release_memory()  # what one run left in the allocator's cache must not help or burden the other
        made[output] = pipeline.generate_frames(videos[output], on_step, output)
    (dense, dense_frames), (sparse, sparse_frames) = (made[output] for output in videos)
    whole, frames = psnr_of_frames(dense_frames, sparse_frames)
    return Comparison(
        dense=dense,
        sparse=sparse,
        speed=speed(dense, sparse),
        psnr=whole,
        ssim=ssim(dense_frames, sparse_frames),
        frames=frames,
    )
