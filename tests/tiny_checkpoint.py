"""Write a random LongCat checkpoint of a few hundred kilobytes, in the exact layout of the real one.

The videos it makes are noise; everything around them (loading, attention, schedule, decoding,
files, errors) is the real thing. ``python tests/tiny_checkpoint.py FOLDER`` writes one for hand use.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, HEADS, DEPTH, TEXT_CHANNELS, TIME_CHANNELS, FREQUENCIES = 64, 2, 2, 32, 32, 64
FFN = 256  # FastVideo rounds hidden * 4 * 2/3 up to a multiple of 256
BSA_PARAMS = {"sparsity": 0.75, "cdf_threshold": None, "chunk_3d_shape_q": [4, 4, 4], "chunk_3d_shape_k": [4, 4, 4]}
GENERATION = {
    "height": 64,
    "width": 64,
    "num_frames": 29,
    "num_inference_steps": 3,
    "guidance_scale": 1.0,
    "fps": 15,
    "use_distill": False,
}

MODEL_INDEX = {
    "_class_name": "LongCatPipeline",
    "_diffusers_version": "0.32.0",
    "workload_type": "video-generation",
    "tokenizer": ["transformers", "AutoTokenizer"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["diffusers", "LongCatTransformer3DModel"],
}


def transformer_config(bsa_params: dict | None, depth: int = DEPTH) -> dict:
    return {
        "_class_name": "LongCatTransformer3DModel",
        "in_channels": 16,
        "out_channels": 16,
        "hidden_size": HIDDEN,
        "depth": depth,
        "num_attention_heads": HEADS,
        "caption_channels": TEXT_CHANNELS,
        "mlp_ratio": 4,
        "adaln_tembed_dim": TIME_CHANNELS,
        "frequency_embedding_size": FREQUENCIES,
        "patch_size": [1, 2, 2],
        "text_tokens_zero_pad": False,
        "enable_bsa": bsa_params is not None,
        "bsa_params": bsa_params,
    }


def transformer_weights(seed: int, depth: int = DEPTH) -> dict[str, torch.Tensor]:
    """Random weights under FastVideo's names, scaled so that every branch contributes to the output."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}

    def linear(name: str, inputs: int, outputs: int, bias: bool = True, shape: tuple[int, ...] = ()) -> None:
        weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        weights[f"{name}.weight"] = weight.reshape(shape) if shape else weight
        if bias:
            weights[f"{name}.bias"] = torch.randn(outputs, generator=generator) * 0.1

    def gain(name: str, size: int) -> None:
        weights[name] = 1 + torch.randn(size, generator=generator) * 0.1

    linear("patch_embed.proj", 16 * 4, HIDDEN, shape=(HIDDEN, 16, 1, 2, 2))
    linear("time_embedder.linear_1", FREQUENCIES, TIME_CHANNELS)
    linear("time_embedder.linear_2", TIME_CHANNELS, TIME_CHANNELS)
    linear("caption_embedder.linear_1", TEXT_CHANNELS, HIDDEN)
    linear("caption_embedder.linear_2", HIDDEN, HIDDEN)
    for index in range(depth):
        block = f"blocks.{index}"
        linear(f"{block}.adaln_linear_1", TIME_CHANNELS, 6 * HIDDEN)
        gain(f"{block}.norm_cross.weight", HIDDEN)
        weights[f"{block}.norm_cross.bias"] = torch.randn(HIDDEN, generator=generator) * 0.1
        for attention in ("self_attn", "cross_attn"):
            for projection in ("to_q", "to_k", "to_v", "to_out"):
                linear(f"{block}.{attention}.{projection}", HIDDEN, HIDDEN)
            # gains above one make the attention peaked, so that sparse and dense differ visibly
            for norm in ("q_norm", "k_norm"):
                weights[f"{block}.{attention}.{norm}.weight"] = 1.5 + torch.rand(HIDDEN // HEADS, generator=generator)
        linear(f"{block}.ffn.w1", HIDDEN, FFN, bias=False)
        linear(f"{block}.ffn.w2", FFN, HIDDEN, bias=False)
        linear(f"{block}.ffn.w3", HIDDEN, FFN, bias=False)
    linear("final_layer.adaln_linear", TIME_CHANNELS, 2 * HIDDEN)
    linear("final_layer.proj", HIDDEN, 64)
    return weights


def lora_weights(seed: int, rank: int = 4) -> dict[str, torch.Tensor]:
    """A random adapter for the transformer above, under the names of LongCat-Video's own files: fused projections, one
    product for each part of some of them and one for all parts of another, strong enough to change every output."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}

    def adapt(module: str, inputs: int, outputs: int, parts: int = 1) -> None:
        name = "lora___lorahyphen___" + module.replace(".", "___lorahyphen___")
        weights[f"{name}.lora_down.weight"] = torch.randn(parts * rank, inputs, generator=generator) / inputs**0.5
        for part in range(parts):
            up = torch.randn(outputs // parts, rank, generator=generator) / rank**0.5
            weights[f"{name}.lora_up.blocks.{part}.weight" if parts > 1 else f"{name}.lora_up.weight"] = up
        weights[f"{name}.alpha_scale"] = torch.tensor(0.5)

    adapt("y_embedder.y_proj.0", TEXT_CHANNELS, HIDDEN)
    adapt("t_embedder.mlp.2", TIME_CHANNELS, TIME_CHANNELS)
    for index in range(DEPTH):
        block = f"blocks.{index}"
        adapt(f"{block}.attn.qkv", HIDDEN, 3 * HIDDEN, 3)
        adapt(f"{block}.attn.proj", HIDDEN, HIDDEN)
        adapt(f"{block}.cross_attn.q_linear", HIDDEN, HIDDEN)
        adapt(f"{block}.cross_attn.kv_linear", HIDDEN, 2 * HIDDEN, 2 if index else 1)
        adapt(f"{block}.cross_attn.proj", HIDDEN, HIDDEN)
        adapt(f"{block}.ffn.w1", HIDDEN, FFN)
        adapt(f"{block}.ffn.w3", HIDDEN, FFN, 2)
        adapt(f"{block}.ffn.w2", FFN, HIDDEN)
        adapt(f"{block}.adaLN_modulation.1", TIME_CHANNELS, 6 * HIDDEN)
    adapt("final_layer.adaLN_modulation.1", TIME_CHANNELS, 2 * HIDDEN)
    adapt("final_layer.linear", HIDDEN, 64)
    return weights


def write_lora(folder: Path, name: str, seed: int = 5) -> Path:
    """Put that adapter into a checkpoint folder as lora/NAME.safetensors."""
    file = folder / "lora" / f"{name}.safetensors"
    file.parent.mkdir(exist_ok=True)
    save_file(lora_weights(seed), file)
    return file


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_tokenizer(folder: Path) -> None:
    """One token per UTF-8 byte, so that any text, emoji included, has a known number of tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = {token: index for index, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    ).save_pretrained(folder)


def _randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Own weights from an own generator: a library's initialisation may change with its version."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
            elif name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def _write_text_encoder(folder: Path, seed: int) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=320,
        d_model=TEXT_CHANNELS,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    _randomise(UMT5EncoderModel(config), seed).save_pretrained(folder)


def _write_vae(folder: Path, seed: int) -> None:
    from diffusers import AutoencoderKLWan

    # 2x2 pixel patches and two down-samplings: 8x8 pixels and 4 frames per latent, as in the real VAE.
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
    )
    _randomise(vae, seed).save_pretrained(folder)


def write_tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    bsa_params: dict | None = BSA_PARAMS,
    generation: dict | None = GENERATION,
    depth: int = DEPTH,
) -> Path:
    """Write the checkpoint into `folder` (created) and return it. Same seed, same weights."""
    folder = Path(folder)
    _write_json(folder / "model_index.json", MODEL_INDEX)
    _write_json(folder / "transformer" / "config.json", transformer_config(bsa_params, depth))
    save_file(transformer_weights(seed, depth), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    _write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 12.0},
    )
    if generation is not None:
        _write_json(folder / "generation_config.json", generation)
    _write_vae(folder / "vae", seed)
    _write_text_encoder(folder / "text_encoder", seed)
    _write_tokenizer(folder / "tokenizer")
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2 or os.path.exists(sys.argv[1]):
        sys.exit("usage: python tests/tiny_checkpoint.py NEW_FOLDER")
    print(write_tiny_checkpoint(Path(sys.argv[1])))
