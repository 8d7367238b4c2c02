"""Training on several GPUs, one process each: `torchrun --nproc-per-node 2 -m training.train_dit ...`.

Every process draws its own clips and noise. Gradients are averaged, so a step acts as one of a larger batch. Without
torchrun, everything here does nothing.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> tuple[int, int]:
    """Join the other processes started by torchrun. Returns this process's number and how many there are."""
    if "RANK" not in os.environ:
        return 0, 1
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    atexit.register(leave)
    return place()


def leave() -> None:
    """Part from the other processes, which all must do. From then on this one is alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def place() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """Whether this process is the one that prints and saves."""
    return place()[0] == 0


def agree(value: float) -> float:
    """The first process's `value`. Clocks differ, but all must stop after the same step. Does not wait for the GPU."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return shared.item()


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the processes."""
    if not dist.is_initialized():
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])
