"""A classifier for the colour, shape and motion of a clip, trained on renders of the training scenes."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from training.data import sample_training_scenes
from training.optim import trapezoid
from training.render import pack, render
from training.run import Run
from training.scenes import COLOURS, MOTIONS, SHAPES, Scene

NAMES = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS}
VIEW = (12, 112, 112)  # frames and pixels the classifier sees: a small hexagon and a small ball must differ
POINTS = 4  # places in a frame that the classifier follows


def view(video: Tensor) -> Tensor:
    """Shrink clips [B, 3, T, H, W] to what the classifier sees, [B, 12, 3, 112, 112]."""
    frames = torch.linspace(0, video.shape[2] - 1, VIEW[0], device=video.device).round().long()
    return F.interpolate(video.float()[:, :, frames], size=VIEW, mode="area").transpose(1, 2)


def labels(scenes: list[Scene], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The first object's colour, shape and motion as indices into `NAMES`, int64 [B] each."""
    return {
        name: torch.tensor([values.index(scene.attributes[f"{name}0"]) for scene in scenes], device=device)
        for name, values in NAMES.items()
    }


class _Residual(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*_convolution(dim, dim, 1), *_convolution(dim, dim, 1)[:2])

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.inner(x))


def _convolution(in_dim: int, out_dim: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(in_dim, out_dim, 3, stride, 1, bias=False), nn.BatchNorm2d(out_dim), nn.SiLU()]


class Judge(nn.Module):
    """Convolutions on each frame find a few places. Their content gives colour and shape, their course the motion.

    Takes [B, frames, 3, 112, 112]. With a number of frames other than twelve, it tells only colour and shape.
    """

    def __init__(self) -> None:
        super().__init__()
        dim = 96
        layers: list[nn.Module] = []
        for in_dim, out_dim in ((3, 32), (32, 64), (64, dim)):
            layers += _convolution(in_dim, out_dim, 2)
        self.body = nn.Sequential(*layers, _Residual(dim), _Residual(dim))
        self.attend = nn.Conv2d(dim, POINTS, 1)
        self.look = nn.Linear((POINTS + 1) * dim, 192)
        self.moment = nn.Linear((POINTS + 1) * dim, 32)
        self.heads = nn.ModuleDict(
            {
                "colour": nn.Linear(192, len(COLOURS)),
                "shape": nn.Linear(192, len(SHAPES)),
                "motion": nn.Sequential(
                    nn.Linear((4 * POINTS + 32) * VIEW[0], 256),
                    nn.SiLU(),
                    nn.Dropout(0.1),
                    nn.Linear(256, len(MOTIONS)),
                ),
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x.flatten(0, 1)).float()  # [B * frames, 96, 14, 14]
        weight = self.attend(maps).float().flatten(2).softmax(-1)  # [B * frames, POINTS, 196]
        seen = torch.einsum("npl,ncl->npc", weight, maps.flatten(2)).flatten(1)
        seen = torch.cat([seen, maps.amax((2, 3))], dim=1)
        look = F.silu(self.look(seen)).unflatten(0, x.shape[:2]).mean(1)
        told = {name: self.heads[name](look) for name in ("colour", "shape")}
        if x.shape[1] == VIEW[0]:
            axis = torch.linspace(-1, 1, maps.shape[-1], device=x.device)
            grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)  # [2, 196]
            place = weight @ grid.T
            spread = weight @ (grid**2).T - place**2
            moments = torch.cat([place.flatten(1), spread.flatten(1), F.silu(self.moment(seen))], dim=1)
            told["motion"] = self.heads["motion"](moments.view(len(x), -1))
        return told

    @torch.no_grad()
    def judge(self, video: Tensor) -> dict[str, Tensor]:
        """Guesses for clips [B, 3, T, H, W] in [-1, 1], as indices into `NAMES`, int64 [B] each."""
        parts = [self(view(part)) for part in video.split(16)]
        return {name: torch.cat([part[name].argmax(-1) for part in parts]) for name in NAMES}


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
    net = Judge().to(device)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the weights; a .json of the run goes beside them")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--batch", type=int, default=64, help="single frames in a step; an eighth as many clips")
    parser.add_argument("--clips", type=int, default=4000, help="renders to learn from")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    net, run = train(args.minutes, args.device, args.batch, args.clips, args.seed)
    save_file({name: tensor.cpu() for name, tensor in net.state_dict().items()}, args.output)
    run.report(args.output.with_suffix(".json"), args, curve_columns=["step", "seconds", *NAMES])


if __name__ == "__main__":
    main()
