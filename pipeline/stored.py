"""What a component's safetensors files hold, read from their headers."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import nn

_PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


def stored_keys(folder: Path) -> set[str]:
    """Names of all tensors."""
    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            stored.update(tensors.keys())
    return stored


def stored_precision(folder: Path) -> str:
    """ "fp32", "fp16" or "bf16", by the first tensor; "bf16" for any other."""
    with safe_open(next(folder.glob("*.safetensors")), framework="pt") as tensors:
        first = next(iter(tensors.keys()))
        return _PRECISIONS.get(tensors.get_slice(first).get_dtype(), "bf16")


def check_complete(vae: nn.Module, folder: Path) -> None:
    """Raises ValueError for a missing weight: FastVideo loads the VAE non-strictly, and it would stay random."""
    if missing := sorted(set(vae.state_dict()) - stored_keys(folder)):
        raise ValueError(
            f"{folder} lacks {len(missing)} weights of the VAE, such as {missing[0]}; copy or download it again"
        )
