"""Reads the header of a LoRA file: assigns its tensors to layers of the transformer, and checks that they fit.

Understands the names in LongCat's own files, the output of FastVideo's converter, and the conventions of peft,
diffusers and kohya's scripts, for FastVideo's layers or LongCat's fused ones.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint.layout import fastvideo_layers, original_modules
from pipeline.checkpoint.safetensors_files import PRECISIONS, Stored, open_file, parse_header, read_json

logger = logging.getLogger("pipeline")

_HYPHEN = "___lorahyphen___"  # stands for the dots of a name in LongCat's files
# What libraries put before the name of a module: peft, diffusers, ComfyUI.
_PREFIX = re.compile(r"^(?:(?:base_model|model|diffusion_model|transformer|dit|unet)\.)+")
_KOHYA = re.compile(r"^lora_(?:unet|transformer|dit)_")
# What they put after it.
_PART = re.compile(
    r"(?P<module>.+)\.(?:"
    r"(?P<down>lora_down|lora_A|lora\.down)(?:\.default)?(?:\.weight)?"
    r"|(?P<up>lora_up|lora_B|lora\.up)(?:\.blocks\.(?P<number>\d{1,2}))?(?:\.default)?(?:\.weight)?"
    r"|(?P<scale>alpha_scale)|(?P<alpha>lora_alpha|alpha))"
)
SUFFIX = ".safetensors"
_NUMBERS = {*PRECISIONS, "F64", "I64", "I32"}


def adapters_in(folder: Path) -> dict[str, Path]:
    """Name -> file of the LoRA files that lie directly in a folder. Reads none of them.

    A link that leads out of the folder is passed over, and so is a name that cannot be shown; the log says so.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder of LoRA files at {folder}; check --lora-dir, or leave it out")
    try:
        files, home = sorted(folder.glob(f"*{SUFFIX}")), folder.resolve()
    except OSError as error:
        raise ValueError(f"cannot read the folder of LoRA files {folder}: {error.strerror}; check it") from None
    found = {}
    for file in files:
        if not file.is_file():
            continue
        if not is_file_name(file.stem):
            logger.warning("%r in %s has characters that cannot be shown and is left out; rename it", file.name, folder)
        elif not file.resolve().is_relative_to(home):
            logger.warning("%s leads out of its folder and is left out; put the file itself there", file)
        else:
            found[file.stem] = file
    return found


def is_file_name(name: str) -> bool:
    """Whether it is the name of a file that can be shown, and not a path, a hidden file or a text of several lines."""
    return name.isprintable() and not name.startswith(".") and not {"/", "\\"} & set(name)


@dataclass(frozen=True)
class Adapted:
    """The tensors of a file that belong together, by their names in it.

    layers: the model's layers that they are for; several where one module of LongCat's stands for them.
    ups: one for all layers, one for each, or blocks of a diagonal.
    scale: of the products, times the number in `factor` if that is the name of a tensor.
    """

    layers: tuple[str, ...]
    down: str
    ups: tuple[str, ...]
    factor: str | None
    scale: float


def read_adapter(path: Path, linear: Mapping[str, tuple[int, int]]) -> list[Adapted]:
    """Everything in a LoRA file, checked against the model's linear layers: their outputs and inputs by name.

    Raises:
        ValueError: the file is damaged, has keys that are not understood, or does not fit the model.
    """
    with open_file(path) as stream:
        try:
            stored, metadata = parse_header(stream)
        except ValueError as error:
            raise ValueError(f"the LoRA file {path} cannot be read: it {error}; copy or download it again") from None
    if not stored:
        raise ValueError(f"the LoRA file {path} is empty; copy or download it again")
    alpha = _declared_alpha(path, metadata)
    adapted, seen = [], set[str]()
    for module, parts in _modules(path, stored, linear).items():
        one = _adapted(path, module, parts, stored, linear, alpha)
        if twice := seen.intersection(one.layers):
            raise ValueError(f"{path} adapts the layer {twice.pop()} twice; use an adapter made for LongCat")
        seen.update(one.layers)
        adapted.append(one)
    return adapted


def _modules(
    path: Path, stored: Mapping[str, Stored], linear: Mapping[str, tuple[int, int]]
) -> dict[str, dict[str, str]]:
    """Part -> key of every module: "down", "up 0", "up 1", ..., "scale", "alpha"."""
    underscored: dict[str, str] = {}
    modules: dict[str, dict[str, str]] = {}
    for key in stored:
        name = key.removeprefix(f"lora{_HYPHEN}").replace(_HYPHEN, ".")
        found = _PART.fullmatch(name)
        if found is None:
            raise ValueError(
                f"{path} has the key {key[:80]!r}, which no LongCat LoRA has; use an adapter made for LongCat, of "
                "products (lora_down and lora_up, or lora_A and lora_B) alone"
            )
        if _KOHYA.match(name):
            underscored = underscored or {one.replace(".", "_"): one for one in _all_names(linear)}
            short = _KOHYA.sub("", found["module"])
            module = underscored.get(short, short)
        else:
            module = _PREFIX.sub("", found["module"])
        part = next(part for part in ("down", "up", "scale", "alpha") if found[part])
        part = f"up {int(found['number'] or 0):02}" if part == "up" else part
        parts = modules.setdefault(module, {})
        if part in parts:
            raise ValueError(f"{path} has {parts[part][:80]!r} and {key[:80]!r} for one thing; use another adapter")
        parts[part] = key
    return modules


def _adapted(
    path: Path,
    module: str,
    parts: Mapping[str, str],
    stored: Mapping[str, Stored],
    linear: Mapping[str, tuple[int, int]],
    alpha: tuple[float, float] | None,
) -> Adapted:
    ups = tuple(parts[name] for name in sorted(parts) if name.startswith("up"))
    if "down" not in parts or not ups:
        raise ValueError(f"the LoRA file {path} is incomplete at {module[:80]}; copy or download it again")
    layers = fastvideo_layers(module)
    for layer in layers:
        if layer not in linear:
            raise ValueError(
                f"{path} adapts the layer {layer[:80]}, and this checkpoint has no such linear layer; use an adapter "
                "that was made for it"
            )
    factor = parts.get("scale") or parts.get("alpha")
    for key in (parts["down"], *ups, *filter(None, (parts.get("scale"), parts.get("alpha")))):
        known = PRECISIONS if key in ups or key == parts["down"] else _NUMBERS
        if stored[key].dtype not in known:
            raise ValueError(
                f"{path} has {key[:80]} as {stored[key].dtype}, which is not understood; use an adapter that is not "
                "quantised"
            )
    _check_shapes(path, layers, stored[parts["down"]].shape, [stored[key].shape for key in ups], linear)
    if factor is not None and math.prod(stored[factor].shape) != 1:
        raise ValueError(
            f"{path} has {factor[:80]} of {list(stored[factor].shape)}, and a scale is one number; use another adapter"
        )
    rank = stored[parts["down"]].shape[0]
    scale = 1.0
    if "scale" not in parts and "alpha" in parts:
        scale = 1 / rank
    elif factor is None and alpha is not None:
        scale = alpha[0] / rank ** alpha[1]
    return Adapted(layers, parts["down"], ups, factor, scale)


def _check_shapes(
    path: Path,
    layers: tuple[str, ...],
    down: tuple[int, ...],
    ups: list[tuple[int, ...]],
    linear: Mapping[str, tuple[int, int]],
) -> None:
    """Raises ValueError unless the products have the layers' outputs and inputs."""
    sizes = [linear[layer] for layer in layers]
    fits = len(down) == 2 and down[0] >= 1 and all(len(up) == 2 for up in ups)
    fits = fits and all(inputs == down[1] for _, inputs in sizes)
    if fits and len(ups) == len(layers):  # each of the fused projections has a product of its own
        fits = down[0] % len(ups) == 0 and ups == [(outputs, down[0] // len(ups)) for outputs, _ in sizes]
    elif fits:  # blocks of one matrix, whose rows are shared out evenly
        rows, columns = (sum(up[axis] for up in ups) for axis in (0, 1))
        fits = columns == down[0] and all(rows == outputs * len(layers) for outputs, _ in sizes)
    if not fits:
        products = " and ".join(str(list(shape)) for shape in (*ups, down))
        outputs, inputs = sum(outputs for outputs, _ in sizes), sizes[0][1]
        raise ValueError(
            f"{path} has products of {products} for {', '.join(layers)}, which is {outputs} x {inputs}; use an adapter "
            "that was made for this checkpoint"
        )


def _all_names(linear: Mapping[str, tuple[int, int]]) -> set[str]:
    """Of the layers, in both ways to call them."""
    blocks = {name.split(".")[1] for name in linear if name.startswith("blocks.")}
    return {*linear, *original_modules(blocks)}


def _declared_alpha(path: Path, metadata: Mapping[str, Any]) -> tuple[float, float] | None:
    """Alpha, and the power of the rank that it is divided by, where a file says it beside its tensors: peft in
    adapter_config.json, diffusers in the file's metadata."""
    try:
        if path.name == "adapter_model.safetensors" and (path.parent / "adapter_config.json").is_file():
            settings = read_json(path.parent / "adapter_config.json", path.parent)
        else:
            found = json.loads(metadata.get("lora_adapter_metadata", "{}"))
            settings = {key.removeprefix("transformer."): value for key, value in found.items()}
        if settings.get("alpha_pattern"):
            raise ValueError("its layers have scales of their own (alpha_pattern)")
        alpha = settings.get("lora_alpha")
        if alpha is None:
            return None
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise ValueError(f"its lora_alpha is {str(alpha)[:80]}, not a number")
        return float(alpha), 0.5 if settings.get("use_rslora") else 1.0
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"the scale of the LoRA file {path} cannot be read ({error}); use another adapter") from None
