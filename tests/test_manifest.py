"""The included checkpoint is the one that its manifest names, file by file."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import EMBEDDED_CHECKPOINT, inspect_checkpoint
from training.manifest import NAME, faults, read_manifest, write_manifest


def test_the_included_checkpoint_is_what_its_manifest_says() -> None:
    assert faults(EMBEDDED_CHECKPOINT) == []


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum")
def test_sha256sum_reads_it() -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", NAME]
    checked = subprocess.run(command, cwd=EMBEDDED_CHECKPOINT, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "vae").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "vae" / "model.safetensors").write_bytes(b"\x00\x01")
    write_manifest(tmp_path, 3)
    return tmp_path


def test_reads_what_was_written(small: Path) -> None:
    version, listed = read_manifest(small)
    assert (version, [*listed]) == (3, ["config.json", "vae/model.safetensors"])
    assert listed["config.json"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of "{}"
    assert faults(small) == []


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(write("config.json", b"{ }"), "config.json has changed", id="changed"),
        pytest.param(write("vae/model.safetensors", b"\0\2"), "vae/model.safetensors has changed", id="same-size"),
        pytest.param(write("vae/b", b""), "vae/b is not listed", id="unlisted"),
        pytest.param(write(f"vae/{NAME}", b""), f"vae/{NAME} is not listed", id="unlisted-manifest-below"),
        pytest.param(
            lambda folder: (folder / "config.json").unlink(), "config.json is listed and missing", id="missing"
        ),
    ],
)
def test_says_what_differs(small: Path, change: Callable[[Path], object], said: str) -> None:
    change(small)
    assert faults(small) == [said]


@pytest.mark.parametrize("text", ["", "config.json", "# small, version x\n", "# small, version 3\nabc  config.json\n"])
def test_refuses_what_is_no_manifest(small: Path, text: str) -> None:
    (small / NAME).write_text(text)
    with pytest.raises(ValueError, match="is no manifest; write it with python -m training.manifest"):
        read_manifest(small)


def test_a_checkpoint_is_the_same_with_and_without(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The manifest is for people and tests: nothing that reads a checkpoint asks for it or trips over it."""
    copy = shutil.copytree(tiny_checkpoint, tmp_path / tiny_checkpoint.name)
    before = inspect_checkpoint(copy)
    write_manifest(copy, 1)
    assert inspect_checkpoint(copy) == before
