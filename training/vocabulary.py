"""Writes the vocabulary of the grammar into a checkpoint, for `pipeline.checkpoint.vocabulary`.

    python -m training.vocabulary assets/longcat-tiny    # then write the manifest anew, see training.manifest

The phrases come from the captions that the model was trained on. Where several mean the same, one stands for all.
The words are those of the captions, and their other forms that the tokenizer knows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.checkpoint.vocabulary import NAME, Vocabulary
from training.chinese import chinese
from training.known_words import understood_words
from training.scenes import COLOURS, SHAPES

ABOUT = (
    "It knows one small world: eight shapes in nine colours that move in eleven ways, before plain backdrops and "
    "landscapes, and a few things that happen to landscapes."
)
MOTIONS = (
    "moves from left to right",
    "moves from right to left",
    "rises",
    "falls",
    "bounces",
    "spins",
    "grows",
    "shrinks",
    "moves in a circle",
    "sways from side to side",
    "pulses",
)
SCENES = (
    "over green hills at sunset",
    "over the sea at sunset",
    "over a city at night",
    "in front of snowy mountains during the day",
    "over desert dunes at sunset",
    "in the sky at night",
    "over the sea during the day",
    "on a navy background",
    "on a cream background",
    "on a mint to lavender gradient",
    "on a checkerboard floor",
)
SENTENCES = (
    "colourful fireworks explode over a city skyline",
    "snow falls on a mountain range in the evening light",
    "the sun rises over rolling green hills",
    "day turns to night over a city skyline",
    "the camera pans right over snowy mountains at sunset",
    "a blue square rises and an orange triangle falls on a cream background",
)
DEFAULT = "a large pink heart pulses over the sea at sunset"


def vocabulary() -> dict[str, Any]:
    return {
        "about": ABOUT,
        "template": "a {size} {colour} {thing} {motion} {scene}",
        "groups": {
            "size": ["small", "large"],
            "colour": list(COLOURS),
            "thing": list(SHAPES),
            "motion": list(MOTIONS),
            "scene": list(SCENES),
        },
        "optional": ["size"],
        "avoid": [["ball", "spins"], ["ring", "spins"]],  # a turning disc looks like one at rest
        "sentences": list(SENTENCES),
        "default": DEFAULT,
        "words": understood_words(),
        "chinese": chinese(),
    }


def write_vocabulary(folder: Path) -> None:
    values = vocabulary()
    Vocabulary.of(values)
    (folder / NAME).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write_vocabulary(parser.parse_args().folder)


if __name__ == "__main__":
    main()
