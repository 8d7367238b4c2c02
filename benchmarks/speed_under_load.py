"""Measures whether a busy machine changes the speed-up that a comparison reports.

    python benchmarks/speed_under_load.py

Makes the same comparison with the embedded checkpoint on the machine as it is, then with another process that keeps
every core busy: all the time, during the dense run alone, and during the sparse run alone. Records the reported figure
beside the ratio of wall seconds, which is what would be reported without CPU times. Writes
benchmarks/results/speed_under_load.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bsa import BSAConfig
from pipeline import LongCatPipeline, VideoRequest
from pipeline.request.result import VideoResult, speed

RESULTS = Path(__file__).parent / "results" / "speed_under_load.json"
LOADED = {
    "nothing else": (),
    "both runs": ("dense", "sparse"),
    "the dense run": ("dense",),
    "the sparse run": ("sparse",),
}
AGREES = 0.15  # how far the figure under load may be from the one without


def burn() -> None:
    """Keep one core busy until the process is ended."""
    while True:
        sum(range(10**6))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute for the whole of the block."""
    context = multiprocessing.get_context("spawn")
    burners = [context.Process(target=burn, daemon=True) for _ in range(processes)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.terminate()
            burner.join()


def measure(pipeline: LongCatPipeline, request: VideoRequest, loaded: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """One comparison; loaded: the videos during which the cores are busy with something else."""
    made: dict[str, VideoResult] = {}
    for arm, asked in (("dense", replace(request, bsa=None)), ("sparse", request)):
        with busy(len(os.sched_getaffinity(0)) if arm in loaded else 0):
            made[arm] = pipeline.generate(asked, output=folder / f"{arm}.mp4")
    found = speed(made["dense"], made["sparse"])
    timings = {arm: result.timing for arm, result in made.items()}
    return {
        **found.to_dict(),
        "wall_ratio": made["dense"].seconds["denoise"] / made["sparse"].seconds["denoise"],
        "wall_seconds": {arm: round(result.seconds["denoise"], 2) for arm, result in made.items()},
        "others": {arm: timing and timing.others for arm, timing in timings.items()},
        "decode": {arm: timing and round(timing.decode, 3) for arm, timing in timings.items()},
        "steps": {arm: timing and [round(step, 3) for step in timing.steps] for arm, timing in timings.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--sparsity", type=float, default=0.9375)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    pipeline = LongCatPipeline.load(device="cpu")
    bsa = BSAConfig(sparsity=args.sparsity)
    request = pipeline.info.request("a red ball bounces over green hills", seed=1, steps=args.steps, bsa=bsa)
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, loaded in LOADED.items():
            runs[name] = measure(pipeline, request, loaded, Path(folder))
            print(name, {key: runs[name][key] for key in ("speedup", "wall_ratio", "speedup_range")}, flush=True)
    idle = runs["nothing else"]["speedup"]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "settings": f"{request.width}x{request.height}, {request.num_frames} frames, {request.steps} steps, "
        f"sparsity {args.sparsity}",
        "largest_difference": round(max(abs(run["speedup"] / idle - 1) for run in runs.values()), 4),
        "allowed": AGREES,
        "runs": runs,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
