"""The plan of a request, made once. This is the only place that refuses one. Imports no PyTorch.

Command line, sweep, the worker's admission, /estimate, the plan on the page and the generation itself all make a
`Plan`, and read from it what they need to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bsa.config import SCHEDULE
from pipeline.checkpoint.info import CheckpointInfo
from pipeline.estimate.estimator import Estimate, Estimator
from pipeline.machine.gpus import Device
from pipeline.request.choose_forward import ForwardChoice, choose_forward
from pipeline.request.load_options import LoadOptions
from pipeline.request.video import VideoRequest
from pipeline.request.workload import Workload

STEPS, LAYERS, _ = SCHEDULE


@dataclass(frozen=True)
class Plan:
    """A request that can run, with everything that follows from it.

    work: token grid, rows of guidance, and whether BSA is active, with what it does to the grid and why.
    steps: denoising steps that run.
    forward: which forward, and why.
    estimate: seconds and memory; None for a checkpoint that does not say how large it is.
    """

    request: VideoRequest
    work: Workload
    steps: int
    forward: ForwardChoice
    estimate: Estimate | None


def plan(
    info: CheckpointInfo,
    request: VideoRequest,
    weights: LoadOptions,
    device: Device,
    *,
    forward: str = "auto",
    estimator: Estimator | None = None,
    available: int | None = None,
) -> Plan:
    """Decide what a request comes to, or refuse it.

    Args:
        weights: how the model is kept. device: where it runs.
        forward: the one asked for, see `choose_forward`.
        estimator: of the checkpoint on the device; None for no estimate, and no refusal for want of memory.
        available: bytes that the generation may take, its weights included; None for what is free on the device,
            which is right before the weights are loaded.

    Raises:
        ValueError: the checkpoint lacks the adapter, no forward can run the request, nothing of it would be sparse, or
            it cannot fit into memory. One sentence with the numbers and a remedy.
    """
    info.check_lora(request.lora)
    work, steps = request.workload, info.steps_run(request)
    _check_schedule(work, steps, info.depth)
    choice = choose_forward(forward, work, device, weights)
    if weights.gpus > work.fewest_tokens:
        raise ValueError(
            f"{weights.gpus} GPUs cannot share {work.fewest_tokens} tokens; use a larger size, or --gpus "
            f"{work.fewest_tokens} or fewer"
        )
    estimate = None if estimator is None else estimator.check(request, available)
    return Plan(request, work, steps, choice, estimate)


def _check_schedule(work: Workload, steps: int, layers: int) -> None:
    """Refuse dense steps or layers that leave none for block sparse attention. layers: 0 if not known."""
    for name, most in ((STEPS, steps), (LAYERS, layers)):
        dense = 0 if work.bsa is None else getattr(work.bsa, name)
        if most and dense >= most:
            kind = name.removeprefix("dense_")
            fewer = f"use {most - 1} or fewer" if most > 1 else "use 0"
            raise ValueError(f"{name} {dense} leaves none of the {most} {kind} sparse; {fewer}, or dense attention")


def plan_to_load(
    info: CheckpointInfo,
    requests: Iterable[VideoRequest],
    weights: LoadOptions,
    device: Device,
    *,
    forward: str = "auto",
    store: Path | None = None,
) -> list[Plan]:
    """Plans of what is to be made once the checkpoint is loaded; also refuses weights that do not fit.

    store: file of earlier measurements, for the estimates.
    """
    estimator = Estimator(info, device, store, weights)
    estimator.check_load()
    return [plan(info, request, weights, device, forward=forward, estimator=estimator) for request in requests]
