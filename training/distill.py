"""Teach the model to do without guidance and with few steps, sparse or dense.

The teacher is the trained model with CFG-zero guidance and dense attention; it takes two Euler steps where
the student takes one (progressive distillation, arXiv 2202.00512; guidance distillation, arXiv 2210.03142).
The student's attention is dense or block sparse at random against the same dense target, which also pulls
sparse and dense videos of one seed together.

    python -m training.distill --vae OUT --start OUT --minutes 4 --output OUT2
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from training.data import Pool, make_pool
from training.optim import Optimiser, trapezoid
from training.render import render
from training.sampling import euler, guided, shifted_sigmas
from training.tokenizer import encode, train_tokenizer
from training.train_dit import build, draw_attention, load_vae, save

STEPS = (8, 10, 12, 16)


@torch.no_grad()
def teach(teacher, x, sigma, middle, target, text, mask, empty_text, empty_mask, guidance: float):
    """Where two guided steps lead from `x`, as the velocity of one step."""
    both_text, both_mask = torch.cat([text, empty_text]), torch.cat([mask, empty_mask])
    y = x
    for a, b in ((sigma, middle), (middle, target)):
        conditional, unconditional = teacher.velocity(torch.cat([y, y]), torch.cat([a, a]), both_text, both_mask).chunk(
            2
        )
        y = euler(y, guided(conditional, unconditional, guidance), a, b)
    return (y - x) / (sigma - target).view(-1, 1, 1, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True, help="folder of train_dit")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--pool", type=int, default=8000)
    parser.add_argument("--pool-file", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--dense", type=float, default=0.4)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, nargs=2, default=(61, 256))
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    rng, device, cuda = random.Random(args.seed), args.device, args.device == "cuda"
    tokenizer = train_tokenizer()
    began = time.time()
    if args.pool_file and args.pool_file.exists():
        pool = Pool(**load_file(args.pool_file, device=device))
    else:
        vae, statistics = load_vae(args.vae, device)
        frames, pixels = args.size
        draw = render if args.eager else torch.compile(render, dynamic=False)
        pool = make_pool(
            vae,
            tokenizer,
            statistics,
            args.pool,
            100 + args.seed,
            device,
            (frames, pixels, pixels),
            batch=min(16, args.pool),
            draw=draw,
        )
    student = build(len(tokenizer), device, args.start, compiled=not args.eager)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    optimiser = Optimiser([student.text_encoder, student.transformer], args.lr, ema=0.997)
    empty_ids, empty_mask = (x.to(device).expand(args.batch, -1) for x in encode(tokenizer, [""]))
    schedules = [shifted_sigmas(steps, device) for steps in STEPS]
    # the teacher's middle points: the same schedule with twice the steps, taken at equal distances before the shift
    curve, recent, warm, start = [], [], None, time.time()
    while warm is None or (progress := (time.time() - warm) / (60 * args.minutes)) < 1:
        x, ids, mask = pool.batch(args.batch, args.frames)
        sigmas = rng.choice(schedules)
        place = torch.randint(len(sigmas) - 1, (args.batch,), device=device)
        sigma, target = sigmas[place], sigmas[place + 1]
        middle = (sigma + target) / 2
        noisy = torch.lerp(x, torch.randn_like(x), sigma.view(-1, 1, 1, 1, 1))
        attend, _ = draw_attention(rng, args.dense)
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            with torch.no_grad():
                text, empty_text = teacher.encode(ids, mask), teacher.encode(empty_ids, empty_mask)
            goal = teach(teacher, noisy, sigma, middle, target, text, mask, empty_text, empty_mask, args.guidance)
            velocity = student.velocity(noisy, sigma, student.encode(ids, mask), mask, attend)
            loss = (velocity - goal).square().mean()
        loss.backward()
        optimiser.step(0.05 if warm is None else trapezoid(progress, 0.02, 0.6))
        recent.append(loss.detach())
        if optimiser.steps == 3:
            if cuda:
                torch.cuda.synchronize()
            print(f"compiled after {time.time() - start:.0f} s", flush=True)
            warm = time.time()
        if optimiser.steps % 50 == 0:
            curve.append([optimiser.steps, round(time.time() - start, 1), round(torch.stack(recent).mean().item(), 5)])
            recent.clear()
            if optimiser.steps % 200 == 0:
                print("step {} {} s loss {}".format(*curve[-1]), flush=True)
    optimiser.load_average()
    save(student, args.output)
    report = {
        "steps": optimiser.steps,
        "seconds": round(time.time() - began, 1),
        "arguments": {k: str(v) for k, v in vars(args).items()},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "curve": curve,
    }
    (args.output / "distill.json").write_text(json.dumps(report, indent=1))
    print(f"{optimiser.steps} steps, loss {curve[-1][2] if curve else None}, {report['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
