"""Recognises the content of a clip: colour, shape and motion of its one object. Needs a checkpoint with a classifier.

PSNR calls two clips of the same ball different when one bounces half a second later. The classifier tells that from a
clip of something else. It lies in the checkpoint's folder `judge`, because it knows only what the checkpoint was
trained on; `training.judge` makes it, and benchmarks/likeness.py measures how far it can be trusted.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

logger = logging.getLogger("pipeline")

FOLDER, CONFIG, WEIGHTS = "judge", "config.json", "model.safetensors"
VIEW = (12, 112, 112)  # frames and pixels the classifier sees: a small hexagon and a small ball must differ
POINTS = 4  # places in a frame that the classifier follows
_WIDTH = 96


def view(video: Tensor) -> Tensor:
    """Shrink clips [B, 3, T, H, W] to what the classifier sees, [B, 12, 3, 112, 112]."""
    frames = torch.linspace(0, video.shape[2] - 1, VIEW[0], device=video.device).round().long()
    return F.interpolate(video.float()[:, :, frames], size=VIEW, mode="area").transpose(1, 2)


class Judge(nn.Module):
    """Convolutions on each frame find a few places. Their content gives colour and shape, their course the motion.

    Takes [B, frames, 3, 112, 112]. With a number of frames other than twelve, it tells only colour and shape.
    names: the answers to "colour", "shape" and "motion".
    """

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.names = {name: tuple(names[name]) for name in ("colour", "shape", "motion")}
        layers: list[nn.Module] = []
        for in_dim, out_dim in ((3, 32), (32, 64), (64, _WIDTH)):
            layers += _convolution(in_dim, out_dim, 2)
        self.body = nn.Sequential(*layers, _Residual(_WIDTH), _Residual(_WIDTH))
        self.attend = nn.Conv2d(_WIDTH, POINTS, 1)
        self.look = nn.Linear((POINTS + 1) * _WIDTH, 192)
        self.moment = nn.Linear((POINTS + 1) * _WIDTH, 32)
        motion = (
            nn.Linear((4 * POINTS + 32) * VIEW[0], 256),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(256, len(names["motion"])),
        )
        self.heads = nn.ModuleDict(
            {
                "colour": nn.Linear(192, len(names["colour"])),
                "shape": nn.Linear(192, len(names["shape"])),
                "motion": nn.Sequential(*motion),
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
        """Guesses for clips [B, 3, T, H, W] in [-1, 1], as indices into `names`, int64 [B] each."""
        parts = [self(view(part)) for part in video.split(16)]
        return {name: torch.cat([part[name].argmax(-1) for part in parts]) for name in self.names}

    @torch.no_grad()
    def tell(self, frames: np.ndarray) -> dict[str, tuple[str, float]]:
        """Classify a clip, uint8 [T, H, W, 3]: name -> (answer, its probability)."""
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None]
        told = {name: logits.softmax(-1)[0] for name, logits in self(view(video) / 127.5 - 1).items()}
        return {
            name: (self.names[name][int(odds.argmax())], round(float(odds.max()), 4)) for name, odds in told.items()
        }


class _Residual(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*_convolution(dim, dim, 1), *_convolution(dim, dim, 1)[:2])

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.inner(x))


def _convolution(in_dim: int, out_dim: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(in_dim, out_dim, 3, stride, 1, bias=False), nn.BatchNorm2d(out_dim), nn.SiLU()]


class Contents:
    """The classifier of a checkpoint, with the prompts that it can judge. Runs on the CPU, in milliseconds.

    subjects: words of a prompt for the things that it knows, by thing. aside: phrases that have such a word and mean
        something else, such as a motion.
    """

    def __init__(self, judge: Judge, subjects: Mapping[str, Sequence[str]], aside: Sequence[str]) -> None:
        self._judge = judge
        self._subjects = {
            name: re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b") for name, words in subjects.items()
        }
        self._aside = re.compile("|".join(map(re.escape, aside)) or "(?!)")

    def of(self, prompt: str, frames: np.ndarray) -> dict[str, tuple[str, float]] | None:
        """Classify the frames, uint8 [T, H, W, 3]; None for a prompt that does not name exactly one known thing."""
        text = self._aside.sub(" ", prompt.lower())
        named = sum(len(words.findall(text)) for words in self._subjects.values())
        return self._judge.tell(frames) if named == 1 else None


def read_judge(checkpoint: Path) -> Judge:
    """The classifier of a checkpoint. Raises for one that is missing or damaged."""
    folder = checkpoint / FOLDER
    judge = Judge(_config(folder)["names"])
    judge.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})
    return judge.eval()


def read_contents(checkpoint: Path) -> Contents | None:
    """The classifier of a checkpoint with its prompts; None if it brings none, or one that cannot be used."""
    folder = checkpoint / FOLDER
    if not (folder / CONFIG).is_file():
        return None
    try:
        config = _config(folder)
        return Contents(read_judge(checkpoint), config["subjects"], config["aside"])
    except Exception as error:  # whatever is wrong with it, videos can be made without
        logger.warning("the classifier in %s cannot be used: %s", folder, error)
        return None


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config
