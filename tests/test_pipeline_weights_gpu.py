"""8-bit and offloaded weights on a GPU, with the shipped checkpoint: see gpu_weights.py, which runs by itself."""

import json

import pytest
import torch
from programs import run_program

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "facts.json"
    run_program("gpu_weights.py", "cuda", file)
    return {entry["way"]: entry for entry in json.loads(file.read_text())}


WAYS = ["", "--offload", "--quantization fp8", "--quantization fp8 --offload"]


@pytest.mark.parametrize("way", WAYS)
def test_videos_repeat_and_offload_changes_no_bit(facts, way):
    assert facts[way]["repeats"] and facts[way]["as without offload"]


@pytest.mark.parametrize("way", WAYS)
def test_the_machine_can_be_measured(facts, way):
    assert set(facts[way]["parts"]) >= {"process", "linear", "dense", "sparse", "decode"}


def test_the_transformer_is_never_whole_on_the_gpu(facts):
    stored = facts[""]["stored"]
    for way in ("--offload", "--quantization fp8 --offload"):
        assert facts[way]["held"] < facts[way]["peak"] < stored < facts[""]["held"], facts
    # a block beside the 8-bit weights, text encoder and VAE while they are made, and the fp32 numbers of a layer
    assert facts["--quantization fp8"]["held"] < 0.8 * facts[""]["held"]


@pytest.mark.parametrize("way", WAYS[2:])
def test_8_bit_weights_make_a_similar_video(facts, way):
    assert facts[way]["psnr to stored"] > 15  # what another seed gives
