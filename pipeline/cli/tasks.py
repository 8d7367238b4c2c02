"""The tasks of the command line: from text, from an image, continuing a clip, refining one, and many in a row."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bsa import BSAConfig
from pipeline.checkpoint.info import CheckpointInfo
from pipeline.cli.numbers import whole_option
from pipeline.media.clip import check_length, inspect_clip
from pipeline.media.comment import read_settings
from pipeline.media.picture import inspect_picture
from pipeline.request.start import KV_CACHES, FromFrames
from pipeline.request.video import VideoRequest

TASKS = {
    "t2v": "text to video",
    "i2v": "a video that begins with --image",
    "vc": "a video that continues --video",
    "refine": "a finer, larger --video, as the refine command makes it",
    "long": "a long video of --segments that continue one another, from --image, --video or text alone",
}
# The options that belong to a task, as argparse names them.
_OPTIONS = {
    "image": ("i2v", "long"),
    "video": ("vc", "refine", "long"),
    "cond_frames": ("vc", "long"),
    "stride": ("vc", "long"),
    "kv_cache": ("vc", "long"),
    "enhance_hf": ("vc", "long"),
    "segments": ("long",),
    "refine": ("long",),
    "spatial_only": ("refine", "long"),
    "prompts": ("long",),
}


def add_task(parser: argparse.ArgumentParser) -> None:
    """The options that `chosen_task` and `read_task` read."""
    group = parser.add_argument_group("task")
    listed = "; ".join(f"{name}, {what}" for name, what in TASKS.items())
    group.add_argument("--task", metavar="NAME", help=f"{listed} (default: what --image and --video say, or t2v)")
    group.add_argument("--image", metavar="FILE", help="the picture that the video begins with")
    group.add_argument("--video", metavar="FILE", help="the MP4 file to continue, or with --task refine to refine")
    group.add_argument(
        "--cond-frames",
        type=whole_option,
        metavar="N",
        help="frames of --video, or of a segment, to continue from, 4n + 1 (default: 13)",
    )
    group.add_argument(
        "--stride",
        type=whole_option,
        metavar="N",
        help="use every Nth frame of it (default: what leaves about 15 a second)",
    )
    group.add_argument(
        "--kv-cache",
        choices=KV_CACHES,
        help="where the keys and values of these frames are kept; off computes them in every step (default: device)",
    )
    group.add_argument(
        "--enhance-hf",
        action=argparse.BooleanOptionalAction,
        help="ten even steps for the lower half of the noise (default: on, but not with --use-distill)",
    )


def chosen_task(args: argparse.Namespace) -> str:
    """The task that the options ask for. Raises ValueError for options that belong to another, or lack a file."""
    given = [name for name in _OPTIONS if getattr(args, name, None) is not None]
    task = args.task or ("i2v" if "image" in given else "vc" if "video" in given else "t2v")
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")
    for name in given:
        if task not in _OPTIONS[name]:
            belongs = ", ".join(_OPTIONS[name]).replace(", long", " or long")
            raise ValueError(f"--{name.replace('_', '-')} belongs to --task {belongs}, not {task}; leave one out")
    if task == "long" and args.command != "generate":
        raise ValueError(f"--task long belongs to the generate command, not {args.command}; describe its first segment")
    if task == "long" and {"image", "video"} <= set(given):
        raise ValueError("--image and --video are two ways to begin a long video; leave one out")
    if task == "long" and "spatial_only" in given and "refine" not in given:
        raise ValueError("--spatial-only says how a long video is refined; add --refine, or leave it out")
    if task == "long" and "stride" in given and "video" not in given:
        raise ValueError("--stride says which frames of --video are used; add --video, or leave it out")
    if task != "long" and len(getattr(args, "each_prompt", ())) > 1:
        raise ValueError(f"--prompt is given {len(args.each_prompt)} times; only --task long takes several")
    for name, option in (("i2v", "image"), ("vc", "video"), ("refine", "video")):
        if task == name and option not in given:
            raise ValueError(f"--task {task} makes {TASKS[task]}; add --{option} FILE")
    return task


def add_long(parser: argparse.ArgumentParser) -> None:
    """The options of --task long, besides those of `add_task`."""
    group = parser.add_argument_group("long video", "With --task long. Finished segments are kept in the folder.")
    group.add_argument(
        "--segments",
        type=whole_option,
        metavar="N",
        help="how many; the last prompt holds for those without one (default: as many as there are prompts)",
    )
    group.add_argument(
        "--refine",
        action="store_const",
        const=True,
        help="refine it afterwards, in pieces that begin with the refined end of the one before, as the refine command "
        "does with a clip",
    )
    group.add_argument(
        "--spatial-only", action="store_const", const=True, help="with --refine: keep the number of frames"
    )


class EachPrompt(argparse.Action):
    """Keeps every prompt in `each_prompt`, for --task long, and the last one where it is for all tasks."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        namespace.each_prompt = [*getattr(namespace, "each_prompt", ()), values]
        namespace.prompt = values


def read_task(
    task: str, args: argparse.Namespace, info: CheckpointInfo, bsa: BSAConfig | None, given: dict[str, Any]
) -> VideoRequest:
    """The request of a task other than refine. given: fields of `VideoRequest` that were named.

    Raises ValueError for a file that cannot be read or is too short, or a value that cannot be used.
    """
    given = given | {"negative_prompt": args.negative_prompt, "seed": args.seed, "bsa": bsa}
    if task == "long":  # its first segment
        task = "i2v" if args.image is not None else "vc" if args.video is not None else "t2v"
    if task == "t2v":
        return info.request(args.prompt, **given)
    if task == "i2v":
        return info.image_to_video(args.prompt, inspect_picture(args.image), **given)
    clip = inspect_clip(args.video)
    names = ("cond_frames", "stride", "kv_cache", "enhance_hf")
    shape = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    request = info.continuation(args.prompt, clip, **shape, **given)
    assert isinstance(request.start, FromFrames)
    check_length(request.start, clip.frames)
    return request


def read_refinement(
    args: argparse.Namespace, info: CheckpointInfo, bsa: BSAConfig | None, given: dict[str, Any]
) -> VideoRequest:
    """The request of the refine command, or of --task refine. bsa and given: as in `read_task`."""
    info.check_lora(given.get("lora", "refine"))  # which takes no reading of the clip to see
    clip = inspect_clip(Path(getattr(args, "clip", None) or args.video))
    prompt = args.prompt
    if prompt is None:
        try:
            prompt = read_settings(clip.path).request.prompt
        except ValueError:
            raise ValueError(f"{clip.path.name} does not say what it shows; add --prompt with a description") from None
    level, double = getattr(args, "t_thresh", 0.5), not getattr(args, "spatial_only", False)
    given = {"seed": args.seed, "bsa": bsa, **given}
    return info.refinement(prompt, clip, t_thresh=level, double_frames=double, **given)
