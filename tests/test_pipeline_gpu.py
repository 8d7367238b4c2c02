"""The whole pipeline on a GPU, with the shipped checkpoint: see gpu_pipeline.py, which runs in processes of its own."""

import json

import numpy as np
import pytest
import torch
from programs import run_program

from pipeline.media.similarity import psnr

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    for device in ("cuda", "cpu"):
        run_program("gpu_pipeline.py", device, folder)
    return folder


@pytest.fixture(scope="module")
def facts(folder):
    return json.loads((folder / "cuda.json").read_text())


@pytest.mark.parametrize("name", ["sparse", "dense"])
def test_the_same_video_as_on_the_cpu(folder, name):
    # bf16 against fp32, over six steps: rounding, not another clip. Another seed gives about 15 dB.
    cuda, cpu = (np.load(folder / f"{device}.npz")[name] for device in ("cuda", "cpu"))
    assert psnr(cuda, cpu) > 25


@pytest.mark.parametrize(
    "what",
    [
        "repeats",
        "dense repeats after sparse",
        "repeats after cancel",
        "repeats after running out of memory",
    ],
)
def test_bit_for_bit(facts, what):
    assert facts[what]


def test_sparse_differs_from_dense_and_says_so_in_the_log(facts):
    assert facts["sparse to dense"] < 60
    assert "Enabling Block Sparse Attention (BSA) for LongCat transformer" in facts["log"]
    assert any(line.startswith("BSA parameters: {'sparsity': 0.75") for line in facts["log"])


def test_what_does_not_fit_is_an_error_of_memory(facts):
    assert "memory" in facts["too large"]


def test_recording_changes_no_video(facts):
    assert facts["recorded"]["same"] and facts["recorded"]["file"]


@pytest.mark.parametrize("name", ["fast sparse", "fast dense"])
def test_the_fast_forward_makes_the_same_video(facts, name):
    assert facts[name] > 25


def test_nvml_sees_at_least_what_pytorch_holds(facts):
    readings = facts["readings"]
    assert readings["gpus"] >= torch.cuda.device_count()  # CUDA_VISIBLE_DEVICES hides none from NVML
    assert readings["name"] == torch.cuda.get_device_name()
    assert readings["reserved"] < readings["used"] < readings["total"]
    if readings["process"] is None:  # a container may hide the processes
        assert readings["note"]
    else:
        assert readings["reserved"] < readings["process"] <= readings["used"]


def test_peaks_are_those_of_the_allocator(facts):
    assert "CUDA" in facts["label"]
    assert 0 < min(facts["peaks"])
