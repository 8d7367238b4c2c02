"""Measures what TeaCache saves and loses with the embedded checkpoint on a CPU: passes, seconds, PSNR.

    python benchmarks/teacache.py

Every video is compared with the one of all steps and the same attention, beside two others: an ordinary schedule of as
many steps as TeaCache ran, and the noise floor, which is the same video by the other forward. Seconds are those of
denoising on a clock that other programs do not advance. Writes benchmarks/results/teacache.json; run
benchmarks/tables.py afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from attention_cpu import cpu_name
from embedded_checkpoint import PROMPTS

from pipeline import LongCatPipeline, VideoRequest
from pipeline.checkpoint.info import EMBEDDED_CHECKPOINT
from pipeline.media.similarity import psnr

RESULTS = Path(__file__).resolve().parent / "results" / "teacache.json"
THRESHOLDS = (0.02, 0.08, 0.15)
SKIPPING, FEWER, FLOOR = "TeaCache", "as many steps", "noise floor"


def measure(pipeline: LongCatPipeline, whole: VideoRequest) -> list[dict]:
    """The rows of one request of all steps, the first of which is its own."""
    found: list[dict] = []
    all_steps: np.ndarray | None = None

    def make(what: str, request: VideoRequest, **more: object) -> int:
        nonlocal all_steps
        result, frames = pipeline.generate_frames(request)
        assert result.passes is not None
        row = {"what": what, "passes": result.passes, "seconds": result.work, **more}
        if all_steps is None:
            all_steps = frames
        else:
            row["psnr"] = psnr(all_steps, frames)
        found.append({"attention": "dense" if request.bsa is None else "sparse", **row})
        print(f"{found[-1]}", flush=True)
        return result.passes

    make("all steps", whole)
    for threshold in THRESHOLDS:
        passes = make(SKIPPING, replace(whole, teacache_thresh=threshold), threshold=threshold)
        make(FEWER, replace(whole, steps=passes), threshold=threshold)
    pipeline.forward = "plain"
    make(FLOOR, whole)
    pipeline.forward = "auto"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, default=EMBEDDED_CHECKPOINT)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--frames", type=int, default=29)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipeline = LongCatPipeline.load(args.model_path, device="cpu")
    rows = []
    for number, prompt in enumerate(PROMPTS[: args.prompts]):
        sparse = pipeline.info.request(
            prompt, seed=number, steps=args.steps, num_frames=args.frames, use_distill=False, guidance_scale=1.0
        )
        for request in (sparse.dense, sparse):
            rows += [{"prompt": number, **row} for row in measure(pipeline, request)]
        report = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "cpu": cpu_name(),
            "threads": args.threads,
            "torch": torch.__version__,
            "precision": pipeline.weights.precision,
            "size": [sparse.width, sparse.height, sparse.num_frames],
            "steps": sparse.steps,
            "sparsity": sparse.bsa.sparsity if sparse.bsa is not None else None,
            "prompts": number + 1,
            "rows": rows,
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
