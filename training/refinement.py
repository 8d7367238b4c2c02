"""Trains the refinement adapter of longcat-tiny, which lets `python -m pipeline refine` add detail to a larger clip.

    python -m training.refinement --seconds 200 --output run/refinement

A pair is a scene in the size of the checkpoint, made worse and enlarged as the pipeline enlarges it, and the same scene
rendered in the larger size. Half of the pairs have twice as many frames. "Worse" is what the model itself makes of the
scene: noise is added to its latents, and the last steps of the usual schedule take it away again.

The flow goes from the noised enlarged clip at level START, where a refinement begins, to the fine one (LongCat-Video,
arXiv 2510.22200, 4.3). Only the adapter learns. Writes `refinement_lora.safetensors`, `refinement.json` (the curve),
`scores.json` and `refined.png`: rows of the enlarged clip, the refined one and the rendered one.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from bsa import BSAConfig
from pipeline import EMBEDDED_CHECKPOINT
from pipeline.checkpoint.info import ADAPTER_FILES
from pipeline.model.begin import noised, padded
from pipeline.model.schedule import longcat_sigmas, refine_schedule
from pipeline.request.refinement import STEPS, latent_frames
from pipeline.transformer.forward import Attend, attend_dense
from pipeline.weights.lora import LoraLayer
from training.captions import as_prompt
from training.data import FRAMES, held_out_scenes, sample_training_scenes
from training.optim import trapezoid
from training.render import pack, render
from training.run import Run
from training.sampling import TextToVideo, attend_sparse, euler, shifted, shifted_sigmas
from training.scenes import HARD, Scene
from training.sharpness import acutance
from training.tasks import STEPS as USUAL_STEPS
from training.tasks import Studio, psnr, sheet
from training.tokenizer import encode, load_tokenizer
from training.train_dit import build
from training.vae import load_vae

START = 0.5  # noise level at which a refinement begins
# The model redraws the last so many of its usual steps. Before them an object has its place, and hardly its outline.
REDRAWN = (0, 0, 1, 2, 3, 4)
SPARSITIES = (0.75, 0.875, 0.9375)  # below, the gathered keys of two long clips do not fit on a GPU
ATTENDS: dict[str, Attend] = {"dense": attend_dense, "sparse": attend_sparse(BSAConfig(0.75))}  # that are scored
SHOWN = 2  # clips of each length on the sheet
ADAPTED = ("to_q", "to_k", "to_v", "to_out", "w1", "w2", "w3")


class Pairs(NamedTuple):
    """Latents of enlarged and of fine clips, bf16 [M, C, T, h, w], and the captions' ids and mask [M, L]."""

    enlarged: Tensor
    fine: Tensor
    ids: Tensor
    mask: Tensor


def adapt(transformer: nn.Module, rank: int) -> dict[str, LoraLayer]:
    """Put a new adapter, which changes nothing yet, on the linear layers of the blocks. Layer name -> its part."""
    layers = {}
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and name.rpartition(".")[2] in ADAPTED:
            outputs, inputs = module.weight.shape
            down = torch.randn(rank, inputs, device=module.weight.device) / inputs**0.5
            up = torch.zeros(outputs, rank, device=module.weight.device)
            layers[name] = LoraLayer(nn.Parameter(down), nn.Parameter(up), 1.0)
    switch(transformer, layers)
    return layers


def switch(transformer: nn.Module, layers: dict[str, LoraLayer] | None) -> None:
    """Run with this adapter from now on, or with none."""
    for name, module in transformer.named_modules():
        if hasattr(module, "lora"):
            del module.lora
        if layers and name in layers:
            module.lora = layers[name]  # what `pipeline.transformer.forward` looks for


def write_adapter(layers: dict[str, LoraLayer], path: Path) -> None:
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.lora_down.weight"] = layer.down.detach().bfloat16().contiguous().cpu()
        tensors[f"{name}.lora_up.weight"] = layer.up.detach().bfloat16().contiguous().cpu()
    save_file(tensors, path)


def enlarge(video: Tensor, frames: int, side: int) -> Tensor:
    """`pipeline.model.begin.enlarge` for clips [B, 3, T, H, W] in [-1, 1] on any device."""
    video = F.interpolate(video, size=(frames, side, side), mode="trilinear", align_corners=True)
    return filled(video)


def filled(video: Tensor) -> Tensor:
    """With copies of the last frame, until the last group of latent frames is full."""
    return padded(video, 0, 4 * latent_frames(video.shape[2]) - 3 - video.shape[2])


@torch.no_grad()
def worsened(studio: Studio, video: Tensor, text: tuple[Tensor, Tensor], redrawn: int) -> Tensor:
    """What the model makes of clips when it draws the last `redrawn` of its usual steps again, in [-1, 1]."""
    latents = studio.encode(video)
    if redrawn:
        sigmas = shifted_sigmas(USUAL_STEPS, video.device)[-1 - redrawn :]
        latents = noised(latents, torch.randn_like(latents), float(sigmas[0]))
        latents = integrate(studio.model, latents, text, sigmas, attend_dense)
    return studio.decode(latents)


def integrate(
    model: TextToVideo, latents: Tensor, text: tuple[Tensor, Tensor], sigmas: Tensor, attend: Attend
) -> Tensor:
    """Take the noise away in steps from each level to the next. text: the encoder's states, and their mask."""
    for sigma, target in zip(sigmas[:-1], sigmas[1:], strict=True):
        level, lower = sigma.expand(len(latents)), target.expand(len(latents))
        latents = euler(latents, model.velocity(latents, level, *text, attend).float(), level, lower)
    return latents


@torch.no_grad()
def make_pairs(
    studio: Studio,
    scenes: list[Scene],
    captions: list[str],
    frames: int,
    side: int,
    redrawn: Iterable[int],
    until: float = math.inf,
) -> Pairs:
    """Pairs of these scenes, in clips of `frames` frames of `side` pixels. redrawn: of each part of the scenes.

    until: of time.time(), after which no further part is made.
    """
    device, parts = studio.device, defaultdict[str, list[Tensor]](list)
    for start, steps in zip(range(0, len(scenes), studio.batch), redrawn, strict=False):
        if parts and time.time() > until:
            break
        part = pack(scenes[start : start + studio.batch], device)
        ids, mask = (x.to(device) for x in encode(studio.tokenizer, captions[start : start + studio.batch]))
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            text = studio.model.encode(ids, mask), mask
            coarse = worsened(studio, render(part, *studio.size), text, steps)
            parts["enlarged"].append(studio.encode(enlarge(coarse, frames, side)).bfloat16())
            parts["fine"].append(studio.encode(filled(render(part, frames, side, side))).bfloat16())
        parts["ids"].append(ids)
        parts["mask"].append(mask)
    return Pairs(**{name: torch.cat(tensors) for name, tensors in parts.items()})


def refinement_loss(model: TextToVideo, pairs: Pairs, batch: int, attend: Attend) -> Tensor:
    """Squared error of the velocity along straight lines from the noised enlarged clips to the fine ones."""
    pick = torch.randint(len(pairs.fine), (batch,), device=pairs.fine.device)
    enlarged, fine, ids, mask = (part[pick] for part in pairs)
    begin = noised(enlarged.float(), torch.randn_like(enlarged.float()), START)
    sigma = START * torch.rand(batch, device=fine.device)
    sigma = torch.where(torch.rand(batch, device=fine.device) < 0.2, START, sigma)  # all of them begin there
    at = torch.lerp(fine.float(), begin, (sigma / START).view(-1, 1, 1, 1, 1))
    velocity = model.velocity(at, sigma, model.encode(ids, mask), mask, attend)
    return (velocity - (fine - begin) / START).square().mean()


@torch.no_grad()
def refine(model: TextToVideo, pairs: Pairs, attend: Attend) -> Tensor:
    """The latents that a refinement makes of the enlarged clips."""
    levels = torch.tensor(longcat_sigmas(STEPS), device=pairs.fine.device)
    schedule = refine_schedule(1000 * shifted(levels), START)
    begin = noised(pairs.enlarged.float(), torch.randn_like(pairs.enlarged.float()), START)
    text = model.encode(pairs.ids, pairs.mask), pairs.mask
    return integrate(model, begin, text, schedule.sigmas, attend)


def score(studio: Studio, pairs: Pairs, attends: dict[str, Attend]) -> tuple[dict[str, Any], list[Tensor]]:
    """PSNR to the rendered clip through the VAE, and acutance, of the enlarged and the refined clips; some clips."""
    fine = studio.decode(pairs.fine.float())
    made = {"enlarged": pairs.enlarged.float()}
    with torch.autocast(studio.device, torch.bfloat16, enabled=studio.device == "cuda"):
        made |= {name: refine(studio.model, pairs, attend) for name, attend in attends.items()}
    clips = {name: studio.decode(latents) for name, latents in made.items()} | {"rendered": fine}
    told = {name: {"acutance": round(sum(map(acutance, clip)) / len(clip), 4)} for name, clip in clips.items()}
    for name in made:
        told[name]["psnr"] = round(sum(psnr(a, b) for a, b in zip(clips[name], fine, strict=True)) / len(fine), 2)
    shown = [clip[i].cpu() for i in range(min(SHOWN, len(fine))) for clip in clips.values()]
    return told, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, default=EMBEDDED_CHECKPOINT, help="the checkpoint to adapt")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=200.0, help="of the whole command")
    parser.add_argument("--reserve", type=float, default=30.0, help="of these, for the scores")
    parser.add_argument("--pairs", type=int, default=480, help="at most")
    parser.add_argument("--drawing", type=float, default=0.35, help="share of the time to make pairs in")
    parser.add_argument("--size", type=int, nargs=2, default=(FRAMES, 256), help="frames and pixels of a coarse clip")
    parser.add_argument("--side", type=int, default=384, help="pixels of a fine clip")
    parser.add_argument("--rank", type=int, default=12)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dense", type=float, default=0.5, help="share of steps with dense attention")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--scored", type=int, default=8, help="held-out scenes to score")
    parser.add_argument("--seed", type=int, default=91)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    began = time.time()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    rng, (frames, side), device = random.Random(args.seed), args.size, args.device
    tokenizer = load_tokenizer()
    model = build(len(tokenizer), device, args.start, compiled=False).eval().requires_grad_(False)
    studio = Studio(model, *load_vae(args.start, device), tokenizer, (frames, side, side), batch=4)
    longer, pools = [frames, 2 * frames], []
    for number, length in enumerate(longer, 1):
        scenes = sample_training_scenes(rng, args.pairs // 2, HARD)
        redrawn = rng.choices(REDRAWN, k=len(scenes))
        captions, until = [as_prompt(rng, scene) for scene in scenes], began + number * args.drawing * args.seconds / 2
        pools.append(make_pairs(studio, scenes, captions, length, args.side, redrawn, until))
    print(f"{[len(pool.fine) for pool in pools]} pairs after {time.time() - began:.0f} s", flush=True)

    layers = adapt(model.transformer, args.rank)
    parameters = [part for layer in layers.values() for part in (layer.down, layer.up)]
    adam = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    run = Run(device, every=50)
    for progress in run.steps(0.0, wall=max(1.0, args.seconds - args.reserve - (run.began - began)) / 60):
        for group in adam.param_groups:
            group["lr"] = args.lr * trapezoid(progress, 0.03, 0.6)
        sparse = attend_sparse(BSAConfig(rng.choice(SPARSITIES)))
        attend = attend_dense if rng.random() < args.dense else sparse
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = refinement_loss(model, rng.choice(pools), args.batch, attend)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        adam.zero_grad()
        run.log(loss)
    write_adapter(layers, args.output / ADAPTER_FILES["refine"])
    run.report(args.output / "refinement.json", args)

    del pools
    scenes = held_out_scenes(args.scored)
    report, rows = {}, []
    for length in longer if args.scored else ():
        switch(model.transformer, None)
        pairs = make_pairs(studio, scenes, [s.caption for s in scenes], length, args.side, [3] * len(scenes))
        switch(model.transformer, layers)
        report[f"{length} frames"], shown = score(studio, pairs, ATTENDS)
        rows += shown
    (args.output / "scores.json").write_text(json.dumps(report, indent=1) + "\n")
    if rows:
        Image.fromarray(sheet(rows, side=192)).save(args.output / "refined.png")
    print(json.dumps(report, indent=1), f"\ndone after {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
