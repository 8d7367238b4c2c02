"""Options of the command line and the request that they describe."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from bsa import BSAConfig, Grid
from bsa.config import SCHEDULE
from bsa.selectors import SCORES
from pipeline.checkpoint.download import Progress, fetch_checkpoint, is_hub_id
from pipeline.checkpoint.info import EMBEDDED_CHECKPOINT, CheckpointInfo, inspect_checkpoint
from pipeline.cli.inspect import add_inspect
from pipeline.cli.tasks import EachPrompt, add_long, add_task, chosen_task, read_refinement, read_task
from pipeline.estimate.refusal import check_weights_fit
from pipeline.machine.device import rank_devices
from pipeline.machine.gpus import Device
from pipeline.request.fields import FIELDS
from pipeline.request.load_options import AS_STORED, PRECISIONS, QUANTIZATIONS, LoadOptions
from pipeline.request.sentences import one_line, visible
from pipeline.request.values import chunk
from pipeline.request.video import VideoRequest
from pipeline.sweeps.search import MOST
from pipeline.sweeps.sweep_axes import LABELS

DESCRIPTION = """\
LongCat video generation with dense or Block Sparse Attention (BSA), on an NVIDIA GPU or a CPU.
"""

GENERATE = """\
Make a video from a prompt; with --image one that begins with a picture, with --video one that continues a clip.
With --task long, segments that continue one another: a folder that another run with the same settings goes on with.
Sizes, steps, guidance and BSA default to what the checkpoint asks for (generation_config.json, and enable_bsa /
bsa_params in transformer/config.json), and sizes to LongCat's for the shape of the picture or clip; without
--model-path that is the small embedded checkpoint, which a laptop can run.
"""

REFINE = """\
Make a finer clip of an existing one, as LongCat does to get from 480p to 720p: enlarge it, add noise, denoise it again
from there, with BSA and the checkpoint's adapter lora/refinement_lora.safetensors, without which nothing gets sharper.
Twice as many frames as well, unless --spatial-only is given.

example:
  python -m pipeline refine clip.mp4 --model-path weights/longcat --prompt "..." --spatial-only --compare
"""

SWEEP = """\
Make the same clip over a grid of settings, and a dense one for every seed and number of steps. Prints seconds,
speed-up, density, PSNR and SSIM of every cell and marks the Pareto front; the folder gets the videos, sweep.csv and
sweep.json. Stopping keeps what is done.

example:
  python -m pipeline sweep --prompt "snow falls" --rows sparsity=0.5,0.75,0.9375 --columns chunk=2x4x4,4x4x4
"""

FIND = """\
Find the fastest sparsity with which this prompt and seed still come close enough to the dense video. Makes the dense
video and then a few sparse ones, each halving what is left to try; prints and writes what a sweep does.

example:
  python -m pipeline find --prompt "snow falls" --floor psnr=32 --selection cells
"""

EXAMPLES = """\
examples:
  python -m pipeline generate --prompt "a red circle bounces on a blue gradient"
  python -m pipeline generate --prompt "..." --compare --sparsity 0.875
  python -m pipeline generate --prompt "..." --bsa auto
  python -m pipeline generate --model-path weights/longcat --task t2v --height 720 --width 1280 \\
      --num-frames 93 --prompt "..." --sparsity 0.9375 --chunk-q 4 4 4 --chunk-k 4 4 4
  python -m pipeline generate --model-path weights/longcat --prompt "..." --lora distill
  python -m pipeline generate --model-path weights/longcat --image photo.jpg --prompt "..."
  python -m pipeline generate --model-path weights/longcat --video clip.mp4 --prompt "..."
  python -m pipeline generate --model-path weights/longcat --task long --segments 12 --prompt "..." --output walk
  python -m pipeline generate --model-path weights/longcat --task long --prompt "..." --prompt "... then ..."
  python -m pipeline refine clip.mp4 --model-path weights/longcat
  python -m pipeline sweep --prompt "..." --rows sparsity=0.5,0.75 --columns seed=1,2
  python -m pipeline find --prompt "..." --floor ssim=0.95
  python -m pipeline info --model-path weights/longcat --height 720 --width 1280

exit codes: 0 done, 1 failed, 2 unusable input, 130 interrupted, 143 terminated
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += ", and one that begins with a dash goes behind an equals sign, as in --prompt=-5"
        self.exit(2, f"error: {one_line(message)}; see `{self.prog} --help`\n")


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    style = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="python -m pipeline", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=style)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{generate,refine,sweep,find,info,inspect}")

    generate = commands.add_parser(
        "generate", help="make a video", description=GENERATE, epilog=EXAMPLES, formatter_class=style
    )
    _add_checkpoint(generate)
    add_task(generate)
    _add_video(generate, prompt_required=True, several=True)
    add_long(generate)
    _add_attention(generate)
    _add_run(generate)

    refine = commands.add_parser(
        "refine", help="make a finer, larger clip of one", description=REFINE, formatter_class=style
    )
    _add_checkpoint(refine)
    _add_refinement(refine)
    _add_attention(refine)
    _add_run(refine)

    sweep = commands.add_parser(
        "sweep", help="make a grid of videos over one or two settings", description=SWEEP, formatter_class=style
    )
    _add_checkpoint(sweep)
    add_task(sweep)
    _add_video(sweep, prompt_required=True)
    _add_attention(sweep)
    grid = sweep.add_argument_group("grid")
    swept = ", ".join(name.replace("_", "-") for name in LABELS)
    grid.add_argument("--rows", required=True, metavar="NAME=VALUES", help=f"what to sweep: {swept}")
    grid.add_argument("--columns", metavar="NAME=VALUES", help="a second setting")

    find = commands.add_parser(
        "find", help="find the fastest sparsity that keeps a floor of quality", description=FIND, formatter_class=style
    )
    _add_checkpoint(find)
    add_task(find)
    _add_video(find, prompt_required=True)
    _add_attention(find)
    search = find.add_argument_group("search")
    search.add_argument(
        "--floor", default="psnr=30", metavar="NAME=VALUE", help="psnr=30, in dB (the default), or ssim=0.95, to dense"
    )
    search.add_argument("--most", type=int, default=MOST, metavar="N", help=f"sparse videos at most (default: {MOST})")
    for grid_command in (sweep, find):
        run = grid_command.add_argument_group("run")
        run.add_argument("--output", type=Path, metavar="FOLDER", help="default: a new name in outputs/")
        _add_device(run)
        add_weights(grid_command)
        grid_command.set_defaults(compare=True)  # sparse even where the checkpoint does not ask for it

    info = commands.add_parser(
        "info",
        help="describe a checkpoint and what a generation would do",
        description="Describe a checkpoint: its settings, the token grid, how many blocks BSA keeps. Loads no weights.",
        formatter_class=style,
    )
    _add_checkpoint(info)
    add_task(info)
    _add_video(info, prompt_required=False)
    _add_attention(info)
    add_weights(info)
    for command in (generate, refine, sweep, find, info, add_inspect(commands)):
        command.add_argument(
            "--json",
            metavar="FILE",
            help="also write the report as JSON; - for standard output, and nothing else there",
        )
        command.add_argument(
            "--verbose", action="store_true", help="show FastVideo's own log, and tracebacks of failures"
        )
    return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoint")
    group.add_argument(
        "--model-path",
        type=Path,
        default=EMBEDDED_CHECKPOINT,
        metavar="FOLDER",
        help="LongCat checkpoint, as released or in FastVideo's layout: a folder, or org/model on the Hugging Face Hub "
        "(default: the embedded one)",
    )
    add_lora_dir(group)


def add_lora_dir(group: Any) -> None:
    """The option for the command line and the page's server alike."""
    group.add_argument(
        "--lora-dir",
        type=Path,
        metavar="FOLDER",
        help="a folder with LoRA files, NAME.safetensors, besides those in the checkpoint's folder lora",
    )


def _add_video(parser: argparse.ArgumentParser, *, prompt_required: bool, several: bool = False) -> None:
    group = parser.add_argument_group("video")
    prompt = group.add_mutually_exclusive_group(required=prompt_required)
    text = _help("prompt") + (", and with --task long again for what happens next" if several else "")
    prompt.add_argument("--prompt", action=EachPrompt, default="info", help=text)
    if several:
        text = "with --task long: a text file with a prompt for each segment, one on each line"
        prompt.add_argument("--prompts", type=Path, metavar="FILE", help=text)
    _add_fields(group, "negative_prompt", default="")
    _add_fields(group, "height", "width", metavar="PIXELS")
    _add_fields(group, "num_frames", metavar="N")
    group.add_argument("--steps", "--num-inference-steps", type=int, metavar="N", help=_help("steps"))
    _add_fields(group, "guidance_scale", metavar="X")
    _add_fields(group, "seed", default=0, metavar="N")
    _add_fields(group, "fps", metavar="N")
    group.add_argument(
        "--use-distill",
        action=argparse.BooleanOptionalAction,
        help=_help("use_distill"),
    )
    _add_lora(group, "LoRA adapter to run with, NAME or NAME:STRENGTH; distill is for 16 steps (default: none)")


def _add_fields(group: Any, *names: str, **options: Any) -> None:
    for name in names:
        group.add_argument(f"--{name.replace('_', '-')}", type=FIELDS[name].kind, help=_help(name), **options)


def _help(name: str) -> str:
    """The help text of a field for an option: without a capital."""
    text = FIELDS[name].help
    return text[0].lower() + text[1:]


def _add_lora(group: Any, text: str) -> None:
    group.add_argument("--lora", metavar="NAME", help=text)


def _add_refinement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clip", metavar="CLIP", help="the MP4 file to refine")
    group = parser.add_argument_group("refinement")
    group.add_argument("--prompt", help="what the clip shows (default: the prompt that the clip was made with)")
    group.add_argument(
        "--t-thresh",
        type=float,
        default=0.5,
        metavar="X",
        help="noise level to start from, above 0 to 1; more changes more (default: 0.5)",
    )
    group.add_argument("--spatial-only", action="store_true", help="keep the number of frames")
    group.add_argument("--height", type=int, metavar="PIXELS", help="default: LongCat's size for the clip's shape")
    group.add_argument("--width", type=int, metavar="PIXELS", help="the same")
    group.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="of the whole schedule, whose part below the noise level runs (default: 50)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    group.add_argument("--fps", type=int, metavar="N", help="default: the clip's, or twice that")
    _add_lora(group, "adapter to refine with (default: refine)")


def _add_device(group: Any) -> None:
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto, CUDA where there is a GPU)"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument(
        "--compare", action="store_true", help="make it twice, dense then sparse, and report speed-up and similarity"
    )
    run.add_argument(
        "--record", action="store_true", help="also write what a sparse video attended to, for the inspect command"
    )
    run.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="the .mp4 file; with --compare or --task long a folder (default: a new name in outputs/)",
    )
    _add_device(run)
    run.add_argument(
        "--forward",
        choices=("auto", "plain", "fast"),
        default="auto",
        help="the transformer's forward (default: auto, the fast one on GPUs on which it was measured)",
    )
    add_weights(parser)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """The options that `read_weights` reads, for the command line and the page's server alike."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="numbers that the model computes with (default: auto, bf16 on GPUs and on CPUs with instructions for it, "
        "fp32 on others); the same video up to rounding",
    )
    group = parser.add_argument_group("memory", "For GPUs that the model does not fit into. Both run the fast forward.")
    group.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="weights and products of the transformer's blocks in 8 bits, not as stored: half the memory, and a "
        "slightly different video; a GPU needs compute capability 8.9",
    )
    group.add_argument(
        "--offload",
        action="store_true",
        help="keep blocks and text encoder in host memory, from where they visit the GPU; the same video",
    )
    several = parser.add_argument_group("several GPUs")
    several.add_argument(
        "--gpus",
        type=int,
        default=1,
        metavar="N",
        help="GPUs that make each video together, from the chosen one on; the same video up to rounding. Each loads "
        "the weights, and the fast forward runs",
    )


def _add_attention(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "block sparse attention", "Any of these but --dense turns BSA on, or changes the checkpoint's own setting."
    )
    group.add_argument(
        "--bsa",
        choices=("auto", "on", "off"),
        help="auto chooses dense attention or BSA with its sparsity and scores, by what was measured on this machine, "
        "and says why; on takes the checkpoint's BSA even if it is not enabled there; off is --dense",
    )
    group.add_argument(
        "--sparsity",
        type=_number_or_none,
        metavar="X",
        help="share of key blocks to drop, 0 to below 1: 0.9375 keeps 1 in 16; none leaves it to the cdf threshold",
    )
    group.add_argument(
        "--cdf-threshold",
        type=_number_or_none,
        metavar="X",
        help="softmax mass to keep, above 0 to 1, or none; with --sparsity the rule that keeps more wins",
    )
    group.add_argument(
        "--chunk-q", nargs="+", metavar="N", help="frames, rows and columns of a query block: 4 4 4, 4,4,4 or 4x4x4"
    )
    group.add_argument("--chunk-k", nargs="+", metavar="N", help="the same of a key block")
    group.add_argument(
        "--selection",
        choices=SCORES,
        help="how blocks are scored: mean, as LongCat does, or cells, which compares boxes of 2x2x2 tokens inside them",
    )
    group.add_argument(
        "--dense-steps", type=int, metavar="N", help="so many of the first steps attend to everything (default: 0)"
    )
    group.add_argument(
        "--dense-layers", type=int, metavar="N", help="so many of the first layers attend to everything (default: 0)"
    )
    group.add_argument(
        "--select-every", type=int, metavar="N", help="select blocks anew in every Nth step (default: 1, in each)"
    )
    group.add_argument("--dense", action="store_true", help="dense attention, whatever the checkpoint says")


def _number_or_none(text: str) -> float | str:
    if text.lower() == "none":
        return "none"  # not None, which argparse uses for "not given"
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number; use one from 0 to below 1, such as 0.9375, or none"
        ) from None


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
    names = ("height", "width", "num_frames", "steps", "guidance_scale", "fps", "use_distill", "lora")
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

        room = partial(check_weights_fit, device=rank_devices(device, weights.gpus)[0], weights=weights)
        return inspect_checkpoint(fetch_checkpoint(str(text), room, show), args.lora_dir)
