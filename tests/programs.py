"""Programs that tests run in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent


def interrupted_while_importing(module: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository; a hook, written to `folder`, sends SIGINT when `module` is about to be imported."""
    (folder / "sitecustomize.py").write_text(f"""
import signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder())
""")
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_program(program: str, *arguments: str | Path) -> None:
    """Run a program of this folder, whose imports are the repository's and this process's."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, HERE / program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    assert done.returncode == 0, done.stderr[-3000:]


def run_interpreted(program: str) -> Any:
    """What a program of this folder prints as its last line, JSON, with Triton's interpreter in place of a GPU."""
    env = os.environ | {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, HERE)))
    done = subprocess.run([sys.executable, HERE / program], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
