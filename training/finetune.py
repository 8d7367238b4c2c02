"""Goes on from a checkpoint for a fixed time: clips, flow, distillation, export, scores, all in one command.

    python -m training.finetune --seconds 480 --output run/next
    torchrun --nproc-per-node 4 -m -- training.finetune --seconds 480 --pool 16000 --output run/next

Writes a whole checkpoint into a folder of --output that has the name of the one it began with. Beside it go the curves
(`flow.json`, `distill.json`), the scores of the checkpoint before and after on held-out prompts (`scores.json`), and
sheets of the first clips (`*.png`). The classifier that gives the scores is trained anew on the present grammar, and
goes into the checkpoint. The text encoder stays as it is. FastVideo and ffmpeg are not used.

The clips take about a fifth of the time. --flow divides the rest between learning from the clips and distillation,
which turns the flow back into one of 8 steps without guidance. --reserve keeps seconds for the scores.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline import EMBEDDED_CHECKPOINT
from pipeline.model.content import Judge
from pipeline.transformer.forward import EAGER
from training.data import Pool, add_pool_arguments, held_out_scenes, open_pool
from training.distill import STEPS, distill_loss
from training.export import export_transformer
from training.judge import NAMES, train, write_judge
from training.manifest import read_manifest, write_manifest
from training.optim import Optimiser, trapezoid
from training.parallel import is_first, join, leave
from training.run import Run
from training.sampling import TextToVideo, shifted_sigmas
from training.tasks import TASKS, Studio, score, sheet
from training.tokenizer import encode, load_tokenizer
from training.train_dit import build, draw_attention, draw_given, flow_loss, trained_parts
from training.vae import load_vae


def learn(model: TextToVideo, pool: Pool, args: argparse.Namespace, empty, until: float, distil: bool) -> Run:
    """One of the two stages, until `until` (of time.time()). The model gets the averaged weights."""
    run, rng = Run(args.device, every=50), random.Random(args.seed)
    teacher = copy.deepcopy(model).eval().requires_grad_(False) if distil else None
    rate, ema = (args.lr_distill, 0.997) if distil else (args.lr, args.ema)
    optimiser = Optimiser(trained_parts(model, keep_encoder=True), rate, ema)
    schedules = [shifted_sigmas(steps, args.device) for steps in STEPS]
    for progress in run.steps(0.0, wall=max(1.0, until - run.began) / 60):
        given, sigmas = draw_given(rng, args.given, args.frames), rng.choice(schedules)
        attend = draw_attention(rng, args.dense)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            if teacher is None or given:
                loss = flow_loss(model, pool, empty, args.batch, args.frames, attend, given)
            else:
                loss = distill_loss(model, teacher, pool, empty, args.batch, args.frames, attend, sigmas, args.guidance)
        loss.backward()
        optimiser.step(trapezoid(progress, 0.02, 0.6))
        run.log(loss)
    optimiser.load_average()
    return run


def judged(model: TextToVideo, args: argparse.Namespace, tokenizer) -> dict[str, Any]:
    """Scores of the model and of the checkpoint it came from, by the same classifier; writes the sheets."""
    device, output = args.device, args.output
    if args.judge:
        judge = Judge(NAMES).to(device).eval()
        judge.load_state_dict(load_file(args.judge))
    else:
        judge, _ = train(args.judge_seconds / 60, device, batch=128, clips=args.judge_clips)
        exported = output / args.start.name
        write_judge({name: tensor.cpu() for name, tensor in judge.state_dict().items()}, exported)
        write_manifest(exported, read_manifest(exported)[0])
    vae, statistics = load_vae(args.vae, device)
    frames, pixels = args.size
    scenes = held_out_scenes(args.prompts)
    before = build(len(tokenizer), device, args.start, compiled=False).eval()
    model.stages = EAGER
    report: dict[str, Any] = {"captions": [scene.caption for scene in scenes]}
    for name, network, tasks in (("before", before, ("text",)), ("after", model.eval(), tuple(TASKS))):
        studio = Studio(network, vae, statistics, tokenizer, (frames, pixels, pixels), args.batch)
        report[name], made = score(studio, judge, scenes, tasks, (None, 0.75))
        for task, clips in made.items():
            Image.fromarray(sheet(clips)).save(output / f"{name} {task}.png".replace(" ", "-"))
        print(name, json.dumps(report[name], indent=1), flush=True)
        clips = [studio.make([caption], [seed], None, None)[0].cpu() for seed, caption in enumerate(FAULTS)]
        Image.fromarray(sheet(clips)).save(output / f"{name}-faults.png")
    return report


FAULTS = (  # prompts that the checkpoint once drew badly
    "a red ball bounces over green hills at sunset",
    "a blue hexagon spins on a white background",
    "a green hexagon sways on a grey background",
    "a pink cross sways on a wooden floor",
    "a large yellow star spins on a navy background",
    "fireworks over a city skyline at night",
    "the camera pans right over desert dunes at sunset",
    "a pink heart sways from side to side in front of snowy mountains",
    "an orange ring moves in a circle on a studio backdrop",
    "a white triangle pulses on a checkerboard floor",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pool_arguments(parser, clips=4000, vae=EMBEDDED_CHECKPOINT)
    parser.set_defaults(batch=16, dense=0.6, hard=True)
    parser.add_argument("--start", type=Path, default=EMBEDDED_CHECKPOINT, help="the checkpoint to go on from")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=500.0, help="of the whole command")
    parser.add_argument("--reserve", type=float, default=95.0, help="of these, for the export and the scores")
    parser.add_argument("--flow", type=float, default=0.5, help="share of the training before the distillation")
    parser.add_argument("--guidance", type=float, default=2.2, help="of the teacher in the distillation")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--lr-distill", type=float, default=5e-4)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--prompts", type=int, default=64, help="held-out prompts to score")
    parser.add_argument("--judge", type=Path, help="weights of training.judge; by default a classifier is trained")
    parser.add_argument("--judge-seconds", type=float, default=25.0)
    parser.add_argument("--judge-clips", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=81)
    args = parser.parse_args()
    began = time.time()
    args.output.mkdir(parents=True, exist_ok=True)
    rank, processes = join()
    torch.manual_seed(args.seed + 1000 * rank)
    torch.set_float32_matmul_precision("high")
    tokenizer = load_tokenizer()
    pool = open_pool(args, tokenizer)
    model = build(len(tokenizer), args.device, args.start, compiled=not args.eager)
    empty = tuple(part.to(args.device) for part in encode(tokenizer, [""]))
    end, now = began + args.seconds - args.reserve, time.time()
    stages = [("flow", now + args.flow * (end - now), False), ("distill", end, True)]
    for name, until, distil in stages:
        if (args.flow < 1) if distil else (args.flow > 0):
            run = learn(model, pool, args, empty, until, distil)
            if is_first():
                run.report(args.output / f"{name}.json", args, processes=processes)
    leave()
    if rank:
        return
    del pool
    export_transformer(model, args.start, args.output / args.start.name)
    print(f"exported after {time.time() - began:.0f} s", flush=True)
    if args.prompts:
        report = judged(model, args, tokenizer)
        (args.output / "scores.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"done after {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
