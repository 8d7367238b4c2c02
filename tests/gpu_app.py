"""`app.py` with an engine that does harm when told to: `python tests/gpu_app.py FOLDER [options of app.py]`.

An order for the engine's next video is a word in the file FOLDER/order, see `ORDERS`. Each video leaves a line of JSON
in FOLDER/engine.jsonl: {"order", "seconds": from request to file, "pid"}. Needs a GPU for most orders.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = "GPU_APP_FOLDER"  # environment variable, for the engine's process
AT_STEP = 2  # of denoising, when work is already queued on the GPU
LEFT = 64 * 2**20  # bytes that "fill" leaves: less than one block of the transformer takes for a large video


def illegal_access() -> None:
    """Write where no memory is. The launch succeeds; some later call finds out."""
    from gpu_faults import write_to

    write_to[(1,)](4096)


def device_assert() -> None:
    """Read beyond the end of a tensor, which PyTorch's kernel finds out while it runs."""
    import torch

    torch.zeros(4, device="cuda")[torch.tensor([10**6], device="cuda")]


def fill() -> Any:
    """All of the GPU's memory that nobody has, but a little."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    return torch.empty(free - LEFT, dtype=torch.uint8, device="cuda")


FAULTS = {"illegal access": illegal_access, "device assert": device_assert}
ORDERS = (*FAULTS, "fill", "do not record")


class Obedient:
    """A pipeline that follows the orders."""

    def __init__(self, pipeline: Any, folder: Path) -> None:
        self._pipeline = pipeline
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def generate_frames(self, request, on_step, output):
        file = self._folder / "order"
        order = file.read_text() if file.exists() else ""
        file.unlink(missing_ok=True)

        def watched(update):
            if (update.phase, update.step) == ("denoise", AT_STEP) and order in FAULTS:
                FAULTS[order]()
            on_step(update)

        held = fill() if order == "fill" else None
        self._pipeline.record = order != "do not record"
        began = time.perf_counter()
        made = self._pipeline.generate_frames(request, watched, output)
        entry = {"order": order, "seconds": time.perf_counter() - began, "pid": os.getpid()}
        del held
        with (self._folder / "engine.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")
        return made


def load(say, **arguments):
    from pipeline.engine.child import load_longcat

    return Obedient(load_longcat(say, **arguments), Path(os.environ[FOLDER]))


def main() -> int:
    import app
    from pipeline.cli import engines

    os.environ[FOLDER] = sys.argv[1]
    engines.ENGINE = "gpu_app:load"
    return app.main(sys.argv[2:])


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1])]
    sys.exit(main())
