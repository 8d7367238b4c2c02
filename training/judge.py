"""A classifier for the colour, shape and motion of a clip, trained on renders of the training scenes."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.model.content import CONFIG, FOLDER, VIEW, WEIGHTS, Judge
from training.data import sample_training_scenes
from training.optim import trapezoid
from training.render import pack, render
from training.run import Run
from training.scenes import COLOURS, MOTIONS, SHAPES, SYNONYMS, Scene

NAMES = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS}
SUBJECTS = {shape: sorted({shape, *SYNONYMS.get(shape, ())}) for shape in SHAPES}
# Motions that are told with the word for a shape.
ASIDE = sorted(
    phrase
    for motion in MOTIONS
    for phrase in SYNONYMS[motion]
    if any(word in phrase for words in SUBJECTS.values() for word in words)
)


def labels(scenes: list[Scene], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The first object's colour, shape and motion as indices into `NAMES`, int64 [B] each."""
    return {
        name: torch.tensor([values.index(scene.attributes[f"{name}0"]) for scene in scenes], device=device)
        for name, values in NAMES.items()
    }


def one_shape_scenes(rng: random.Random) -> Iterator[Scene]:
    """An endless stream of training scenes with one object."""
    while True:
        yield from (s for s in sample_training_scenes(rng, 64) if s.attributes["kind"] == "shapes1")


def draw(scenes: list[Scene], frames: int, device: str, start: Tensor | None = None) -> Tensor:
    """Render whole scenes, or their moments `start` [B]: [B, frames, 3, 112, 112]. Fast when neighbours are alike."""
    parts = []
    for i in range(0, len(scenes), 8):
        when = (0.0, 1.0) if start is None else (start[i : i + 8], 0.0)
        parts.append(render(pack(scenes[i : i + 8], device), frames, *VIEW[1:], *when))
    return torch.cat(parts).transpose(1, 2)


def train(minutes: float, device: str, batch: int, seed: int = 3) -> tuple[Judge, Run]:
    """Train on renders. Random blur and noise keep the classifier from relying on sharp edges.

    It learns colour and shape from single frames of many scenes, because these differ more than the frames of one
    scene. It learns motion from clips.
    """
    torch.manual_seed(seed)
    rng, net = random.Random(seed), Judge(NAMES).to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    run, scenes = Run(device, 50), one_shape_scenes(rng)

    def alike(count: int) -> list[Scene]:
        picked = [next(scenes) for _ in range(count)]
        return sorted(picked, key=lambda scene: (scene.attributes.get("ground", ""), scene.attributes["shape0"]))

    def spoil(x: Tensor) -> Tensor:
        soft = F.avg_pool2d(x.flatten(0, 1), 3, 1, 1).view_as(x)
        x = x.lerp(soft, torch.rand(len(x), 1, 1, 1, 1, device=device))
        return x + 0.08 * torch.rand(len(x), 1, 1, 1, 1, device=device) * torch.randn_like(x)

    for progress in run.steps(minutes):
        stills, clips = alike(batch), alike(max(8, batch // 8))
        with torch.no_grad():
            x = spoil(draw(stills, 1, device, torch.rand(len(stills), device=device)))
            y = spoil(draw(clips, VIEW[0], device))
        with torch.autocast(device, torch.bfloat16):
            look, moves = net(x), net(y)
        truth, motion = labels(stills, device), labels(clips, device)["motion"]
        losses = [F.cross_entropy(look[name].float(), truth[name]) for name in ("colour", "shape")]
        losses.append(F.cross_entropy(moves["motion"].float(), motion))
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * trapezoid(progress, 0.03, 0.6)
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        run.log(*losses)
    return net.eval(), run


def write_judge(state: dict[str, Tensor], checkpoint: Path) -> None:
    """Put the classifier into a checkpoint, in half precision, with what `pipeline.model.content` needs to use it."""
    folder = checkpoint / FOLDER
    folder.mkdir(exist_ok=True)
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file({name: value.contiguous() for name, value in halves.items()}, folder / WEIGHTS)
    config = {"names": NAMES, "subjects": SUBJECTS, "aside": ASIDE}
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the weights; a .json of the run goes beside them")
    parser.add_argument("--into", type=Path, help="a checkpoint that gets the classifier as well, in half precision")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--batch", type=int, default=64, help="single frames in a step; an eighth as many clips")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    net, run = train(args.minutes, args.device, args.batch, args.seed)
    state = {name: tensor.cpu() for name, tensor in net.state_dict().items()}
    save_file(state, args.output)
    if args.into is not None:
        write_judge(state, args.into)
    run.report(args.output.with_suffix(".json"), args, curve_columns=["step", "seconds", *NAMES])


if __name__ == "__main__":
    main()
