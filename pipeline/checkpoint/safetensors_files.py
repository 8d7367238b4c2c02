"""Reads the headers of a component's safetensors files: picks the files that count, and finds missing weights."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pipeline.checkpoint.expected import expected_weights
from pipeline.checkpoint.trust import check_plain

# What weights are read as, by safetensors' name.
PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
# As diffusers and transformers call their files.
_STEMS = ("diffusion_pytorch_model", "model")
_INDEX, _WEIGHTS = ".safetensors.index.json", ".safetensors"
# Stored beside their own weights by some versions of transformers, and the same.
_TIED = {"text_encoder": {"encoder.embed_tokens.weight"}}
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


class Stored(NamedTuple):
    """One weight in a file: the type of its numbers as safetensors calls it, such as BF16, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path, checkpoint: Path) -> list[Path]:
    """The files of a component that count; see `choose_files`."""
    names = [file.name for file in folder.glob("*.safetensors*")]
    where = f"{checkpoint}/{folder.name}"
    return [folder / name for name in choose_files(names, where, lambda name: read_json(folder / name, checkpoint))]


def choose_files(names: Collection[str], where: str, read: Callable[[str], Mapping[str, Any]]) -> list[str]:
    """Of the names of a component's files, those of its weights: those in its index, or the only one.

    Other sets, in another precision perhaps, may lie beside them. read: an index by its name.

    Raises:
        ValueError: there is none, a file of the index is missing, or it cannot be told which ones count.
    """
    shards = sorted(name for name in names if name.endswith(_WEIGHTS))
    index = _one(sorted(name for name in names if name.endswith(_INDEX)), _INDEX, where)
    if index is None:
        alone = _one(shards, _WEIGHTS, where)
        if alone is None:
            raise ValueError(incomplete(where, "it holds no .safetensors file"))
        return [alone]
    weights = read(index).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(shard, str) for shard in weights.values()):
        raise ValueError(incomplete(where, f"{index} has a damaged weight_map"))
    listed = sorted(set(weights.values()))
    if missing := sorted(set(listed) - set(shards)):
        raise ValueError(incomplete(where, f"{missing[0]} is missing ({len(missing)} of {len(listed)} shards are)"))
    if not listed:
        raise ValueError(incomplete(where, f"{index} lists no weights"))
    return listed


def _one(names: list[str], suffix: str, where: str) -> str | None:
    usual = [name for name in names if name in {stem + suffix for stem in _STEMS}] or names
    if len(usual) > 1:
        raise ValueError(
            f"{where} holds {usual[0]} and {usual[1]}, and nothing says which of them counts; leave one set of weights "
            "there, with its index if it has several files"
        )
    return usual[0] if usual else None


def stored_weights(folder: Path, checkpoint: Path) -> dict[str, Stored]:
    """All weights in the files of a component that count."""
    stored: dict[str, Stored] = {}
    for file in weight_files(folder, checkpoint):
        merge(stored, read_header(file, checkpoint), f"{checkpoint}/{folder.name}")
    return stored


def merge(stored: dict[str, Stored], more: Mapping[str, Stored], where: str) -> None:
    """Add one file's weights to those of others."""
    if twice := sorted(set(stored) & set(more)):
        raise ValueError(f"{where} has {twice[0]} in two of its files; copy or download it again")
    stored |= more


def stored_precision(folder: Path, checkpoint: Path) -> str:
    """ "fp32", "fp16" or "bf16", by the first weight."""
    return PRECISIONS[next(iter(stored_weights(folder, checkpoint).values())).dtype]


def has_encoder(stored: Mapping[str, Stored]) -> bool:
    """Whether a VAE can encode."""
    return any(name.startswith("encoder.") for name in stored)


def component_parameters(folder: Path, config: Mapping[str, Any], checkpoint: Path) -> int:
    """Parameters of a component, after a look at whether its files hold what its configuration asks for."""
    where = f"{checkpoint}/{folder.name}"
    return check_weights(folder.name, config, stored_weights(folder, checkpoint), where)


def check_weights(component: str, config: Mapping[str, Any], stored: Mapping[str, Stored], where: str) -> int:
    """Raise ValueError unless a component's weights are all there, no others, in types that are understood here;
    returns its number of parameters.

    FastVideo's loaders leave some of what is missing random, and convert numbers whose scales they do not know.
    """
    if config.get("quantization_config"):
        raise ValueError(f"{where}/config.json has a quantization_config; use weights that are not quantised")
    for name, (dtype, _) in stored.items():
        if dtype not in PRECISIONS:
            raise ValueError(
                f"{where} has {name} as {dtype}, and weights are read as {', '.join(PRECISIONS)}; "
                "use weights that are not quantised"
            )
    try:
        expected = expected_weights(component, config, has_encoder(stored))
    except ValueError as error:
        raise ValueError(f"{where}/config.json is unusable: {error}") from None
    if missing := sorted(expected.keys() - stored.keys()):
        what = f"it lacks {len(missing)} of the {len(expected)} weights of its config.json, such as {missing[0]}"
        raise ValueError(incomplete(where, what))
    if unknown := sorted(stored.keys() - expected.keys() - _TIED.get(component, set())):
        more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
        raise ValueError(
            f"{where} has {unknown[0][:80]}{more}, which LongCat's {component} does not have; "
            "use LongCat's own weights, or FastVideo's, that are not quantised"
        )
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise ValueError(
                f"{where} has {name} as {list(stored[name].shape)}, and by its config.json it is {list(shape)}; check "
                "that its files belong together"
            )
    return sum(map(math.prod, expected.values()))


def incomplete(path: Path | str, what: str) -> str:
    return f"the checkpoint {path} is incomplete: {what}; copy or download it again"


def read_json(file: Path, checkpoint: Path) -> dict[str, Any]:
    name = file.relative_to(checkpoint)
    check_plain(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(incomplete(checkpoint, f"{name} is missing")) from None
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}; check its permissions") from None
    except RecursionError:
        raise ValueError(incomplete(checkpoint, f"{name} is nested too deeply")) from None
    except ValueError as error:
        raise ValueError(incomplete(checkpoint, f"{name} is not valid JSON ({error})")) from None
    if not isinstance(content, dict):
        raise ValueError(incomplete(checkpoint, f"{name} holds a {type(content).__name__}, not an object"))
    return content


def open_file(file: Path) -> BinaryIO:
    check_plain(file)
    try:
        return file.open("rb")
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}; check its permissions") from None


def read_header(file: Path, checkpoint: Path) -> dict[str, Stored]:
    """The weights in one file of a checkpoint."""
    with open_file(file) as stream:
        try:
            return parse_header(stream)[0]
        except ValueError as error:
            raise ValueError(incomplete(checkpoint, f"{file.relative_to(checkpoint)} {error}")) from None


def parse_header(stream: BinaryIO) -> tuple[dict[str, Stored], dict[str, Any]]:
    """The weights in a file, and what it says of itself; raises ValueError with what is wrong with its header or its
    length."""
    # safetensors: the header's length (8 bytes, little endian), the header (JSON), then the tensors
    size = os.fstat(stream.fileno()).st_size
    prefix = stream.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
    if 8 + length > size:
        raise ValueError(f"is cut off in its header ({size} bytes)")
    try:
        if length > _LONGEST_HEADER:
            raise ValueError(length)
        header = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", {})
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        stored = {key: Stored(str(tensor["dtype"]), tuple(tensor["shape"])) for key, tensor in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise ValueError("has a damaged header") from None
    if 8 + length + end != size:
        raise ValueError(f"has {size} bytes where its header announces {8 + length + end}")
    return stored, metadata if isinstance(metadata, dict) else {}
