"""A pipeline of two ranks, for test_pipeline_team.py: python tests/parallel_team.py CHECKPOINT FOLDER DEVICE

Makes each video alone and together, stops and breaks jobs, and writes what it saw.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bsa import BSAConfig
from pipeline import Cancelled, LongCatPipeline
from pipeline.media.attention_record import AttentionRecord, record_path
from pipeline.media.clip import inspect_clip
from pipeline.media.similarity import psnr


def requests(info) -> dict:
    small = {"steps": 2, "height": 48, "width": 64, "num_frames": 9}
    bsa = BSAConfig(0.5, None, (2, 2, 2), (2, 2, 2))
    guided = info.request("a ball", seed=3, guidance_scale=4.0, negative_prompt="blurred and dark", bsa=bsa, **small)
    return {
        "guided": guided,
        "threshold": replace(guided, guidance_scale=1.0, bsa=BSAConfig(None, 0.7, (2, 2, 2), (2, 2, 2))),
        "dense": replace(guided, guidance_scale=1.0, bsa=None),
        "teacache": replace(guided, steps=6, teacache_thresh=1.0),
    }


def continued(info, clip: Path, guided):
    """Guided, after the clip's last frames, whose keys and values are kept."""
    given = {"bsa": guided.bsa, "guidance_scale": 4.0, "negative_prompt": "dark", "seed": 3}
    size = {"height": 48, "width": 64, "num_frames": 13, "steps": 2, "enhance_hf": False}
    return info.continuation("a ball", inspect_clip(clip), cond_frames=5, stride=1, **given, **size)


def make(pipeline, request, output: Path) -> dict:
    steps = []
    pipeline.record = request.bsa is not None and request.start.source is None
    result, frames = pipeline.generate_frames(request, lambda update: steps.append((update.phase, update.step)), output)
    made = {"frames": frames, "density": result.density, "kept": result.blocks_kept, "steps": steps}
    made["passes"] = result.passes
    return made | {"record": AttentionRecord.load(record_path(output)) if pipeline.record else None}


def compared(alone: dict, together: dict) -> dict:
    frames = np.abs(alone["frames"].astype(int) - together["frames"].astype(int))
    found = {"largest": int(frames.max()), "psnr": psnr(alone["frames"], together["frames"])}
    found["same_steps"] = alone["steps"] == together["steps"]
    found |= {name: [alone[name], together[name]] for name in ("density", "kept", "passes")}
    one, two = alone["record"], together["record"]
    if one is not None:
        for name in ("selections", "density", "recall", "block_recall"):
            a, b = getattr(one, name), getattr(two, name)
            found[f"record {name}"] = bool(np.allclose(a, b, atol=1e-5, equal_nan=True))
    return found


def at_step(number: int, act):
    def on_step(update):
        if (update.phase, update.step) == ("denoise", number):
            act()

    return on_step


def cancel():
    raise Cancelled


def outcome(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "made"


def main(checkpoint: str, folder: str, device: str) -> None:
    torch.set_num_threads(1)
    checkpoint, folder = Path(checkpoint), Path(folder)
    one = LongCatPipeline.load(checkpoint, device=device, forward="fast")
    asked = requests(one.info)
    alone = {name: make(one, request, folder / f"one-{name}.mp4") for name, request in asked.items()}
    clip = folder / "one-dense.mp4"
    asked["continued"] = continued(one.info, clip, asked["guided"])
    alone["continued"] = make(one, asked["continued"], folder / "one-continued.mp4")
    del one
    two = LongCatPipeline.load(checkpoint, device=device, forward="fast", gpus=2)
    found = {}
    for name, request in asked.items():
        found[name] = compared(alone[name], make(two, request, folder / f"two-{name}.mp4"))
    other = two._team._followers._processes[1]
    dense = asked["dense"]
    found["versions"] = two.generate(dense, None, folder / "again.mp4").versions.get("gpus")
    found["cancelled"] = outcome(lambda: two.generate(dense, at_step(1, cancel)))
    clip.unlink()
    found["missing"] = outcome(lambda: two.generate(asked["continued"]))
    found["still there"] = other.poll() is None and outcome(lambda: two.generate(dense)) == "made"
    found["killed"] = outcome(lambda: two.generate(dense, at_step(1, lambda: os.kill(other.pid, signal.SIGKILL))))
    # sparse after its dense: of that, the ranks that were started again know only what they are told
    found["next"] = compared(alone["threshold"], make(two, asked["threshold"], folder / "next.mp4"))
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
