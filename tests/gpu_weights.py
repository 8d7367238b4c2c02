"""Makes the same videos with every way to keep the weights: `python tests/gpu_weights.py DEVICE FILE`.

Writes a JSON list to FILE, one entry for each way. In a process of its own, because FastVideo has one device in each.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bsa import BSAConfig
from pipeline import LongCatPipeline
from pipeline.estimate.calibrate import measure
from pipeline.machine.memory import release_memory
from pipeline.media.similarity import psnr
from pipeline.request.load_options import AS_STORED, LoadOptions

WAYS = AS_STORED, LoadOptions(None, True), LoadOptions("fp8"), LoadOptions("fp8", True)


def held(device: torch.device, most: bool = False) -> int:
    if device.type != "cuda":
        return 0
    return torch.cuda.max_memory_allocated(device) if most else torch.cuda.memory_allocated(device)


def main(device: str, file: Path) -> None:
    facts, videos = [], {}
    for weights in WAYS:
        release_memory()
        before = held(torch.device(device))
        pipeline = LongCatPipeline.load(device=device, forward="fast", **weights.arguments)
        with pipeline.exclusive() as model:
            stored = sum(weight.numel() for weight in model.transformer.parameters()) * model.dtype.itemsize
        loaded = {"peak": held(pipeline.device, most=True) - before, "held": held(pipeline.device) - before}
        sparse = pipeline.info.request("a red ball bounces over green hills", seed=3, bsa=BSAConfig(0.75))
        sparse = replace(sparse, height=96, width=96, num_frames=13, steps=3, guidance_scale=2.0)
        dense = replace(sparse, bsa=None)
        made = videos[weights] = [pipeline.generate_frames(request)[1] for request in (sparse, dense)]
        again = [pipeline.generate_frames(request)[1] for request in (sparse, dense)]
        exact = videos[replace(weights, offload=False)]
        facts.append(
            {
                "way": str(weights),
                "stored": stored,
                **loaded,
                "repeats": all(map(np.array_equal, made, again)),
                "as without offload": all(map(np.array_equal, made, exact)),
                "psnr to stored": min(map(psnr, made, videos[AS_STORED])),
                "parts": sorted({point["part"] for point in measure(pipeline)}),
            }
        )
        del pipeline, model
    file.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
