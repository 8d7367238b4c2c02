"""Scores the three tasks with the network in training: from a prompt, from a picture, and on from the end of a clip.

A picture is the first frame of a held-out scene, a clip its first 13 frames. Both go through the VAE, as a user's do.
`training.evaluate` does the same for a checkpoint through the pipeline.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bsa import BSAConfig
from pipeline.model.content import Judge
from pipeline.transformer.forward import attend_dense
from training.data import GIVEN
from training.judge import NAMES
from training.render import pack, render
from training.sampling import TextToVideo, attend_sparse, sample
from training.scenes import Scene
from training.sharpness import acutance, outline
from training.tokenizer import encode
from training.vae import VideoVAE

TASKS = {"text": GIVEN[0], "picture": GIVEN[1], "continuation": GIVEN[2]}  # latent frames that are given
STEPS = 8
LOOKED_AT = 6  # frames of a clip whose outline is compared
AT_ONCE = 4  # clips in the VAE, which takes far more memory than the transformer
NEIGHBOURS = 4  # steps between frames on each side of a seam that it is compared with


@dataclass
class Studio:
    """Everything that makes a clip of a caption. size: frames, rows and columns in pixels."""

    model: TextToVideo
    vae: VideoVAE
    statistics: tuple[Tensor, Tensor]
    tokenizer: Any
    size: tuple[int, int, int]
    batch: int = 16

    @property
    def device(self) -> str:
        return self.statistics[0].device.type

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        mean, std = (part.view(1, -1, 1, 1, 1) for part in self.statistics)
        return torch.cat([(self.vae.encode(part)[0].float() - mean) / std for part in video.split(AT_ONCE)])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        mean, std = (part.view(1, -1, 1, 1, 1) for part in self.statistics)
        return torch.cat([self.vae.decode(part * std + mean).clamp(-1, 1) for part in latents.split(AT_ONCE)])

    @torch.no_grad()
    def make(self, captions: list[str], seeds: list[int], sparsity: float | None, given: Tensor | None) -> Tensor:
        """Clips [B, 3, T, H, W] in [-1, 1]. given: clean latents of the first frames [B, C, G, h, w], or None."""
        frames, height, width = self.size
        shape = (self.vae.config.z_dim, 1 + (frames - 1) // 4, height // 8, width // 8)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        noise = noise.to(self.device)
        attend = attend_dense if sparsity is None else attend_sparse(BSAConfig(sparsity=sparsity))
        ids, mask = (part.to(self.device) for part in encode(self.tokenizer, captions))
        first = 0 if given is None else given.shape[2]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            text = self.model.encode(ids, mask)
            latents = sample(
                lambda x, sigma: self.model.velocity(x, sigma, text, mask, attend, first), noise, STEPS, given
            )
        return self.decode(latents)


def psnr(first: Tensor, second: Tensor) -> float:
    """Of two pictures or clips in [-1, 1], in dB."""
    return float(10 * torch.log10(4 / (first - second).square().mean()))


def seam(video: Tensor, frames: int) -> float:
    """The change from the last of the given `frames` to the first made one, relative to the largest change around.

    video: [3, T, H, W]. A change is the mean difference of two neighbouring frames; up to four on each side count. At
    most 1 means that the seam cannot be told from what goes on before and after it.
    """
    change = video.diff(dim=1).abs().mean(dim=(0, 2, 3))
    at = frames - 1
    around = torch.cat([change[max(0, at - NEIGHBOURS) : at], change[at + 1 : at + 1 + NEIGHBOURS]])
    return float(change[at] / around.max().clamp(min=1e-3))


@torch.no_grad()
def score(
    studio: Studio, judge: Judge, scenes: list[Scene], tasks: tuple[str, ...], sparsities: tuple[float | None, ...]
) -> tuple[dict[str, Any], dict[str, list[Tensor]]]:
    """Scores by name ("text dense", "picture 0.75", ...), with the VAE's own under "render"; and the first clips."""
    made: dict[str, list[Tensor]] = defaultdict(list)
    rows: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for start in range(0, len(scenes), studio.batch):
        part = scenes[start : start + studio.batch]
        video = render(pack(part, studio.device), *studio.size)
        jobs = [(task, sparsity) for task in tasks for sparsity in sparsities]
        clips = {"render": studio.decode(studio.encode(video))}
        for task, sparsity in jobs:
            given = None
            if TASKS[task]:
                given = studio.encode(video[:, :, : 4 * TASKS[task] - 3])
            seeds = list(range(start, start + len(part)))
            name = f"{task} {'dense' if sparsity is None else sparsity}"
            clips[name] = studio.make([scene.caption for scene in part], seeds, sparsity, given)
        for name, clip in clips.items():
            made[name] += list(clip[: max(0, 8 - start)].cpu())
            frames = 4 * TASKS.get(name.split()[0], 0) - 3
            _add(rows[name], judge, part, video, clip, frames)
    return {name: _means(columns) for name, columns in rows.items()}, made


def _add(columns: dict[str, list[Any]], judge: Judge, scenes: list[Scene], video: Tensor, clip: Tensor, frames: int):
    told = judge.judge(clip)
    for i, scene in enumerate(scenes):
        a = scene.attributes
        right = {name: NAMES[name][int(told[name][i])] == a[f"{name}0"] for name in NAMES}
        for name, correct in (right | {"all three": all(right.values())}).items():
            columns[name].append(correct)
        columns["acutance"].append(acutance(clip[i]))
        if a.get("backdrop") == "plain":
            looked = torch.linspace(0, clip.shape[2] - 1, LOOKED_AT).round().long()
            found = [outline(clip[i, :, frame], a["shape0"]) for frame in looked.tolist()]
            columns["outline fit"].append(np.mean([0.0 if one is None else one.fit for one in found]))
            columns["outline told"].append(np.mean([one is not None and one.told == a["shape0"] for one in found]))
        if frames > 0:
            columns["psnr of what was given"].append(psnr(clip[i, :, :frames], video[i, :, :frames]))
            columns["seam"].append(seam(clip[i], frames))


def _means(columns: dict[str, list[Any]]) -> dict[str, float]:
    """The mean of each column, and the worst of those where one bad clip matters."""
    means = {name: round(float(np.nanmean(values)), 4) for name, values in columns.items() if not _empty(values)}
    worst = {
        f"{name}, worst": round(float(pick(columns[name])), 4)
        for name, pick in (("psnr of what was given", min), ("seam", max))
        if name in columns
    }
    return means | worst | {"clips": len(columns["all three"])}


def _empty(values: list[Any]) -> bool:
    return all(isinstance(value, float) and math.isnan(value) for value in values)


def sheet(clips: list[Tensor], frames: int = 8, side: int = 128) -> np.ndarray:
    """Clips [3, T, H, W] as rows of a picture, `frames` of each, uint8 [rows, columns, 3]."""
    rows = []
    for clip in clips:
        some = clip[:, torch.linspace(0, clip.shape[1] - 1, frames).round().long()].transpose(0, 1)
        small = torch.nn.functional.interpolate(some, size=(side, side), mode="area")
        rows.append(torch.cat(list(small), dim=2))
    return ((torch.cat(rows, dim=1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
