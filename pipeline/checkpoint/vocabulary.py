"""Words that a small checkpoint was trained on, from its file vocabulary.json: what to ask it for, and what not.

A checkpoint that understands language in general has no such file. The file of the embedded one is made by
`training.vocabulary`:

    about       what the model knows, in a sentence
    template    a prompt with the names of groups in braces: "a {colour} {thing} {motion} {scene}"
    groups      name -> the words or phrases that may stand there
    optional    groups that may be left out
    avoid       lists of phrases that should not come together
    sentences   prompts of another form
    default     the prompt to begin with
    words       every word of the training captions, in small letters
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint.safetensors_files import read_json

NAME = "vocabulary.json"
LONGEST = 300  # letters of a phrase or sentence
MOST = 20_000  # entries of a list
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# Words that say nothing about what is to be seen, so that a model does without them.
_GRAMMAR = frozenset("a an the and or of to in on at by with is are be it its this that his her their very".split())


@dataclass(frozen=True)
class Vocabulary:
    """What a small checkpoint knows. The module says what each field is."""

    about: str
    template: str
    groups: dict[str, tuple[str, ...]]
    optional: tuple[str, ...]
    avoid: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...]
    default: str
    words: frozenset[str]

    @classmethod
    def of(cls, values: Any) -> Vocabulary:
        """Raises ValueError, with the name of the field, for values that are not as the module says."""
        if not isinstance(values, dict):
            raise ValueError(f"it holds {type(values).__name__}, not an object")
        texts = {name: _text(name, values.get(name)) for name in ("about", "template", "default")}
        lists = {name: _texts(name, values.get(name)) for name in ("optional", "sentences", "words")}
        groups, avoid = values.get("groups"), values.get("avoid")
        if not isinstance(groups, dict) or not isinstance(avoid, list):
            raise ValueError("groups is not an object, or avoid not a list")
        read = {_text("groups", name): _texts(name, phrases) for name, phrases in groups.items()}
        used = [name for _, name, *_ in string.Formatter().parse(texts["template"]) if name is not None]
        if sorted(used) != sorted(read) or not set(lists["optional"]) <= set(read) or not all(read.values()):
            raise ValueError(f"template uses {used}, and the groups are {list(read)}; none may be empty or left over")
        return cls(
            **texts,
            groups=read,
            optional=lists["optional"],
            sentences=lists["sentences"],
            words=frozenset(lists["words"]),
            avoid=tuple(_texts("avoid", phrases) for phrases in avoid),
        )

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that the model was never shown, in their order, each once."""
        found = dict.fromkeys(word.lower().replace("’", "'") for word in _WORD.findall(prompt))
        return [word for word in found if word not in self.words and word not in _GRAMMAR]


def read_vocabulary(checkpoint: Path) -> Vocabulary | None:
    """The vocabulary of a checkpoint, None for one without.

    Raises:
        ValueError: the file is there and cannot be used.
    """
    file = checkpoint / NAME
    if not file.exists():
        return None
    try:
        return Vocabulary.of(read_json(file, checkpoint))
    except ValueError as error:
        raise ValueError(f"{file} is no vocabulary: {error}; remove it, or write it anew") from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST:
        raise ValueError(f"{name} has {str(value)[:40]!r}, not a text of 1 to {LONGEST} letters")
    return value


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) > MOST:
        raise ValueError(f"{name} is not a list of at most {MOST} texts")
    return tuple(_text(name, value) for value in values)
