"""Makes videos of seven prompts, dense and sparse, with the embedded checkpoint: times, similarity, contact sheets.

    python benchmarks/embedded_checkpoint.py

Uses the checkpoint's own settings. Writes benchmarks/results/embedded_checkpoint.json and the sheets in
docs/images/embedded/. Run it on an otherwise idle machine, and run benchmarks/tables.py afterwards.
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from pipeline import LongCatPipeline
from pipeline.media.similarity import psnr, ssim

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = (
    "a red ball bounces over green hills at sunset",
    "a large yellow star spins on a navy background",
    "a purple heart grows on a checkerboard floor",
    "a cyan ring moves from left to right over the sea at night",
    "an orange triangle rises in front of snowy mountains during the day",
    "day turns to night over desert dunes",
    "a blue square rises and an orange triangle falls on a cream background",
)
RESULTS = ROOT / "benchmarks" / "results" / "embedded_checkpoint.json"
IMAGES = ROOT / "docs" / "images" / "embedded"
COLUMNS, WIDTH = 8, 128


def sheet(dense: np.ndarray, sparse: np.ndarray) -> Image.Image:
    """Two rows of evenly spaced frames, dense above sparse, from uint8 [T, H, W, 3]."""
    picked = np.linspace(0, len(dense) - 1, COLUMNS).round().astype(int)
    rows = [np.concatenate(list(frames[picked]), axis=1) for frames in (dense, sparse)]
    image = Image.fromarray(np.concatenate(rows))
    return image.resize((COLUMNS * WIDTH, 2 * WIDTH * dense.shape[1] // dense.shape[2]), Image.Resampling.LANCZOS)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    pipeline = LongCatPipeline.load()
    small = pipeline.info.request("warm-up", steps=1)
    pipeline.generate_frames(replace(small, num_frames=5))
    IMAGES.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, prompt in enumerate(PROMPTS):
        request = pipeline.info.request(prompt, seed=number)
        start = time.perf_counter()
        dense, dense_frames = pipeline.generate_frames(replace(request, bsa=None))
        sparse, sparse_frames = pipeline.generate_frames(request)
        wall = time.perf_counter() - start
        image = f"{number + 1}.png"
        sheet(dense_frames, sparse_frames).save(IMAGES / image, optimize=True)
        rows.append(
            {
                "prompt": prompt,
                "dense": dense.seconds,
                "sparse": sparse.seconds,
                "wall": wall,
                "speedup": dense.seconds["denoise"] / sparse.seconds["denoise"],
                "psnr": psnr(dense_frames, sparse_frames),
                "ssim": ssim(dense_frames, sparse_frames),
                "image": image,
            }
        )
        print(f"{prompt}: {wall:.1f} s, {rows[-1]['speedup']:.2f}x, {rows[-1]['psnr']:.1f} dB", flush=True)
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": torch.cuda.get_device_name() if pipeline.device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "settings": f"{request.width}x{request.height}, {request.num_frames} frames, {request.steps} steps, "
        f"guidance {request.guidance_scale:g}, sparsity {request.bsa.sparsity}, "
        f"{sparse.versions.get('precision', 'bf16')}",
        "rows": rows,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
