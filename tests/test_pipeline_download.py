"""Checkpoints from the Hub, against a small hub on loopback that serves the embedded checkpoint."""

from __future__ import annotations

import os
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fake_hub import FakeHub, serving
from huggingface_hub import constants
from safetensors.torch import save_file

from pipeline import Cancelled, inspect_checkpoint
from pipeline.checkpoint import download
from pipeline.checkpoint.download import fetch_checkpoint, is_hub_id
from pipeline.cli.main import main
from pipeline.estimate import refusal
from pipeline.request.load_options import AS_STORED

CPU = SimpleNamespace(type="cpu", index=None)
ON_CPU = partial(refusal.check_weights_fit, device=CPU, weights=AS_STORED)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return tiny_checkpoint


@pytest.fixture
def hub(checkpoint, monkeypatch, tmp_path):
    with serving(FakeHub(checkpoint), monkeypatch, tmp_path / "cache") as hub:
        yield hub


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_fetches_a_complete_checkpoint_with_true_progress(hub, checkpoint):
    seen = []
    path = fetch_checkpoint(hub.repo, ON_CPU, seen.append)
    assert inspect_checkpoint(path).parameters == inspect_checkpoint(checkpoint).parameters
    for file in checkpoint.rglob("*"):
        if file.is_file():
            assert (path / file.relative_to(checkpoint)).read_bytes() == file.read_bytes()
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert {progress.total for progress in seen} == {size_of(checkpoint)}
    assert done[-1] == size_of(checkpoint)
    # huggingface_hub reports every 10 MB, so these small files come in one piece each
    assert len(set(done)) >= 3


def test_only_what_makes_up_the_checkpoint_is_fetched(hub, checkpoint, tmp_path):
    hub.root = tmp_path / "more"
    shutil.copytree(checkpoint, hub.root)
    extra = ("README.md", "notes/refine.safetensors", "transformer/pytorch_model.bin")
    adapter = "lora/mine.safetensors"
    for folder in ("lora", "notes"):
        (hub.root / folder).mkdir()
    for name in (*extra, adapter):
        (hub.root / name).write_bytes(b"0" * 100)
    path = fetch_checkpoint(hub.repo, ON_CPU)
    assert not [name for name in extra if (path / name).exists() or name in hub.sent]
    assert (path / adapter).exists()


def test_a_second_time_fetches_nothing(hub):
    first = fetch_checkpoint(hub.repo, ON_CPU)
    hub.sent.clear()
    assert fetch_checkpoint(hub.repo, ON_CPU) == first
    assert hub.sent == {}


def test_without_a_connection_what_is_here_suffices(hub, monkeypatch):
    first = fetch_checkpoint(hub.repo, ON_CPU)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert fetch_checkpoint(hub.repo, ON_CPU) == first


def test_a_broken_connection_is_resumed(hub, checkpoint):
    weights = max(checkpoint.rglob("*.safetensors"), key=lambda file: file.stat().st_size)
    hub.break_after = weights.stat().st_size // 2
    path = fetch_checkpoint(hub.repo, None)
    assert (path / weights.relative_to(checkpoint)).read_bytes() == weights.read_bytes()


def test_cancelling_stops_and_keeps_what_is_there(hub, checkpoint):
    def cancel(progress):
        if progress.file.endswith(".safetensors"):
            raise Cancelled

    with pytest.raises(Cancelled):
        fetch_checkpoint(hub.repo, ON_CPU, cancel)
    weights = [str(file.relative_to(checkpoint)) for file in checkpoint.rglob("*.safetensors")]
    fetched = [name for name in weights if list((constants_cache() / "snapshots").rglob(name))]
    assert len(fetched) < len(weights)
    assert inspect_checkpoint(fetch_checkpoint(hub.repo, ON_CPU)).name


def constants_cache():
    from pathlib import Path

    return next(Path(constants.HF_HUB_CACHE).glob("models--*"))


@pytest.mark.parametrize(
    ("status", "error", "sentence"),
    [
        pytest.param(404, "RepoNotFound", "neither a folder someone/longcat here nor a public model", id="unknown"),
        pytest.param(403, "GatedRepo", "someone/longcat is gated: accept its terms", id="gated"),
        pytest.param(500, "", "the Hugging Face Hub answered for someone/longcat: ", id="server fault"),
    ],
)
def test_answers_of_the_hub_are_sentences(hub, status, error, sentence):
    hub.status, hub.error = status, error
    with pytest.raises(ValueError, match=sentence) as caught:
        fetch_checkpoint(hub.repo, ON_CPU)
    assert "\n" not in str(caught.value)


def test_no_connection_is_a_sentence(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(
        ValueError, match="there is no folder someone/longcat here, and the Hugging Face Hub, .* cannot be reached"
    ):
        fetch_checkpoint(hub.repo, ON_CPU)


def test_another_model_is_refused_before_its_weights(hub, checkpoint, tmp_path):
    hub.root = tmp_path / "other"
    shutil.copytree(checkpoint, hub.root)
    (hub.root / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    with pytest.raises(ValueError, match="is not a LongCat checkpoint .*model_index.json names 'WanPipeline'"):
        fetch_checkpoint(hub.repo, ON_CPU)
    shutil.rmtree(hub.root / "vae")
    with pytest.raises(ValueError, match="is not a LongCat checkpoint .*vae/config.json is missing"):
        fetch_checkpoint(hub.repo, ON_CPU)
    assert not any(name.endswith(".safetensors") for name in hub.sent)


def test_a_full_disk_is_found_before_fetching(hub, monkeypatch):
    usage = SimpleNamespace(total=2**40, used=2**40, free=2**29)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match=r"GiB more and 0\.5 GiB are free in .*; free some"):
        fetch_checkpoint(hub.repo, ON_CPU)
    assert not any(name.endswith(".safetensors") for name in hub.sent)


def test_too_little_memory_is_found_from_the_headers(hub, checkpoint, monkeypatch):
    monkeypatch.setattr(refusal, "available_memory", lambda device: 1000)
    with pytest.raises(ValueError, match=r"the weights of someone/longcat take 0\.0 GiB in fp32 and 0\.0 GiB"):
        fetch_checkpoint(hub.repo, ON_CPU)
    largest = max(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))
    assert all(sent < max(largest, 200_001) for sent in hub.sent.values())


def test_a_second_set_of_weights_is_not_fetched(hub, checkpoint, tmp_path):
    hub.root = tmp_path / "more"
    shutil.copytree(checkpoint, hub.root)
    second = "vae/diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(hub.root / "vae/diffusion_pytorch_model.safetensors", hub.root / second)
    path = fetch_checkpoint(hub.repo, ON_CPU)
    assert inspect_checkpoint(path).parameters == inspect_checkpoint(checkpoint).parameters
    assert second not in hub.sent


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(None, "someone/longcat/vae has quant_conv.bias as F8_E4M3", id="fp8"),
        pytest.param(b"\x02" + bytes(7) + b"[]" + bytes(2**19), "model.safetensors has a damaged header", id="header"),
    ],
)
def test_weights_that_do_not_belong_are_found_from_the_headers(hub, checkpoint, tmp_path, content, says):
    hub.root = tmp_path / "other"
    shutil.copytree(checkpoint, hub.root)
    (hub.root / "vae/diffusion_pytorch_model.safetensors").unlink()
    file = hub.root / "vae/model.safetensors"
    if content is None:
        save_file({"quant_conv.bias": torch.ones(2**19).to(torch.float8_e4m3fn)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        fetch_checkpoint(hub.repo)
    assert hub.sent["vae/model.safetensors"] <= 2**18  # pieces of the server; the file has twice as much


def test_what_counts_as_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights" / "longcat").mkdir(parents=True)
    assert is_hub_id("meituan-longcat/LongCat-Video")
    for text in ("weights/longcat", "/somewhere/else", "./weights", "a/b/c", "longcat", "~/x", "../x/y", "a b/c"):
        assert not is_hub_id(text)


def test_local_folders_are_inspected(checkpoint):
    assert fetch_checkpoint(str(checkpoint)) == checkpoint
    with pytest.raises(ValueError, match="there is no checkpoint at"):
        fetch_checkpoint(os.sep + "nowhere/at/all")
    with pytest.raises(ValueError, match="'longcat' is neither a folder of this machine nor a name on the Hugging"):
        fetch_checkpoint("longcat")


def test_the_command_line_takes_a_hub_id(hub, capsys):
    assert main(["info", "--model-path", hub.repo]) == 0
    shown = capsys.readouterr()
    assert "64x64, 29 frames at 15 fps" in shown.out
    assert "Downloading someone/longcat: 100%" in shown.err
