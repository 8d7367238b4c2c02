"""The plan of a request, made once. This is the only place that refuses one. Imports no PyTorch.

Command line, sweep, the worker's admission, /estimate, the plan on the page and the generation itself all make a
`Plan`, and read from it what they need to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.info import CheckpointInfo
from pipeline.estimate.estimator import Estimate, Estimator
from pipeline.machine.gpus import Device
from pipeline.request.choose_forward import ForwardChoice, choose_forward
from pipeline.request.load_options import LoadOptions
from pipeline.request.video import VideoRequest
from pipeline.request.workload import Workload


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
        ValueError: the checkpoint lacks the adapter, no forward can run the request, or it cannot fit into memory. One
            sentence with the numbers and a remedy.
    """
    info.check_lora(request.lora)
    work = request.workload
    choice = choose_forward(forward, work, device, weights)
    if weights.gpus > work.step_grid.volume:
        raise ValueError(
            f"{weights.gpus} GPUs cannot share {work.step_grid.volume} tokens; use a larger size, or --gpus "
            f"{work.step_grid.volume} or fewer"
        )
    estimate = None if estimator is None else estimator.check(request, available)
    return Plan(request, work, info.steps_run(request), choice, estimate)


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
