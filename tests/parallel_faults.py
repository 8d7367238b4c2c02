"""Programs of ranks that fail, for test_pipeline_team.py."""

import os

import torch

from pipeline.parallel.launch import Place, fail


def out_of_memory() -> None:
    place = Place.given()
    fail(place.store(), place.rank, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))


def left() -> None:
    os._exit(7)
