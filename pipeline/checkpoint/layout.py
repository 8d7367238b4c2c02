"""The two layouts of a LongCat checkpoint: the original release's and FastVideo's.

Text encoder, VAE, scheduler, tokenizer and adapters are the same in both. The transformer has the same weights under
other names: the original fuses the projections that read the same input, and FastVideo stores them apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# component -> its configuration file
CONFIGS = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
}
WEIGHTS = ("transformer", "vae", "text_encoder")

# The names of the original's modules, in a block and outside, and of FastVideo's layers that they hold. The others
# have one name.
_IN_BLOCK = {
    "attn.qkv": ("self_attn.to_q", "self_attn.to_k", "self_attn.to_v"),
    "attn.q_norm": ("self_attn.q_norm",),
    "attn.k_norm": ("self_attn.k_norm",),
    "attn.proj": ("self_attn.to_out",),
    "pre_crs_attn_norm": ("norm_cross",),
    "cross_attn.q_linear": ("cross_attn.to_q",),
    "cross_attn.kv_linear": ("cross_attn.to_k", "cross_attn.to_v"),
    "cross_attn.proj": ("cross_attn.to_out",),
    "adaLN_modulation.1": ("adaln_linear_1",),
}
_ELSEWHERE = {
    "x_embedder.proj": ("patch_embed.proj",),
    "t_embedder.mlp.0": ("time_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_embedder.linear_2",),
    "y_embedder.y_proj.0": ("caption_embedder.linear_1",),
    "y_embedder.y_proj.2": ("caption_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("final_layer.adaln_linear",),
    "final_layer.linear": ("final_layer.proj",),
}
_BLOCK = re.compile(r"blocks\.\d+\.")


@dataclass(frozen=True)
class Layout:
    """A layout, by what differs between the two.

    Attributes:
        title: what `info` calls it.
        transformer: the folder of the transformer.
        transformer_class: the class that the transformer's configuration names.
        first: the small file by which a folder or repository is recognised, and which names `first_class`.
        first_class: the `_class_name` in that file.
        zero_padding: what a configuration without `text_tokens_zero_pad` means.
    """

    title: str
    transformer: str
    transformer_class: str
    first: str
    first_class: str
    zero_padding: bool

    def folder(self, component: str) -> str:
        """The folder of a component."""
        return self.transformer if component == "transformer" else component

    @property
    def configs(self) -> dict[str, str]:
        """Component -> path of its configuration in the checkpoint."""
        return {component: f"{self.folder(component)}/{name}" for component, name in CONFIGS.items()}

    @property
    def weights(self) -> dict[str, str]:
        """Component -> folder, for the components with weights."""
        return {component: self.folder(component) for component in WEIGHTS}

    @property
    def classes(self) -> dict[str, str]:
        """Component -> the class that its configuration names."""
        return {
            "transformer": self.transformer_class,
            "vae": "AutoencoderKLWan",
            "scheduler": "FlowMatchEulerDiscreteScheduler",
        }

    def pads_with_zeros(self, transformer: Mapping[str, Any]) -> bool:
        """Whether the transformer was trained to attend to the padding of a prompt, as zero vectors.

        Otherwise padding is masked. transformer: its configuration.
        """
        return bool(transformer.get("text_tokens_zero_pad", self.zero_padding))


FASTVIDEO = Layout(
    title="FastVideo's",
    transformer="transformer",
    transformer_class="LongCatTransformer3DModel",
    first="model_index.json",
    first_class="LongCatPipeline",
    zero_padding=True,
)
ORIGINAL = Layout(
    title="the original's",
    transformer="dit",
    transformer_class="LongCatVideoTransformer3DModel",
    first="dit/config.json",
    first_class="LongCatVideoTransformer3DModel",
    zero_padding=False,
)
LAYOUTS = (FASTVIDEO, ORIGINAL)

# For FastVideo's loaders, where a checkpoint has no model_index.json of FastVideo's.
MODEL_INDEX = {
    "_class_name": FASTVIDEO.first_class,
    "_diffusers_version": "0.32.0",
    "workload_type": "video-generation",
    "tokenizer": ["transformers", "AutoTokenizer"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["diffusers", FASTVIDEO.transformer_class],
}


def choose_layout(has_folder: Callable[[str], bool]) -> Layout:
    """The original's if the transformer is in dit/ alone. has_folder: whether there is a folder of that name."""
    return ORIGINAL if has_folder(ORIGINAL.transformer) and not has_folder(FASTVIDEO.transformer) else FASTVIDEO


def layout_of(checkpoint: Path) -> Layout:
    """The layout of a folder of this machine."""
    return choose_layout(lambda name: (checkpoint / name).is_dir())


def fastvideo_config(transformer: Mapping[str, Any]) -> dict[str, Any]:
    """A transformer's configuration in either layout with FastVideo's class and keys."""
    config = dict(transformer)
    if config.get("_class_name") == ORIGINAL.transformer_class:
        config["_class_name"] = FASTVIDEO.transformer_class
        if "num_heads" in config:
            config["num_attention_heads"] = config.pop("num_heads")
    return config


def fastvideo_layers(module: str) -> tuple[str, ...]:
    """FastVideo's layers that a module stands for, which may be named as in either layout."""
    block = _BLOCK.match(module)
    if block is None:
        return _ELSEWHERE.get(module, (module,))
    inner = module[block.end() :]
    return tuple(block[0] + name for name in _IN_BLOCK.get(inner, (inner,)))


def original_modules(blocks: set[str]) -> set[str]:
    """The names of all modules that the original calls otherwise, for these numbers of blocks."""
    return {*_ELSEWHERE, *(f"blocks.{number}.{inner}" for number in blocks for inner in _IN_BLOCK)}


def original_shapes(fastvideo: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original's weights, given FastVideo's: fused ones have the rows of all their parts."""
    fused = {layer: module for table in (_IN_BLOCK, _ELSEWHERE) for module, layers in table.items() for layer in layers}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (rows, *rest) in fastvideo.items():
        layer, _, kind = name.rpartition(".")
        block = _BLOCK.match(layer)
        start = "" if block is None else block[0]
        inner = layer[len(start) :]
        original = f"{start}{fused.get(inner, inner)}.{kind}"
        before = shapes[original][0] if original in shapes else 0
        shapes[original] = before + rows, *rest
    return shapes


def split_weight(name: str, weight: Any) -> Iterator[tuple[str, Any]]:
    """A tensor of the original under FastVideo's names: itself, or its rows in equal parts, which are views of it."""
    module, _, kind = name.rpartition(".")
    layers = fastvideo_layers(module)
    for layer, part in zip(layers, weight.chunk(len(layers)), strict=True):
        yield f"{layer}.{kind}", part
