"""How a model's weights are kept: in 8 bits, in host memory, with adapters."""

from typing import Any, TypeAlias

# A transformer of FastVideo's, or a part of one. All that `nn.Module` would say of its parts is "a tensor or a module".
Net: TypeAlias = Any
