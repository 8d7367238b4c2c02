"""Training clips: scenes that avoid the held-out prompts, rendered and encoded to latents on the GPU."""

from __future__ import annotations

import argparse
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.parallel import place
from training.render import pack, render
from training.scenes import Scene, sample_scene
from training.tokenizer import encode
from training.vae import load_vae

FRAMES, HEIGHT, WIDTH = 61, 256, 256


def held_out(scene: Scene) -> bool:
    """True for every tenth combination of colour, shape and motion: never trained on, used to evaluate."""
    a = scene.attributes
    return any(
        zlib.crc32(f"{a[f'colour{i}']} {a[f'shape{i}']} {a[f'motion{i}']}".encode()) % 10 == 0
        for i in range(2)
        if f"shape{i}" in a
    )


def sample_training_scenes(rng: random.Random, count: int) -> list[Scene]:
    return _sample(rng, count, lambda scene: not held_out(scene))


def sample_held_out_scenes(rng: random.Random, count: int) -> list[Scene]:
    """Of every kind, shapes and landscapes as often as in the training, none of them seen there."""
    return _sample(rng, count, held_out)


def sample_test_scenes(rng: random.Random, count: int) -> list[Scene]:
    """Held-out scenes with one shape, so that colour, shape and motion can be checked."""
    return _sample(rng, count, lambda scene: scene.attributes["kind"] == "shapes1" and held_out(scene))


def _sample(rng: random.Random, count: int, keep: Callable[[Scene], bool]) -> list[Scene]:
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng)
        if keep(scene):
            scenes.append(scene)
    return scenes


@dataclass
class Pool:
    """Encoded clips: normalised latents bf16 [M, C, T, h, w], token ids and mask [M, L]."""

    latents: Tensor
    ids: Tensor
    mask: Tensor

    def batch(self, size: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """A random batch. The VAE is causal, so the first latent frames of a clip are a shorter clip."""
        pick = torch.randint(len(self.latents), (size,), device=self.latents.device)
        return self.latents[pick, :, :frames].float(), self.ids[pick], self.mask[pick]


@torch.no_grad()
def make_pool(
    vae,
    tokenizer,
    statistics: tuple[Tensor, Tensor],
    count: int,
    seed: int,
    device: str,
    size: tuple[int, int, int] = (FRAMES, HEIGHT, WIDTH),
    batch: int = 16,
    draw=render,
) -> Pool:
    """Render and encode `count` clips of `size` (frames, height, width)."""
    rng = random.Random(seed)
    mean, std = (s.view(1, -1, 1, 1, 1) for s in statistics)
    latents, ids, masks = [], [], []
    for _ in range(count // batch):
        scenes = sample_training_scenes(rng, batch)
        video = draw(pack(scenes, device), *size)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            z, _ = vae.encode(video.to(memory_format=torch.channels_last_3d))
        latents.append(((z.float() - mean) / std).bfloat16())
        tokens, mask = encode(tokenizer, [scene.caption for scene in scenes])
        ids.append(tokens)
        masks.append(mask)
    return Pool(torch.cat(latents), torch.cat(ids).to(device), torch.cat(masks).to(device))


def open_pool(args, tokenizer) -> Pool:
    """Load the clips of `args.pool_file` if it exists, else make `args.pool` new ones, and keep them there if given.

    With several processes, each has its share of the clips in a separate file.
    """
    file = args.pool_file
    rank, processes = place()
    if file and processes > 1:
        file = file.with_stem(f"{file.stem}-{rank}")
    if file and file.exists():
        # moved after loading: "cuda" means the first GPU to safetensors, and this process's GPU to torch
        return Pool(**{name: tensor.to(args.device) for name, tensor in load_file(file).items()})
    vae, statistics = load_vae(args.vae, args.device)
    frames, pixels = args.size
    draw = render if args.eager else torch.compile(render, dynamic=False)
    pool = make_pool(
        vae,
        tokenizer,
        statistics,
        args.pool // processes,
        100 + args.seed + 1000 * rank,
        args.device,
        (frames, pixels, pixels),
        batch=min(16, args.pool // processes),
        draw=draw,
    )
    if file:
        save_file(vars(pool), file)
    return pool


def add_pool_arguments(parser: argparse.ArgumentParser, clips: int) -> None:
    """Add the options that `open_pool` and both transformer programs read."""
    parser.add_argument("--vae", type=Path, required=True, help="folder of train_vae")
    parser.add_argument("--pool", type=int, default=clips, help="clips to render, all processes together")
    parser.add_argument("--pool-file", type=Path, help="keep the clips here, or read them from here")
    parser.add_argument("--size", type=int, nargs=2, default=(FRAMES, HEIGHT), help="frames and pixels of a clip")
    parser.add_argument("--batch", type=int, default=32, help="clips in a step of one process")
    parser.add_argument("--frames", type=int, default=16, help="latent frames per clip")
    parser.add_argument("--dense", type=float, default=0.4, help="share of steps with dense attention")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--keep-encoder", action="store_true", help="leave the text encoder as it is")
