"""Which forward runs a generation, and that the fast one makes the plain one's video, density and record."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from bsa import BSAConfig
from pipeline.media.attention_record import AttentionRecord
from pipeline.request.choose_forward import checked_forward, choose_forward
from pipeline.request.load_options import LoadOptions

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SAME, MIXED = BSAConfig(0.5, None, (2, 4, 4), (2, 4, 4)), BSAConfig(0.5, None, (2, 4, 4), (2, 3, 8))


@pytest.fixture
def request_(tiny_pipeline):
    return tiny_pipeline.info.request("x", height=80, width=96, num_frames=13, steps=2, seed=3)


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """A GPU of which there are measurements, and the file with them."""
    table = tmp_path / "tuned.json"
    table.write_text(json.dumps({"NVIDIA Made-up": {}}))
    monkeypatch.setattr("bsa.variants.TUNED", table)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Made-up")
    return table


@pytest.mark.parametrize(
    ("asked", "bsa", "device", "name", "reason"),
    [
        pytest.param("auto", SAME, CPU, "fast", "it is the faster one on a CPU", id="cpu"),
        pytest.param("auto", MIXED, CPU, "plain", "2x4x4 and 2x3x8 tokens, divides the other", id="cpu-two-chunks"),
        pytest.param("auto", SAME, CUDA, "fast", "it was measured on NVIDIA Made-up", id="measured"),
        pytest.param("auto", None, CUDA, "fast", "it was measured on NVIDIA Made-up", id="dense"),
        pytest.param("auto", MIXED, CUDA, "plain", "2x4x4 and 2x3x8 tokens, divides the other", id="two-chunks"),
        pytest.param("fast", SAME, CPU, "fast", "it was asked for", id="asked-fast"),
        pytest.param("plain", SAME, CUDA, "plain", "it was asked for", id="asked-plain"),
        pytest.param("plain", MIXED, CUDA, "plain", "it was asked for", id="asked-plain-two-chunks"),
    ],
)
def test_the_choice_and_its_reason(request_, gpu, asked, bsa, device, name, reason):
    choice = choose_forward(asked, replace(request_, bsa=bsa).workload, device)
    assert choice.name == name and reason in choice.reason


def test_without_measurements_of_this_gpu_the_plain_forward_runs(request_, gpu):
    gpu.write_text("{}")
    choice = choose_forward("auto", request_.workload, CUDA)
    assert choice[:2] == ("plain", "the fast one has not been measured on NVIDIA Made-up")


def test_another_gpu_with_the_same_chip_counts(request_, gpu, monkeypatch):
    gpu.write_text(json.dumps({"NVIDIA H100 80GB HBM3": {}}))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    reason = "it was measured on NVIDIA H100 80GB HBM3, the same chip"
    assert choose_forward("auto", request_.workload, CUDA)[:2] == ("fast", reason)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA B200")
    assert choose_forward("auto", request_.workload, CUDA).name == "plain"


@pytest.mark.parametrize("asked", ["auto", "fast"])
@pytest.mark.parametrize(
    ("weights", "bsa", "expected"),
    [
        pytest.param(LoadOptions("fp8+attention"), SAME, True, id="sparse"),
        pytest.param(LoadOptions("fp8+attention", True, 2), SAME, True, id="sparse-offload-two-gpus"),
        pytest.param(LoadOptions("fp8+attention"), None, False, id="dense"),
        pytest.param(LoadOptions("fp8"), SAME, False, id="products-only"),
    ],
)
def test_attention_in_8_bits_is_chosen_for_sparse_videos_alone(request_, asked, weights, bsa, expected):
    choice = choose_forward(asked, replace(request_, bsa=bsa).workload, CUDA, weights)
    assert (choice.name, choice.eight_bits) == ("fast", expected)


def test_what_was_asked_for_is_never_replaced(request_):
    with pytest.raises(ValueError, match=r"2x4x4 and 2x3x8 tokens, divides the other; use the plain one, or auto"):
        choose_forward("fast", replace(request_, bsa=MIXED).workload, CPU)
    with pytest.raises(ValueError, match=r"unknown forward 'quick'; choose one of auto, plain, fast"):
        checked_forward("quick")


ATTENTION = [
    pytest.param(None, id="dense"),
    pytest.param(SAME, id="sparse"),
    pytest.param(replace(SAME, selection="cells"), id="cells"),
    pytest.param(replace(SAME, dense_steps=1, dense_layers=1), id="first-ones-dense"),
    pytest.param(replace(SAME, select_every=2), id="selections-kept"),
]


@pytest.mark.parametrize("bsa", ATTENTION)
def test_both_forwards_make_the_same_video_and_record(tiny_pipeline, request_, tmp_path, caplog, monkeypatch, bsa):
    request = replace(request_, bsa=bsa)
    monkeypatch.setattr(tiny_pipeline, "record", True)
    results, frames, records = [], [], []
    with caplog.at_level(logging.INFO, "pipeline"):
        for name in ("plain", "fast"):
            monkeypatch.setattr(tiny_pipeline, "forward", name)
            result, made = tiny_pipeline.generate_frames(request, output=tmp_path / f"{name}.mp4")
            results.append(result)
            frames.append(made.astype(int))
            if bsa is not None:
                records.append(AttentionRecord.load(tmp_path / f"{name}.attention.npz"))
            assert f"The {name} forward runs because it was asked for" in caplog.text
    # fp32 in another order; a level of 255 where a value lies on the edge between two.
    assert np.abs(frames[0] - frames[1]).max() <= 1 and (frames[0] != frames[1]).mean() < 1e-3
    plain, fast = results
    assert plain.bsa_active == fast.bsa_active == (bsa is not None)
    assert fast.density == pytest.approx(plain.density, rel=1e-9)
    assert (fast.blocks_kept, fast.blocks_total) == (plain.blocks_kept, plain.blocks_total)
    assert fast.versions == {**plain.versions, "forward": "fast"}
    if bsa is not None:
        assert (records[0].selections == records[1].selections).all()
        for name in ("density", "recall", "block_recall"):
            # fp32 sums of a few hundred probabilities
            np.testing.assert_allclose(getattr(records[1], name), getattr(records[0], name), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("forward", ["plain", "fast"])
def test_a_selection_can_serve_several_steps(tiny_pipeline, request_, tmp_path, monkeypatch, forward):
    """The first step is dense, so that of the next four the first and the third select."""
    monkeypatch.setattr(tiny_pipeline, "record", True)
    monkeypatch.setattr(tiny_pipeline, "forward", forward)
    bsa = replace(SAME, dense_steps=1, dense_layers=1, select_every=2)
    result = tiny_pipeline.generate(replace(request_, steps=5, bsa=bsa), output=tmp_path / "video.mp4")
    selections = AttentionRecord.load(tmp_path / "video.attention.npz").selections  # [steps, layers, ...]
    same = [(selections[step] == selections[step - 1]).all() for step in range(1, 5)]
    assert same == [False, True, False, True]
    assert "blocks are selected in every 2 steps" in result.bsa_reason


def test_the_first_steps_and_layers_can_be_dense(tiny_pipeline, request_, tmp_path, monkeypatch):
    depth, path = len(tiny_pipeline._model.transformer.blocks), tmp_path / "video.mp4"
    monkeypatch.setattr(tiny_pipeline, "record", True)
    bsa = replace(SAME, dense_steps=1, dense_layers=1)
    result = tiny_pipeline.generate(replace(request_, bsa=bsa), output=path)
    density = AttentionRecord.load(tmp_path / "video.attention.npz").density.mean(-1)  # [steps, layers]
    everything = np.zeros((request_.steps, depth), bool)
    everything[0] = everything[:, 0] = True
    assert ((density == 1) == everything).all()
    assert everything.mean() == pytest.approx(bsa.dense_share(request_.steps, depth))
    assert result.density == pytest.approx(density.mean(), rel=1e-6)  # the record is in fp32
    assert "dense steps first: 1, dense layers first: 1" in result.bsa_reason
