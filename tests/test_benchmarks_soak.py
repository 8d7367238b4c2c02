"""The soak in small, without a browser: several clients, a killed engine of two, and jobs that wait."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_nothing_is_lost_or_made_twice(tmp_path):
    few = {"engines": 2, "clients": 3, "cancels": 1, "reloads": 0, "kills": 1}
    sizes = few | {"jobs": 6, "waiting": 9, "fetches": 3}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, ROOT / "benchmarks" / "soak.py", "--output", output := tmp_path / "soak.json", *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(output.read_text())
    assert found["other_errors"] == []
    assert (found["ends"]["lost"], found["doubled"]) == (0, 0)
    assert found["ends"]["failed_by_a_kill"] == 0, "what loses its engine is put back"
    assert found["recorded"]["done"] == found["ends"]["done"] == 15
    assert set(found["recorded"]) <= {"done", "failed", "stopped"}, "none is left as if it went on"
    assert found["waiting"]["waiting"] == sizes["waiting"]
    assert found["waiting"]["page_ms"]["count"] == 9
