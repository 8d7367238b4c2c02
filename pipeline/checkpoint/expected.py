"""Names and shapes of the weights that each of LongCat's components has by its configuration.

Worked out rather than read off a model: building one, even without memory for its weights, takes the libraries that
the command line and the page can do without until they load something. The defaults are FastVideo's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.checkpoint.layout import fastvideo_config, original_shapes

Shapes = dict[str, tuple[int, ...]]

_MOST_LAYERS = 1000  # LongCat has 48; a table of many more would only fill the memory
_LARGEST = 2**24  # channels or words; LongCat's vocabulary has 2**18


def expected_weights(component: str, config: Mapping[str, Any], has_encoder: bool = True) -> Shapes:
    """Of "transformer", "dit" (the original's transformer), "text_encoder" or "vae", as their folders are called.

    has_encoder: of a VAE, which can also be the decoder alone.

    Raises:
        ValueError: the configuration has a value that cannot be used.
    """
    try:
        of = {"transformer": _transformer, "dit": _dit, "text_encoder": _text_encoder, "vae": _vae}
        return of[component](config, has_encoder)
    except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"its sizes cannot be read ({error})") from None


def linear_layers(transformer: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Its linear layers by FastVideo's names, each with its outputs and inputs: what an adapter may adapt.

    transformer: its configuration, in either layout.
    """
    shapes = expected_weights("transformer", fastvideo_config(transformer))
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight")
    }


def _transformer(config: Mapping[str, Any], _: bool) -> Shapes:
    hidden, heads = _size(config, "hidden_size", 4096), _size(config, "num_attention_heads", 32)
    text, time = _size(config, "caption_channels", 4096), _size(config, "adaln_tembed_dim", 512)
    channels = _size(config, "in_channels", 16)
    patch = [_integer("patch_size", n, 64) for n in config.get("patch_size", (1, 2, 2))]
    ffn = -(-int(hidden * config.get("mlp_ratio", 4) * 2 / 3) // 256) * 256  # rounded up
    shapes = _layer("patch_embed.proj", hidden, channels, *patch)
    shapes |= _layer("time_embedder.linear_1", time, _size(config, "frequency_embedding_size", 256))
    shapes |= _layer("time_embedder.linear_2", time, time)
    shapes |= _layer("caption_embedder.linear_1", hidden, text)
    shapes |= _layer("caption_embedder.linear_2", hidden, hidden)
    for number in range(_size(config, "depth", 48, _MOST_LAYERS)):
        block = f"blocks.{number}"
        shapes |= _layer(f"{block}.adaln_linear_1", 6 * hidden, time)
        shapes |= {f"{block}.norm_cross.weight": (hidden,), f"{block}.norm_cross.bias": (hidden,)}
        for attention in ("self_attn", "cross_attn"):
            for part in ("to_q", "to_k", "to_v", "to_out"):
                shapes |= _layer(f"{block}.{attention}.{part}", hidden, hidden)
            shapes |= {f"{block}.{attention}.{part}.weight": (hidden // heads,) for part in ("q_norm", "k_norm")}
        shapes |= {f"{block}.ffn.{part}.weight": (ffn, hidden) for part in ("w1", "w3")}
        shapes[f"{block}.ffn.w2.weight"] = hidden, ffn
    shapes |= _layer("final_layer.adaln_linear", 2 * hidden, time)
    out = _integer("out_channels", config.get("out_channels", 16) or channels, _LARGEST)
    return shapes | _layer("final_layer.proj", math.prod(patch) * out, hidden)


def _dit(config: Mapping[str, Any], has_encoder: bool) -> Shapes:
    return original_shapes(_transformer(fastvideo_config(config), has_encoder))


def _text_encoder(config: Mapping[str, Any], _: bool) -> Shapes:
    width, ffn = _size(config, "d_model", 512), _size(config, "d_ff", 2048)
    heads = _size(config, "num_heads", 8)
    inner = heads * _size(config, "d_kv", 64)
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated-")
    shapes: Shapes = {"shared.weight": (_size(config, "vocab_size", 32128), width)}
    for number in range(_size(config, "num_layers", 6, _MOST_LAYERS)):
        layer = f"encoder.block.{number}.layer"
        shapes |= {f"{layer}.0.SelfAttention.{part}.weight": (inner, width) for part in "qkv"}
        shapes |= {
            f"{layer}.0.SelfAttention.o.weight": (width, inner),
            f"{layer}.0.SelfAttention.relative_attention_bias.weight": (
                _size(config, "relative_attention_num_buckets", 32),
                heads,
            ),
            f"{layer}.0.layer_norm.weight": (width,),
        }
        inward = ("wi_0", "wi_1") if gated else ("wi",)
        shapes |= {f"{layer}.1.DenseReluDense.{part}.weight": (ffn, width) for part in inward}
        shapes |= {f"{layer}.1.DenseReluDense.wo.weight": (width, ffn), f"{layer}.1.layer_norm.weight": (width,)}
    return shapes | {"encoder.final_layer_norm.weight": (width,)}


def _vae(config: Mapping[str, Any], has_encoder: bool) -> Shapes:
    if config.get("is_residual"):
        raise ValueError("it has is_residual, of Wan 2.2's VAE; LongCat's is Wan 2.1's")
    latent = _size(config, "z_dim", 16)
    shapes = _layer("quant_conv", 2 * latent, 2 * latent, 1, 1, 1)
    shapes |= _layer("post_quant_conv", latent, latent, 1, 1, 1)
    if has_encoder:
        shapes |= _encoder(config, latent)
    return shapes | _decoder(config, latent)


def _encoder(config: Mapping[str, Any], latent: int) -> Shapes:
    base, levels = _size(config, "base_dim", 96), _levels(config)
    in_time = config.get("temperal_downsample", (False, True, True))
    attended = config.get("attn_scales", ())
    shapes = _layer("encoder.conv_in", base, _size(config, "in_channels", 3), 3, 3, 3)
    width, scale, number = base, 1.0, 0

    def add(layer: Callable[..., Shapes], *sizes: Any) -> None:
        nonlocal number
        shapes.update(layer(f"encoder.down_blocks.{number}", *sizes))
        number += 1

    for level, factor in enumerate(levels):
        for _ in range(_blocks(config)):
            add(_residual, width, base * factor)
            width = base * factor
            if scale in attended:
                add(_attention, width)
        if level + 1 < len(levels):
            add(_resample, width, width, width if in_time[level] else None)
            scale /= 2
    return shapes | _ends("encoder", width, width, 2 * latent)


def _decoder(config: Mapping[str, Any], latent: int) -> Shapes:
    base, levels = _size(config, "base_dim", 96), _levels(config)[::-1]
    if config.get("decoder_base_dim") is not None:
        base = _size(config, "decoder_base_dim", base)
    in_time = list(config.get("temperal_downsample", (False, True, True)))[::-1]
    width = base * levels[0]
    shapes = _layer("decoder.conv_in", width, latent, 3, 3, 3)
    middle = width
    for level, factor in enumerate(levels):
        for number in range(_blocks(config) + 1):
            shapes |= _residual(f"decoder.up_blocks.{level}.resnets.{number}", width, base * factor)
            width = base * factor
        if level + 1 < len(levels):
            name = f"decoder.up_blocks.{level}.upsamplers.0"
            shapes |= _resample(name, width, width // 2, 2 * width if in_time[level] else None)
            width //= 2
    return shapes | _ends("decoder", middle, width, _size(config, "out_channels", 3))


def _ends(part: str, middle: int, last: int, channels: int) -> Shapes:
    """The weights that encoder and decoder share in name: the middle blocks and the last convolution."""
    shapes = _attention(f"{part}.mid_block.attentions.0", middle)
    for number in (0, 1):
        shapes |= _residual(f"{part}.mid_block.resnets.{number}", middle, middle)
    shapes[f"{part}.norm_out.gamma"] = last, 1, 1, 1
    return shapes | _layer(f"{part}.conv_out", channels, last, 3, 3, 3)


def _residual(name: str, inputs: int, outputs: int) -> Shapes:
    shapes: Shapes = {f"{name}.norm1.gamma": (inputs, 1, 1, 1), f"{name}.norm2.gamma": (outputs, 1, 1, 1)}
    shapes |= _layer(f"{name}.conv1", outputs, inputs, 3, 3, 3)
    shapes |= _layer(f"{name}.conv2", outputs, outputs, 3, 3, 3)
    return shapes if inputs == outputs else shapes | _layer(f"{name}.conv_shortcut", outputs, inputs, 1, 1, 1)


def _attention(name: str, width: int) -> Shapes:
    shapes = _layer(f"{name}.to_qkv", 3 * width, width, 1, 1) | _layer(f"{name}.proj", width, width, 1, 1)
    return shapes | {f"{name}.norm.gamma": (width, 1, 1)}


def _resample(name: str, inputs: int, outputs: int, in_time: int | None) -> Shapes:
    """in_time: outputs of the convolution over time, which not every level has."""
    shapes = _layer(f"{name}.resample.1", outputs, inputs, 3, 3)
    return shapes if in_time is None else shapes | _layer(f"{name}.time_conv", in_time, inputs, 3, 1, 1)


def _layer(name: str, outputs: int, inputs: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def _levels(config: Mapping[str, Any]) -> list[int]:
    levels = [_integer("dim_mult", n, 1024) for n in config.get("dim_mult", (1, 2, 4, 4))]
    if not 1 <= len(levels) <= 16:
        raise ValueError(f"dim_mult has {len(levels)} levels, not 1 to 16")
    return levels


def _blocks(config: Mapping[str, Any]) -> int:
    return _size(config, "num_res_blocks", 2, 100)


def _size(config: Mapping[str, Any], key: str, default: int, most: int = _LARGEST) -> int:
    return _integer(key, config.get(key, default), most)


def _integer(key: str, value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{key} is {str(value)[:80]}, not a whole number from 1 to {most}")
    return value
