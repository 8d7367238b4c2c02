"""Command line: ``python -m pipeline generate``, ``refine``, ``sweep``, ``find``, ``info`` and ``inspect``.

Exit codes: 0 done, 1 the work failed, 2 something in the input cannot be used, and as a shell has it for programs that
a signal ended: 130 interrupted, 143 terminated, 129 the terminal closed, 141 nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from pipeline.cli.inspect import run_inspect
from pipeline.cli.long_command import run_long_command
from pipeline.cli.parser import build_parser
from pipeline.cli.progress import Progress
from pipeline.cli.read import checked_device, open_checkpoint, read_request, read_weights, tell_reading
from pipeline.cli.sweep_command import run_sweep_command
from pipeline.cli.tasks import chosen_task
from pipeline.estimate.choose_attention import choose_attention
from pipeline.estimate.estimator import FILE_NAME, Estimate, Estimator
from pipeline.machine.device import choose_device
from pipeline.machine.memory import available_memory, out_of_memory
from pipeline.machine.paths import check_writable
from pipeline.machine.whole_files import write_whole
from pipeline.media.write import prepare_output
from pipeline.request.result import Comparison, VideoResult
from pipeline.request.sentences import VisibleFormatter, one_line, visible
from pipeline.request.video import Cancelled
from pipeline.runs.compare import compare
from pipeline.runs.longcat import LongCatPipeline
from pipeline.runs.plan import plan, plan_to_load


def run_generate(args: argparse.Namespace) -> dict[str, Any]:
    """Make or refine the video (or both, or many in a row) and return the report."""
    if args.command == "generate" and chosen_task(args) == "long":
        return _run_long(args)
    weights = read_weights(args)
    weights.check_forward(args.forward)
    info = open_checkpoint(args, weights)
    tell_reading(args, info)
    request = read_request(args, info)
    # loading may take minutes: everything that can be found wrong is found before
    made = [request.dense, request] if args.compare else [request]
    *_, planned = plan_to_load(info, made, weights, checked_device(args.device, weights), forward=args.forward)
    if args.compare:
        planned.work.check_comparison()
    output = args.output or _new_name(request.seed, ".mp4" if not args.compare else "")
    if args.compare and output.suffix.lower() == ".mp4":
        raise ValueError(f"--compare makes two videos, and {output} names one file; name a folder for them")
    for file in (output / "dense.mp4", output / "sparse.mp4") if args.compare else (output,):
        prepare_output(file)
    if request.bsa is None and not args.dense and args.bsa is None:
        config = visible(str(info.path / info.layout.configs["transformer"]))
        print(f"BSA is off: {config} does not set enable_bsa; --sparsity 0.9375 turns it on", file=sys.stderr)

    pipeline = LongCatPipeline.load(
        info.path,
        args.device,
        on_message=lambda message: print(visible(message), file=sys.stderr),
        record=args.record,
        forward=args.forward,
        lora_dir=args.lora_dir,
        **weights.arguments,
    )
    if args.bsa == "auto":
        request = pipeline.choose_attention(request, Path("outputs") / FILE_NAME)
        print(f"attention {request.auto}", file=sys.stderr)
    bar = Progress()
    try:
        if args.compare:
            comparison = compare(pipeline, request, bar, output)
            _print_comparison(comparison, args.json)
            return comparison.to_dict()
        result = pipeline.generate(request, bar, output)
        _print_result(result, args.json)
        return result.to_dict()
    finally:
        bar.close()


def _run_long(args: argparse.Namespace) -> dict[str, Any]:
    bar = Progress()
    try:
        return run_long_command(args, bar, args.output or _new_name(args.seed, ""), _report_stream(args.json))
    finally:
        bar.close()


def run_grid(args: argparse.Namespace) -> dict[str, Any]:
    """Make the videos of a sweep or a search and return the report."""
    bar = Progress()
    try:
        return run_sweep_command(args, bar, _report_stream(args.json))
    finally:
        bar.close()


def _new_name(seed: int, suffix: str) -> Path:
    """In outputs/, by time and seed; the rest tells apart two that begin in the same second."""
    return Path("outputs") / f"{time.strftime('%Y%m%d-%H%M%S')}-seed{seed}-{uuid.uuid4().hex[:4]}{suffix}"


def run_info(args: argparse.Namespace) -> dict[str, Any]:
    """Describe the checkpoint and the request, and return the description."""
    weights = read_weights(args)
    info = open_checkpoint(args, weights)
    request, device, store = read_request(args, info), choose_device("auto"), Path("outputs") / FILE_NAME
    estimator = Estimator(info, device, store, weights)
    if args.bsa == "auto":
        request = choose_attention(request, info.sparse, estimator.estimate, available_memory(device))
    # without an estimator: what does not fit here is described all the same, it may be meant for another machine
    work = plan(info, request, weights, device).work
    report: dict[str, Any] = {
        "checkpoint": str(info.path),
        "layout": info.layout.title,
        "parameters": info.parameters,
        "size": f"{request.width}x{request.height}, {request.num_frames} frames at {request.fps} fps",
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        **({"teacache_thresh": request.teacache_thresh} if request.teacache_thresh else {}),
        "token_grid": str(work.grid),
        "tokens": work.grid.volume,
        **({"conditioning_frames": work.conditioning} if work.conditioning else {}),
        "bsa_active": work.sparse,
        "bsa_reason": work.reason,
        **({} if request.auto is None else {"attention": request.auto}),
    }
    if work.bsa is not None and work.blocks is not None:
        report |= {
            "bsa_params": work.bsa.to_bsa_params(),
            "query_blocks": work.blocks.q_blocks.volume,
            "key_blocks": work.blocks.k_blocks.volume,
            "key_blocks_kept": work.blocks.kept,
        }
    report |= weights.versions | _expected(estimator.estimate(request), estimator)
    if args.json != "-":
        for name, value in report.items():
            print(f"{name.replace('_', ' '):16} {visible(str(_shown(name, value)))}")
    return report


def _expected(estimate: Estimate, estimator: Estimator) -> dict[str, Any]:
    """Seconds by phase, None without measurements, and bytes."""
    in_host = estimator.host_bytes()
    seconds = estimate.seconds and {phase: round(value, 3) for phase, value in estimate.seconds.items()}
    return {
        "seconds_expected": seconds,
        **({"seconds_at_most": True} if seconds and estimate.at_most else {}),
        "memory_expected": estimate.memory,
        "memory_available": available_memory(estimator.device),
        **({"memory_in_host": in_host} if in_host else {}),
        **({"memory_of_kv_cache": estimate.kv_cache} if estimate.kv_cache else {}),
        "estimated_from": estimate.basis,
    }


def _shown(name: str, value: Any) -> Any:
    if name == "seconds_at_most":
        return "yes, TeaCache skips some of the steps"
    if name.startswith("memory_"):
        return f"{value / 2**30:.2f} GiB"
    if name == "seconds_expected":
        return "unknown" if value is None else ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in value.items())
    return value


def _print_result(result: VideoResult, json_target: str | None) -> None:
    seconds = ", ".join(f"{phase} {value:.2f}" for phase, value in result.seconds.items())
    blocks = f", {result.blocks_kept:g} of {result.blocks_total} key blocks" if result.bsa_active else ""
    lines = [
        f"video     {visible(str(result.video))}",
        f"seconds   {seconds}",
        f"memory    {result.peak_memory / 2**30:.2f} GiB peak ({result.peak_memory_label})",
        f"attention {'BSA' if result.bsa_active else 'dense'}, {result.density:.2%} of the token pairs{blocks}",
    ]
    if result.passes is not None and result.skipped:
        lines.append(f"passes    {result.passes} of {result.passes + result.skipped} steps, the others by TeaCache")
    print("\n".join(lines), file=_report_stream(json_target))


def _print_comparison(comparison: Comparison, json_target: str | None) -> None:
    for result in (comparison.dense, comparison.sparse):
        _print_result(result, json_target)
    similarity = f"PSNR {comparison.psnr:.2f} dB, SSIM {comparison.ssim:.4f} to dense"
    speed = comparison.speed
    figure = f"{speed.ratio:.2f}x" if speed.sure else f"{speed.low:.1f} to {speed.high:.1f}x"
    print(f"speed-up  {figure} denoising ({speed.clock}); {similarity}", file=_report_stream(json_target))
    for doubt in speed.doubts:
        print(f"in doubt  {doubt}", file=_report_stream(json_target))


def _report_stream(json_target: str | None) -> TextIO:
    return sys.stderr if json_target == "-" else sys.stdout


def _write_json(report: dict[str, Any], target: str) -> None:
    if target == "-":
        print(json.dumps(report, indent=2, ensure_ascii=(sys.stdout.encoding or "utf-8").lower() != "utf-8"))
        return
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    try:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(target), text)
    except OSError as error:
        raise OSError(f"cannot write the report to {target}: {error.strerror}; free some space") from error


class _LogHandler(logging.Handler):
    """Writes to stderr above a progress bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _set_up_logging(verbose: bool) -> None:
    handler = _LogHandler()
    handler.setFormatter(VisibleFormatter("%(message)s"))
    for name in ("pipeline", "bsa") + (("fastvideo",) if verbose else ()):
        logger = logging.getLogger(name)
        if not any(isinstance(present, _LogHandler) for present in logger.handlers):
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    if verbose:
        os.environ["FASTVIDEO_LOGGING_LEVEL"] = "INFO"


def _settle_streams() -> None:
    """Let closed standard streams (`>&-`) lead nowhere, and escape characters that the others cannot write."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Ended(KeyboardInterrupt):
    """A signal that would have ended the process at once, with half a video on the disk."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise as SIGINT does, except where somebody chose otherwise (nohup)."""

    def end(number: int, frame: object) -> None:
        raise _Ended(number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


_COMMANDS = {
    "generate": run_generate,
    "refine": run_generate,
    "sweep": run_grid,
    "find": run_grid,
    "info": run_info,
    "inspect": lambda args: run_inspect(args, sys.stderr if args.json == "-" else sys.stdout),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _settle_streams()
    args = build_parser().parse_args(argv)
    _set_up_logging(args.verbose)
    try:
        with _signals_raise():
            if args.json and args.json != "-":
                check_writable(Path(args.json))
            report = _COMMANDS[args.command](args)
            if args.json:
                _write_json(report, args.json)
            sys.stdout.flush()
    except (KeyboardInterrupt, Cancelled) as ending:
        print("interrupted", file=sys.stderr)
        return 128 + getattr(ending, "number", signal.SIGINT)
    except BrokenPipeError:
        # whoever read the output is gone, so there is nobody to tell, not even by Python when it ends
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if args.verbose:
            logging.getLogger("pipeline").exception("traceback")
        return _report_failure(error)
    return 0


def _report_failure(error: Exception) -> int:
    if isinstance(error, torch.OutOfMemoryError):
        remedy = "use a smaller size, fewer frames, --offload, or --device cpu"
        print(f"error: the GPU ran out of memory; {remedy}", file=sys.stderr)
        return 1
    if out_of_memory(error):
        print("error: the host's memory does not suffice; use a smaller size or fewer frames", file=sys.stderr)
        return 1
    message = one_line(error) or type(error).__name__
    print(f"error: {message}", file=sys.stderr)
    return 2 if isinstance(error, ValueError) else 1
