"""Measures the quality of block sparse attention: methods, blocks and schedules against dense attention.

    python benchmarks/quality.py --prompts 100 --device cuda      # the study of docs/quality.md
    python benchmarks/quality.py --reduced                        # minutes on a CPU; `make quality`
    python benchmarks/quality.py --smoke                          # that everything runs, on a tiny clip

Makes held-out prompts with the embedded checkpoint, each with one seed, dense and with every setting, and compares the
frames before compression. The noise floor is dense attention by another kernel: no setting needs to be better. Writes
benchmarks/results/quality.json; benchmarks/tables.py makes the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.gpu import result_path
from benchmarks.quality_layers import probe
from benchmarks.quality_metrics import agreement, compare, interval, said, shown
from bsa import BSAConfig, Grid, block_sparse_attention
from bsa.config import SCHEDULE
from pipeline import EMBEDDED_CHECKPOINT
from pipeline.model.content import Judge, read_judge
from pipeline.transformer.forward import Attend, attend_dense
from training.data import sample_held_out_scenes
from training.sampling import TextToVideo, sample
from training.scenes import Scene
from training.tokenizer import encode, load_tokenizer
from training.train_dit import build
from training.vae import load_vae

RESULTS = Path(__file__).parent / "results" / "quality.json"
SEED = 31_000  # of the prompts, which no other score uses
LATENTS, STEPS = (16, 16, 32, 32), 8  # of the embedded checkpoint's 61 frames of 256x256
SPARSITIES = (0.5, 0.75, 0.875, 0.9375)
C444, C224, C448, C244 = Grid(4, 4, 4), Grid(2, 2, 4), Grid(4, 4, 8), Grid(2, 4, 4)
# (query chunk, key chunk), and what is done with them
SHAPES = ((C444, C444), (C444, C224), (C448, C224), (C244, C244), (C224, C224))
SCHEDULES = ({}, {"dense_steps": 1}, {"dense_layers": 2}, {"dense_steps": 1, "dense_layers": 2})
FLOOR, DENSE = "dense, another kernel", "dense"
SMOKE = (16, 4, 16, 16)  # latents of 13 frames of 128x128


def study() -> dict[str, BSAConfig]:
    """Every setting by a name that says what it is."""
    configs = []
    for sparsity in SPARSITIES:
        configs += [BSAConfig(sparsity, None, q, k, selection) for q, k in SHAPES for selection in ("mean", "cells")]
        configs += [
            BSAConfig(sparsity, None, q, k, selection, **schedule)
            for selection, (q, k) in (("mean", SHAPES[0]), *(("cells", shape) for shape in SHAPES[:3] + SHAPES[4:]))
            for schedule in SCHEDULES[1:]
        ]
    return {name_of(config): config for config in configs}


def reduced() -> dict[str, BSAConfig]:
    plain = BSAConfig(0.9375)
    return {name_of(config): config for config in (plain, replace(plain, selection="cells", dense_layers=2))}


def name_of(config: BSAConfig) -> str:
    values = ((name, getattr(config, name), usual) for name, usual in SCHEDULE.items())
    schedule = [f" {name.replace('_', ' ')} {value}" for name, value, usual in values if value != usual]
    return f"{config.sparsity} {config.selection} {config.chunk_q} {config.chunk_k}{''.join(schedule)}"


def attend_explicitly(q: Tensor, k: Tensor, v: Tensor, grid: Grid, conditioning: int = 0) -> Tensor:
    """Dense attention written out in fp32, a head at a time: the other kernel of the noise floor."""
    assert not conditioning
    out = [
        ((a.float() @ b.float().mT) * q.shape[-1] ** -0.5).softmax(-1) @ c.float()
        for a, b, c in zip(*(x.flatten(0, 1) for x in (q, k, v)), strict=True)
    ]
    return torch.stack(out).view_as(q).to(q.dtype)


def held_out_scenes(count: int) -> list[Scene]:
    return sample_held_out_scenes(random.Random(SEED), count)


class Maker:
    """The embedded checkpoint on one device, in the precision that the pipeline has there."""

    def __init__(self, device: str, latents: tuple[int, int, int, int] = LATENTS, steps: int | None = None) -> None:
        self.latents, self.steps = latents, STEPS if steps is None else steps
        self.device = torch.device(device)
        self.tokenizer = load_tokenizer()
        self.model: TextToVideo = build(len(self.tokenizer), device, EMBEDDED_CHECKPOINT, compiled=False).eval()
        self.model.requires_grad_(False)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.model.transformer.to(self.dtype)
        self.vae, (self.mean, self.std) = load_vae(EMBEDDED_CHECKPOINT, device)

    @property
    def grid(self) -> Grid:
        return Grid(self.latents[1], self.latents[2] // 2, self.latents[3] // 2)

    @property
    def depth(self) -> int:
        return len(self.model.transformer.blocks)

    @torch.no_grad()
    def frames(self, captions: list[str], seeds: list[int], attention: BSAConfig | Attend | list[Attend]) -> Tensor:
        """8-bit levels, uint8 [B, 3, T, H, W]. attention: of all layers, or of each."""
        noise = [torch.randn(self.latents, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        ids, mask = (x.to(self.device) for x in encode(self.tokenizer, captions))
        text = self.model.encode(ids, mask).to(self.dtype)
        step = 0

        def predict(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal step
            each = self._attention(attention, step)
            step += 1
            return self.model.velocity(x.to(self.dtype), sigma, text, mask, each)

        latents = sample(predict, torch.stack(noise).to(self.device), self.steps)
        latents = latents * self.std.view(1, -1, 1, 1, 1) + self.mean.view(1, -1, 1, 1, 1)
        video = torch.cat([self.vae.decode(one) for one in latents.split(2)])
        return ((video.clamp(-1, 1) + 1) * 127.5).round().byte()

    def _attention(self, attention: BSAConfig | Attend | list[Attend], step: int) -> list[Attend]:
        depth = self.depth
        if not isinstance(attention, BSAConfig):
            return attention if isinstance(attention, list) else [attention] * depth
        dense, config = attention.dense_layers_at(step, depth), attention

        def sparse(q: Tensor, k: Tensor, v: Tensor, grid: Grid, conditioning: int) -> Tensor:
            return block_sparse_attention(q, k, v, grid, config, conditioning=conditioning)

        return [*[attend_dense] * dense, *[sparse] * (depth - dense)]


def run(
    maker: Maker,
    configs: dict[str, BSAConfig],
    scenes: list[Scene],
    batch: int,
    until: float,
    judge: Judge,
) -> dict[str, Any]:
    """Figures of every setting, clip by clip. Ends early, with whole batches, when the time is up.

    judge: tells, of the prompts with one object, which clips show something else than the dense one ("same" is 0) and
        which show what the prompt says ("follows" is 1).
    """
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    done = 0
    for first in range(0, len(scenes), batch):
        if time.monotonic() > until:
            break
        part = scenes[first : first + batch]
        captions, seeds = [scene.caption for scene in part], list(range(first, first + len(part)))
        single = [place for place, scene in enumerate(part) if scene.attributes["kind"] == "shapes1"]
        dense = maker.frames(captions, seeds, attend_dense)
        if single:
            truth, reference = said([part[place] for place in single]), shown(judge, dense[single])
            figures[DENSE]["follows"] += agreement(reference, truth)
        kinds: dict[str, BSAConfig | Callable] = {FLOOR: attend_explicitly, **configs}
        for name, attention in kinds.items():
            video = maker.frames(captions, seeds, attention)
            told = compare(video, dense)
            if single:
                seen = shown(judge, video[single])
                told |= {"same": agreement(seen, reference), "follows": agreement(seen, truth)}
            for figure, values in told.items():
                figures[name][figure] += values
        done += len(captions)
        print(f"{done} of {len(scenes)} prompts", flush=True)
    return {"prompts": [scene.caption for scene in scenes[:done]], "clips": figures}


def summary(figures: dict[str, list[float]], baseline: dict[str, list[float]] | None) -> dict[str, Any]:
    """Means, the worst clip, the clips with another meaning, and the paired gain over the baseline with its 95 %
    interval."""
    told: dict[str, Any] = {name: round(statistics.fmean(values), 4) for name, values in figures.items()}
    if "same" in told:
        told |= {"flips": figures["same"].count(0.0), "judged": len(figures["same"])}
        del told["same"]
    if "psnr" in figures:
        told["worst_psnr"] = round(min(figures["psnr"]), 2)
    if baseline is not None:
        gains = [a - b for a, b in zip(figures["psnr"], baseline["psnr"], strict=True)]
        told["gain"] = round(statistics.fmean(gains), 2)
        told["gain_interval"] = [round(edge, 2) for edge in interval(gains)]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=60, help="begin no batch of prompts after that")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--probed", type=int, default=2, help="prompts for the measurements of each layer, or 0")
    parser.add_argument("--reduced", action="store_true", help="two settings and three prompts, one at a time")
    parser.add_argument("--smoke", action="store_true", help="the same with one tiny clip")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    began = time.monotonic()
    configs, prompts, batch = (study(), args.prompts, args.batch)
    if args.reduced or args.smoke:
        configs, prompts, batch, args.probed = reduced(), 1 if args.smoke else 3, 1, 1
    maker = Maker(args.device, SMOKE, 1) if args.smoke else Maker(args.device)
    scenes = held_out_scenes(prompts)
    judge = read_judge(EMBEDDED_CHECKPOINT).to(maker.device)
    made = run(maker, configs, scenes, batch, began + 60 * args.minutes, judge)
    probed = [scene.caption for scene in scenes[: args.probed]]
    layers = probe(partial(maker.frames, probed, list(range(len(probed)))), maker.depth, configs) if probed else {}
    rows = [{"name": FLOOR, **summary(made["clips"][FLOOR], None)}]
    for name, config in configs.items():
        baseline = made["clips"].get(name_of(BSAConfig(config.sparsity)))
        share, kept = config.dense_share(maker.steps, maker.depth), config.blocks(maker.grid).density
        rows.append(
            {
                "name": name,
                "bsa": config.to_bsa_params(),
                "density": round(share + (1 - share) * (kept or 1), 5),
                **summary(made["clips"][name], baseline),
                **({"layers": layers[name]} if name in layers else {}),
            }
        )
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if maker.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "dtype": str(maker.dtype).removeprefix("torch."),
        "seconds": round(time.monotonic() - began, 1),
        "prompts": len(made["prompts"]),
        "probed": args.probed,
        "dense": summary(made["clips"].get(DENSE, {}), None),
        "rows": rows,
        "psnr": {name: [round(value, 2) for value in made["clips"][name]["psnr"]] for name in (FLOOR, *configs)},
        "captions": made["prompts"],
    }
    output = result_path(args)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        flips = f", {row['flips']} of {row['judged']} mean something else" if "flips" in row else ""
        print(f"{row['psnr']:6.2f} dB, worst {row['worst_psnr']:6.2f}, SSIM {row['ssim']:.4f}  {row['name']}{flips}")


if __name__ == "__main__":
    main()
