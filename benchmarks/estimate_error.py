"""Compares estimates with the measured time and memory of videos, for the embedded checkpoint.

python benchmarks/estimate_error.py --output benchmarks/results/estimate_error.json

Makes videos of different sizes, lengths, sparsities and blocks, and some with full attention. Compares each with three
estimates: from the calibration alone; from the calibration and one other run with the same frame size and kind of
attention; and from the calibration and all other runs. `--cpu-seconds` counts the processor time of one thread instead
of wall seconds, for a machine that is shared with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bsa import BSAConfig, Grid
from pipeline import LongCatPipeline, VideoRequest, VideoResult
from pipeline.estimate.estimator import Estimator, measure

DENSE, HALF, THREE_QUARTERS, MOST = None, BSAConfig(sparsity=0.5), BSAConfig(sparsity=0.75), BSAConfig(sparsity=0.9375)
LONG_BLOCKS = BSAConfig(sparsity=0.75, chunk_q=Grid(4, 8, 8), chunk_k=Grid(4, 8, 8))
# (frames, height, width, steps, attention); the last two repeat earlier kinds with other steps
SETTINGS = [
    (61, 256, 256, 3, DENSE),
    (61, 256, 256, 3, THREE_QUARTERS),
    (29, 256, 256, 3, DENSE),
    (29, 256, 256, 3, THREE_QUARTERS),
    (93, 256, 256, 2, MOST),
    (93, 256, 256, 2, DENSE),
    (61, 256, 256, 3, HALF),
    (61, 256, 256, 3, LONG_BLOCKS),
    (61, 176, 320, 3, DENSE),
    (61, 176, 320, 3, THREE_QUARTERS),
    (45, 176, 320, 4, THREE_QUARTERS),
    (61, 128, 128, 5, THREE_QUARTERS),
    (61, 256, 256, 6, THREE_QUARTERS),
    (61, 256, 256, 5, DENSE),
]
PHASES = ("denoise", "decode", "total", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--cpu-seconds", action="store_true", help="processor time of one thread, not wall time")
    options = parser.parse_args()
    if options.cpu_seconds:
        torch.set_num_threads(1)
        time.perf_counter = time.process_time  # pipeline and calibration read this clock
    pipeline = LongCatPipeline.load(device="cpu")
    points = measure(pipeline)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for frames, height, width, steps, bsa in SETTINGS:
            request = pipeline.info.request("a red ball bounces over green hills at sunset")
            request = replace(request, num_frames=frames, height=height, width=width, steps=steps, bsa=bsa)
            results.append(pipeline.generate(request, output=Path(folder) / "video.mp4"))
            print(_name(request), {phase: round(value, 2) for phase, value in results[-1].seconds.items()}, flush=True)

    def estimator(runs: Iterable[VideoResult]) -> Estimator:
        fresh = Estimator(pipeline.info, pipeline.device)
        fresh.calibrate(points)
        for run in runs:
            fresh.observe(run)
        return fresh

    def others(result: VideoResult) -> list[VideoResult]:
        return [run for run in results if run is not result]

    errors = {
        "calibration alone": [_errors(estimator([]), result) for result in results],
        "one run of like kind": [
            _errors(estimator([run]), result) for result in results for run in others(result) if _alike(run, result)
        ],
        "all other runs": [_errors(estimator(others(result)), result) for result in results],
    }
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "clock": "processor seconds of one thread" if options.cpu_seconds else "wall seconds",
        "threads": torch.get_num_threads(),
        "torch": metadata.version("torch"),
        "settings": len(SETTINGS),
        "errors": {
            basis: {
                phase: {
                    "estimates": len(rows),
                    "mean": statistics.mean(row[phase] for row in rows),
                    "worst": max(row[phase] for row in rows),
                }
                for phase in PHASES
            }
            for basis, rows in errors.items()
        },
        "runs": [{"request": _name(r.request), "seconds": r.seconds, "peak_memory": r.peak_memory} for r in results],
    }
    for basis, phases in report["errors"].items():
        for phase, row in phases.items():
            print(f"{basis:22} {phase:8} mean {row['mean']:4.0%}  worst {row['worst']:4.0%}  of {row['estimates']}")
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def _alike(run: VideoResult, result: VideoResult) -> bool:
    a, b = run.request, result.request
    return (a.height, a.width) == (b.height, b.width) and (a.bsa is None) == (b.bsa is None)


def _errors(estimator: Estimator, result: VideoResult) -> dict[str, float]:
    """The relative error of each estimate."""
    found = estimator.estimate(result.request)
    errors = {phase: abs(found.seconds[phase] / result.seconds[phase] - 1) for phase in ("denoise", "decode", "total")}
    return {**errors, "memory": abs(found.memory / result.peak_memory - 1)}


def _name(request: VideoRequest) -> str:
    kind = "dense" if request.bsa is None else f"{request.bsa.sparsity} in {request.bsa.chunk_k}"
    return f"{request.width}x{request.height}x{request.num_frames}, {request.steps} steps, {kind}"


if __name__ == "__main__":
    main()
