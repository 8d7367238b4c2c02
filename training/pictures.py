"""Draws the example pictures of the page: first frames of scenes of the training world, with prompts to go on.

    python -m training.pictures    # writes assets/pictures

The scenes are searched for by what they show, so the pictures follow the grammar. pictures.json has their prompts.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from training.data import FRAMES, HEIGHT, WIDTH
from training.render import pack, render
from training.scenes import Scene, sample_scene

OUTPUT = Path(__file__).resolve().parents[1] / "assets" / "pictures"
SEED = 5
TRIES = 200_000
PLAIN = {"kind": "shapes1", "size0": ""}
# name -> prompt that goes on from the picture, and the attributes of its scene
WANTED: dict[str, tuple[str, dict[str, str]]] = {
    "ball": (
        "a red ball bounces over green hills at sunset",
        PLAIN | {"colour0": "red", "shape0": "ball", "motion0": "bounce", "ground": "hills", "hour": "sunset"},
    ),
    "star": (
        "a yellow star spins over a city at night",
        PLAIN | {"colour0": "yellow", "shape0": "star", "motion0": "spin", "ground": "city", "hour": "night"},
    ),
    "heart": (
        "a pink heart pulses over green hills during the day",
        PLAIN | {"colour0": "pink", "shape0": "heart", "motion0": "pulse", "ground": "hills", "hour": "day"},
    ),
    "square": (
        "a cyan square moves from left to right over the sea during the day",
        PLAIN | {"colour0": "cyan", "shape0": "square", "motion0": "right", "ground": "sea", "hour": "day"},
    ),
    "mountains": (
        "snow falls over snowy mountains during the day",
        {"kind": "landscape", "ground": "mountains", "hour": "day", "event": "snow"},
    ),
    "dunes": (
        "day turns to night over desert dunes",
        {"kind": "landscape", "ground": "dunes", "event": "to night"},
    ),
}


def find_scene(wanted: dict[str, str]) -> Scene:
    """The first scene with these attributes. Raises ValueError where the grammar draws none."""
    draw = random.Random(SEED)
    for _ in range(TRIES):
        scene = sample_scene(draw)
        if wanted.items() <= scene.attributes.items():
            return scene
    raise ValueError(f"the grammar draws no scene of {wanted}; use the attributes of training.scenes")


def first_frame(scene: Scene) -> np.ndarray:
    """uint8 [H, W, 3]."""
    video = render(pack([scene]), 1, HEIGHT, WIDTH, length=1 / FRAMES)
    return ((video[0, :, 0] / 2 + 0.5) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, attributes) in WANTED.items():
        Image.fromarray(first_frame(find_scene(attributes))).save(folder / f"{name}.png", optimize=True)
    prompts = {name: prompt for name, (prompt, _) in WANTED.items()}
    (folder / "pictures.json").write_text(json.dumps(prompts, indent=2) + "\n")


if __name__ == "__main__":
    main()
