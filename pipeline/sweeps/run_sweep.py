"""Makes the videos of a sweep, measures each against its dense one, and hands the results on as they come."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.machine.memory import out_of_memory, release_memory
from pipeline.media.attention_record import AttentionRecord, record_path
from pipeline.media.similarity import psnr, ssim
from pipeline.media.write import prepare_output
from pipeline.request.result import Generator, OnStep, VideoResult, speed
from pipeline.request.video import Cancelled
from pipeline.sweeps.sweep import Sweep, SweepRun, logger
from pipeline.sweeps.sweep_result import SweepResult, SweepVideo


def run_sweep(
    pipeline: Generator,
    sweep: Sweep,
    on_step: OnStep | None = None,
    output_dir: Path | str | None = None,
    *,
    on_begin: Callable[[SweepRun], None] | None = None,
    on_result: Callable[[SweepResult], None] | None = None,
) -> SweepResult:
    """Make every video of `sweep` into `output_dir`, with sweep.json and sweep.csv, which grow with each video.

    A video that fails, for want of memory for instance, is noted with its error and the next one is made. Without
    its dense reference a cell has no speed-up and no similarity.

    Args:
        on_step: gets the updates of every generation; may raise `Cancelled` to stop. What is done by then stays
            in the folder and was told to `on_result`.
        on_begin: told each video before it is made.
        on_result: told the result so far after each video.

    Raises:
        ValueError: the folder cannot be written, or not one video could be made (with the error of the first).
        OSError: a finished video could not be written, as those after it could not be.
    """
    result = SweepResult(sweep, (), ())
    for result in sweep_videos(pipeline, sweep, on_step, output_dir, on_begin=on_begin):
        if on_result is not None:
            on_result(result)
    return result


def sweep_videos(
    pipeline: Generator,
    sweep: Sweep,
    on_step: OnStep | None = None,
    output_dir: Path | str | None = None,
    *,
    on_begin: Callable[[SweepRun], None] | None = None,
) -> Iterator[SweepResult]:
    """`run_sweep` one video at a time: yields the result so far after each.

    Between two videos the pipeline is free for other work. The decoded frames of the dense reference stay in memory
    until those that are measured against it are made.
    """
    folder = Path(tempfile.mkdtemp(prefix="longcat-sweep-") if output_dir is None else output_dir)
    prepare_output(folder / sweep.expected()[0].name)
    result = SweepResult(sweep, (), ())
    reference: tuple[VideoResult, np.ndarray] | None = None
    while (run := sweep.next_run(tuple(result.videos()))) is not None:
        if on_begin is not None:
            on_begin(run)
        video = SweepVideo(run.row, run.column, run.request)
        made = _make(pipeline, run, on_step, folder)
        if isinstance(made, str):
            video = replace(video, error=made)
        elif run.row is None:
            video = replace(video, result=made[0])
        else:
            video = _measure(replace(video, result=made[0]), made[1], reference)
        if run.row is None:
            reference = None if isinstance(made, str) else made
        del made  # frames of a large video are hundreds of megabytes
        result = result.add(video)
        result.write(folder)
        yield result
    videos = list(result.videos())
    if all(video.result is None for video in videos):
        raise ValueError(f"none of the {len(videos)} videos could be made: {videos[0].error}")


def _make(
    pipeline: Generator, run: SweepRun, on_step: OnStep | None, folder: Path
) -> tuple[VideoResult, np.ndarray] | str:
    """The video with its frames, or why there is none."""
    try:
        return pipeline.generate_frames(run.request, on_step, folder / run.name)
    except (Cancelled, OSError):
        raise
    except Exception as error:
        logger.warning("%s could not be made: %s", run.name, error)
        return _sentence(error)
    finally:
        release_memory()  # what one video left in the allocator's cache must not help or burden the next


def _measure(video: SweepVideo, frames: np.ndarray, reference: tuple[VideoResult, np.ndarray] | None) -> SweepVideo:
    made = video.result
    assert made is not None
    video = replace(video, recall=_recall(made.video))
    if reference is None:
        return video
    dense, dense_frames = reference
    return replace(
        video,
        speed=speed(dense, made),
        psnr=psnr(dense_frames, frames),
        ssim=ssim(dense_frames, frames),
    )


def _recall(video: Path) -> float | None:
    """Mean share of the softmax mass inside the kept blocks; None where no attention was recorded."""
    path = record_path(video)
    return AttentionRecord.load(path).summary()["recall"] if path.is_file() else None


def _sentence(error: Exception) -> str:
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    if out_of_memory(error):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
