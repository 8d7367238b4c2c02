"""Training clips: scenes that avoid the held-out prompts, rendered and encoded to latents on the GPU."""

from __future__ import annotations

import argparse
import random
import zlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.captions import as_prompt
from training.parallel import place
from training.render import pack, render
from training.scenes import EVEN, HARD, Mix, Scene, sample_scene
from training.tokenizer import encode
from training.vae import load_vae

FRAMES, HEIGHT, WIDTH = 61, 256, 256
GIVEN = (0, 1, 4)  # latent frames that can be given: none, a picture, or the last 13 frames of a clip
SCORED = 20_000  # seed of the prompts that checkpoints are scored by
CAPTIONS = 4  # of a clip, worded differently


def held_out(scene: Scene) -> bool:
    """True for every tenth combination of colour, shape and motion: never trained on, used to evaluate."""
    a = scene.attributes
    return any(
        zlib.crc32(f"{a[f'colour{i}']} {a[f'shape{i}']} {a[f'motion{i}']}".encode()) % 10 == 0
        for i in range(2)
        if f"shape{i}" in a
    )


def sample_training_scenes(rng: random.Random, count: int, mix: Mix = EVEN) -> list[Scene]:
    return _sample(rng, count, lambda scene: not held_out(scene), mix)


def sample_held_out_scenes(rng: random.Random, count: int) -> list[Scene]:
    """Of every kind, shapes and landscapes as often as in the training, none of them seen there."""
    return _sample(rng, count, held_out)


def sample_test_scenes(rng: random.Random, count: int) -> list[Scene]:
    """Held-out scenes with one shape, so that colour, shape and motion can be checked."""
    return _sample(rng, count, lambda scene: scene.attributes["kind"] == "shapes1" and held_out(scene))


def held_out_scenes(count: int) -> list[Scene]:
    """The first `count` held-out scenes with one object, by which checkpoints are scored."""
    return sample_test_scenes(random.Random(SCORED), count)


def _sample(rng: random.Random, count: int, keep: Callable[[Scene], bool], mix: Mix = EVEN) -> list[Scene]:
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng, mix)
        if keep(scene):
            scenes.append(scene)
    return scenes


def draw_start(rng: random.Random, scene: Scene, late: float) -> tuple[float, int]:
    """Where in the scene's time a clip begins, and how many latent frames must be given for it to make sense.

    With probability `late`, it begins later than the caption says. What goes one way tells its course in one picture.
    What comes and goes needs several frames.
    """
    if rng.random() >= late:
        return 0.0, 0
    a = scene.attributes
    if a["kind"] == "landscape":
        return rng.uniform(0.1, 0.7), GIVEN[2 if a["event"] == "fireworks" else 1]
    motions = {a[f"motion{i}"] for i in range(2) if f"motion{i}" in a}
    if motions <= {"spin", "bounce", "circle", "sway", "pulse"}:
        return rng.uniform(0.1, 1.0), GIVEN[1 if motions == {"spin"} else 2]
    return rng.uniform(0.05, 0.45), GIVEN[2 if motions & {"bounce", "circle", "sway", "pulse"} else 1]


@dataclass
class Pool:
    """Encoded clips: normalised latents bf16 [M, C, T, h, w], and for each some captions, ids and mask [M, K, L].

    least: int64 [M], ascending, the latent frames that must be given of a clip.
    """

    latents: Tensor
    ids: Tensor
    mask: Tensor
    least: Tensor

    def __post_init__(self) -> None:
        least = self.least.tolist()
        self._usable = {given: bisect_right(least, given) for given in GIVEN}

    def batch(self, size: int, frames: int, given: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """A random batch. The VAE is causal, so the first latent frames of a clip are a shorter clip.

        given: latent frames that the model is to see clean.
        """
        device = self.latents.device
        pick = torch.randint(self._usable[given], (size,), device=device)
        said = torch.randint(self.ids.shape[1], (size,), device=device)
        return self.latents[pick, :, :frames].float(), self.ids[pick, said], self.mask[pick, said]


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
    late: float = 0.0,
    mix: Mix = EVEN,
) -> Pool:
    """Render and encode `count` clips of `size` (frames, height, width), each with `CAPTIONS` captions.

    late: share of the clips that begin later than their scene.
    """
    rng = random.Random(seed)
    mean, std = (s.view(1, -1, 1, 1, 1) for s in statistics)
    latents, ids, masks = [], [], []
    least: list[int] = []
    for _ in range(count // batch):
        scenes = sample_training_scenes(rng, batch, mix)
        starts, needed = zip(*(draw_start(rng, scene, late) for scene in scenes), strict=True)
        video = draw(pack(scenes, device), *size, torch.tensor(starts, device=device))
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            z, _ = vae.encode(video.to(memory_format=torch.channels_last_3d))
        latents.append(((z.float() - mean) / std).bfloat16())
        tokens, mask = encode(tokenizer, [as_prompt(rng, scene) for scene in scenes for _ in range(CAPTIONS)])
        ids.append(tokens.unflatten(0, (batch, CAPTIONS)))
        masks.append(mask.unflatten(0, (batch, CAPTIONS)))
        least += needed
    order = torch.tensor(least).argsort(stable=True)
    z = torch.cat(latents)
    del latents
    all_ids, all_masks = (torch.cat(rows)[order].to(device) for rows in (ids, masks))
    return Pool(z[order.to(device)], all_ids, all_masks, torch.tensor(least)[order])


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
        stored = load_file(file)
        return Pool(least=stored.pop("least"), **{name: tensor.to(args.device) for name, tensor in stored.items()})
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
        late=args.late,
        mix=HARD if args.hard else EVEN,
    )
    if file:
        save_file({field.name: getattr(pool, field.name) for field in fields(pool)}, file)
    return pool


def add_pool_arguments(parser: argparse.ArgumentParser, clips: int, vae: Path | None = None) -> None:
    """Add the options that `open_pool` and the transformer's programs read. vae: the default of --vae, if any."""
    parser.add_argument("--vae", type=Path, required=vae is None, default=vae, help="folder of train_vae")
    parser.add_argument("--pool", type=int, default=clips, help="clips to render, all processes together")
    parser.add_argument("--pool-file", type=Path, help="keep the clips here, or read them from here")
    parser.add_argument("--size", type=int, nargs=2, default=(FRAMES, HEIGHT), help="frames and pixels of a clip")
    parser.add_argument("--late", type=float, default=0.3, help="share of clips that begin late, to be continued")
    parser.add_argument("--hard", action="store_true", help="draw scenes by `scenes.HARD`")
    parser.add_argument(
        "--given",
        type=float,
        nargs=3,
        default=(0.6, 0.22, 0.18),
        help="shares of steps with no clean latent frame, with one, and with four",
    )
    parser.add_argument("--batch", type=int, default=32, help="clips in a step of one process")
    parser.add_argument("--frames", type=int, default=16, help="latent frames per clip")
    parser.add_argument("--dense", type=float, default=0.4, help="share of steps with dense attention")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--keep-encoder", action="store_true", help="leave the text encoder as it is")
