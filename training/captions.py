"""Captions as people write prompts: with words left out, words that no scene explains, and places beyond the grammar.

The model has to learn that such words change nothing. Without this, an unknown word spoiled the known ones beside it.
"""

from __future__ import annotations

import random

from training.scenes import Scene

# Common in prompts and not in the grammar. They come to the encoder in pieces, as every unknown word does.
UNKNOWN = (
    "amazing wooden shiny detailed realistic old new fresh magic very gently slowly quickly softly happily "
    "glowing soft warm cold dreamy vivid stylish modern ancient mysterious epic dramatic lovely nice "
    "photo render film scene shot frame macro close-up wide masterpiece trending 4k 8k hd hdr unreal "
    "please show make create draw somewhere everything around it quiet calmly children music water stone metal "
    "glass paper marble carpet garden kitchen street forest room table shelf curtain window mirror"
).split()
STUDIO = ("on a studio backdrop", "in front of a studio backdrop", "in a studio", "against a studio background")
SURFACES = ("floor", "table", "surface", "background", "wall", "carpet")
SYLLABLES = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]


def unknown_word(rng: random.Random) -> str:
    """A common word that the grammar does not have, or in two of five cases a made-up one."""
    if rng.random() < 0.6:
        return rng.choice(UNKNOWN)
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3)))) + rng.choice(("", "n", "r", "s", "ly"))


def as_prompt(rng: random.Random, scene: Scene) -> str:
    """The scene's caption as it is (55 %), or changed in one or several ways that leave the scene's meaning.

    One word in eight captions is left out, whichever it is: then the scene shows one of several possible meanings.
    """
    caption = scene.caption
    if rng.random() < 0.55:
        return caption
    if "backdrop" in scene.attributes and "place" in scene.attributes and rng.random() < 0.3:
        surface = f"on a {unknown_word(rng)} {rng.choice(SURFACES)}"
        place = rng.choice(STUDIO) if rng.random() < 0.6 else surface
        caption = caption.replace(scene.attributes["place"], place)
    words = caption.split()
    if rng.random() < 0.28 and len(words) > 4:
        del words[rng.randrange(len(words))]
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        words.insert(rng.randrange(len(words) + 1), unknown_word(rng))
    return " ".join(words)
