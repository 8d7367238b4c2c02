"""A small LongCat transformer with random weights in which every branch matters; needs no FastVideo."""

import torch

from training.dit import DiTConfig, LongCatDiT


def random_dit(seed: int = 0, dtype: torch.dtype = torch.float32, **sizes) -> LongCatDiT:
    config = DiTConfig(**{"hidden_size": 64, "num_attention_heads": 4, "depth": 2, "caption_channels": 24, **sizes})
    model = LongCatDiT(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        # gains above one make the attention peaked, so that a wrong order of tokens shows
        gain = 1.5 if "q_norm" in name or "k_norm" in name else 1.0 if "norm" in name and "weight" in name else 0.0
        weight.copy_(gain + noise * (0.1 if weight.ndim == 1 else weight[0].numel() ** -0.5))
    return model.to(dtype)


def random_inputs(model, grid, batch=2, tokens=7, seed=1):
    """latents, timestep, text, text_mask for a token grid; the rows' prompts differ in length."""
    generator = torch.Generator().manual_seed(seed)
    patch = model.patch_size
    size = [n * p for n, p in zip(grid, patch, strict=True)]
    latents = torch.randn(batch, model.config.in_channels, *size, generator=generator)
    text = torch.randn(batch, tokens, model.config.caption_channels, generator=generator)
    mask = torch.arange(tokens) < torch.tensor([tokens, 4])[:batch, None]
    return latents, torch.linspace(700, 300, batch), text, mask.long()
