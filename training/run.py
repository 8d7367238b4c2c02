"""Shared by the training programs: a clock that excludes compilation, a loss curve, and the report of a run."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.parallel import agree, is_first

WARM_UP_STEPS = 3  # the steps that compile


class Run:
    """A training run of a fixed time.

    for progress in run.steps(minutes): ...; run.log(step_loss)

    `progress` is None for the first steps. They compile and do not count. Then it goes from 0 to 1.
    """

    def __init__(self, device: str, every: int = 100) -> None:
        self._cuda, self._every = device == "cuda", every
        self._recent: list[Tensor] = []
        self.began, self.count = time.time(), 0
        self.curve: list[Any] = []

    def steps(self, minutes: float, wall: float | None = None) -> Iterator[float | None]:
        """Yield the progress of each step.

        wall: minutes from the start of the run to the end of the last step; replaces `minutes`, which count from the
            end of the first steps.
        """
        warm = progress = None
        seconds = 60 * minutes
        while progress is None or progress < 1:
            yield progress
            self.count += 1
            if self.count == WARM_UP_STEPS:
                if self._cuda:
                    torch.cuda.synchronize()
                _say(f"compiled after {time.time() - self.began:.0f} s")
                warm = time.time()
                if wall is not None:
                    seconds = max(1.0, self.began + 60 * wall - warm)
            if warm is not None:
                progress = agree((time.time() - warm) / seconds)

    def log(self, *losses: Tensor) -> None:
        """Record the losses of one step. The curve shows their means over `every` steps."""
        self._recent.append(torch.stack([loss.detach().float() for loss in losses]))
        if len(self._recent) == self._every:
            means = [round(value, 5) for value in torch.stack(self._recent).mean(0).tolist()]
            self.curve.append([self.count + 1, round(time.time() - self.began, 1), *means])
            self._recent.clear()
            _say("step {} {} s loss".format(*self.curve[-1]), *means)

    def report(self, path: Path, arguments: argparse.Namespace, **more) -> None:
        """Write steps, seconds, arguments and the curve ([step, seconds, losses...]) as JSON. Paths are left out."""
        kept = {k: v for k, v in vars(arguments).items() if not isinstance(v, Path) and v is not None}
        content = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": torch.cuda.get_device_name() if self._cuda else "cpu",
            "torch": torch.__version__,
            "steps": self.count,
            "seconds": round(time.time() - self.began, 1),
            "arguments": kept,
            **more,
            "curve": self.curve,
        }
        numbers = re.compile(r"\[\s+([-\d.,\s]+?)\s+\]")  # a point of the curve, written on one line
        text = numbers.sub(lambda found: f"[{' '.join(found[1].split())}]", json.dumps(content, indent=1))
        path.write_text(text + "\n")
        _say(f"{self.count} steps in {content['seconds']} s")


def _say(*words: object) -> None:
    if is_first():
        print(*words, flush=True)
