"""Teaches the model to work without guidance and in few steps, sparse or dense.

The teacher is the trained model with CFG-zero guidance and dense attention. It takes two Euler steps where
the student takes one (progressive distillation, arXiv 2202.00512; guidance distillation, arXiv 2210.03142).
The student's attention is dense or block sparse at random. Its target is dense in both cases, so sparse and
dense videos of one seed also come closer together.

Where the first frames are given, hardly more than one video fits the prompt, and the flow is nearly straight. There the
student goes on learning from the clips themselves, which needs no teacher.

    python -m training.distill --vae OUT --start OUT --minutes 4 --output OUT2
"""

from __future__ import annotations

import argparse
import copy
import random
from pathlib import Path

import torch
from torch import Tensor

from pipeline.model.denoising import guide
from pipeline.transformer.forward import Attend
from training.data import Pool, add_pool_arguments, open_pool
from training.optim import Optimiser, trapezoid
from training.parallel import join
from training.run import Run
from training.sampling import TextToVideo, euler, shifted_sigmas
from training.tokenizer import encode, load_tokenizer
from training.train_dit import build, draw_attention, draw_given, finish, flow_loss, trained_parts

STEPS = (8, 10, 12, 16)


@torch.no_grad()
def teach(teacher, x, sigma, middle, target, text, mask, guidance: float):
    """The velocity of one step that goes as far from `x` as two guided ones. Text: empty prompts, then real ones."""
    y = x
    for a, b in ((sigma, middle), (middle, target)):
        y = euler(y, guide(teacher.velocity(torch.cat([y, y]), torch.cat([a, a]), text, mask), guidance), a, b)
    return (y - x) / (sigma - target).view(-1, 1, 1, 1, 1)


def distill_loss(
    student: TextToVideo,
    teacher: TextToVideo,
    pool: Pool,
    empty: tuple[Tensor, Tensor],
    batch: int,
    frames: int,
    attend: Attend,
    sigmas: Tensor,
    guidance: float,
) -> Tensor:
    """Squared error of the student's velocity to `teach` at random steps of the schedule `sigmas`.

    empty: ids and mask of the empty prompt, each [1, L].
    """
    x, ids, mask = pool.batch(batch, frames)
    step = torch.randint(len(sigmas) - 1, (batch,), device=x.device)
    sigma, target = sigmas[step], sigmas[step + 1]
    noisy = torch.lerp(x, torch.randn_like(x), sigma.view(-1, 1, 1, 1, 1))
    empty_ids, empty_mask = (part.expand(batch, -1) for part in empty)
    with torch.no_grad():
        both = torch.cat([empty_mask, mask])
        text = teacher.encode(torch.cat([empty_ids, ids]), both)
    goal = teach(teacher, noisy, sigma, (sigma + target) / 2, target, text, both, guidance)
    kept = not next(student.text_encoder.parameters()).requires_grad
    velocity = student.velocity(noisy, sigma, text[batch:] if kept else student.encode(ids, mask), mask, attend)
    return (velocity - goal).square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pool_arguments(parser, clips=8000)
    parser.add_argument("--start", type=Path, required=True, help="folder of train_dit")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, the clips not counted")
    parser.add_argument("--wall", type=float, help="minutes in all instead, the clips and compilation counted")
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    rank, _ = join()
    torch.manual_seed(args.seed + 1000 * rank)
    torch.set_float32_matmul_precision("high")
    rng, device = random.Random(args.seed), args.device
    tokenizer = load_tokenizer()
    run = Run(device, every=50)
    pool = open_pool(args, tokenizer)
    student = build(len(tokenizer), device, args.start, compiled=not args.eager)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    optimiser = Optimiser(trained_parts(student, args.keep_encoder), args.lr, ema=0.997)
    empty = tuple(x.to(device) for x in encode(tokenizer, [""]))
    schedules = [shifted_sigmas(steps, device) for steps in STEPS]
    for progress in run.steps(args.minutes, args.wall):
        given, sigmas = draw_given(rng, args.given, args.frames), rng.choice(schedules)
        attend = draw_attention(rng, args.dense)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            if given:
                loss = flow_loss(student, pool, empty, args.batch, args.frames, attend, given)
            else:
                loss = distill_loss(
                    student, teacher, pool, empty, args.batch, args.frames, attend, sigmas, args.guidance
                )
        loss.backward()
        optimiser.step(trapezoid(progress, 0.02, 0.6))
        run.log(loss)
    finish(student, optimiser, run, "distill.json", args)


if __name__ == "__main__":
    main()
