"""How a model's weights are kept: in 8 bits, in host memory, with adapters."""
