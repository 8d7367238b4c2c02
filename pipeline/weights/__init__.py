"""Keeps a model's weights in 8 bits, in host memory, or with adapters."""

from typing import Any, TypeAlias

# A transformer from FastVideo, or a part of one. `nn.Module` would type every part only as "a tensor or a module".
Net: TypeAlias = Any
