"""FastVideo's own transformer and VAE, as peers for the other benchmarks. Needs the fastvideo package."""

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from bsa import BSAConfig


def _prepare(device: torch.device) -> None:
    from pipeline.model.fastvideo_adapter import _prepare_process

    _prepare_process(device)
    from fastvideo.distributed import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.maybe_init_distributed_environment_and_model_parallel(1, 1)


def forward_of(model: nn.Module, device: torch.device) -> Callable[[tuple, BSAConfig | None], Tensor]:
    """FastVideo's forward pass, (inputs, config) -> output. It shares the weights of `dit.build` without a copy."""
    _prepare(device)
    from fastvideo.configs.models.dits import LongCatVideoConfig
    from fastvideo.forward_context import set_forward_context
    from fastvideo.models.dits.longcat import LongCatTransformer3DModel

    config = LongCatVideoConfig()
    for name, value in asdict(model.config).items():
        setattr(config.arch_config, name, value)
    config.arch_config.text_tokens_zero_pad = False
    config.arch_config.__post_init__()
    with torch.device("meta"):
        theirs = LongCatTransformer3DModel(config, {})
    theirs.load_state_dict(model.state_dict(), assign=True)
    theirs.eval().requires_grad_(False)

    def run(given: tuple, bsa: BSAConfig | None) -> Tensor:
        latents, timestep, text, _ = given
        for block in theirs.blocks:
            block.self_attn.enable_bsa = bsa is not None
            block.self_attn.bsa_params = None if bsa is None else bsa.to_bsa_params()
        mask = torch.ones(text.shape[:2], dtype=torch.long, device=device)
        with set_forward_context(current_timestep=0, attn_metadata=None), torch.no_grad():
            return theirs(latents, text, timestep, encoder_attention_mask=mask)

    return run


def decoder(device: torch.device, tiled: bool, smoke: bool) -> Callable[[Tensor], Tensor]:
    """Decode with LongCat's Wan VAE and random weights: frame by frame by default, or in tiles."""
    _prepare(device)
    from fastvideo.configs.models.vaes import WanVAEConfig
    from fastvideo.models.vaes.wanvae import AutoencoderKLWan

    config = WanVAEConfig(load_encoder=False, use_feature_cache=not tiled)
    if smoke:
        config.arch_config.base_dim = 8
    with torch.device(device):
        vae = AutoencoderKLWan(config).to(torch.float32 if smoke else torch.bfloat16).eval().requires_grad_(False)
    if tiled:
        vae.enable_tiling()
    return lambda latents: vae.decode(latents.to(vae.post_quant_conv.weight.dtype))
