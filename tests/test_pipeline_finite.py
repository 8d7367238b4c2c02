"""NaN in weights, adapters or latents: told at the part of the run that made it, with the adapter that was on."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import write_lora

from pipeline import LongCatPipeline


@pytest.mark.parametrize(
    ("file", "weight", "lora", "says"),
    [
        pytest.param(
            "transformer/diffusion_pytorch_model.safetensors",
            "final_layer.proj.bias",
            None,
            "after step 1 of 3, .*no adapter was on",
            id="transformer",
        ),
        pytest.param("text_encoder/model.safetensors", "shared.weight", None, "after the text encoder", id="text"),
        pytest.param(
            "vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.bias", None, "after the VAE", id="vae"
        ),
        pytest.param(
            "lora/mine.safetensors",
            "lora___lorahyphen___final_layer___lorahyphen___linear.lora_up.weight",
            "mine",
            "after step 1 of 3, .*the adapter 'mine' was on: try without it",
            id="adapter",
        ),
    ],
)
def test_the_part_is_named(tiny_checkpoint, tmp_path, file, weight, lora, says):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    write_lora(folder, "mine")
    weights = load_file(folder / file)
    weights[weight] = torch.full_like(weights[weight], float("nan"))
    save_file(weights, folder / file)
    pipeline = LongCatPipeline.load(folder, device="cpu")
    with pytest.raises(ValueError, match=says):
        pipeline.generate(pipeline.info.request("x", lora=lora))
