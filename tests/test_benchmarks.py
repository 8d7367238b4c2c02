"""The measured tables in docs/ are the ones that benchmarks/results/ gives."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


def test_documents_agree_with_the_results():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_shown_and_follows_its_results(name):
    shown = [page for page in (ROOT / "docs").glob("*.md") if f"<!-- table: {name} -->" in page.read_text("utf-8")]
    assert shown, f"no document shows the table {name}"
    stale = tables.fill(f"<!-- table: {name} -->\nold\n<!-- end -->")
    assert "old" not in stale.splitlines() and stale.count("\n| ") > 2
