"""Makes small videos on one device and says what happened: `python tests/gpu_pipeline.py DEVICE FOLDER`.

FastVideo runs on one device in a process, and other tests have it on the CPU. Writes FOLDER/DEVICE.json, and the
frames of the dense and the sparse video to FOLDER/DEVICE.npz.
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bsa import BSAConfig
from pipeline import Cancelled, LongCatPipeline
from pipeline.machine.resources import read_resources
from pipeline.media.attention_record import record_path
from pipeline.media.similarity import psnr

SIZE = {"height": 128, "width": 192, "num_frames": 29, "steps": 6}


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def stop_after(steps):
    def on_step(update):
        if update.phase == "denoise" and update.step == steps:
            raise Cancelled

    return on_step


def readings() -> dict:
    """NVML beside PyTorch, in bytes."""
    now = read_resources()
    gpu = next((gpu for gpu in now.gpus if gpu.key == now.torch_gpu), None)
    return {
        "note": now.note,
        "gpus": len(now.gpus),
        "name": gpu and gpu.name,
        "used": gpu and gpu.used,
        "total": gpu and gpu.total,
        "process": gpu and gpu.process_memory,
        "utilization": gpu and gpu.utilization,
        "power": gpu and gpu.power,
        "temperature": gpu and gpu.temperature,
        "reserved": now.torch_reserved,
        "allocated": now.torch_allocated,
    }


def on_cuda(pipeline, sparse, request, frames, folder) -> dict:
    def same(request=request):
        return bool((pipeline.generate_frames(request)[1] == frames[request.bsa is not None]).all())

    facts = {"repeats": same(), "dense repeats after sparse": same(replace(request, bsa=None)), "readings": readings()}
    try:
        pipeline.generate(request, stop_after(2))
    except Cancelled:
        facts["repeats after cancel"] = same()
    torch.cuda.set_per_process_memory_fraction(1e-3)
    torch.cuda.empty_cache()
    try:
        pipeline.generate(replace(request, height=512, width=768))
    except (torch.OutOfMemoryError, ValueError) as error:
        facts["too large"] = f"{type(error).__name__}: {error}"
    torch.cuda.set_per_process_memory_fraction(1.0)
    facts["repeats after running out of memory"] = same()
    pipeline.record = True
    result, again = pipeline.generate_frames(request, output=folder / "recorded.mp4")
    facts["recorded"] = {
        "same": bool((again == frames[True]).all()),
        "file": record_path(result.video).exists(),
        "seconds": result.seconds,
        "without": sparse.seconds,
    }
    pipeline.record, pipeline.forward = False, "fast"
    for name, bsa in (("sparse", request.bsa), ("dense", None)):
        facts[f"fast {name}"] = psnr(pipeline.generate_frames(replace(request, bsa=bsa))[1], frames[bsa is not None])
    return facts


def main(device: str, folder: Path) -> None:
    log = Lines()
    logging.getLogger("pipeline").addHandler(log)
    logging.getLogger("pipeline").setLevel(logging.INFO)
    pipeline = LongCatPipeline.load(device=device, forward="plain")
    request = replace(
        pipeline.info.request("a red ball bounces over green hills", seed=3, bsa=BSAConfig(0.75)), **SIZE
    )
    sparse, with_bsa = pipeline.generate_frames(request, output=folder / "sparse.mp4")
    dense, without = pipeline.generate_frames(replace(request, bsa=None), output=folder / "dense.mp4")
    facts = {
        "log": log.lines,
        "peaks": [sparse.peak_memory, dense.peak_memory],
        "label": sparse.peak_memory_label,
        "density": sparse.density,
        "sparse to dense": psnr(with_bsa, without),
        "versions": sparse.versions,
    }
    if pipeline.device.type == "cuda":
        facts |= on_cuda(pipeline, sparse, request, {True: with_bsa, False: without}, folder)
    np.savez(folder / f"{device}.npz", sparse=with_bsa, dense=without)
    (folder / f"{device}.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
