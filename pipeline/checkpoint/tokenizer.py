"""Loads a checkpoint's tokenizer as plain data: it runs neither a class that the files name nor code in the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.checkpoint.safetensors_files import read_json

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_tokenizer(folder: Path) -> Any:
    """A tokenizer of transformers for tokenizer.json, with the special tokens that the files beside it name.

    The usual loader of transformers picks a class by the names in the folder, and for some names it runs Python from
    there. FastVideo's loader even asks for this.

    Raises:
        ValueError: a file is missing or damaged.
    """
    from transformers import PreTrainedTokenizerFast

    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            settings |= read_json(folder / name, folder.parent)
    options: dict[str, Any] = {name: token for name in _SPECIAL if isinstance(token := _token(settings.get(name)), str)}
    longest = settings.get("model_max_length")
    if isinstance(longest, int) and not isinstance(longest, bool):
        options["model_max_length"] = longest
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **options)


def _token(value: Any) -> Any:
    """The text of a token. Files hold it alone, or in an object together with its matching rules."""
    return value.get("content") if isinstance(value, dict) else value
