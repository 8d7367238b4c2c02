"""Puts PSNR and SSIM in proportion: the likeness after rounding, with another seed and with sparsity, and the content.

    python benchmarks/likeness.py --prompts 160      # minutes on a GPU; needs the checkpoint's classifier

Makes held-out prompts with the embedded checkpoint, dense, and compares the frames before compression with those of the
same video by another kernel (rounding alone), of another seed, and of three sparsities. The checkpoint's classifier
(`training.judge`) recognises the object of each clip that has only one. Writes benchmarks/results/likeness.json, and
the two yardsticks that the page shows into the checkpoint's yardstick.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.quality import FLOOR, LATENTS, STEPS, Maker, attend_explicitly, held_out_scenes
from benchmarks.quality_metrics import compare
from bsa import BSAConfig
from pipeline import EMBEDDED_CHECKPOINT
from pipeline.checkpoint.yardstick import FILE
from pipeline.model.content import read_judge
from pipeline.request.result import SURE
from pipeline.transformer.forward import attend_dense
from training.data import sample_test_scenes
from training.judge import NAMES
from training.scenes import Scene

RESULTS = Path(__file__).parent / "results" / "likeness.json"
SEED, OTHER = 20_000, 5_000  # of the prompts with one object; what the other seed adds to the first
OTHER_SEED = "other seed"
KINDS: dict[str, Any] = {FLOOR: attend_explicitly, OTHER_SEED: attend_dense}
KINDS |= {str(sparsity): BSAConfig(sparsity) for sparsity in (0.75, 0.875, 0.9375)}


def prompts(count: int) -> list[Scene]:
    """Held-out scenes: three fifths with one object, the others as often of each kind as in the training. In turns, so
    that a few of them are a sample, too."""
    one = sample_test_scenes(random.Random(SEED), 3 * count // 5)
    rest = held_out_scenes(count - len(one))
    mixed = [scene for at in range(0, len(rest), 16) for scene in one[at : at + 16] + rest[at : at + 16]]
    return mixed + one[len(rest) :]


def measure(maker: Maker, scenes: list[Scene], batch: int) -> list[dict[str, Any]]:
    """For each prompt, and each kind of video: its figures against the dense one, and what the classifier says."""
    judge = read_judge(EMBEDDED_CHECKPOINT)
    clips: list[dict[str, Any]] = []
    for first in range(0, len(scenes), batch):
        part = scenes[first : first + batch]
        captions, seeds = [scene.caption for scene in part], list(range(first, first + len(part)))
        dense = maker.frames(captions, seeds, attend_dense)
        rows = [
            {"caption": scene.caption, "truth": scene.attributes, "dense": {"told": judge.tell(levels(clip))}}
            for scene, clip in zip(part, dense, strict=True)
        ]
        for name, attention in KINDS.items():
            moved = [seed + OTHER * (name == OTHER_SEED) for seed in seeds]
            made = maker.frames(captions, moved, attention)
            figures = compare(made, dense)
            for number, (row, clip) in enumerate(zip(rows, made, strict=True)):
                row[name] = {"told": judge.tell(levels(clip)), **{key: v[number] for key, v in figures.items()}}
        clips += rows
        print(f"{len(clips)} of {len(scenes)} prompts", flush=True)
    return clips


def levels(clip: torch.Tensor) -> Any:
    """One clip, uint8 [3, T, H, W], as `tell` takes it."""
    return clip.permute(1, 2, 3, 0).cpu().numpy()


def summary(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, 5 % and 95 % of the figures of each kind, and how often the classifier is sure, and right about it."""
    one = [clip for clip in clips if clip["truth"]["kind"] == "shapes1"]
    kinds = {}
    for name in KINDS:
        both = [clip for clip in one if sure(clip["dense"]["told"]) and sure(clip[name]["told"])]
        kinds[name] = {
            **{figure: spread([clip[name][figure] for clip in clips]) for figure in ("psnr", "ssim", "worst_frame")},
            "sure": len(both),
            "same": sum(same(clip["dense"]["told"], clip[name]["told"]) for clip in both),
        }
    others = [
        same(first["dense"]["told"], second["dense"]["told"])
        for first, second in itertools.combinations(one, 2)
        if any(first["truth"][f"{name}0"] != second["truth"][f"{name}0"] for name in NAMES)
        and sure(first["dense"]["told"])
        and sure(second["dense"]["told"])
    ]
    return {
        "prompts": len(clips),
        "with_one_object": len(one),
        "kinds": kinds,
        "other_prompts": {"pairs": len(others), "same": sum(others)},
    }


def sure(told: dict[str, Any]) -> bool:
    return all(odds >= SURE for _, odds in told.values())


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(first[name][0] == second[name][0] for name in NAMES)


def spread(values: list[float]) -> list[float]:
    """Mean, 5 % and 95 %."""
    edges = statistics.quantiles(values, n=20, method="inclusive")
    return [round(value, 3) for value in (statistics.fmean(values), edges[0], edges[-1])]


def yardstick(report: dict[str, Any]) -> dict[str, Any]:
    """What the page shows, and for which videos it was measured."""
    kinds = report["summary"]["kinds"]
    size = {"num_frames": 4 * LATENTS[1] - 3, "height": 8 * LATENTS[2], "width": 8 * LATENTS[3], "steps": STEPS}
    about = {"prompts": report["summary"]["prompts"], "device": report["device"], "date": report["date"]}
    return {"of": size, "measured": about, "rounding": kinds[FLOOR]["psnr"], "other_seed": kinds[OTHER_SEED]["psnr"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT, help="gets the yardstick")
    args = parser.parse_args()
    maker = Maker(args.device)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if maker.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "sure_from": SURE,
        "summary": summary(measure(maker, prompts(args.prompts), args.batch)),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    (args.checkpoint / FILE).write_text(json.dumps(yardstick(report), indent=1) + "\n")


if __name__ == "__main__":
    main()
