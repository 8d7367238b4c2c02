"""Programs of ranks that fail, for test_pipeline_team.py."""

import os
import signal

import torch

from pipeline.parallel.launch import Place, fail


def out_of_memory() -> None:
    place = Place.given()
    fail(place.store(), place.rank, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))


def surprised() -> None:
    place = Place.given()
    fail(place.store(), place.rank, RuntimeError("a library\nis missing"))


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def left() -> None:
    os._exit(7)
