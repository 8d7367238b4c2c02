"""Checks that a checkpoint folder holds only weights, tables and settings, and nothing that a library would run.

A checkpoint comes from strangers. Libraries that read such folders have many ways to run Python from them: a file that
`auto_map` names, a custom pipeline, a class chosen by name, a pickle. So the folder is searched before any library
opens it, and only the names that LongCat needs are allowed.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_ENTRIES = 10_000  # in a folder; a checkpoint has a few dozen
LARGEST_JSON = 64 * 2**20  # bytes; enough for the shard index of a model a hundred times LongCat's size

# component folder -> the library and classes that model_index.json may name for it
COMPONENTS: dict[str, tuple[str, frozenset[str]]] = {
    "transformer": ("diffusers", frozenset({"LongCatTransformer3DModel"})),
    "vae": ("diffusers", frozenset({"AutoencoderKLWan"})),
    "text_encoder": ("transformers", frozenset({"UMT5EncoderModel"})),
    "scheduler": ("diffusers", frozenset({"FlowMatchEulerDiscreteScheduler"})),
    "tokenizer": (
        "transformers",
        frozenset({"AutoTokenizer", "PreTrainedTokenizerFast", "T5Tokenizer", "T5TokenizerFast", "TokenizersBackend"}),
    ),
}
# The last two are the original's: its index, where there is one, is not read, but searched like every file.
_CLASSES = frozenset({"LongCatPipeline", "LongCatVideoPipeline", "LongCatVideoTransformer3DModel"}).union(
    *(classes for _, classes in COMPONENTS.values())
)

# Endings of files that some loader would import, run or unpickle.
_CODE = re.compile(r"\.(py\w?|so|dll|dylib|pkl|pickle|jit|sh|exe)$", re.IGNORECASE)
# Keys through which libraries find code, other repositories, or loaders that are not LongCat's.
_CODE_KEYS = frozenset(
    "auto_map custom_pipeline custom_pipelines custom_generate custom_objects custom_code custom_modules "
    "trust_remote_code processor_type image_processor_type feature_extractor_type gemma_model_path".split()
)
# Keys whose values name classes.
_CLASS_KEYS = frozenset(("_class_name", "architectures", "tokenizer_class"))
# Only the tokenizers library reads this file, as data: its keys are the words of a vocabulary.
_VOCABULARIES = frozenset(("tokenizer.json", "vocab.json"))

# Names of the files that are fetched from the Hub.
_KNOWN = re.compile(
    r"model_index\.json|generation_config\.json|vocabulary\.json"
    r"|(?:transformer|dit|vae|text_encoder)/(?:config\.json|[^/]+\.safetensors(?:\.index\.json)?)"
    r"|scheduler/scheduler_config\.json"
    r"|tokenizer/(?:tokenizer|tokenizer_config|special_tokens_map)\.json"
    r"|lora/(?:[^/]+/)?(?:[^/]+\.safetensors|adapter_config\.json)"
)

REMEDY = "use a checkpoint of weights and settings alone"


def is_known(name: str) -> bool:
    """Whether a file of a repository, such as vae/config.json, is part of a checkpoint."""
    return _KNOWN.fullmatch(name) is not None


def check_files(checkpoint: Path) -> None:
    """Raise ValueError if the folder holds a file with code, or anything but plain files and folders."""
    for file in _files(checkpoint):
        name = file.relative_to(checkpoint)
        if _CODE.search(file.name):
            raise ValueError(f"the checkpoint {checkpoint} holds the code {name}, which nothing here runs; {REMEDY}")
        check_plain(file)


def check_plain(file: Path) -> None:
    """Raise ValueError for a pipe, a socket or a device, because reading from it might never end.

    A missing file passes: its reader reports it.
    """
    try:
        mode = file.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{file} is neither a file nor a folder; {REMEDY}")


def check_names(checkpoint: Path) -> None:
    """Raise ValueError if a JSON file in the folder names code, or a class that is not LongCat's.

    The checkpoint's own files are known to be readable at this point; other files beside them may hold anything.
    """
    for file in _files(checkpoint):
        if file.suffix.lower() != ".json" or file.name in _VOCABULARIES or not file.is_file():
            continue
        name = file.relative_to(checkpoint)
        content = _content(file, name, checkpoint)
        for key, value in _entries(content):
            if key in _CODE_KEYS and value not in (None, False):
                raise ValueError(f"{checkpoint}/{name} has {key}, by which it asks for code to be run; {REMEDY}")
            named = value if isinstance(value, list) else [value]
            if key in _CLASS_KEYS and (unknown := [one for one in named if one is not None and not _is_class(one)]):
                raise ValueError(f"{checkpoint}/{name} names the unknown class {str(unknown[0])[:80]!r}; {REMEDY}")


def check_index(index: dict[str, Any], checkpoint: Path) -> None:
    """Raise ValueError if model_index.json names components or classes that are not LongCat's."""
    file = checkpoint / "model_index.json"
    if index.get("boundary_ratio") is not None:
        raise ValueError(f"{file} has a boundary_ratio, of models with two transformers; LongCat has one: remove it")
    for name, value in index.items():
        if isinstance(value, dict) or (isinstance(value, list) and name not in COMPONENTS):
            raise ValueError(f"{file} names the component {name[:80]!r}, which LongCat does not have; {REMEDY}")
    for name, (library, classes) in COMPONENTS.items():
        value = index.get(name)
        if not (isinstance(value, list) and len(value) == 2 and value[0] == library and _is_in(value[1], classes)):
            wanted = " or ".join(sorted(classes))
            raise ValueError(f"{file} has {str(value)[:80]} for {name}, not {library}'s {wanted}; {REMEDY}")


def _is_class(name: object) -> bool:
    return _is_in(name, _CLASSES)


def _is_in(name: object, names: frozenset[str]) -> bool:
    return isinstance(name, str) and name in names


def _content(file: Path, name: Path, checkpoint: Path) -> Any:
    if file.stat().st_size > LARGEST_JSON:
        limit = LARGEST_JSON >> 20
        raise ValueError(f"{checkpoint}/{name} is larger than {limit} MiB, which no settings are; {REMEDY}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{checkpoint}/{name} is nested too deeply; {REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"{checkpoint}/{name} is not valid JSON ({error}); {REMEDY}") from None
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}; check its permissions") from None


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at any depth."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _files(checkpoint: Path) -> Iterator[Path]:
    """Yield everything in the folder except folders. Follows links, and visits each real folder once."""
    seen, entries = set(), 0
    for where, folders, files in os.walk(checkpoint, followlinks=True):
        entries += len(folders) + len(files)
        if entries > MOST_ENTRIES:
            raise ValueError(f"{checkpoint} holds more than {MOST_ENTRIES} files; pass the checkpoint's own folder")
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(where, name) for name in sorted(files))
