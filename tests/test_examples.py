"""The examples of the API run against a server as it is started, and say what went wrong in one line."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from app_server import free_port, served
from fake_pipeline import FakePipeline
from programs import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("api_*.py"))


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_server_there_is_a_line_and_no_traceback():
    command = [sys.executable, "examples/api_resources.py", f"http://127.0.0.1:{free_port()}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_says_its_errors_so(path):
    """It does nothing when it is imported, and its last lines catch what `main` raises."""
    assert callable(load(path).main)
    assert path.read_text().rstrip().endswith('sys.exit(f"error: {error}")')


@pytest.mark.parametrize("model_switch", [False, True], ids=["plain", "model switch"])
def test_cancel(model_switch, tmp_path, monkeypatch, capsys):
    """The model field has a button of its own to cancel, which must not take the endpoint's name."""
    fake = FakePipeline()
    with served(tmp_path, fake, model_switch=model_switch) as address, fake.held():
        monkeypatch.setattr(sys, "argv", ["api_cancel.py", address])
        load(ROOT / "examples/api_cancel.py").main()
    assert "'job_id': 'snow-1'" in capsys.readouterr().out
    assert fake.steps_done < 50
