"""Five ways to use Block Sparse Attention (BSA) with a LongCat checkpoint.

    python examples/longcat_bsa_usage.py                  # list the examples
    python examples/longcat_bsa_usage.py --example 4      # run one

They use the small checkpoint of this repository, on a GPU or a CPU; --model-path takes a real one.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs in a clone without being installed

from bsa import BSAConfig, Grid
from pipeline import EMBEDDED_CHECKPOINT, LongCatPipeline, StepUpdate, VideoRequest, VideoResult, compare


def basic(pipeline: LongCatPipeline, request: VideoRequest, folder: Path) -> None:
    """Basic use: the checkpoint's transformer/config.json says whether BSA is on, and how."""
    report(pipeline.generate(request, on_step=progress, output=folder / "1-basic.mp4"))


def enable_at_runtime(pipeline: LongCatPipeline, request: VideoRequest, folder: Path) -> None:
    """Enable at runtime: attention belongs to the request, so nothing is loaded twice."""
    for name, bsa in (("dense", None), ("sparse", BSAConfig())):
        report(pipeline.generate(replace(request, bsa=bsa), on_step=progress, output=folder / f"2-{name}.mp4"))


def custom_config(pipeline: LongCatPipeline, request: VideoRequest, folder: Path) -> None:
    """Custom configuration: keep more, keep by attention mass, or cut other boxes."""
    configs = {
        "keep-a-quarter": BSAConfig(sparsity=0.75),
        "keep-80-percent-of-the-mass": BSAConfig(sparsity=None, cdf_threshold=0.8),
        "flat-boxes": BSAConfig(sparsity=0.875, chunk_q=Grid(2, 4, 8), chunk_k=Grid(2, 4, 4)),
    }
    for name, bsa in configs.items():
        report(pipeline.generate(replace(request, bsa=bsa), on_step=progress, output=folder / f"3-{name}.mp4"))


def performance(pipeline: LongCatPipeline, request: VideoRequest, folder: Path) -> None:
    """Performance comparison: the same seed dense and sparse, timed and compared frame by frame."""
    pair = compare(pipeline, replace(request, bsa=request.bsa or BSAConfig()), on_step=progress, output_dir=folder)
    for result in (pair.dense, pair.sparse):
        report(result)
    print(f"denoising {pair.speedup:.2f}x as fast; PSNR {pair.psnr:.1f} dB, SSIM {pair.ssim:.3f} against dense")


def adaptive(pipeline: LongCatPipeline, request: VideoRequest, folder: Path) -> None:
    """Adaptive strategy: dense or sparse, with the sparsity and scores that suit this size on this machine."""
    few_frames = replace(request, num_frames=min(request.num_frames, 17))
    for name, wanted in (("short", few_frames), ("full", request)):
        adapted = pipeline.choose_attention(wanted)  # measures this machine the first time, for about three seconds
        print(f"{adapted.grid.volume} tokens: {adapted.auto}")
        report(pipeline.generate(adapted, on_step=progress, output=folder / f"5-{name}.mp4"))


EXAMPLES: dict[int, Callable[[LongCatPipeline, VideoRequest, Path], None]] = {
    1: basic,
    2: enable_at_runtime,
    3: custom_config,
    4: performance,
    5: adaptive,
}


def progress(update: StepUpdate) -> None:
    end = "\n" if update.step == update.total else ""
    print(f"\r  {update.phase} {update.step}/{update.total} ({update.seconds:.1f} s)", end=end, flush=True)


def report(result: VideoResult) -> None:
    attention = f"{result.density:.1%} of the token pairs" if result.bsa_active else f"dense ({result.bsa_reason})"
    print(
        f"{result.video}: {attention}; denoising {result.seconds['denoise']:.1f} s, "
        f"peak {result.peak_memory / 2**30:.2f} GiB {result.peak_memory_label}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", type=int, choices=EXAMPLES, help="which one to run")
    parser.add_argument("--model-path", type=Path, default=EMBEDDED_CHECKPOINT, help="LongCat checkpoint folder")
    parser.add_argument("--prompt", default="a red ball bounces over a blue background")
    parser.add_argument("--steps", type=int, help="denoising steps, if not the checkpoint's own number")
    parser.add_argument("--output", type=Path, default=Path("outputs/examples"), help="folder for the videos")
    args = parser.parse_args()

    if args.example is None:
        for number, example in EXAMPLES.items():
            print(f"{number}  {example.__doc__}")
        print("\nrun one with --example N")
        return

    logging.basicConfig(format="%(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)  # says whether BSA is used, and with which parameters
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        pipeline = LongCatPipeline.load(args.model_path, on_message=print)
        overrides = {} if args.steps is None else {"steps": args.steps}
        EXAMPLES[args.example](pipeline, pipeline.info.request(args.prompt, **overrides), args.output)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
