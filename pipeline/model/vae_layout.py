"""Makes FastVideo's VAE fast on a CPU: channels last, and every convolution by oneDNN.

PyTorch itself takes a loop of its own for most 3D convolutions in fp32, and oneDNN has to reorder channels that come
first before each convolution and after it. With avx512_bf16, three latent frames of the embedded checkpoint take 1.50 s
of CPU time as FastVideo runs them, 0.84 s so, and 0.51 s so in bfloat16. In fp32 the pixels are the same up to rounding
(145 dB); in bfloat16 they are 66 dB from fp32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.weights import Net


def suit_cpu(vae: Net) -> None:
    """Change the layout of the weights, in place; what the VAE computes stays the same up to rounding.

    It then takes fp32 pixels and latents whatever the dtype of its weights.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)
            if torch.backends.mkldnn.is_available() and module.padding_mode == "zeros":
                vars(module)["_conv_forward"] = partial(_by_onednn, module)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
    vae.post_quant_conv.register_forward_pre_hook(_to_dtype_of_weights)


def _by_onednn(conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mkldnn_convolution(x, weight, bias, conv.padding, conv.stride, conv.dilation, conv.groups)


def _to_dtype_of_weights(conv: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return inputs[0].to(conv.weight.dtype), *inputs[1:]
