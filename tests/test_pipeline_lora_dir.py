"""LoRA files of a folder that is not the checkpoint's: what is found there, what is not, and that it runs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import write_lora

from pipeline import LongCatPipeline, cli_command, inspect_checkpoint, python_code
from pipeline.cli.main import main
from pipeline.cli.parser import build_parser
from pipeline.cli.read import read_request

SMALL = {"num_frames": 5, "steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """style.safetensors, and much that is no adapter of this folder."""
    home = tmp_path_factory.mktemp("adapters")
    write_lora(home, "style", 6)  # writes into a folder lora
    folder = home / "lora"
    outside = write_lora(home / "lora", "secret").rename(home / "secret.safetensors")
    (folder / "out.safetensors").symlink_to(outside)
    (folder / "in.safetensors").symlink_to(folder / "style.safetensors")
    (folder / "broken.safetensors").symlink_to(folder / "nowhere")
    (folder / "folder.safetensors").mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    for name in ("notes.txt", "style.pt", ".hidden.safetensors", "two\nlines.safetensors", "\udcff.safetensors"):
        (folder / name).touch()
    return folder


def test_what_is_found(folder, tiny_checkpoint, caplog):
    info = inspect_checkpoint(tiny_checkpoint, folder)
    assert info.loras == {name: folder / f"{name}.safetensors" for name in ("in", "style")}
    assert "out.safetensors leads out of its folder" in caplog.text and "two\\nlines" in caplog.text
    assert inspect_checkpoint(tiny_checkpoint).lora_dir is None


def test_the_checkpoints_own_comes_first(folder, tiny_checkpoint, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for part in tiny_checkpoint.iterdir():
        (checkpoint / part.name).symlink_to(part)
    own = write_lora(checkpoint, "style", 1)
    info = inspect_checkpoint(checkpoint, folder)
    assert info.loras["style"] == own and set(info.loras) == {"in", "style"}
    assert (info.lora_dir_for("style"), info.lora_dir_for("in:0.5"), info.lora_dir_for(None)) == (None, folder, None)


@pytest.mark.parametrize(
    "name", ["../secret", "../lora/style", "/etc/passwd", "sub\\style", "..", ".hidden", "two\nlines"]
)
def test_a_name_is_never_a_path(folder, tiny_checkpoint, name):
    """And nobody is told to put a file of such a name anywhere."""
    info = inspect_checkpoint(tiny_checkpoint, folder)
    with pytest.raises(ValueError, match="an adapter is called as its file is, without folder and ending, such as in$"):
        info.request("x", lora=name)


def test_a_folder_that_is_not_there(tiny_checkpoint, tmp_path, capsys):
    command = ["info", "--model-path", str(tiny_checkpoint), "--lora-dir", str(tmp_path / "none")]
    assert main(command) == 2
    assert "there is no folder of LoRA files at" in capsys.readouterr().err


def test_it_runs_with_its_strength(folder, tiny_checkpoint, tmp_path):
    pipeline = LongCatPipeline.load(tiny_checkpoint, device="cpu", lora_dir=folder)
    request = pipeline.info.request("x", lora="style:2", bsa=None, **SMALL)
    plain, strong = (pipeline.generate_frames(one)[1] for one in (replace(request, lora=None), request))
    assert not np.array_equal(plain, strong)
    report = tmp_path / "report.json"
    command = ["generate", "--model-path", str(tiny_checkpoint), "--lora-dir", str(folder), "--lora", "style:2"]
    command += ["--prompt", "x", "--num-frames", "5", "--steps", "1", "--dense", "--device", "cpu"]
    assert main([*command, "--json", str(report), "--output", str(tmp_path / "x.mp4")]) == 0
    assert json.loads(report.read_text())["request"]["lora"] == "style:2"


def test_copied_code_names_the_folder(folder, tiny_checkpoint):
    info = inspect_checkpoint(tiny_checkpoint, folder)
    request = info.request("x", lora="style:0.5")
    options = {"model_path": tiny_checkpoint, "device": "cpu", "compare": False, "output": "x.mp4", "lora_dir": folder}
    line = cli_command(request, **options)
    words = [word.strip("'") for word in line.split()]
    args = build_parser().parse_args(words[words.index("generate") :])
    assert args.lora_dir == folder and read_request(args, info) == request
    assert f", lora_dir={str(folder)!r})" in python_code(request, **options)
