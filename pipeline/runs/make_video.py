"""Makes one video as its plan says: text, start, denoising, decoding, file; alone, or with the other ranks."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint.info import CheckpointInfo
from pipeline.checkpoint.yardstick import read_yardstick
from pipeline.machine.measure import Clock, PeakMemory
from pipeline.media.attention_record import AttentionRecord, record_path
from pipeline.media.comment import describe
from pipeline.media.write import write_video
from pipeline.model.begin import begin
from pipeline.model.content import Contents
from pipeline.model.denoising import check_finite, denoise
from pipeline.model.preview import LatentColours
from pipeline.model.recorder import AttentionRecorder, joined
from pipeline.model.teacache import TeaCache
from pipeline.model.work_timer import WorkTimer
from pipeline.parallel.ranks import Ranks
from pipeline.request.load_options import LoadOptions
from pipeline.request.result import OnStep, VideoResult
from pipeline.request.timing import reference_steps
from pipeline.request.video import LATENT_PIXELS, StepUpdate
from pipeline.runs.plan import Plan
from pipeline.transformer.forward import embed_timestep, trim_text
from pipeline.transformer.run_forward import forward_for, keep_conditioning, warm_up
from pipeline.transformer.self_attention import attention_for

logger = logging.getLogger("pipeline")


class Job(NamedTuple):
    """A video that all ranks make together, as rank 0 tells them.

    record: whether to record attention. warm: whether its like ran before.
    beside: the plan of the other video of a pair whose second is made; some of its passes are timed beside the steps.
    """

    plan: Plan
    record: bool
    warm: bool
    beside: Plan | None


class VideoMaker:
    """Makes videos with a loaded model, one at a time.

    weights: how the model's are kept, for the settings in the video.
    contents: recognises what a clip shows; None for a checkpoint that cannot.
    """

    def __init__(
        self,
        info: CheckpointInfo,
        device: torch.device,
        model: Any,
        colours: LatentColours,
        weights: LoadOptions,
        contents: Contents | None,
    ) -> None:
        self._info = info
        self._device = device
        self._model = model
        self._colours = colours
        self._weights = weights
        self._contents = contents
        self._yardstick = read_yardstick(info.path)
        self._warm: set[tuple] = set()

    def is_warm(self, plan: Plan) -> bool:
        """Whether a video of this kind was made before, so that nothing of it has to be compiled or allocated."""
        return _kind(plan) in self._warm

    def make(self, job: Job, told: OnStep, output: Path, ranks: Ranks) -> tuple[VideoResult, np.ndarray] | None:
        """Make the video together with the other ranks. Rank 0 writes it and returns it."""

        def on_step(update: StepUpdate) -> None:
            with ranks.together():
                told(update)

        plan, record, warm, other = job
        model, request, work = self._model, plan.request, plan.work
        if work.bsa is not None:
            logger.info("Enabling Block Sparse Attention (BSA) for LongCat transformer")
            logger.info("BSA parameters: %s", work.bsa.to_bsa_params())
        else:
            logger.info("Block Sparse Attention (BSA) is not used: %s", work.reason)
        logger.info("The %s forward runs because %s", plan.forward.name, plan.forward.reason)
        with ranks.together():
            model.lora.use(request.lora)
        if not warm:
            self._warm_up(plan, ranks)
        clock = Clock(self._device)
        with PeakMemory(self._device) as peak, torch.no_grad():
            with clock.phase("text") as elapsed:
                on_step(StepUpdate("text", 0, 1, elapsed()))
                batch = model.start(request)

                def encode() -> tuple[Tensor, Tensor | None]:
                    encoded = model.encode_text(batch)
                    text, mask = encoded.states, encoded.mask
                    return (text, mask) if model.zero_text_padding else trim_text(text, mask)

                text, mask = ranks.once(encode)
                assert text is not None  # only the mask may be
                on_step(StepUpdate("text", 1, 1, elapsed()))

            latents, schedule = begin(model, request, batch, on_step, clock, ranks)
            latents, cache = latents.to(self._device), None
            # A CPU has nothing to gain from rounding what goes into the model.
            rounding = model.dtype if self._device.type == "cuda" else torch.float32
            with ranks.together():
                check_finite(latents, "the start", request.lora)
            layers, steps = len(model.transformer.blocks), len(schedule.timesteps)
            measured = partial(embed_timestep, model.transformer, frames=1)
            passes = TeaCache(request.teacache_thresh, steps, measured, ranks)
            recorder = None
            if record and work.sparse and ranks.has_last_row(work.rows):
                heads = model.transformer.blocks[0].self_attn.num_heads
                own = heads, ranks.sequence(work.rows).share(work.grid.volume, heads).heads
                ordered = plan.forward.name == "fast"
                recorder = AttentionRecorder(
                    request, layers, steps=steps, block_order=ordered, heads=own, at=lambda: passes.step
                )
            attention = attention_for(work, recorder)
            with clock.phase("denoise") as elapsed:

                def on_denoise(done: int, total: int, clean: Tensor | None) -> None:
                    with ranks.together():
                        if clean is not None:
                            check_finite(clean, f"step {done} of {total}", request.lora)
                        told(StepUpdate("denoise", done, total, elapsed(), self._preview(clean)))

                if work.cached:
                    given, on_host = latents[:, :, : work.conditioning].to(rounding), request.start.kv_on_host
                    cache = keep_conditioning(plan.forward, model, work, given, text, mask, on_host, ranks)
                run = forward_for(plan.forward, model, work, attention, cache, ranks, passes.spans())
                beside = None
                if other is not None:
                    attends, at = attention_for(other.work), [range(n, n + 1) for n in reference_steps(steps)]
                    beside = forward_for(other.forward, model, other.work, attends, cache, ranks, at)
                timer = WorkTimer(self._device)
                latents = denoise(
                    timer.each(run, beside, reference_steps(steps)),
                    schedule,
                    latents,
                    text,
                    mask,
                    guidance_scale=request.guidance_scale,
                    dtype=rounding,
                    on_step=on_denoise,
                    conditioning=work.conditioning,
                    cached=work.cached,
                    due=passes.due,
                )
            del cache

            if other is not None or (record and work.sparse):
                recording = 0.0 if recorder is None else recorder.seconds()
                clock.leave_out("denoise", ranks.largest(timer.reference_seconds() + recording))

            with clock.phase("decode") as elapsed, timer.decoding():
                frames = self._decode(batch, latents, on_step, elapsed, ranks)

        attention.share(ranks)
        peak_memory = int(ranks.largest(peak.bytes))
        recorded = ranks.collect(None if recorder is None else (recorder.record({}), recorder.work()))
        ranks.done()
        if ranks.rank > 0:
            return None
        records, spent = ([part[which] for part in recorded if part is not None] for which in (0, 1))
        # all ranks wait for the one that recorded longest
        timing = timer.timing(work, layers, [max(step) for step in zip(*spent)] or None, passes.ran)
        if other is not None and other.work.bsa is not None:
            timing = replace(timing, reference_of=other.work.bsa.to_bsa_params())
        density, versions = attention.density(), _versions(self._device) | self._weights.versions
        if plan.forward.name != "plain":
            versions["forward"] = plan.forward.name  # the same video up to rounding, but not bit for bit
        if plan.forward.eight_bits:
            versions["attention"] = "8 bits"
        front = request.start.front
        frames = frames[front : front + request.num_frames]  # without the padding of a refinement
        write_video(output, frames, request.fps, describe(request, versions, self._info.name))
        result = VideoResult(
            request=request,
            video=output,
            seconds=clock.seconds(),
            peak_memory=peak_memory,
            peak_memory_label=peak.label,
            density=density,
            blocks_kept=attention.blocks_kept(),
            blocks_total=attention.blocks_total(),
            bsa_active=work.sparse,
            bsa_reason=work.reason,
            versions=versions,
            timing=timing,
            passes=len(passes.ran),
            skipped=steps - len(passes.ran),
            shows=None if self._contents is None else self._contents.of(request.prompt, frames),
            yardstick=None if self._yardstick is None else self._yardstick.for_request(request),
        )
        if records:
            _write_record(replace(joined(records), versions=versions), output)
        return result, frames

    def _warm_up(self, plan: Plan, ranks: Ranks) -> None:
        """Run what is new about a request once before the clock starts.

        Otherwise the first of two compared runs would carry a cost that none after it has.
        """
        warm_up(plan.forward, self._model, plan.work, self._device, ranks)
        self._warm.add(_kind(plan))

    def _decode(
        self, batch: Any, latents: Tensor, on_step: OnStep, elapsed: Callable[[], float], ranks: Ranks
    ) -> np.ndarray:
        total = latents.shape[2]
        done = 0

        def on_frame() -> None:
            nonlocal done
            done += 1
            on_step(StepUpdate("decode", done, total, elapsed()))

        on_step(StepUpdate("decode", 0, total, elapsed()))
        strips = ranks.strips(latents.shape[3])
        pixels = self._model.decode(batch, latents, on_frame, strips, ranks.together)[0]
        frames = (pixels * 255).round().byte().permute(1, 2, 3, 0)
        return (frames if strips is None else strips.gather(frames, LATENT_PIXELS, axis=1)).cpu().numpy()

    def _preview(self, clean: Tensor | None) -> Callable[[], np.ndarray] | None:
        return None if clean is None else partial(self._colours, clean)


def _write_record(record: AttentionRecord, output: Path) -> None:
    path = record_path(output)
    try:
        record.save(path)
    except OSError as error:
        # the video is made and written: a disk that filled up now is no reason to lose it
        logger.warning("The attention record %s could not be written: %s", path, error)


def _kind(plan: Plan) -> tuple:
    work = plan.work
    return work.grid, work.conditioning, work.cached, work.bsa, work.rows, plan.forward.name


def _versions(device: torch.device) -> dict[str, str]:
    packages = ("torch", "triton", "fastvideo", "diffusers", "transformers")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "device": f"{device.type}: {name}",
    }
