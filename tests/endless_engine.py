"""What the engine process runs in the tests of engines that hang: a pipeline that takes steps without an end, and is
there at once, because it imports no PyTorch."""

from __future__ import annotations

import time

from pipeline import StepUpdate
from pipeline.machine.device import DeviceName


class Endless:
    device = DeviceName("cpu")

    def generate_frames(self, request, on_step, output):
        for step in range(10**9):
            on_step(StepUpdate("denoise", step, 10**9, float(step)))
            time.sleep(0.02)


def load(say) -> Endless:
    return Endless()
