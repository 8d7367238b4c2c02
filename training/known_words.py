"""What the tokenizer makes of a prompt first: words that the model was never shown are left out.

A word that the grammar lacks would come to the text encoder in letters and other pieces. The transformer has never seen
their vectors, and they spoil the known words beside them. So the tokenizer of the checkpoint drops such words before it
cuts the rest into tokens, with what they leave hanging: of "on a wooden table" no "on a" stays. Known words in another
form become that of the captions ("bounce", "bounces"), and half a phrase a whole one ("sways", "swaying"). A caption of
the grammar stays what it is, token for token, but for two whose order of words the text encoder does not read.

    python -m training.known_words assets/longcat-tiny    # then write the manifest anew, see training.manifest

The rules are the `normalizer` of tokenizer.json, so whatever loads the checkpoint reads prompts in this way.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers

from training.scenes import SHAPES, SYNONYMS, sample_scene

CAPTIONS = 20_000  # enough for every word of the grammar to come up many times

# Other forms of a word of the captions, which become that word.
FORMS = {
    "ball": "balls",
    "beats": "beat beating",
    "bounces": "bounce bounced",
    "box": "boxes",
    "colourful": "colorful",
    "comes": "come coming",
    "cross": "crosses",
    "donut": "donuts doughnut",
    "explode": "explodes exploding",
    "falls": "fall",
    "flies": "fly flying",
    "floats": "float floating",
    "gets": "get getting",
    "grey": "gray",
    "grows": "grow",
    "heart": "hearts",
    "hexagon": "hexagons",
    "jumps": "jump jumping",
    "moves": "move moved",
    "pans": "pan panning",
    "pulses": "pulse pulsing",
    "ring": "rings",
    "rises": "rise rising",
    "rotates": "rotate rotating",
    "sets": "set setting",
    "shrinks": "shrink",
    "sinks": "sink sinking",
    "slides": "slide sliding",
    "sphere": "spheres",
    "spins": "spin",
    "square": "squares",
    "sways": "sway",
    "swings": "swing swinging",
    "triangle": "triangles",
    "turns": "turn",
    "upwards": "upward",
}
_SUBJECTS = sorted({word for shape in SHAPES for word in SYNONYMS.get(shape, (shape,))})
# Halves of a phrase of the captions, which never stand alone there: "sways" always goes on "from side to side".
HALVES = {
    r"(?:slides|flies|moves)(?= to the (?:left|right)| up\b)": "moving",
    r"flies(?= (?:left|right|down)\b)": "moves",
    r"flies(?! upwards| in circles)": "flies upwards",
    r"moves(?! from| left| right| down| in a circle| away)": "moves right",
    r"slides(?! left| right)": "slides right",
    r"floats(?! up)": "floats up",
    r"(?<!snow )falling(?! down)": "falls",
    r"sways(?! from side)": "swaying",
    r"swings(?! left)": "swaying",
    r"jumps(?! up)": "bounces",
    r"turn(?:s|ing)(?! in place| to)": "spins",
    r"beats(?! like a heart)": "pulses",
    rf"(?<={' |'.join(_SUBJECTS)} )circles": "circling",
}
# Two phrases of the captions that differ in their order alone, which the text encoder hardly tells: it moves the first
# step's velocity by 0.3 % of its length. Other phrases for the same move it by 90 %.
REORDERED = {r"day turn(?:s|ing) to night\b": "the sun sets", r"night turn(?:s|ing) to day\b": "the sun rises"}
_SUFFIXES = "shaped|like|coloured|colored"  # "star-shaped" is a star
_WORD = r"[\p{L}\p{M}\p{N}\-]"
_ARTICLE = r"\b(?:an?|the)\b"
_PLACES = "in front(?: of)?|in|on|at|over|above|to|of|from|under|against|before|during|along|like"
# Words that must be followed by others that say something. Atomic, or "on a" would also be read as "on" before "a".
_OPENER = rf"(?>\b(?:{_PLACES})\b(?: {_ARTICLE})?|{_ARTICLE})"
_JOINT = r"(?:\b(?:and|while)\b|,)"


def caption_words() -> list[str]:
    """Every word of the grammar's captions, in small letters."""
    rng = random.Random(0)
    return sorted({word for _ in range(CAPTIONS) for word in re.findall(r"[a-z]+", sample_scene(rng).caption.lower())})


def understood_words() -> list[str]:
    """The words of the captions, and the forms of them that `rules` replace by these."""
    return sorted({*caption_words(), *(word for forms in FORMS.values() for word in forms.split())})


def rules(known: Iterable[str]) -> list[tuple[str, str]]:
    """What is replaced by what in a text in small letters, one after the other. The patterns are Oniguruma's.

    known: the words that stay; all others go. Words with hyphens are one word, which stays if each part is known.
    """
    kept = "|".join(sorted(known))
    forms = {word: rf"(?<!{_WORD})(?:{said.replace(' ', '|')})(?!{_WORD})" for word, said in FORMS.items()}
    return [
        (r"[^\p{L}\p{M}\p{N}\-,.]+", " "),
        (rf"-(?:{_SUFFIXES})(?!{_WORD})", ""),
        *((pattern, word) for word, pattern in forms.items()),
        (rf"(?<!{_WORD})(?!(?:{kept})(?:-(?:{kept}))*(?!{_WORD})){_WORD}+", ""),
        (r"[ \-]+", " "),
        # what hangs: "on a" at the end or before "at sunset", then "and" before nothing or a verb
        (rf"{_OPENER}(?= ?(?:$|\.|{_JOINT}|{_OPENER}))", ""),
        (r" +", " "),
        (rf"{_JOINT}(?= ?(?:$|\.|{_JOINT}))|\band\b(?! (?:an?|the|down|right)\b)", ""),
        (rf"^(?:{_JOINT}|\bof\b|[ .])+", ""),
        (r" +(?=[ ,.]|$)|\.(?= ?\.)", ""),
        *((rf"\b{half}", whole) for half, whole in (HALVES | REORDERED).items()),
        (r"\ban(?= [^aeiou])", "a"),
        (r"\ba(?= [aeiou])", "an"),
    ]


def reading(known: Iterable[str]) -> normalizers.Normalizer:
    """The normalizer that applies `rules` to a text, whatever its letters' case and width."""
    steps = [normalizers.Replace(Regex(pattern), instead) for pattern, instead in rules(known)]
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), *steps])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    file = str(parser.parse_args().checkpoint / "tokenizer" / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.normalizer = reading(caption_words())
    tokenizer.save(file, pretty=True)


if __name__ == "__main__":
    main()
