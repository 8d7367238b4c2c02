"""A classifier for the colour, shape and motion of a clip, trained on renders of the training scenes."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from itertools import islice
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


def draw(scenes: list[Scene], frames: int, device: str) -> Tensor:
    """Render whole scenes: [B, frames, 3, 112, 112]. Fast when they are alike."""
    return render(pack(scenes, device), frames, *VIEW[1:]).transpose(1, 2)


class Album:
    """Clips of one object each, as the classifier sees them, with what they show. Neighbours in drawing are alike."""

    def __init__(self, rng: random.Random, count: int, device: str) -> None:
        scenes = list(islice(one_shape_scenes(rng), count))
        scenes.sort(key=lambda scene: (scene.attributes.get("ground", ""), scene.attributes["shape0"]))
        parts = [draw(scenes[i : i + 8], VIEW[0], device) for i in range(0, count, 8)]
        self._clips = torch.cat([((part + 1) * 127.5).round().byte() for part in parts])  # [count, 12, 3, 112, 112]
        self._labels = labels(scenes, device)

    def pick(self, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Random clips [count, 12, 3, 112, 112] in [-1, 1], and their labels."""
        index = torch.randint(len(self._clips), (count,), device=self._clips.device)
        return self._clips[index].float() / 127.5 - 1, {name: values[index] for name, values in self._labels.items()}


def train(minutes: float, device: str, batch: int, clips: int, seed: int = 3) -> tuple[Judge, Run]:
    """Train on `clips` renders. Random blur and noise keep the classifier from relying on sharp edges.

    It learns colour and shape from single frames of many scenes, because these differ more than the frames of one
    scene. It learns motion from clips.
    """
    torch.manual_seed(seed)
    net = Judge(NAMES).to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    run, album = Run(device, 50), Album(random.Random(seed), clips, device)

    def spoil(x: Tensor) -> Tensor:
        soft = F.avg_pool2d(x.flatten(0, 1), 3, 1, 1).view_as(x)
        x = x.lerp(soft, torch.rand(len(x), 1, 1, 1, 1, device=device))
        return x + 0.08 * torch.rand(len(x), 1, 1, 1, 1, device=device) * torch.randn_like(x)

    for progress in run.steps(minutes):
        whole, truth = album.pick(batch)
        moment = torch.randint(VIEW[0], (batch,), device=device)
        x = spoil(whole[torch.arange(batch, device=device), moment].unsqueeze(1))
        moving, moved = album.pick(max(8, batch // 8))
        with torch.autocast(device, torch.bfloat16):
            look, moves = net(x), net(spoil(moving))
        losses = [F.cross_entropy(look[name].float(), truth[name]) for name in ("colour", "shape")]
        losses.append(F.cross_entropy(moves["motion"].float(), moved["motion"]))
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
    parser.add_argument("--clips", type=int, default=4000, help="renders to learn from")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    net, run = train(args.minutes, args.device, args.batch, args.clips, args.seed)
    state = {name: tensor.cpu() for name, tensor in net.state_dict().items()}
    save_file(state, args.output)
    if args.into is not None:
        write_judge(state, args.into)
    run.report(args.output.with_suffix(".json"), args, curve_columns=["step", "seconds", *NAMES])


if __name__ == "__main__":
    main()
