"""The files that people and services read before any code runs: the lock, the Dockerfile, the README, the docs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def requirements(name: str) -> dict[str, Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    parsed = [Requirement(line) for line in lines if line]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


# What a benchmark compares with where it is installed, and reports as missing where it is not; and the original code, a
# clone of which is given to the program that writes vectors.
PEERS = {"cudnn", "flashinfer", "longcat_video"}


class TestLock:
    def test_pins_everything_exactly(self) -> None:
        for requirement in requirements("requirements.txt").values():
            assert re.fullmatch("==[^*,]+", str(requirement.specifier)), requirement

    def test_agrees_with_the_list_it_is_made_from(self) -> None:
        lock = requirements("requirements.txt")
        for name, wanted in requirements("requirements.in").items():
            pin = str(lock[name].specifier).removeprefix("==")
            assert wanted.specifier.contains(pin), f"{wanted} is locked to {pin}; run make lock"

    def test_is_what_is_installed(self) -> None:
        """Otherwise the tests would say nothing about the lock."""
        lock = requirements("requirements.txt")
        for name in ("torch", "triton", "fastvideo", "gradio", "diffusers", "transformers"):
            assert lock[name].specifier.contains(version(name)), f"{name} {version(name)} is not the locked one"

    def test_lists_every_package_that_is_imported(self) -> None:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        optional = {canonicalize_name(Requirement(text).name) for texts in extras.values() for text in texts}
        listed, owners = {*requirements("requirements.in"), *optional}, packages_distributions()
        for path in tracked("*.py"):
            ours = {neighbour.stem for folder in (ROOT, ROOT / "tests", path.parent) for neighbour in folder.iterdir()}
            for module in imported_modules(path) - ours - PEERS - sys.stdlib_module_names:
                names = {canonicalize_name(owner) for owner in owners.get(module, [module])}
                assert names & listed, f"{path.relative_to(ROOT)} imports {module}; add it to requirements.in"


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


class TestSpace:
    """Hugging Face reads the README's front matter and refuses a push that breaks its rules."""

    def front_matter(self) -> dict:
        return yaml.safe_load((ROOT / "README.md").read_text().split("---\n")[1])

    def test_front_matter(self) -> None:
        card = self.front_matter()
        colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
        assert card["sdk"] == "docker"
        assert card["license"] == "apache-2.0"
        assert len(card["short_description"]) <= 60
        assert {card["colorFrom"], card["colorTo"]} <= colours

    def test_port_is_the_containers(self) -> None:
        dockerfile = (ROOT / "Dockerfile").read_text()
        assert f"EXPOSE {self.front_matter()['app_port']}" in dockerfile
        assert f"GRADIO_SERVER_PORT={self.front_matter()['app_port']}" in dockerfile

    def test_what_the_image_copies_exists(self) -> None:
        copied = re.findall(r"^COPY (?:--\S+ )*(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        assert copied
        assert all((ROOT / source).exists() for source in copied)


def markdown_links() -> list:
    rows = []
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if "://" not in target:
                rows.append(pytest.param(path.parent / target, id=f"{path.name}-{target}"))
    return rows


@pytest.mark.parametrize("target", markdown_links())
def test_links_between_documents_lead_somewhere(target: Path) -> None:
    assert target.exists()


def test_readme_names_every_folder() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if len(path.relative_to(ROOT).parts) > 1}
    readme = (ROOT / "README.md").read_text()
    missing = [folder for folder in sorted(folders) if not folder.startswith(".") and f"`{folder}/`" not in readme]
    assert not missing


def test_examples_list_themselves() -> None:
    """What the documents name five of, without loading a model."""
    command = [sys.executable, "examples/longcat_bsa_usage.py"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^(\d)  \w", shown, re.MULTILINE) == ["1", "2", "3", "4", "5"]
