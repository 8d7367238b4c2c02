"""What the engine process runs in the tests of engines that hang or die: a pipeline whose videos never end. It is there
at once, because it imports no PyTorch."""

from __future__ import annotations

import time

import numpy as np

from pipeline import StepUpdate
from pipeline.machine.device import DeviceName
from pipeline.media.write import write_video


class Endless:
    """Takes steps for ever, or, when the prompt is "write", writes a video for ever."""

    device = DeviceName("cpu")

    def generate_frames(self, request, on_step, output):
        if request.prompt == "write":
            write_video(output, EndlessFrames(on_step), request.fps, {})
        for step in range(10**9):
            on_step(StepUpdate("denoise", step, 10**9, float(step)))
            time.sleep(0.02)


class EndlessFrames:
    shape = (10**9, 64, 64, 3)

    def __init__(self, on_step):
        self.on_step = on_step

    def __iter__(self):
        for number in range(10**9):
            yield np.random.randint(0, 255, self.shape[1:], np.uint8)
            time.sleep(0.002)
            self.on_step(StepUpdate("decode", number, 10**9, 0.0))


def load(say) -> Endless:
    return Endless()
