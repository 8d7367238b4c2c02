"""The page over the fake pipeline on two GPUs that are not there: `python tests/gpu_server.py FOLDER PORT`.

Run by the tests of the live panel, and good for looking at the page as it is on a machine with GPUs. The stub driver
is built in FOLDER; each video moves the second GPU's memory, which PyTorch is said to use. A file FOLDER/values.json
overrules what NVML says, {"gpu1_fault": 15}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from stub_driver import GIB, StubDriver

WEIGHTS = 26 * GIB


class GpuPipeline:
    """Holds the weights; denoising takes 11 GiB more dense and 10 GiB sparse, decoding 4 GiB."""

    def __init__(self, driver: StubDriver, step_seconds: float) -> None:
        from fake_pipeline import SampledPipeline

        self._samples = 0
        self._fake = SampledPipeline(lambda: self._samples, step_seconds)
        self._driver = driver
        self._torch = {"allocated": WEIGHTS, "reserved": WEIGHTS, "uuid": driver.values["1.uuid"].removeprefix("GPU-")}
        self.device = self._fake.device
        self._hold(0, 0)

    def torch_memory(self):
        self._samples += 1  # it is asked for each
        return self._torch

    def generate_frames(self, request, on_step, output):
        most = 11 * GIB if request.bsa is None else 10 * GIB

        def watched(update):
            held = {"text": GIB, "denoise": most - (update.step % 2) * GIB, "decode": 4 * GIB}[update.phase]
            self._hold(held, 97 if update.phase == "denoise" else 40)
            if update.phase != "denoise":
                time.sleep(self._fake.step_seconds)
            on_step(update)

        started = time.monotonic()
        try:
            result, frames = self._fake.generate_frames(request, watched, output)
        finally:
            self._hold(0, 0)
        return replace(result, seconds=result.seconds | {"total": time.monotonic() - started}), frames

    def _hold(self, more: int, load: int) -> None:
        self._torch = self._torch | {"allocated": WEIGHTS + more, "reserved": WEIGHTS + int(1.05 * more)}
        mine = self._torch["reserved"] + GIB // 2
        self._driver.set(
            gpu1_used=mine + 2 * GIB,
            gpu1_processes=f"{os.getpid()}:{mine} 99:{2 * GIB}",
            gpu1_utilization=load,
            gpu1_power=90_000 + 6_000 * load,
            gpu1_temperature=34 + load // 4,
        )


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    driver = StubDriver(folder)
    if "NVML_STUB" not in os.environ:  # the library path counts only when a process starts
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=driver.env(), check=False).returncode)
    from fake_pipeline import CHECKPOINT

    import app
    from ui import Worker, build_page

    step_seconds = float(os.environ.get("STEP_SECONDS", "0.3"))
    pipeline = GpuPipeline(driver, step_seconds)
    worker = Worker(lambda say: pipeline, folder / "outputs", CHECKPOINT.name).start()
    worker.runners[0].engine.torch_memory = pipeline.torch_memory
    threading.Thread(target=follow, args=(folder / "values.json", driver), daemon=True).start()
    app.serve(build_page(CHECKPOINT, worker), folder / "outputs", host="127.0.0.1", port=port, block=True)


def follow(file: Path, driver: StubDriver) -> None:
    """Do what the file says, from its first appearance on."""
    seen = ""
    while True:
        if file.exists() and (text := file.read_text()) != seen:
            seen = text
            driver.set(**json.loads(text))
        time.sleep(0.05)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1])]
    main()
