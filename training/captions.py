"""Captions as people write prompts: with words left out, and places beyond the grammar.

Words that the grammar does not have need no training: the tokenizer leaves them out (`training.known_words`). What
remains of such a prompt is a caption that says less. The model has to draw the rest all the same.
"""

from __future__ import annotations

import random

from training.scenes import Scene

# What remains of "on a wooden floor" or "in a kitchen".
PLACES = ("on a floor", "on a background", "in front of a wall", "")


def as_prompt(rng: random.Random, scene: Scene) -> str:
    """The scene's caption, a fifth of the time changed in ways that leave the scene's meaning.

    One word in eight captions is left out, whichever it is: then the scene shows one of several possible meanings.
    """
    caption = scene.caption
    if "backdrop" in scene.attributes and "place" in scene.attributes and rng.random() < 0.15:
        caption = caption.replace(scene.attributes["place"], rng.choice(PLACES))
    words = caption.split()
    if rng.random() < 0.125 and len(words) > 4:
        del words[rng.randrange(len(words))]
    return " ".join(words)
