"""Write a checkpoint that is in FastVideo's layout in that of the original release: dit/ in shards, fused projections,
LongCat's names and configuration, and neither model_index.json nor generation_config.json."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# FastVideo's names to the original's, as modules of both are read side by side
RENAMED = [
    (r"patch_embed\.proj", "x_embedder.proj"),
    (r"time_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"time_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"caption_embedder\.linear_1", "y_embedder.y_proj.0"),
    (r"caption_embedder\.linear_2", "y_embedder.y_proj.2"),
    (r"final_layer\.adaln_linear", "final_layer.adaLN_modulation.1"),
    (r"final_layer\.proj", "final_layer.linear"),
    (r"\.adaln_linear_1", ".adaLN_modulation.1"),
    (r"\.norm_cross", ".pre_crs_attn_norm"),
    (r"\.self_attn\.to_out", ".attn.proj"),
    (r"\.self_attn\.to_q", ".attn.qkv"),
    (r"\.self_attn\.([qk]_norm)", r".attn.\1"),
    (r"\.cross_attn\.to_q", ".cross_attn.q_linear"),
    (r"\.cross_attn\.to_k", ".cross_attn.kv_linear"),
    (r"\.cross_attn\.to_out", ".cross_attn.proj"),
]


def original_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's weights under the original's names."""
    original = {}
    for name, weight in weights.items():
        parts = [weight]
        if ".self_attn.to_q." in name:
            parts += [weights[name.replace("to_q", part)] for part in ("to_k", "to_v")]
        elif ".cross_attn.to_k." in name:
            parts.append(weights[name.replace("to_k", "to_v")])
        elif ".self_attn.to_k." in name or ".to_v." in name:
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        original[name] = torch.cat(parts)
    return original


def write_original(checkpoint: Path, folder: Path, shards: int = 3) -> Path:
    """Write the checkpoint's weights in the original's layout into `folder` (created) and return it."""
    for part in ("vae", "text_encoder", "scheduler", "tokenizer", "lora"):
        if (checkpoint / part).exists():
            shutil.copytree(checkpoint / part, folder / part)
    dit = folder / "dit"
    dit.mkdir(parents=True)
    config = json.loads((checkpoint / "transformer" / "config.json").read_text())
    config.pop("attention_head_dim", None)
    config |= {"_class_name": "LongCatVideoTransformer3DModel", "num_heads": config.pop("num_attention_heads")}
    config |= {"_diffusers_version": "0.35.1", "cp_split_hw": None, "enable_flashattn2": True}
    (dit / "config.json").write_text(json.dumps(config))
    weights = {}
    for file in (checkpoint / "transformer").glob("*.safetensors"):
        weights |= load_file(file)
    items, index = list(original_weights(weights).items()), {}
    for number in range(shards):
        name = f"diffusion_pytorch_model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(items[number::shards])
        save_file(part, dit / name)
        index |= dict.fromkeys(part, name)
    (dit / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder
