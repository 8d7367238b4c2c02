"""All that runs on tensors: the adapter to FastVideo, forwards, kernels, 8-bit weights, offload, LoRA, denoising."""

from typing import Any, TypeAlias

# A transformer of FastVideo's, or a part of one. All that `nn.Module` would say of its parts is "a tensor or a module".
Net: TypeAlias = Any
