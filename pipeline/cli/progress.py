"""Shows the progress of a generation on stderr: bars on a terminal, one line for each phase anywhere else."""

from __future__ import annotations

import sys

from tqdm import tqdm

from pipeline.request.video import StepUpdate

LABELS = {"text": "Text", "encode": "Encode", "denoise": "Denoise", "decode": "Decode"}


class Progress:
    """Takes the updates of a generation, as `on_step` gets them.

    A log or a pipe gets a line when a phase begins and one when it ends: a bar there is a line for each of its states.
    prefix: stands before every label, such as the number of a segment.
    """

    def __init__(self) -> None:
        self.prefix = ""
        self._bar: tqdm | None = None
        self._terminal = sys.stderr.isatty()

    def __call__(self, update: StepUpdate) -> None:
        label = self.prefix + LABELS[update.phase]
        if not self._terminal:
            if update.step in (0, update.total):
                done = f", {update.seconds:.1f} s" if update.step else ""
                print(f"{label}: {update.step}/{update.total} steps{done}", file=sys.stderr)
            return
        if update.step == 0 or self._bar is None:
            self.close()
            self._bar = tqdm(total=update.total, desc=label, unit="step", file=sys.stderr)
        self._bar.update(update.step - self._bar.n)
        if update.step == update.total:
            self.close()

    def close(self) -> None:
        """Leave the bar as it is, so that what follows begins on a line of its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
