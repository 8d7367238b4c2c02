"""Estimates time and memory of a generation before it runs.

`pipeline.estimate.cost` counts the work. Rates come from measurements on this machine: a short calibration of the
loaded model (`pipeline.estimate.calibrate`) and every finished run (`Estimator.observe`). Both give ratios of measured
to counted seconds. An estimate takes the weighted median of the ratios nearest in size and kind. It is a median because
single measurements on a shared machine can be far off, and weighted because efficiency changes with size and load.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import threading
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bsa import BSAConfig, Grid
from pipeline.checkpoint.info import CheckpointInfo
from pipeline.checkpoint.shape import ModelShape
from pipeline.estimate import cost, footprint
from pipeline.estimate.fit import Run, density_of, kept_run, weigh, weighted_median
from pipeline.estimate.ledger import Ledger
from pipeline.estimate.refusal import check_cache_fits, check_weights_fit, refuse, smaller_weights
from pipeline.machine.gpus import Device, gpu_of
from pipeline.machine.memory import available_memory
from pipeline.parallel.mesh import mesh_shape, strip_count
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.request.result import VideoResult
from pipeline.request.video import VideoRequest
from pipeline.request.workload import Workload
from pipeline.weights.precision import settled

logger = logging.getLogger("pipeline")

FILE_NAME = "estimates.json"
PHASES = ("text", "denoise", "decode", "file")
_APART = 4.0  # largest factor between the ratios (measured over counted) of two parts of a model
# An estimate based on runs is refused above this share of the available memory; any other only by its certain need.
_SURE = 0.9
_ENCODER = 0.6  # time of the VAE's encoder over its decoder's for as many frames, measured on a CPU

ONE_RUN, MANY_RUNS = "1 run on this machine", "{count} runs on this machine"
CALIBRATION, NOTHING = "a short calibration on this machine", "no measurement yet"


@dataclass(frozen=True)
class Estimate:
    """The expected cost of one video.

    seconds: by phase: "text", "denoise", "decode", "file" (writing the video) and "total", and "encode" where
        an image or clip is. None before any measurement.
    at_most: whether the seconds are an upper bound: TeaCache skips steps, and only the loaded weights say which.
    memory: expected peak in bytes, weights included. memory_label: the kind of memory.
    memory_least: bytes that are certainly needed.
    kv_cache: bytes of kept keys and values of conditioning frames, wherever they are; in `memory` if on the device.
    basis: the source of the numbers in words, such as "2 runs on this machine".
    work: seconds of denoising on a clock that other programs do not advance, for `speedup` alone; None before a run.
    """

    seconds: dict[str, float] | None
    memory: int
    memory_label: str
    memory_least: int
    basis: str
    kv_cache: int = 0
    work: float | None = None
    at_most: bool = False

    def speedup(self, dense: Estimate) -> float | None:
        """Expected speed-up over the dense video, as a comparison measures it; None before any measurement."""
        if self.work is not None and dense.work is not None:
            return dense.work / self.work
        if self.seconds is None or dense.seconds is None:
            return None
        return dense.seconds["denoise"] / self.seconds["denoise"]


class Estimator:
    """Estimates for one checkpoint on one device.

    Args:
        store: JSON file that keeps the measurements; None keeps them in memory only.
        weights: how the model's weights are kept. Each of these options has measurements of its own, and so has each
            precision.
        engines: how many share the processor, if that is the device.

    Raises:
        ValueError: the checkpoint's configurations cannot be read, or the device has no such precision.
    """

    def __init__(
        self,
        info: CheckpointInfo,
        device: Device,
        store: Path | None = None,
        weights: LoadOptions = AS_STORED,
        engines: int = 1,
    ) -> None:
        self.info = info
        self.device = device
        self._shape = ModelShape.read(info)
        self.weights = settled(weights, device, self._shape.hidden)
        self._rates = cost.reference_rates(device, self.weights)
        self._lock = threading.Lock()
        name = " ".join((info.name, str(info.parameters), *self.weights.options))
        self._ledger = Ledger(store, f"{device_name(device, engines)} | {name} | {_versions()}")
        self._take_in()

    @property
    def calibrated(self) -> bool:
        """Whether the parts of the model have been measured on this machine."""
        return bool(self._ledger.points)

    def calibrate(self, points: list[dict[str, Any]]) -> None:
        """Store the points that `calibrate.measure` returned, in place of an earlier calibration."""
        with self._lock:
            self._ledger.replace_points(points)
            self._take_in()

    def observe(self, result: VideoResult) -> None:
        """Learn from a finished video that began with noise and skipped no step; the ledger cannot describe others."""
        if result.request.start.source is not None or result.skipped:
            return
        with self._lock:
            self._ledger.add_run(kept_run(result))
            self._take_in()

    def _take_in(self) -> None:
        """Compare the ledger's measurements with the counts once, so that later estimates are quick."""
        try:
            idle = [point["bytes"] for point in self._ledger.points if point["part"] == "process"]
            self._points = [self._compare(point) for point in self._ledger.points if point["part"] != "process"]
            runs = [Run(run) for run in self._ledger.runs]
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            logger.warning("the measurements of earlier runs cannot be used: %r", error)
            idle, self._points, runs = [], [], []
        self._fixed = idle[0] if idle else footprint.fixed_bytes(self._shape, self.device, self.weights)
        for run in runs:
            run.ratios = {
                phase: run.seconds[phase] / self._counted(phase, run.request, run.density) for phase in PHASES
            }
            if run.work is not None:
                run.ratios["work"] = run.work / self._counted("denoise", run.request, run.density)
            activations = footprint.activation_bytes(self._shape, run.request, self.device, self.weights)
            run.ratios["memory"] = (run.memory - self._fixed) / activations
        self._runs = runs

    def estimate(self, request: VideoRequest) -> Estimate:
        """Estimate the cost of `request`. Quick: touches no device and no file."""
        runs = self._runs
        return Estimate(
            seconds=self._seconds(request, runs) if runs or self._points else None,
            memory=self._memory(request, runs),
            memory_label="CUDA allocated" if self.device.type == "cuda" else "process RSS",
            memory_least=footprint.least_bytes(self._shape, request, self.device, self.weights),
            kv_cache=footprint.kv_cache_bytes(self._shape, request, self.device, self.weights),
            basis=self._basis(runs),
            work=self._work(request, runs),
            at_most=request.teacache_thresh > 0,
        )

    def denoising(self, request: VideoRequest) -> float | None:
        """Expected seconds of denoising, or None before any measurement."""
        seconds = self.estimate(request).seconds
        return None if seconds is None else seconds["denoise"]

    def check_load(self) -> None:
        """Raise ValueError with numbers and a remedy if the weights cannot fit. Reads none of them."""
        check_weights_fit(self._shape, self.info.name, self.device, self.weights)

    def host_bytes(self) -> int:
        """Bytes of the weights that offload keeps in host memory."""
        return footprint.host_bytes(self._shape, self.device, self.weights)

    def check(self, request: VideoRequest, available: int | None = None) -> Estimate:
        """Return the estimate of a request, and refuse one that does not fit into memory.

        available: bytes that the generation may take, including its weights. None takes the free memory of the device,
            which is right before the weights are loaded.

        Raises:
            ValueError: the request needs more memory than is available; the message names a size that fits.
        """
        available = available_memory(self.device) if available is None else available
        estimate = self.estimate(request)
        if self._needed(estimate) > available:
            shape, device = self._shape, self.device

            def fits(options: LoadOptions) -> bool:
                return footprint.least_bytes(shape, request, device, options) <= available

            smaller = smaller_weights(shape, device, self.weights, fits)
            refuse(request, lambda other: self._needed(self.estimate(other)), available, device, smaller)
        if request.start.kv_on_host:
            check_cache_fits(estimate.kv_cache)
        return estimate

    def _needed(self, estimate: Estimate) -> int:
        return max(estimate.memory_least, int(_SURE * estimate.memory) if self._runs else 0)

    # -- seconds --------------------------------------------------------------------------------------------------

    def _seconds(self, request: VideoRequest, runs: list[Run]) -> dict[str, float]:
        density = density_of(request, runs)
        seconds = {}
        for phase in PHASES:
            weights = weigh(request, runs, phase)
            ratio = weighted_median((run.ratios[phase], weight) for run, weight in zip(runs, weights))
            seconds[phase] = self._counted(phase, request, density) * (1.0 if ratio is None else ratio)
        if request.start.source is not None:
            share = request.start.encoded_frames(request.num_frames) / request.num_frames
            seconds["encode"] = _ENCODER * share * seconds["decode"]
        return {**seconds, "total": sum(seconds.values())}

    def _work(self, request: VideoRequest, runs: list[Run]) -> float | None:
        weights = weigh(request, runs, "denoise")
        ratio = weighted_median(
            (run.ratios["work"], weight) for run, weight in zip(runs, weights) if "work" in run.ratios
        )
        return None if ratio is None else ratio * self._counted("denoise", request, density_of(request, runs))

    def _counted(self, phase: str, request: VideoRequest, density: float | None) -> float:
        """Seconds of a phase from the counted work and the calibration alone, without the runs."""
        work = request.workload
        size = (request.num_frames, request.height, request.width)
        if phase == "text":
            return 0.05 * work.rows * max(1, self._shape.parameters / 2e9)
        if phase == "file":
            return 2e-8 * math.prod(size) + 0.05
        if phase == "decode":
            decode = cost.decode_seconds(self._shape, *size, self._rates) * self._scale("decode", math.prod(size[1:]))
            return decode / strip_count(self.weights.gpus, request.latent_shape[1])
        steps, dense = self.info.steps_run(request), 1.0
        if work.bsa is not None:
            dense = work.bsa.dense_share(steps, self._shape.depth)
            if density is not None and dense < 1:
                density = max(0.0, density - dense) / (1 - dense)  # of the sparse layers, not of all
        given = work.grid._replace(t=work.conditioning)
        selects = 1.0 if work.bsa is None else work.bsa.select_share(steps)
        made = self._layer_seconds(work, work.grid, work.conditioning, dense, density, selects)
        first = self._layer_seconds(work, given, 0, dense, density, selects) if work.conditioning else 0.0
        if work.cached:
            seconds = self._shape.depth * (steps * work.rows * made + first)
        else:
            seconds = self._shape.depth * steps * work.rows * (made + first)
        return seconds / self.weights.gpus + steps * self._exchange_seconds(work)

    def _exchange_seconds(self, work: Workload) -> float:
        """Seconds of a step in which ranks exchange tokens for heads."""
        guidance, sharing = mesh_shape(self.weights.gpus, work.rows)
        size = footprint.element_size(self._shape, self.device, self.weights)
        tokens = work.step_grid.volume * work.rows // guidance
        return self._shape.depth * cost.exchange_seconds(self._shape, tokens, size, sharing, self._rates)

    def _layer_seconds(
        self, work: Workload, grid: Grid, conditioning: int, dense: float, density: float | None, selects: float
    ) -> float:
        """Seconds of one layer of one row, for the tokens of `grid` after its conditioning frames.

        dense: share of the layers with dense attention. density: of the others, where the data decide it. selects:
            share of the steps that select blocks.
        """
        shape, rates, bsa = self._shape, self._rates, work.bsa
        tokens, keys = grid._replace(t=grid.t - conditioning).volume, grid.volume
        layer = cost.linear_seconds(shape, tokens * work.rows, rates) / work.rows * self._scale("linear", tokens)
        if bsa is not None and work.blocks is not None:
            kept = cost.kept_blocks(bsa, grid, density, conditioning)
            kind = "ragged" if work.blocks.ragged else "sparse"
            sparse = cost.sparse_seconds(shape, grid, bsa, kept, rates, conditioning, selects)
            layer += (1 - dense) * sparse * self._scale(kind, tokens)
        return layer + dense * cost.dense_seconds(shape, tokens, rates, keys) * self._scale("dense", tokens)

    def _scale(self, part: str, size: float) -> float:
        """Measured over counted seconds of one part, from the calibration points of the nearest size.

        It is kept near the ratios of the other parts, because on a busy machine a short measurement can be far off.
        """
        usual = weighted_median((ratio, 1.0) for name, _, ratio in self._points if name != "decode")
        scale = weighted_median(
            (ratio, math.exp(-2 * abs(math.log(size / at)))) for name, at, ratio in self._points if name == part
        )
        if usual is None:
            return 1.0 if scale is None else scale
        return usual if scale is None else min(max(scale, usual / _APART), usual * _APART)

    def _compare(self, point: dict[str, Any]) -> tuple[str, float, float]:
        """Turn a calibration point into (part, size, measured over counted seconds)."""
        part, shape, rates = point["part"], self._shape, self._rates
        if part == "decode":
            frames, height, width = point["size"]
            return (
                part,
                height * width,
                point["seconds"] / cost.decode_seconds(shape, frames, height, width, rates),
            )
        grid = Grid(*point["grid"])
        if part == "linear":
            counted = cost.linear_seconds(shape, grid.volume, rates)
        elif part == "dense":
            counted = cost.dense_seconds(shape, grid.volume, rates)
        else:
            bsa = BSAConfig.from_bsa_params(point["bsa"])
            part = "ragged" if bsa.blocks(grid).ragged else "sparse"
            counted = cost.sparse_seconds(shape, grid, bsa, cost.kept_blocks(bsa, grid), rates)
        return part, grid.volume, point["seconds"] / counted

    # -- memory ---------------------------------------------------------------------------------------------------

    def _memory(self, request: VideoRequest, runs: list[Run]) -> int:
        activations = footprint.activation_bytes(self._shape, request, self.device, self.weights)
        ratio = weighted_median(
            (run.ratios["memory"], weight)
            for run, weight in zip(runs, weigh(request, runs, "memory"))
            if run.ratios["memory"] > 0
        )
        return int(self._fixed + activations * (1.0 if ratio is None else ratio))

    def _basis(self, runs: list[Run]) -> str:
        if runs:
            return (ONE_RUN if len(runs) == 1 else MANY_RUNS).format(count=len(runs))
        return CALIBRATION if self._points else NOTHING


def device_name(device: Device, engines: int = 1) -> str:
    """The key of measurements: the processor and the threads that each engine has of it, or the GPU."""
    if device.type == "cuda":
        gpu = gpu_of(device)
        return f"cuda {gpu.name}" if gpu is not None else "cuda"
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu {platform.processor() or platform.machine()}, {(threads or 1) // engines} threads"


def _versions() -> str:
    return " ".join(f"{package} {metadata.version(package)}" for package in ("torch", "triton", "fastvideo"))
