"""Time and memory of a generation, before it runs.

`pipeline.estimate.cost` counts the work. Rates come from measurements on this machine: a short calibration of the
loaded model (`pipeline.estimate.calibrate`) and every finished run (`Estimator.observe`). Both are ratios of measured
to counted, and an estimate takes the weighted median of those nearest in size and kind: a median, because on a shared
machine single measurements are far off; weighted, because efficiency changes with size, and a machine with its load.
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
from pipeline.estimate.refusal import check_weights_fit, refuse, smaller_weights
from pipeline.machine.gpus import Device, gpu_of
from pipeline.machine.memory import available_memory
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.request.result import VideoResult
from pipeline.request.video import VideoRequest

logger = logging.getLogger("pipeline")

FILE_NAME = "estimates.json"
PHASES = ("text", "denoise", "decode", "file")
_APART = 4.0  # factor by which the parts of a model may differ from each other, measured over counted
# Estimates that rest on runs are refused at this share of what is available, others by what they certainly need.
_SURE = 0.9
_ENCODER = 0.6  # of the time that the VAE's decoder takes for as many frames, measured on a CPU

ONE_RUN, MANY_RUNS = "1 run on this machine", "{count} runs on this machine"
CALIBRATION, NOTHING = "a short calibration on this machine", "no measurement yet"


@dataclass(frozen=True)
class Estimate:
    """What one video will take.

    seconds: of "text", "denoise", "decode", "file" (writing the video) and "total", of a refinement "encode" too; None
        before any measurement.
    memory: expected peak in bytes, weights included; memory_label says of what.
    memory_least: what it needs for certain.
    basis: what the numbers rest on, as words: "2 runs on this machine".
    """

    seconds: dict[str, float] | None
    memory: int
    memory_label: str
    memory_least: int
    basis: str


class Estimator:
    """Estimates for one checkpoint on one device.

    Args:
        store: JSON file that keeps the measurements; None keeps them in memory only.
        weights: how those of the model are kept. Measurements are not shared between ways.

    Raises:
        ValueError: the checkpoint's configurations cannot be read.
    """

    def __init__(
        self, info: CheckpointInfo, device: Device, store: Path | None = None, weights: LoadOptions = AS_STORED
    ) -> None:
        self.info = info
        self.device = device
        self.weights = weights
        self._shape = ModelShape.read(info)
        self._rates = cost.reference_rates(device)
        self._lock = threading.Lock()
        name = " ".join((info.name, str(info.parameters), *weights.options))
        self._ledger = Ledger(store, f"{device_name(device)} | {name} | {_versions()}")
        self._take_in()

    @property
    def calibrated(self) -> bool:
        """Whether the parts of the model were measured on this machine."""
        return bool(self._ledger.points)

    def calibrate(self, points: list[dict[str, Any]]) -> None:
        """Take in what `measure` returned, in place of an earlier calibration."""
        with self._lock:
            self._ledger.replace_points(points)
            self._take_in()

    def observe(self, result: VideoResult) -> None:
        """Learn from a finished video; not from a refinement, which the ledger has no words for."""
        if result.request.start.clip is not None:
            return
        with self._lock:
            self._ledger.add_run(kept_run(result))
            self._take_in()

    def _take_in(self) -> None:
        """Compare what the ledger has with what was counted, once, so that estimates are quick."""
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
            activations = footprint.activation_bytes(self._shape, run.request, self.device, self.weights)
            run.ratios["memory"] = (run.memory - self._fixed) / activations
        self._runs = runs

    def estimate(self, request: VideoRequest) -> Estimate:
        """What `request` will take. Quick: no device and no file is touched."""
        runs = self._runs
        return Estimate(
            seconds=self._seconds(request, runs) if runs or self._points else None,
            memory=self._memory(request, runs),
            memory_label="CUDA allocated" if self.device.type == "cuda" else "process RSS",
            memory_least=footprint.least_bytes(self._shape, request, self.device, self.weights),
            basis=self._basis(runs),
        )

    def check_load(self) -> None:
        """Refuse weights that cannot fit, before one is read. Raises ValueError with numbers and a remedy."""
        check_weights_fit(self._shape, self.info.name, self.device, self.weights)

    def host_bytes(self) -> int:
        """Weights that offload keeps in the host's memory."""
        return footprint.host_bytes(self._shape, self.device, self.weights)

    def check(self, request: VideoRequest, available: int | None = None) -> Estimate:
        """The estimate of a request that fits into memory.

        available: bytes that the generation may take, its weights included; None for what is free on the device,
            which is right before the weights are loaded.

        Raises:
            ValueError: the request needs more memory than there is; the message names a size that fits.
        """
        available = available_memory(self.device) if available is None else available
        estimate = self.estimate(request)
        if self._needed(estimate) > available:
            shape, device = self._shape, self.device

            def fits(options: LoadOptions) -> bool:
                return footprint.least_bytes(shape, request, device, options) <= available

            smaller = smaller_weights(shape, device, self.weights, fits)
            refuse(request, lambda other: self._needed(self.estimate(other)), available, device, smaller)
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
        if request.start.clip is not None:
            seconds["encode"] = _ENCODER * seconds["decode"]
        return {**seconds, "total": sum(seconds.values())}

    def _counted(self, phase: str, request: VideoRequest, density: float | None) -> float:
        """Seconds of a phase from the work and the calibration, before the runs have their say."""
        work = request.workload
        size = (request.num_frames, request.height, request.width)
        if phase == "text":
            return 0.05 * work.rows * max(1, self._shape.parameters / 2e9)
        if phase == "file":
            return 2e-8 * math.prod(size) + 0.05
        if phase == "decode":
            return cost.decode_seconds(self._shape, *size, self._rates) * self._scale("decode", math.prod(size[1:]))
        shape, rates, rows, tokens = self._shape, self._rates, work.rows, work.grid.volume
        layer = cost.linear_seconds(shape, tokens * rows, rates) * self._scale("linear", tokens)
        steps, dense = self.info.steps_run(request), 1.0
        if work.bsa is not None and work.blocks is not None:
            dense = work.bsa.dense_share(steps, shape.depth)
            if density is not None and dense < 1:
                density = max(0.0, density - dense) / (1 - dense)  # of the sparse layers, not of all
            kept = cost.kept_blocks(work.bsa, work.grid, density)
            kind = "ragged" if work.blocks.ragged else "sparse"
            sparse = cost.sparse_seconds(shape, work.grid, work.bsa, kept, rates)
            layer += (1 - dense) * rows * sparse * self._scale(kind, tokens)
        layer += dense * rows * cost.dense_seconds(shape, tokens, rates) * self._scale("dense", tokens)
        return steps * shape.depth * layer

    def _scale(self, part: str, size: float) -> float:
        """Measured over counted seconds of one part, from the calibration points of the nearest size.

        Kept near what the other parts have, because on a busy machine a measurement of milliseconds may be far off.
        """
        usual = weighted_median((ratio, 1.0) for name, _, ratio in self._points if name != "decode")
        scale = weighted_median(
            (ratio, math.exp(-2 * abs(math.log(size / at)))) for name, at, ratio in self._points if name == part
        )
        if usual is None:
            return 1.0 if scale is None else scale
        return usual if scale is None else min(max(scale, usual / _APART), usual * _APART)

    def _compare(self, point: dict[str, Any]) -> tuple[str, float, float]:
        """A calibration point as (part, size, measured over counted seconds)."""
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


def device_name(device: Device) -> str:
    """What measurements are kept under: the processor and its threads, or the GPU."""
    if device.type == "cuda":
        gpu = gpu_of(device)
        return f"cuda {gpu.name}" if gpu is not None else "cuda"
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu {platform.processor() or platform.machine()}, {threads} threads"


def _versions() -> str:
    return " ".join(f"{package} {metadata.version(package)}" for package in ("torch", "triton", "fastvideo"))
