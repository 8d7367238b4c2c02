"""Words that a small checkpoint was trained on, from its file vocabulary.json: good and bad prompts for it.

A checkpoint that understands language in general has no such file. The file of the embedded one is made by
`training.vocabulary`:

    about       the model's world, in a sentence
    template    a prompt with the names of groups in braces: "a {colour} {thing} {motion} {scene}"
    groups      name -> the words or phrases that may stand there
    optional    groups that may be left out
    avoid       lists of phrases that should not come together
    sentences   prompts of another form
    default     the prompt to begin with
    words       every word that the model knows, in small letters
    chinese     optional: kind -> Chinese phrase -> the English phrase that it stands for. Kinds are the groups, and
                place, hour (together a scene), event (what happens to a landscape) and filler (grammar, for "")
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.checkpoint.safetensors_files import read_json

NAME = "vocabulary.json"
LONGEST = 300  # letters of a phrase or sentence
MOST = 20_000  # entries of a list
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_STOP = r"[，。；、！？,.;!?\n]"
_KINDS = ("place", "hour", "event", "filler")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# Words that say nothing about what is to be seen, so that a model does without them.
_GRAMMAR = frozenset("a an the and or of to in on at by with is are be it its this that his her their very".split())


@dataclass(frozen=True)
class Reading:
    """A Chinese prompt as the model reads it.

    english: in the words and the order of its captions; "" if nothing of it is known.
    unknown: the words that it has no English for, in their order, each once.
    """

    english: str
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    """The words that a small checkpoint knows. The module's documentation describes each field."""

    about: str
    template: str
    groups: dict[str, tuple[str, ...]]
    optional: tuple[str, ...]
    avoid: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...]
    default: str
    words: frozenset[str]
    chinese: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

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
            chinese=_table(values.get("chinese", {}), {*read, *_KINDS}),
        )

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that the model was never shown, in their order, each once."""
        found = dict.fromkeys(word.lower().replace("’", "'") for word in _WORD.findall(prompt))
        return [word for word in found if word not in self.words and word not in _GRAMMAR]

    def read(self, prompt: str) -> Reading | None:
        """The English of a prompt with Chinese in it; None for one without, and for a model without a table."""
        if not self.chinese or not _CHINESE.search(prompt):
            return None
        known, unknown, end = list[tuple[str, str]](), list[str](), 0
        for match in (*self._pattern.finditer(prompt), None):
            if match and self._is_part(match):
                continue
            unknown += self.unknown(prompt[end : match.start() if match else len(prompt)])
            if match:
                end = match.end()
                known.append(self._phrases.get(match[0].lower(), ("stop", "")))
        return Reading(self._in_order(known), tuple(dict.fromkeys(unknown)))

    def _is_part(self, found: re.Match[str]) -> bool:
        """Whether what looks like a size begins a word that is not known, as in Chinese a puppy is a small dog."""
        kind, _ = self._phrases.get(found[0].lower(), ("stop", ""))
        prompt, end = found.string, found.end()
        follows = _CHINESE.match(prompt, end) and not self._pattern.match(prompt, end)
        return kind == "size" and len(found[0]) == 1 and bool(follows)

    @cached_property
    def _phrases(self) -> dict[str, tuple[str, str]]:
        """Phrase -> kind and English phrase, of all that may stand in a Chinese prompt."""
        both = [(kind, word, said) for kind, words in self.chinese.items() for word, said in words.items()]
        english = {said: (kind, said) for kind, _, said in both if said}
        english |= {phrase: (kind, phrase) for kind, phrases in self.groups.items() for phrase in phrases}
        return english | {word: (kind, said) for kind, word, said in both}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Finds the longest phrase at each place, English ones as whole words, or the end of a clause."""
        by_length = sorted(self._phrases, key=len, reverse=True)
        words = (rf"\b{re.escape(one)}\b" if one.isascii() else re.escape(one) for one in by_length)
        return re.compile("|".join((*words, _STOP)), re.IGNORECASE | re.ASCII)

    def _in_order(self, known: Iterable[tuple[str, str]]) -> str:
        """The sentence that the phrases make: clauses by the template, then the scene."""
        clauses, scene = [dict[str, str]()], dict[str, str]()
        for kind, english in known:
            last = clauses[-1]
            if kind in ("scene", "place", "hour"):
                scene.setdefault(kind, english)
            elif kind == "stop" or kind == "event":
                clauses += [{"event": english}, {}] if kind == "event" else [{}]
            elif kind != "filler":
                if kind in last or (kind != "motion" and "thing" in last):
                    clauses.append(last := {})
                last[kind] = english
        said = [self._clause(clause) for clause in _merged(clauses)]
        place = scene.get("scene") or " ".join(scene[part] for part in ("place", "hour") if part in scene)
        if not said:  # a landscape at rest, which is no place of anything
            place = re.sub(r"^(?:in front of|over|on|in) ", "", place)
        elif any("event" in clause for clause in clauses):
            place = re.sub(r"^in front of ", "over ", place)
        return " ".join(filter(None, (" and ".join(said), place)))

    def _clause(self, clause: Mapping[str, str]) -> str:
        if "event" in clause:
            return clause["event"]
        filled = self.template.format(**{name: clause.get(name, "") for name in self.groups})
        filled = " ".join(filled.split())
        filled = filled if "thing" in clause else re.sub(r"^an? ", "", filled)
        return re.sub(r"\ba (?=[aeiou])", "an ", filled)


def _merged(clauses: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without empty ones, and what has no thing of its own with the clause before: "a ball, it is red"."""
    merged: list[dict[str, str]] = []
    for clause in filter(None, clauses):
        before = merged[-1] if merged else {"event": ""}
        if "thing" in clause or "event" in {*clause, *before} or clause.keys() & before.keys():
            merged.append(clause)
        else:
            before |= clause
    return merged


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


def _table(values: Any, kinds: set[str]) -> dict[str, dict[str, str]]:
    objects = isinstance(values, dict) and all(isinstance(words, dict) for words in values.values())
    if not objects or not values.keys() <= kinds:
        raise ValueError(f"chinese is not an object of objects by {', '.join(sorted(kinds))}")
    if sum(map(len, values.values())) > MOST:
        raise ValueError(f"chinese has more than {MOST} phrases")
    return {
        kind: {_text("chinese", word): said and _text("chinese", said) for word, said in words.items()}
        for kind, words in values.items()
    }


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) > MOST:
        raise ValueError(f"{name} is not a list of at most {MOST} texts")
    return tuple(_text(name, value) for value in values)
