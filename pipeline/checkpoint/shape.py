"""The dimensions of a checkpoint's model, which decide its cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.info import CheckpointInfo
from pipeline.checkpoint.layout import fastvideo_config
from pipeline.checkpoint.safetensors_files import component_parameters

_UNKNOWN = "the configurations of {name} do not tell its size ({reason})"


@dataclass(frozen=True)
class ModelShape:
    """The dimensions that decide the cost of a checkpoint.

    hidden, depth, heads, ffn: hidden size, blocks, attention heads and feed-forward size of the transformer.
    modulation: width of its time embedding.
    transformer, text_encoder, vae: number of parameters of each.
    text_visit: parameters of the text encoder's embedding and one layer, all that an offloaded encoder needs at once.
    decoder_width: channels of the VAE decoder's last level, which works on squares of decoder_patch pixels.
    """

    hidden: int
    depth: int
    heads: int
    ffn: int
    modulation: int
    transformer: int
    text_encoder: int
    text_visit: int
    vae: int
    decoder_width: int
    decoder_patch: int

    @property
    def parameters(self) -> int:
        """Number of parameters of all components."""
        return self.transformer + self.text_encoder + self.vae

    @classmethod
    def read(cls, info: CheckpointInfo) -> ModelShape:
        """Read the dimensions from the checkpoint's small files. Raises ValueError if one is missing or damaged."""
        try:
            folders = {part: info.path / name for part, name in info.layout.weights.items()}
            configs = {
                part: json.loads((folder / "config.json").read_text(encoding="utf-8"))
                for part, folder in folders.items()
            }
            parameters = {
                part: component_parameters(folder, configs[part], info.path) for part, folder in folders.items()
            }
        except (OSError, ValueError) as error:
            raise ValueError(_UNKNOWN.format(name=info.name, reason=error)) from error
        return cls.of(info.name, configs, parameters)

    @classmethod
    def of(cls, name: str, configs: Mapping[str, Any], parameters: Mapping[str, int]) -> ModelShape:
        """Take the dimensions from each component's config.json, in either layout, and number of parameters.

        Raises ValueError for a value that cannot be used.
        """
        try:
            transformer, vae, text = (configs[part] for part in ("transformer", "vae", "text_encoder"))
            transformer = fastvideo_config(transformer)
            embedding = int(text.get("vocab_size", 256_384)) * int(text.get("d_model", 4096))
            layer = (parameters["text_encoder"] - embedding) // int(text.get("num_layers", 24))
            hidden = int(transformer.get("hidden_size", 4096))
            ffn = int(hidden * transformer.get("mlp_ratio", 4) * 2 / 3)
            return cls(
                hidden=hidden,
                depth=int(transformer.get("depth", 48)),
                heads=int(transformer.get("num_attention_heads", 32)),
                ffn=-(-ffn // 256) * 256,  # LongCat's SwiGLU is rounded up to a multiple of 256
                modulation=int(transformer.get("adaln_tembed_dim", 512)),
                transformer=parameters["transformer"],
                text_encoder=parameters["text_encoder"],
                text_visit=embedding + max(0, layer),
                vae=parameters["vae"],
                decoder_width=int(vae.get("base_dim", 96)) * int(vae.get("dim_mult", [1])[0]),
                decoder_patch=int(vae.get("patch_size") or 1),
            )
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            raise ValueError(_UNKNOWN.format(name=name, reason=error)) from None
