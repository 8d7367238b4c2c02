"""Progress on a terminal is a bar; in a log or a pipe it is two lines for each phase, however many steps it has."""

from __future__ import annotations

import io
import sys

import pytest

from pipeline.cli.progress import Progress
from pipeline.request.video import StepUpdate

PHASES = (("text", 1), ("denoise", 50), ("decode", 16))


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def run() -> None:
    progress = Progress()
    for phase, total in PHASES:
        for step in range(total + 1):
            progress(StepUpdate(phase, step, total, 0.5 * step))
    progress.close()


@pytest.mark.parametrize("terminal", [pytest.param(True, id="terminal"), pytest.param(False, id="log")])
def test_every_phase_reaches_its_total(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    run()
    assert all(f"{total}/{total}" in sys.stderr.getvalue() for _, total in PHASES)


def test_a_log_has_two_lines_for_each_phase_and_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=False))
    run()
    text = sys.stderr.getvalue()
    assert "\r" not in text
    assert text.splitlines() == [
        "Text: 0/1 steps",
        "Text: 1/1 steps, 0.5 s",
        "Denoise: 0/50 steps",
        "Denoise: 50/50 steps, 25.0 s",
        "Decode: 0/16 steps",
        "Decode: 16/16 steps, 8.0 s",
    ]


def test_a_run_that_was_stopped_leaves_the_line(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(terminal=True))
    progress = Progress()
    progress(StepUpdate("denoise", 0, 50, 0.0))
    progress.close()
    assert sys.stderr.getvalue().endswith("\n")
