"""Reads the options of a command: the checkpoint, how its weights are kept, the attention and the request."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from typing import Any

from tqdm import tqdm

from bsa import BSAConfig, Grid
from bsa.config import SCHEDULE
from pipeline.checkpoint.download import Progress, fetch_checkpoint, is_hub_id
from pipeline.checkpoint.info import CheckpointInfo, inspect_checkpoint
from pipeline.cli.tasks import chosen_task, read_refinement, read_task
from pipeline.estimate.refusal import check_weights_fit
from pipeline.machine.device import rank_devices
from pipeline.machine.gpus import Device
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.request.sentences import visible
from pipeline.request.values import chunk
from pipeline.request.video import VideoRequest


def _chunk(option: str, parts: list[str]) -> Grid:
    sides = chunk(" ".join(parts))
    if sides is None:
        given = " ".join(parts)
        raise ValueError(f"{option} {given!r} is not three whole numbers from 1 on; use for example {option} 4 4 4")
    return sides


def read_weights(args: argparse.Namespace) -> LoadOptions:
    """Read the options for loading the model."""
    return LoadOptions(args.quantization, args.offload, args.gpus, args.precision)


def checked_device(name: str, weights: LoadOptions) -> Device:
    """The device of that name; ValueError where it does not exist or cannot run such weights."""
    device = rank_devices(name, weights.gpus)[0]
    if weights.quantization is not None and device.type == "cuda":
        from pipeline.weights.fp8 import check_device  # the page's server reads options too, without PyTorch

        check_device(device)
    return device


def read_bsa(args: argparse.Namespace, info: CheckpointInfo, default: BSAConfig | None) -> BSAConfig | None:
    """The attention asked for: the options, over `default`, over LongCat's (0.9375, 4x4x4).

    With --bsa=auto it is the checkpoint's sparse attention, for `choose_attention` to start from.
    """
    changes: dict[str, Any] = {}
    for name in ("sparsity", "cdf_threshold"):
        if getattr(args, name) is not None:
            changes[name] = None if getattr(args, name) == "none" else getattr(args, name)
    for name in ("chunk_q", "chunk_k"):
        if getattr(args, name) is not None:
            changes[name] = _chunk(f"--{name.replace('_', '-')}", getattr(args, name))
    for name in ("selection", *SCHEDULE):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    comparing = getattr(args, "compare", False)
    given = [f"--{name.replace('_', '-')}" for name in changes]
    if args.dense or args.bsa == "off":
        dense, others = "--dense" if args.dense else "--bsa off", ["--compare", *given] if comparing else given
        if args.dense and args.bsa in ("auto", "on"):
            others.append(f"--bsa {args.bsa}")
        if others:
            raise ValueError(f"{dense} and {others[0]} contradict each other; leave one out")
        return None
    if args.bsa == "auto":
        if given:
            raise ValueError(f"--bsa auto chooses the attention and {given[0]} sets a part of it; leave one out")
        return info.sparse
    if args.bsa == "on":
        return replace(default or info.sparse, **changes)
    if changes or comparing:
        return replace(default or BSAConfig(), **changes)
    return default


def read_request(args: argparse.Namespace, info: CheckpointInfo) -> VideoRequest:
    """The request that the options describe. ValueError when one cannot be used."""
    names: tuple[str, ...] = ("height", "width", "num_frames", "steps", "guidance_scale", "fps", "use_distill", "lora")
    names += ("teacache_thresh",)
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    task = "refine" if args.command == "refine" else chosen_task(args)
    if task == "refine":
        return read_refinement(args, info, read_bsa(args, info, info.sparse), given)
    return read_task(task, args, info, read_bsa(args, info, info.bsa), given)


def tell_reading(args: argparse.Namespace, info: CheckpointInfo) -> None:
    """Say on stderr what a small model makes of a Chinese prompt."""
    read = None if info.vocabulary is None or not args.prompt else info.vocabulary.read(args.prompt)
    if read is not None:
        missing = f"; it does not know {', '.join(read.unknown)}" if read.unknown else ""
        print(visible(f"{info.name} reads: {read.english or 'nothing'}{missing}"), file=sys.stderr)


def open_checkpoint(args: argparse.Namespace, weights: LoadOptions = AS_STORED) -> CheckpointInfo:
    """`inspect_checkpoint` for a command line: what is a hub id is fetched first, with a bar on stderr."""
    text, device = args.model_path, getattr(args, "device", "auto")
    if not is_hub_id(str(text)):
        return inspect_checkpoint(text, args.lora_dir)

    seldom = 0.1 if sys.stderr.isatty() else 60.0  # seconds; in a log every state of the bar is a line
    title = f"Downloading {text}"
    with tqdm(desc=title, unit="B", unit_scale=True, mininterval=seldom, file=sys.stderr) as bar:

        def show(progress: Progress) -> None:
            bar.total = progress.total
            bar.update(progress.done - bar.n)

        check = partial(check_weights_fit, device=rank_devices(device, weights.gpus)[0], weights=weights)
        return inspect_checkpoint(fetch_checkpoint(str(text), check, show), args.lora_dir)
