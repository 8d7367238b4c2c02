"""A pipeline without a model, for the tests of the page: real requests in, small real H.264 files out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch

from bsa import BSAConfig
from pipeline import CheckpointInfo, StepUpdate, VideoRequest, VideoResult
from pipeline.media.attention_record import record_path
from pipeline.media.write import write_video
from pipeline.model.recorder import AttentionRecorder
from pipeline.transformer.kept_selections import KeptSelections
from pipeline.transformer.self_attention import attention_for

CHECKPOINT = CheckpointInfo(
    path=Path("fake"),
    name="fake-longcat",
    parameters=1,
    bsa=BSAConfig(sparsity=0.75),
    defaults={
        "height": 64,
        "width": 96,
        "num_frames": 17,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "fps": 15,
        "use_distill": False,
    },
)


COLOURS = {"dense": (99, 102, 241), "sparse": (45, 212, 191)}


class FakePipeline:
    """Draws a square that moves, in another colour for dense and sparse.

    step_seconds: pause of each denoising step.
    fail_with: raised in the middle of denoising when the prompt contains "fail".
    """

    def __init__(self, step_seconds: float = 0.02, fail_with: Exception | None = None) -> None:
        self.device = torch.device("cpu")
        self.step_seconds = step_seconds
        self.fail_with = fail_with
        self.requests: list[VideoRequest] = []
        self.steps_done = 0
        self.reports_while_held = 0
        self.running = 0
        self.most_running = 0
        self._unheld = math.inf

    @contextmanager
    def held(self, after: int = 0) -> Iterator[None]:
        """While this lasts, a run comes to its first step and no further; it goes on reporting, so Stop ends it.

        For tests in which a run must outlast something: how long that takes depends on the machine.
        after: so many runs are made first.
        """
        self._unheld = len(self.requests) + after
        try:
            yield
        finally:
            self._unheld = math.inf

    def generate_frames(
        self, request: VideoRequest, on_step: Callable[[StepUpdate], None] | None, output: Path
    ) -> tuple[VideoResult, np.ndarray]:
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return self._generate(request, on_step, output)
        finally:
            self.running -= 1

    def _generate(self, request, on_step, output):
        number, frames = len(self.requests), draw(request)
        on_step(StepUpdate("text", 0, 1, 0.0))
        on_step(StepUpdate("text", 1, 1, 0.0))
        started = time.monotonic()
        for step in range(request.steps + 1):
            if step:
                time.sleep(self.step_seconds)
                self.steps_done += 1
            if step == 1 and self.fail_with is not None and "fail" in request.prompt:
                raise self.fail_with
            seconds = time.monotonic() - started
            update = StepUpdate("denoise", step, request.steps, seconds, lambda: frames[::4, ::8, ::8])
            on_step(update)
            while step == 1 and number > self._unheld:
                time.sleep(0.4)  # a busy browser must keep up with what is reported
                self.reports_while_held += 1
                on_step(update)
        denoise = time.monotonic() - started
        latent_frames = request.latent_shape[0]
        for step in range(latent_frames + 1):
            on_step(StepUpdate("decode", step, latent_frames, 0.0))
        made_by = {"versions": {"fake": "1"}, "checkpoint": CHECKPOINT.name}
        write_video(output, frames, request.fps, made_by | {"request": request.to_dict()})
        work = request.workload
        active, plan = work.sparse, work.blocks
        if active and not work.conditioning:  # its attention is that of text to video
            write_record(output, request)
        result = VideoResult(
            request=request,
            video=output,
            seconds={"text": 0.01, "denoise": denoise, "decode": 0.01, "total": denoise + 0.02},
            peak_memory=2**28,
            peak_memory_label="process RSS",
            density=plan.min_kept / plan.k_blocks.volume if active else 1.0,
            blocks_kept=plan.min_kept if active else None,
            blocks_total=plan.k_blocks.volume if active else None,
            bsa_active=active,
            bsa_reason=work.reason,
            versions={"fake": "1"},
        )
        return result, frames


class SampledPipeline(FakePipeline):
    """Denoises each video until two samples of the machine were taken; a busy machine might leave it without any.

    taken: gives a number that changes with each sample.
    """

    def __init__(self, taken: Callable[[], float], step_seconds: float) -> None:
        super().__init__(step_seconds)
        self.taken = taken

    def generate_frames(self, request, on_step, output):
        def watched(update):
            on_step(update)
            if (update.phase, update.step) == ("denoise", 2):
                deadline = time.monotonic() + 60  # only against hanging
                for _ in range(2):
                    before = self.taken()
                    while self.taken() == before and time.monotonic() < deadline:
                        time.sleep(0.01)

        return super().generate_frames(request, watched, output)


def write_record(video: Path, request: VideoRequest, layers: int = 3, heads: int = 2) -> None:
    """A real record of real attention, over made-up tokens in which neighbours are alike."""
    recorder = AttentionRecorder(request, layers)
    attention = attention_for(request.workload, recorder)
    [attend] = attention.layers(1, 0, KeptSelections(request.bsa))
    random = torch.Generator().manual_seed(request.seed)
    for _ in range(request.steps * layers):
        q, k = torch.randn(2, 1, heads, request.grid.volume, 8, generator=random).cumsum(-2)
        attend(q / 4, k / 4, k, request.grid)
    recorder.record({"fake": "1"}).save(record_path(video))


def draw(request: VideoRequest) -> np.ndarray:
    """uint8 [frames, height, width, 3]; the seed is the background's brightness."""
    frames = np.full((request.num_frames, request.height, request.width, 3), request.seed % 100, np.uint8)
    side = max(8, request.height // 4)
    colour = COLOURS["dense" if request.bsa is None else "sparse"]
    for i, frame in enumerate(frames):
        x = round(i * (request.width - side) / max(1, request.num_frames - 1))
        frame[request.height // 2 - side // 2 :][:side, x : x + side] = colour
    return frames


def write_mp4(path: Path, frames: np.ndarray, fps: int) -> None:
    _, height, width, _ = frames.shape
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        output_params=["-movflags", "+faststart"],
        macro_block_size=1,
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
