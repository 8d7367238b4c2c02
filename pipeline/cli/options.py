"""Groups of options that several commands share, and the page's server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bsa.selectors import SCORES
from pipeline.checkpoint.info import EMBEDDED_CHECKPOINT
from pipeline.cli.numbers import real_option, whole_option
from pipeline.cli.tasks import EachPrompt
from pipeline.request.fields import FIELDS
from pipeline.request.load_options import PRECISIONS, QUANTIZATIONS


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
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


def add_video(parser: argparse.ArgumentParser, *, prompt_required: bool, several: bool = False) -> None:
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
    group.add_argument("--steps", "--num-inference-steps", type=whole_option, metavar="N", help=_help("steps"))
    _add_fields(group, "guidance_scale", metavar="X")
    _add_fields(group, "seed", default=0, metavar="N")
    _add_fields(group, "fps", metavar="N")
    group.add_argument(
        "--use-distill",
        action=argparse.BooleanOptionalAction,
        help=_help("use_distill"),
    )
    _add_fields(group, "teacache_thresh", metavar="X", help=_help("teacache_thresh") + " (default: 0)")
    _add_lora(group, "LoRA adapter to run with, NAME or NAME:STRENGTH; distill is for 16 steps (default: none)")


def _add_fields(group: Any, *names: str, **options: Any) -> None:
    for name in names:
        kind = {int: whole_option, float: real_option}.get(FIELDS[name].kind, str)
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, **{"help": _help(name)} | options)


def _help(name: str) -> str:
    """The help text of a field for an option: without a capital."""
    text = FIELDS[name].help
    return text[0].lower() + text[1:]


def _add_lora(group: Any, text: str) -> None:
    group.add_argument("--lora", metavar="NAME", help=text)


def add_refinement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clip", metavar="CLIP", help="the MP4 file to refine")
    group = parser.add_argument_group("refinement")
    group.add_argument("--prompt", help="what the clip shows (default: the prompt that the clip was made with)")
    group.add_argument(
        "--t-thresh",
        type=real_option,
        default=0.5,
        metavar="X",
        help="noise level to start from, above 0 to 1; more changes more (default: 0.5)",
    )
    group.add_argument("--spatial-only", action="store_true", help="keep the number of frames")
    _add_fields(group, "height", "width", metavar="PIXELS", help="default: LongCat's for the clip's shape")
    group.add_argument(
        "--steps",
        type=whole_option,
        metavar="N",
        help="of the whole schedule, whose part below the noise level runs (default: 50)",
    )
    _add_fields(group, "seed", default=0, metavar="N")
    _add_fields(group, "fps", metavar="N", help="default: the clip's, or twice that")
    _add_fields(group, "teacache_thresh", metavar="X", help=_help("teacache_thresh") + " (default: 0)")
    _add_lora(group, "adapter to refine with (default: refine)")


def add_device(group: Any) -> None:
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto, CUDA where there is a GPU)"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
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
    add_device(run)
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
        "slightly different video; a GPU needs compute capability 8.9. fp8+attention: block sparse attention too, on a "
        "GPU; it gains only where the chunks divide the token grid",
    )
    group.add_argument(
        "--offload",
        action="store_true",
        help="keep blocks and text encoder in host memory, from where they visit the GPU; the same video",
    )
    several = parser.add_argument_group("several GPUs")
    several.add_argument(
        "--gpus",
        type=whole_option,
        default=1,
        metavar="N",
        help="GPUs that make each video together, from the chosen one on; the same video up to rounding. Each loads "
        "the weights, and the fast forward runs",
    )


def add_attention(parser: argparse.ArgumentParser) -> None:
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
    for name, text in (
        ("--dense-steps", "so many of the first steps attend to everything (default: 0)"),
        ("--dense-layers", "so many of the first layers attend to everything (default: 0)"),
        ("--select-every", "select blocks anew in every Nth step (default: 1, in each)"),
    ):
        group.add_argument(name, type=whole_option, metavar="N", help=text)
    group.add_argument("--dense", action="store_true", help="dense attention, whatever the checkpoint says")


def _number_or_none(text: str) -> float | str:
    if text.lower() == "none":
        return "none"  # not None, which argparse uses for "not given"
    try:
        return real_option(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or none") from None
