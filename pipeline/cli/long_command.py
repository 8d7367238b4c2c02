"""``python -m pipeline generate --task long``: a long video, segment by segment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, TextIO

from pipeline.checkpoint.info import CheckpointInfo
from pipeline.cli.progress import Progress
from pipeline.cli.read import checked_device, open_checkpoint, read_bsa, read_request, read_weights
from pipeline.media.write import prepare_output
from pipeline.request.refinement import Clip
from pipeline.request.sentences import visible
from pipeline.runs.chain import Chain, ChainResult, ChainStore, run_chain
from pipeline.runs.long_refinement import LongRefinement
from pipeline.runs.long_video import COND_FRAMES, LongVideo, prompts_for
from pipeline.runs.longcat import LongCatPipeline
from pipeline.runs.plan import plan_to_load

LONGEST_FILE = 2**20  # bytes, of prompts


def run_long_command(args: argparse.Namespace, progress: Progress, folder: Path, output: TextIO) -> dict[str, Any]:
    """Make the long video into `folder`, or what is missing of it, and return the report.

    output: where the result is told.
    """
    if args.compare:
        raise ValueError("--compare makes one video twice, and --task long many; leave one out")
    if args.bsa == "auto":
        raise ValueError("--bsa auto chooses for one video, and --task long makes many; use --bsa on, or off")
    if folder.suffix.lower() == ".mp4":
        raise ValueError(f"--task long makes a folder of files, and {folder} names one file; name a folder for them")
    weights = read_weights(args)
    weights.check_forward(args.forward)
    info = open_checkpoint(args, weights)
    video = read_long(args, info)
    store = ChainStore(folder, video, info.name)
    chains: list[tuple[Chain, ChainStore, Path]] = [(video, store, folder / "video.mp4")]
    if args.refine:
        finer = _refinement(args, info, video, store)
        chains.append((finer, ChainStore(folder, finer, info.name), folder / "refined.mp4"))
    # the first of a chain and one of those after it, which all come to the same
    kinds = [chain.segment(number, folder) for chain, *_ in chains for number in range(min(2, len(chain)))]
    plan_to_load(info, kinds, weights, checked_device(args.device, weights), forward=args.forward)
    for _, parts, whole in chains:
        prepare_output(parts.video(0))
        prepare_output(whole)

    pipeline = LongCatPipeline.load(
        info.path,
        args.device,
        on_message=lambda message: print(visible(message), file=sys.stderr),
        record=args.record,
        forward=args.forward,
        lora_dir=args.lora_dir,
        **weights.arguments,
    )
    for number in range(len(video)):
        pipeline.check_tokens(video.segment(number, folder))
    results = [_run(pipeline, *chain, progress, output) for chain in chains]
    report = results[0].to_dict()
    return report if len(results) == 1 else report | {"refined": results[1].to_dict()}


def _run(
    pipeline: LongCatPipeline, chain: Chain, store: ChainStore, video: Path, progress: Progress, output: TextIO
) -> ChainResult:
    total = len(chain)
    if store.parts:
        folder = visible(str(store.folder))
        print(f"{len(store.parts)} of {total} {chain.name}s are in {folder} already", file=sys.stderr)

    def on_begin(number: int) -> None:
        progress.prefix = f"{number + 1}/{total} "
        prompt = chain.segment(number, store.folder).prompt
        print(f"{chain.name} {number + 1} of {total}: {visible(prompt)}", file=sys.stderr)

    result = run_chain(pipeline, chain, store, video, progress, on_begin=on_begin)
    print(f"video     {visible(str(result.video))}", file=output)
    seconds = result.frames / result.fps
    print(f"length    {result.frames} frames, {seconds:.1f} s, {len(result.parts)} {chain.name}s", file=output)
    return result


def _refinement(args: argparse.Namespace, info: CheckpointInfo, video: LongVideo, store: ChainStore) -> LongRefinement:
    made = video.request
    clip = Clip(store.video(0), made.num_frames, made.height, made.width, made.fps)
    bsa, double = read_bsa(args, info, info.sparse), not args.spatial_only
    return LongRefinement(
        video, store, info.refinement(made.prompt, clip, double_frames=double, seed=made.seed, bsa=bsa)
    )


def read_long(args: argparse.Namespace, info: CheckpointInfo) -> LongVideo:
    """The long video that the options describe. ValueError when it cannot be made."""
    prompts = tuple(map(info.in_english, prompts_for(_prompts(args), args.segments)))
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
