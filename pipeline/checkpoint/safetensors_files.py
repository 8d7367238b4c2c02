"""Reads names, precision and number of a component's weights from the headers of its safetensors files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import safe_open

from pipeline.checkpoint.trust import check_plain

_PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


def stored_keys(folder: Path) -> set[str]:
    """Names of all tensors in a component's folder."""
    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            stored.update(tensors.keys())
    return stored


def stored_precision(folder: Path) -> str:
    """ "fp32", "fp16" or "bf16", from the dtype of the first tensor; "bf16" for any other dtype."""
    with safe_open(next(folder.glob("*.safetensors")), framework="pt") as tensors:
        first = next(iter(tensors.keys()))
        return _PRECISIONS.get(tensors.get_slice(first).get_dtype(), "bf16")


def check_complete(names: Iterable[str], folder: Path) -> None:
    """Raise ValueError if the VAE's files lack a weight. FastVideo would silently leave it random.

    names: names of all weights of the VAE.
    """
    if missing := sorted(set(names) - stored_keys(folder)):
        raise ValueError(
            f"{folder} lacks {len(missing)} weights of the VAE, such as {missing[0]}; copy or download it again"
        )


def incomplete(path: Path, what: str) -> str:
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


def component_parameters(folder: Path, checkpoint: Path) -> int:
    """Number of parameters in a component's safetensors files. Raises ValueError if a file is missing or cut short."""
    shards = {file.name for file in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        weights = read_json(index, checkpoint).get("weight_map", {})
        if not isinstance(weights, dict) or not all(isinstance(shard, str) for shard in weights.values()):
            raise ValueError(incomplete(checkpoint, f"{index.relative_to(checkpoint)} has a damaged weight_map"))
        listed = set(weights.values())
        if missing := sorted(listed - shards):
            what = f"{folder.name}/{missing[0]} is missing ({len(missing)} of {len(listed)} shards are)"
            raise ValueError(incomplete(checkpoint, what))
    if not shards:
        raise ValueError(incomplete(checkpoint, f"{folder.name}/ holds no .safetensors file"))
    return sum(_count_in_file(folder / name, checkpoint) for name in sorted(shards))


def open_file(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}; check its permissions") from None


def _count_in_file(file: Path, checkpoint: Path) -> int:
    # layout of the file: the header's length (8 bytes, little endian), the header (JSON), the tensors
    name = file.relative_to(checkpoint)
    size = file.stat().st_size
    with open_file(file) as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise ValueError(incomplete(checkpoint, f"{name} is cut off in its header ({size} bytes)"))
        try:
            header = json.loads(stream.read(length))
            tensors = {key: value for key, value in header.items() if key != "__metadata__"}
            end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
            count = sum(math.prod(tensor["shape"]) for tensor in tensors.values())
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise ValueError(incomplete(checkpoint, f"{name} has a damaged header")) from None
    if 8 + length + end != size:
        what = f"{name} has {size} bytes where its header announces {8 + length + end}"
        raise ValueError(incomplete(checkpoint, what))
    return count
