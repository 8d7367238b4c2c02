"""``python -m pipeline generate --task long``: a long video, segment by segment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Protocol, TextIO

from pipeline.checkpoint.info import CheckpointInfo
from pipeline.cli.options import checked_device, open_checkpoint, read_request, read_weights
from pipeline.media.write import prepare_output
from pipeline.request.sentences import visible
from pipeline.request.video import StepUpdate
from pipeline.runs.chain import ChainStore, run_chain
from pipeline.runs.long_video import COND_FRAMES, LongVideo, prompts_for
from pipeline.runs.longcat import LongCatPipeline
from pipeline.runs.plan import plan_to_load

LONGEST_FILE = 2**20  # bytes, of prompts


class Bar(Protocol):
    """Shows the progress. prefix: what stands before it."""

    prefix: str

    def __call__(self, update: StepUpdate) -> None: ...


def run_long_command(args: argparse.Namespace, bar: Bar, folder: Path, output: TextIO) -> dict[str, Any]:
    """Make the long video into `folder`, or what is missing of it, and return the report.

    output: where the result is told.
    """
    if args.compare:
        raise ValueError("--compare makes one video twice, and --task long many; leave one out")
    if folder.suffix.lower() == ".mp4":
        raise ValueError(f"--task long makes a folder of files, and {folder} names one file; name a folder for them")
    weights = read_weights(args)
    weights.check_forward(args.forward)
    info = open_checkpoint(args.model_path, args.device, weights)
    video = read_long(args, info)
    kinds = [video.segment(number, folder / "end.mp4") for number in range(min(2, len(video)))]
    plan_to_load(info, kinds, weights, checked_device(args.device, weights), forward=args.forward)
    store, whole = ChainStore(folder, video, info.name), folder / "video.mp4"
    for file in (store.video(0), whole):
        prepare_output(file)
    if store.parts:
        print(f"{len(store.parts)} of {len(video)} segments are in {visible(str(folder))} already", file=sys.stderr)

    pipeline = LongCatPipeline.load(
        info.path,
        args.device,
        on_message=lambda message: print(visible(message), file=sys.stderr),
        record=args.record,
        forward=args.forward,
        **weights.arguments,
    )
    for number in range(len(video)):
        pipeline.check_tokens(video.segment(number, whole))

    def on_begin(number: int) -> None:
        bar.prefix = f"{number + 1}/{len(video)} "
        print(f"segment {number + 1} of {len(video)}: {visible(video.prompts[number])}", file=sys.stderr)

    result = run_chain(pipeline, video, store, whole, bar, on_begin=on_begin)
    seconds = result.frames / result.fps
    print(f"video     {visible(str(result.video))}", file=output)
    print(f"length    {result.frames} frames, {seconds:.1f} s, {len(result.parts)} segments", file=output)
    return result.to_dict()


def read_long(args: argparse.Namespace, info: CheckpointInfo) -> LongVideo:
    """The long video that the options describe. ValueError when it cannot be made."""
    prompts = prompts_for(_prompts(args), args.segments)
    args.prompt = prompts[0]
    request = read_request(args, info)
    fine = not request.use_distill if args.enhance_hf is None else args.enhance_hf
    frames = COND_FRAMES if args.cond_frames is None else args.cond_frames
    return LongVideo(request, prompts, frames, args.kv_cache or "device", fine)


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompts is None:
        return args.each_prompt
    try:
        with args.prompts.open(encoding="utf-8") as file:
            text = file.read(LONGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(f"cannot read the prompts in {args.prompts}: {reason}; check the file") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(text) > LONGEST_FILE or not lines:
        raise ValueError(f"{args.prompts} is not a list of prompts; write one on each line")
    return lines
