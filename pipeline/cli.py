"""Command line: ``python -m pipeline generate`` and ``python -m pipeline info``.

Exit codes: 0 done, 1 the work failed, 2 something in the input cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from bsa import BSAConfig, Grid

from .checkpoint import EMBEDDED_CHECKPOINT, CheckpointInfo, inspect_checkpoint
from .compare import compare
from .longcat import LongCatPipeline, choose_device
from .request import Cancelled, Comparison, StepUpdate, VideoRequest, VideoResult
from .video import check_writable, prepare_output

DESCRIPTION = """\
LongCat text-to-video with dense or Block Sparse Attention (BSA), on an NVIDIA GPU or a CPU.
"""

GENERATE = """\
Make a video from a prompt. Sizes, steps, guidance and BSA default to what the checkpoint asks for
(generation_config.json, and enable_bsa / bsa_params in transformer/config.json); without
--model-path that is the small embedded checkpoint, which a laptop can run.
"""

EXAMPLES = """\
examples:
  python -m pipeline generate --prompt "a red circle bounces on a blue gradient"
  python -m pipeline generate --prompt "..." --compare --sparsity 0.875
  python -m pipeline generate --model-path weights/longcat --task t2v --height 720 --width 1280 \\
      --num-frames 93 --prompt "..." --sparsity 0.9375 --chunk-q 4 4 4 --chunk-k 4 4 4
  python -m pipeline info --model-path weights/longcat --height 720 --width 1280

exit codes: 0 done, 1 failed, 2 unusable input, 130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    style = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="python -m pipeline", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=style)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{generate,info}")

    generate = commands.add_parser("generate", help="make a video", description=GENERATE, epilog=EXAMPLES, formatter_class=style)
    _add_checkpoint(generate)
    _add_video(generate, prompt_required=True)
    _add_attention(generate)
    run = generate.add_argument_group("run")
    run.add_argument("--compare", action="store_true", help="make the video twice, dense then sparse, and report speed-up and similarity")
    run.add_argument("--output", type=Path, metavar="PATH", help="the .mp4 file; with --compare a folder (default: a new name in outputs/)")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto, CUDA where there is a GPU)")

    info = commands.add_parser(
        "info",
        help="describe a checkpoint and what a generation would do",
        description="Describe a checkpoint: its settings, the token grid, how many blocks BSA keeps. Loads no weights.",
        formatter_class=style,
    )
    _add_checkpoint(info)
    _add_video(info, prompt_required=False)
    _add_attention(info)
    for command in (generate, info):
        command.add_argument("--json", metavar="FILE", help="also write the report as JSON; - for standard output, and nothing else there")
        command.add_argument("--verbose", action="store_true", help="show FastVideo's own log, and tracebacks of failures")
    return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoint")
    group.add_argument(
        "--model-path", type=Path, default=EMBEDDED_CHECKPOINT, metavar="FOLDER", help="LongCat checkpoint in FastVideo's layout (default: the embedded one)"
    )
    group.add_argument("--task", default="t2v", help="t2v, text to video, is the only task: LongCat uses no BSA with conditioning frames")


def _add_video(parser: argparse.ArgumentParser, *, prompt_required: bool) -> None:
    group = parser.add_argument_group("video")
    group.add_argument("--prompt", required=prompt_required, default="info", help="what to show; at most 512 tokens")
    group.add_argument("--negative-prompt", default="", help="what to avoid; counts when the guidance scale is above 1")
    group.add_argument("--height", type=int, metavar="PIXELS", help="a multiple of 16")
    group.add_argument("--width", type=int, metavar="PIXELS", help="a multiple of 16")
    group.add_argument("--num-frames", type=int, metavar="N", help="of the form 4n + 1")
    group.add_argument("--steps", "--num-inference-steps", type=int, metavar="N", help="denoising steps")
    group.add_argument("--guidance-scale", type=float, metavar="X", help="1 for none, which is twice as fast")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    group.add_argument("--fps", type=int, metavar="N", help="frames per second of the file")


def _add_attention(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "block sparse attention", "Any of the first four turns BSA on, or changes the checkpoint's own setting."
    )
    group.add_argument("--sparsity", type=_sparsity, metavar="X", help="share of key blocks to drop, 0 to below 1; 0.9375 keeps 1 in 16; none: the cdf threshold alone")
    group.add_argument("--cdf-threshold", type=float, metavar="X", help="softmax mass to keep, above 0 to 1; with --sparsity the rule that keeps more wins")
    group.add_argument("--chunk-q", nargs="+", metavar="N", help="frames, rows and columns of a query block: 4 4 4, 4,4,4 or 4x4x4")
    group.add_argument("--chunk-k", nargs="+", metavar="N", help="the same of a key block")
    group.add_argument("--dense", action="store_true", help="dense attention, whatever the checkpoint says")


def _sparsity(text: str) -> float | str:
    if text.lower() == "none":
        return "none"  # not None, which argparse uses for "not given"
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; use one from 0 to below 1, such as 0.9375") from None


def _chunk(option: str, parts: list[str]) -> Grid:
    words = " ".join(parts).replace(",", " ").replace("x", " ").split()
    if len(words) != 3 or not all(word.isdecimal() for word in words):
        raise ValueError(f"{option} {' '.join(parts)!r} is not three whole numbers; use for example {option} 4 4 4")
    return Grid(*map(int, words))


def read_bsa(args: argparse.Namespace, default: BSAConfig | None) -> BSAConfig | None:
    """The attention asked for: the options, over the checkpoint's setting, over LongCat's (0.9375, 4x4x4)."""
    changes: dict[str, Any] = {}
    if args.sparsity is not None:
        changes["sparsity"] = None if args.sparsity == "none" else args.sparsity
    if args.cdf_threshold is not None:
        changes["cdf_threshold"] = args.cdf_threshold
    for name in ("chunk_q", "chunk_k"):
        if getattr(args, name) is not None:
            changes[name] = _chunk(f"--{name.replace('_', '-')}", getattr(args, name))
    comparing = getattr(args, "compare", False)
    if args.dense:
        if changes or comparing:
            other = "--compare" if comparing else f"--{next(iter(changes)).replace('_', '-')}"
            raise ValueError(f"--dense and {other} contradict each other; leave one out")
        return None
    if changes or comparing:
        return replace(default or BSAConfig(), **changes)
    return default


def read_request(args: argparse.Namespace, info: CheckpointInfo) -> VideoRequest:
    """The request that the options describe. ValueError when one cannot be used."""
    if args.task != "t2v":
        raise ValueError(
            f"task {args.task!r} is not supported; use t2v (LongCat uses no Block Sparse Attention with conditioning frames)"
        )
    names = ("height", "width", "num_frames", "steps", "guidance_scale", "fps")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return info.request(args.prompt, negative_prompt=args.negative_prompt, seed=args.seed, bsa=read_bsa(args, info.bsa), **given)


class _Bar:
    """One tqdm bar per phase, driven by the true steps."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __call__(self, update: StepUpdate) -> None:
        if update.step == 0 or self._bar is None:
            self.close()
            labels = {"text": "Text", "denoise": "Denoise", "decode": "Decode"}
            self._bar = tqdm(total=update.total, desc=labels[update.phase], unit="step", file=sys.stderr)
        self._bar.update(update.step - self._bar.n)
        if update.step == update.total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def run_generate(args: argparse.Namespace) -> dict[str, Any]:
    """Make the video (or both) and return the report."""
    info = inspect_checkpoint(args.model_path)
    request = read_request(args, info)
    choose_device(args.device)
    output = args.output or Path("outputs") / time.strftime(f"%Y%m%d-%H%M%S-seed{request.seed}{'' if args.compare else '.mp4'}")
    # loading may take minutes: everything that can be found wrong is found before
    prepare_output(output / "dense.mp4" if args.compare else output)
    active, reason = request.bsa_status()
    if args.compare and not active:
        raise ValueError(f"nothing to compare: {reason}")

    pipeline = LongCatPipeline.load(info.path, args.device, on_message=lambda message: print(message, file=sys.stderr))
    bar = _Bar()
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


def run_info(args: argparse.Namespace) -> dict[str, Any]:
    """Describe the checkpoint and the request, and return the description."""
    info = inspect_checkpoint(args.model_path)
    request = read_request(args, info)
    active, reason = request.bsa_status()
    report: dict[str, Any] = {
        "checkpoint": str(info.path),
        "parameters": info.parameters,
        "size": f"{request.width}x{request.height}, {request.num_frames} frames at {request.fps} fps",
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "token_grid": str(request.grid),
        "tokens": request.grid.volume,
        "bsa_active": active,
        "bsa_reason": reason,
    }
    if request.bsa is not None:
        plan = request.bsa.blocks(request.grid)
        report |= {
            "bsa_params": request.bsa.to_bsa_params(),
            "query_blocks": plan.q_blocks.volume,
            "key_blocks": plan.k_blocks.volume,
            "key_blocks_kept": plan.kept,
        }
    if args.json != "-":
        for name, value in report.items():
            print(f"{name.replace('_', ' '):16} {value}")
    return report


def _print_result(result: VideoResult, json_target: str | None) -> None:
    seconds = result.seconds
    blocks = f", {result.blocks_kept:g} of {result.blocks_total} key blocks" if result.bsa_active else ""
    lines = [
        f"video     {result.video}",
        f"seconds   text {seconds['text']:.2f}, denoise {seconds['denoise']:.2f}, decode {seconds['decode']:.2f}, total {seconds['total']:.2f}",
        f"memory    {result.peak_memory / 2**30:.2f} GiB peak ({result.peak_memory_label})",
        f"attention {'BSA' if result.bsa_active else 'dense'}, {result.density:.2%} of the token pairs{blocks}",
    ]
    print("\n".join(lines), file=_report_stream(json_target))


def _print_comparison(comparison: Comparison, json_target: str | None) -> None:
    for result in (comparison.dense, comparison.sparse):
        _print_result(result, json_target)
    line = f"speed-up  {comparison.speedup:.2f}x denoising; PSNR {comparison.psnr:.2f} dB, SSIM {comparison.ssim:.4f} to dense"
    print(line, file=_report_stream(json_target))


def _report_stream(json_target: str | None) -> Any:
    return sys.stderr if json_target == "-" else sys.stdout


def _write_json(report: dict[str, Any], target: str) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    if target == "-":
        print(text, end="")
    else:
        Path(target).write_text(text, encoding="utf-8")


class _LogHandler(logging.Handler):
    """Writes to stderr above a progress bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _set_up_logging(verbose: bool) -> None:
    handler = _LogHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("pipeline", "bsa") + (("fastvideo",) if verbose else ()):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
    if verbose:
        os.environ["FASTVIDEO_LOGGING_LEVEL"] = "INFO"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = build_parser().parse_args(argv)
    _set_up_logging(args.verbose)
    try:
        if args.json and args.json != "-":
            check_writable(Path(args.json))
        report = run_generate(args) if args.command == "generate" else run_info(args)
        if args.json:
            _write_json(report, args.json)
    except (KeyboardInterrupt, Cancelled):
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.verbose:
            logging.getLogger("pipeline").exception("traceback")
        return _report_failure(error)
    return 0


def _report_failure(error: Exception) -> int:
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        print("error: the GPU ran out of memory; use a smaller size, fewer frames, or --device cpu", file=sys.stderr)
        return 1
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"error: {message}", file=sys.stderr)
    return 2 if isinstance(error, ValueError) else 1
