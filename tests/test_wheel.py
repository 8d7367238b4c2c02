"""The library as others install it: the wheel ships `bsa` alone and works beside nothing but PyTorch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ["triton", "fastvideo", "gradio", "diffusers", "transformers", "numpy", "pipeline", "ui", "training"]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-index", "--no-deps"]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What it prints. Nothing of this checkout is on its path."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves its work beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    without = shutil.ignore_patterns("__pycache__")
    for part in ("bsa", "pipeline", "ui", "training", "tests", "benchmarks"):
        shutil.copytree(ROOT / part, copy / part, ignore=without)
    for name in ("pyproject.toml", "README.md", "LICENSE", "app.py"):
        shutil.copy(ROOT / name, copy)
    run(*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder, copy, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a fresh environment that has the wheel, PyTorch and what PyTorch needs, Triton excepted."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    run(*PIP, "--python", python, "install", *OFFLINE, wheel, cwd=folder)
    (folder / "torch").mkdir()
    for name in needed_by("torch") - {"triton"}:
        link(name, folder / "torch")
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "torch.pth").write_text(f"{folder / 'torch'}\n")
    return python


def needed_by(name: str) -> set[str]:
    """It and the installed packages that it asks for on this machine."""
    found, ahead = set(), [name]
    while ahead:
        name = ahead.pop()
        try:
            asked = [Requirement(text) for text in distribution(name).requires or ()]
        except PackageNotFoundError:  # builds of PyTorch for the CPU have no CUDA
            continue
        if name not in found:
            found.add(name)
            ahead += [one.name for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def link(name: str, folder: Path) -> None:
    """The files of an installed package, as links."""
    files = (PurePosixPath(file) for file in distribution(name).files or ())
    inside = [file for file in files if file.parts[0] != ".." and "__pycache__" not in file.parts]
    shared = {"nvidia"}  # a folder that several packages fill
    for top in {PurePosixPath(*file.parts[: 1 + (file.parts[0] in shared)]) for file in inside}:
        (folder / top).parent.mkdir(exist_ok=True)
        if not (folder / top).exists():
            (folder / top).symlink_to(str(distribution(name).locate_file(top)))


def sample() -> str:
    """The README's code that uses `bsa` alone."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "block_sparse_attention(" in block)
    return code


def test_ships_bsa_alone(wheel: Path) -> None:
    names = {PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()}
    code = {name for name in names if not name.parts[0].endswith(".dist-info")}
    kept = (path for path in (ROOT / "bsa").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert code == {PurePosixPath(path.relative_to(ROOT)) for path in kept}
    needed = ("py.typed", "tuned.json", "kernels/attend.py", "native/attend.c")
    assert {PurePosixPath("bsa") / name for name in needed} <= code


def test_needs_torch_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        (metadata,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        found = re.findall(r"^Requires-Dist: (.*)$", files.read(metadata).decode(), re.MULTILINE)
    needed = [one for one in map(Requirement, found) if one.marker is None or "extra" not in str(one.marker)]
    assert [one.name for one in needed] == ["torch"]


def test_fresh_environment_has_only_torch(python: Path, tmp_path: Path) -> None:
    """Otherwise the tests below would say nothing."""
    code = "import sys, importlib.util; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    assert run(python, "-c", code, *ABSENT, "torch", "bsa", cwd=tmp_path).strip() == "['torch', 'bsa']"


def test_runs_the_readmes_sample(python: Path, tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(sample())
    shown = run(python, "-W", "ignore:Failed to initialize NumPy", "sample.py", cwd=tmp_path)
    assert shown == "torch.Size([1, 2, 37440, 64]) tensor(0.0625, dtype=torch.float64)\n"


def test_import_brings_no_torch(python: Path, tmp_path: Path) -> None:
    code = "import sys, bsa; print('torch' in sys.modules, bsa.BSAConfig().top_k(160), bsa.__file__)"
    torch, kept, file = run(python, "-c", code, cwd=tmp_path).split()
    assert (torch, kept) == ("False", "10")
    assert Path(file).is_relative_to(python.parents[1])


def test_refuses_triton_where_it_is_not_installed(python: Path, tmp_path: Path) -> None:
    """A named backend is refused with the remedy; it neither falls back nor fails in an import."""
    code = sample().replace("return_selection=True", "return_selection=True, backend='triton'")
    code = (
        "try:\n"
        + "".join(f"    {line}\n" for line in code.splitlines())
        + "except ValueError as error:\n    print(error)"
    )
    said = run(python, "-W", "ignore:Failed to initialize NumPy", "-c", code, cwd=tmp_path, TRITON_INTERPRET="1")
    assert said.strip() == (
        "the triton backend cannot run because Triton is not installed; use backend='torch' or 'auto'"
    )
