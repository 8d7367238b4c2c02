"""``python -m pipeline sweep`` and ``find``."""

from __future__ import annotations

import argparse
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from pipeline.cli.read import checked_device, open_checkpoint, read_request, read_weights, tell_reading
from pipeline.estimate.estimator import FILE_NAME, Estimator
from pipeline.media.write import prepare_output
from pipeline.request.result import OnStep
from pipeline.request.sentences import visible
from pipeline.request.video import VideoRequest
from pipeline.runs.longcat import LongCatPipeline
from pipeline.runs.plan import plan_to_load
from pipeline.sweeps.run_sweep import run_sweep
from pipeline.sweeps.search import Floor, Search
from pipeline.sweeps.sweep import Sweep, SweepRun
from pipeline.sweeps.sweep_axes import parse_axis
from pipeline.sweeps.sweep_result import SweepResult, SweepVideo


def run_sweep_command(args: argparse.Namespace, on_step: OnStep, output: TextIO) -> dict[str, Any]:
    """Make the grid of `sweep`, or search as `find` does, and return the report.

    on_step: shows the progress. output: where the table goes.
    """
    if args.dense or args.bsa == "off":
        raise ValueError("--dense leaves nothing to sweep; leave it out, every sweep has its dense videos")
    if args.bsa == "auto":
        raise ValueError("--bsa auto leaves nothing to sweep, it chooses one setting; leave it out")
    weights = read_weights(args)
    info = open_checkpoint(args, weights)
    tell_reading(args, info)
    device, request = checked_device(args.device, weights), read_request(args, info)
    if args.command == "find":
        sweep: Sweep = _search(args, request, Estimator(info, device, Path("outputs") / FILE_NAME, weights))
    else:
        sweep = Sweep(request, parse_axis(args.rows), None if args.columns is None else parse_axis(args.columns))
    runs = sweep.expected()
    plan_to_load(info, [run.request for run in runs], weights, device)
    folder = args.output or Path("outputs") / time.strftime(f"%Y%m%d-%H%M%S-{args.command}")
    prepare_output(folder / runs[0].name)
    numbers = count(1)

    def on_begin(run: SweepRun) -> None:
        at_most = "at most " if args.command == "find" else ""
        print(f"video {next(numbers)} of {at_most}{len(runs)}: {_title(sweep, run)}", file=sys.stderr)

    pipeline = LongCatPipeline.load(
        info.path,
        args.device,
        on_message=lambda message: print(visible(message), file=sys.stderr),
        lora_dir=args.lora_dir,
        **weights.arguments,
    )
    result = run_sweep(pipeline, sweep, on_step, folder, on_begin=on_begin)
    print(_table(result), file=output)
    if isinstance(sweep, Search):
        print(sweep.verdict(tuple(result.videos())), file=output)
    print(f"written to {visible(str(folder))}: sweep.csv, sweep.json and the videos", file=output)
    return result.to_dict()


def _search(args: argparse.Namespace, request: VideoRequest, estimator: Estimator) -> Search:
    rules = {"--sparsity": args.sparsity, "--cdf-threshold": args.cdf_threshold}
    if given := next((option for option, value in rules.items() if value is not None), None):
        raise ValueError(f"{given} is what find searches for; leave it out")
    return Search.of(request, Floor.parse(args.floor), args.most, estimator.denoising)


def _title(sweep: Sweep, made: SweepRun | SweepVideo) -> str:
    if made.row is None or made.column is None:
        return f"dense, seed {made.request.seed}, {made.request.steps} steps"
    return sweep.describe(made.row, made.column)


def _table(result: SweepResult) -> str:
    front = result.front("psnr")
    lines = [f"{'':3}{'cell':34}{'denoise s':>10}{'speed-up':>10}{'density':>9}{'PSNR dB':>9}{'SSIM':>8}{'recall':>8}"]
    for video in result.videos():
        title = _title(result.sweep, video)
        if video.result is None:
            lines.append(f"{'':3}{title:34}  failed: {visible(str(video.error))}")
            continue
        star = " * " if video in front else "   "
        lines.append(
            f"{star}{title:34}{video.result.seconds['denoise']:>10.2f}{_cell(video.speedup, '.2f')}"
            f"{video.result.density:>9.1%}{_cell(video.psnr, '.1f', 9)}{_cell(video.ssim, '.3f', 8)}"
            f"{_cell(video.recall, '.3f', 8)}"
        )
    lines += [
        f"over {one.seeds} seeds{', ' if one.setting else ''}{one.setting}: PSNR {one.psnr:.1f} dB "
        f"({one.psnr_low:.1f} to {one.psnr_high:.1f}), SSIM {one.ssim:.3f} ({one.ssim_low:.3f} to {one.ssim_high:.3f})"
        for one in result.over_seeds()
    ]
    lines += [
        f"in doubt: {_title(result.sweep, fewer)} computed less than {_title(result.sweep, more)} and took longer"
        for fewer, more in result.out_of_order()[:3]
    ]
    unsure = sorted({doubt for cell in result.cells if cell.speed is not None for doubt in cell.speed.doubts})
    lines += [f"in doubt: {doubt}" for doubt in unsure[:3]]
    return "\n".join([*lines, "* on the Pareto front of speed-up and PSNR"])


def _cell(value: float | None, style: str, width: int = 10) -> str:
    return f"{'-' if value is None else format(value, style):>{width}}"
