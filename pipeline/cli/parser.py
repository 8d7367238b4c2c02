"""The commands of the command line, with their help texts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from pipeline.cli.inspect import add_inspect
from pipeline.cli.numbers import whole_option
from pipeline.cli.options import (
    add_attention,
    add_checkpoint,
    add_device,
    add_refinement,
    add_run,
    add_video,
    add_weights,
)
from pipeline.cli.tasks import add_long, add_task
from pipeline.request.sentences import one_line
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
    add_checkpoint(generate)
    add_task(generate)
    add_video(generate, prompt_required=True, several=True)
    add_long(generate)
    add_attention(generate)
    add_run(generate)

    refine = commands.add_parser(
        "refine", help="make a finer, larger clip of one", description=REFINE, formatter_class=style
    )
    add_checkpoint(refine)
    add_refinement(refine)
    add_attention(refine)
    add_run(refine)

    sweep = commands.add_parser(
        "sweep", help="make a grid of videos over one or two settings", description=SWEEP, formatter_class=style
    )
    add_checkpoint(sweep)
    add_task(sweep)
    add_video(sweep, prompt_required=True)
    add_attention(sweep)
    grid = sweep.add_argument_group("grid")
    swept = ", ".join(name.replace("_", "-") for name in LABELS)
    grid.add_argument("--rows", required=True, metavar="NAME=VALUES", help=f"what to sweep: {swept}")
    grid.add_argument("--columns", metavar="NAME=VALUES", help="a second setting")

    find = commands.add_parser(
        "find", help="find the fastest sparsity that keeps a floor of quality", description=FIND, formatter_class=style
    )
    add_checkpoint(find)
    add_task(find)
    add_video(find, prompt_required=True)
    add_attention(find)
    search = find.add_argument_group("search")
    search.add_argument(
        "--floor", default="psnr=30", metavar="NAME=VALUE", help="psnr=30, in dB (the default), or ssim=0.95, to dense"
    )
    most = f"sparse videos at most (default: {MOST})"
    search.add_argument("--most", type=whole_option, default=MOST, metavar="N", help=most)
    for grid_command in (sweep, find):
        run = grid_command.add_argument_group("run")
        run.add_argument("--output", type=Path, metavar="FOLDER", help="default: a new name in outputs/")
        add_device(run)
        add_weights(grid_command)
        grid_command.set_defaults(compare=True)  # sparse even where the checkpoint does not ask for it

    info = commands.add_parser(
        "info",
        help="describe a checkpoint and what a generation would do",
        description="Describe a checkpoint: its settings, the token grid, how many blocks BSA keeps. Loads no weights.",
        formatter_class=style,
    )
    add_checkpoint(info)
    add_task(info)
    add_video(info, prompt_required=False)
    add_attention(info)
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
