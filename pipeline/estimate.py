"""Time and memory of a generation, before it runs.

`pipeline.cost` counts the work; rates come from measurements on this machine: a short calibration of the loaded model
(`measure`) and every finished run (`Estimator.observe`). Both are ratios of measured to counted, and an estimate takes
the weighted median of those nearest in size and kind: a median, because on a shared machine single measurements are
far off; weighted, because efficiency changes with size, and a machine with its load.
"""

from __future__ import annotations

import math
import os
import platform
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bsa import BSAConfig, Grid

from . import cost
from .checkpoint import CheckpointInfo
from .ledger import Ledger
from .limits import Device, available_memory, gpu_of, refuse
from .request import VideoRequest, VideoResult

FILE_NAME = "estimates.json"
PHASES = ("text", "denoise", "decode", "file")
# A run that differs by this factor in tokens, or in dense against sparse, counts 1/e as much as one that is alike.
_OTHER_KIND = 1.0
_HALF_LIFE = 12  # runs after which an old one counts half
# Estimates that rest on runs are refused at this share of what is available, others by what they certainly need.
_SURE = 0.9


@dataclass(frozen=True)
class Estimate:
    """What one video will take.

    seconds: of "text", "denoise", "decode", "file" (encoding the video) and "total"; None before any measurement.
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

    Raises:
        ValueError: the checkpoint's configurations cannot be read.
    """

    def __init__(self, info: CheckpointInfo, device: Device, store: Path | None = None) -> None:
        self.info = info
        self.device = device
        self._shape = cost.ModelShape.read(info)
        self._rates = cost.reference_rates(device)
        self._lock = threading.Lock()
        self._ledger = Ledger(store, f"{device_name(device)} | {info.name} {info.parameters} | {_versions()}")

    @property
    def calibrated(self) -> bool:
        """Whether the parts of the model were measured on this machine."""
        return bool(self._ledger.points)

    def calibrate(self, points: list[dict[str, Any]]) -> None:
        """Take in what `measure` returned, in place of an earlier calibration."""
        with self._lock:
            self._ledger.replace_points([point for point in points if _sound(point)])

    def observe(self, result: VideoResult) -> None:
        """Learn from a finished video."""
        request = result.request
        seconds = {phase: result.seconds[phase] for phase in ("text", "denoise", "decode")}
        seconds["file"] = max(0.0, result.seconds["total"] - sum(seconds.values()))
        with self._lock:
            self._ledger.add_run(
                {
                    "size": [request.num_frames, request.height, request.width],
                    "steps": request.steps,
                    "guided": request.guidance_scale > 1,
                    "bsa": request.bsa.to_bsa_params() if result.bsa_active else None,
                    "density": result.density,
                    "seconds": seconds,
                    "memory": result.peak_memory,
                    "time": time.time(),
                }
            )

    def estimate(self, request: VideoRequest) -> Estimate:
        """What `request` will take. Quick: no device and no file is touched."""
        runs = [_Run(run) for run in self._ledger.runs]
        weights = [
            math.exp(-_distance(request, run)) * 0.5 ** (age / _HALF_LIFE) for age, run in enumerate(reversed(runs))
        ][::-1]
        near = list(zip(runs, weights, strict=True))
        return Estimate(
            seconds=self._seconds(request, near) if runs or self.calibrated else None,
            memory=self._memory(request, near),
            memory_label="CUDA allocated" if self.device.type == "cuda" else "process RSS",
            memory_least=cost.least_bytes(self._shape, request, self.device),
            basis=self._basis(runs),
        )

    def check(self, request: VideoRequest, available: int | None = None) -> None:
        """Refuse what cannot fit.

        available: bytes that the generation may take, its weights included; None for what is free on the device,
            which is right before the weights are loaded.

        Raises:
            ValueError: the request needs more memory than there is; the message names a size that fits.
        """
        available = available_memory(self.device) if available is None else available
        if self._needed(request) > available:
            refuse(request, self._needed, available, self.device)

    def _needed(self, request: VideoRequest) -> int:
        estimate = self.estimate(request)
        return max(estimate.memory_least, int(_SURE * estimate.memory) if self._ledger.runs else 0)

    # -- seconds --------------------------------------------------------------------------------------------------

    def _seconds(self, request: VideoRequest, near: list[tuple[_Run, float]]) -> dict[str, float]:
        density = _density(request, near)
        seconds = {}
        for phase in PHASES:
            ratios = [
                (run.seconds[phase] / counted, weight)
                for run, weight in near
                if (counted := self._counted(phase, run.request, run.density)) > 0
            ]
            seconds[phase] = self._counted(phase, request, density) * _weighted_median(ratios, 1.0)
        return {**seconds, "total": sum(seconds.values())}

    def _counted(self, phase: str, request: VideoRequest, density: float | None) -> float:
        """Seconds of a phase from the work and the calibration, before the runs have their say."""
        rows = 2 if request.guidance_scale > 1 else 1
        size = (request.num_frames, request.height, request.width)
        if phase == "text":
            return 0.05 * rows * max(1, self._shape.parameters / 2e9)
        if phase == "file":
            return 2e-8 * math.prod(size) + 0.05
        if phase == "decode":
            return cost.decode_seconds(self._shape, *size, self._rates) * self._scale("decode", math.prod(size))
        shape, rates, tokens = self._shape, self._rates, request.grid.volume
        layer = cost.linear_seconds(shape, tokens * rows, rates) * self._scale("linear", tokens)
        if request.bsa_status()[0]:
            kept = cost.kept_blocks(request.bsa, request.grid, density)
            plan = request.bsa.blocks(request.grid)
            kind = "ragged" if plan.ragged_q or plan.ragged_k else "sparse"
            sparse = cost.sparse_seconds(shape, request.grid, request.bsa, kept, rates)
            layer += rows * sparse * self._scale(kind, tokens)
        else:
            layer += rows * cost.dense_seconds(shape, tokens, rates) * self._scale("dense", tokens)
        return request.steps * shape.depth * layer

    def _scale(self, part: str, size: float) -> float:
        """Measured over counted seconds of one part, from the calibration points of the nearest size."""
        ratios = []
        for point in self._ledger.points:
            measured = self._point(point)
            if measured is not None and measured[0] == part:
                _, at, ratio = measured
                ratios.append((ratio, math.exp(-2 * abs(math.log(size / at)))))
        return _weighted_median(ratios, 1.0)

    def _point(self, point: dict[str, Any]) -> tuple[str, float, float] | None:
        """A calibration point as (part, size, measured over counted)."""
        part, shape, rates = point["part"], self._shape, self._rates
        if part == "process":
            return None
        if part == "decode":
            counted = cost.decode_seconds(shape, *point["size"], rates)
            return part, math.prod(point["size"]), point["seconds"] / counted
        grid = Grid(*point["grid"])
        if part == "linear":
            counted = cost.linear_seconds(shape, grid.volume, rates)
        elif part == "dense":
            counted = cost.dense_seconds(shape, grid.volume, rates)
        else:
            bsa = BSAConfig.from_bsa_params(point["bsa"])
            plan = bsa.blocks(grid)
            part = "ragged" if plan.ragged_q or plan.ragged_k else "sparse"
            counted = cost.sparse_seconds(shape, grid, bsa, cost.kept_blocks(bsa, grid), rates)
        return part, grid.volume, point["seconds"] / counted

    # -- memory ---------------------------------------------------------------------------------------------------

    def _memory(self, request: VideoRequest, near: list[tuple[_Run, float]]) -> int:
        idle = [point["bytes"] for point in self._ledger.points if point["part"] == "process"]
        fixed = idle[0] if idle else cost.fixed_bytes(self._shape, self.device)
        ratios = [
            ((run.memory - fixed) / cost.activation_bytes(self._shape, run.request, self.device), weight)
            for run, weight in near
            if run.memory > fixed
        ]
        activations = cost.activation_bytes(self._shape, request, self.device)
        return int(fixed + activations * _weighted_median(ratios, 1.0))

    def _basis(self, runs: list[_Run]) -> str:
        if runs:
            return f"{len(runs)} run{'s' if len(runs) > 1 else ''} on this machine"
        return "a short calibration on this machine" if self._ledger.points else "no measurement yet"


def measure(pipeline: Any) -> list[dict[str, Any]]:
    """Points for `Estimator.calibrate` from a loaded pipeline that is idle; see `pipeline.calibrate.measure`."""
    from .calibrate import measure  # brings PyTorch, which a process that only estimates does not need

    return measure(pipeline)


class _Run:
    """A kept run, with the request that has its cost."""

    def __init__(self, run: dict[str, Any]) -> None:
        frames, height, width = run["size"]
        self.request = VideoRequest(
            prompt="-",
            num_frames=frames,
            height=height,
            width=width,
            steps=run["steps"],
            guidance_scale=2.0 if run["guided"] else 1.0,
            fps=15,
            bsa=None if run["bsa"] is None else BSAConfig.from_bsa_params(run["bsa"]),
        )
        self.density: float = run["density"]
        self.seconds: dict[str, float] = run["seconds"]
        self.memory: int = run["memory"]


def check_load(info: CheckpointInfo, device: Device) -> None:
    """Refuse a checkpoint whose weights cannot fit, before one is read. Raises ValueError with the numbers."""
    needed = cost.weight_bytes(cost.ModelShape.read(info), device)
    available = available_memory(device)
    if needed > available:
        kind = "bfloat16" if device.type == "cuda" else "fp32"
        raise ValueError(
            f"the weights of {info.name} take {needed / 2**30:,.1f} GiB in {kind} and {available / 2**30:,.1f} GiB of "
            f"memory are available on {device}; use a larger device, or a smaller checkpoint"
        )


def device_name(device: Device) -> str:
    """What measurements are kept under: the processor and its threads, or the GPU."""
    if device.type == "cuda":
        gpu = gpu_of(device)
        return f"cuda {gpu.name}" if gpu is not None else "cuda"
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu {platform.processor() or platform.machine()}, {threads} threads"


def _versions() -> str:
    return " ".join(f"{package} {metadata.version(package)}" for package in ("torch", "triton", "fastvideo"))


def _density(request: VideoRequest, near: Iterable[tuple[_Run, float]]) -> float | None:
    """Where a cdf threshold decides, the density of runs with the same rule; otherwise the rule itself says it."""
    if request.bsa is None or request.bsa.cdf_threshold is None:
        return None
    alike = [(run.density, weight) for run, weight in near if run.request.bsa == request.bsa]
    return _weighted_median(alike, None)


def _distance(request: VideoRequest, run: _Run) -> float:
    here, there = request.bsa_status()[0], run.request.bsa_status()[0]
    away = abs(math.log(request.grid.volume / run.request.grid.volume))
    if here != there:
        return away + _OTHER_KIND
    if here:
        kept = [cost.kept_blocks(r.bsa, r.grid) / r.bsa.blocks(r.grid).k_blocks.volume for r in (request, run.request)]
        away += 0.5 * abs(math.log(kept[0] / kept[1]))
        away += 0.5 * (request.bsa.chunk_k != run.request.bsa.chunk_k)
    return away


def _weighted_median(values: list[tuple[float, float]], default: Any) -> Any:
    """Of (value, weight); the mean of the two middle ones where the weights are split in half."""
    values = sorted(value for value in values if value[1] > 0)
    half, below = sum(weight for _, weight in values) / 2, 0.0
    for index, (value, weight) in enumerate(values):
        below += weight
        if below > half * (1 + 1e-9):
            return value
        if below >= half * (1 - 1e-9):
            return (value + values[min(index + 1, len(values) - 1)][0]) / 2
    return default


def _sound(point: dict[str, Any]) -> bool:
    return point.get("bytes", 0) > 0 or (math.isfinite(point.get("seconds", 0)) and point.get("seconds", 0) > 0)
