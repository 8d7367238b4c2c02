"""Writes a trained model as a LongCat checkpoint folder in FastVideo's (diffusers) layout.

python -m training.export --vae OUT --start OUT --output assets/longcat-tiny

Its manifest gets the next version number.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from training.data import FRAMES, HEIGHT, WIDTH, sample_training_scenes
from training.dit import DiTConfig
from training.manifest import NAME, read_manifest, write_manifest
from training.render import pack, render
from training.sampling import SHIFT, TextToVideo
from training.tokenizer import load_tokenizer
from training.train_dit import build
from training.vae import VideoVAE, load_vae
from training.vocabulary import write_vocabulary

SHARD = "9MB"
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
GENERATION = {
    "height": HEIGHT,
    "width": WIDTH,
    "num_frames": FRAMES,
    "num_inference_steps": 8,
    "guidance_scale": 1.0,
    "fps": 15,
    "use_distill": True,
    "trained_tasks": ["t2v"],  # of the steps up to `training.distill`; `training.finetune` adds the others
}
ALL_TASKS = ["t2v", "i2v", "vc"]
BSA_PARAMS = {"sparsity": 0.75, "cdf_threshold": None, "chunk_3d_shape_q": [4, 4, 4], "chunk_3d_shape_k": [4, 4, 4]}


@torch.no_grad()
def rgb_factors(vae: VideoVAE, statistics: tuple[Tensor, Tensor], clips: int = 12) -> tuple[list, list]:
    """Fit a normalised latent to the mean colour (0 to 1) of the pixels it stands for, by least squares.

    Returns factors [16][3] and bias [3]. They give a preview of a noisy latent without the VAE.
    """
    mean, std = (s.view(1, -1, 1, 1, 1) for s in statistics)
    latents, colours = [], []
    for scene in sample_training_scenes(random.Random(30_000), clips):
        video = render(pack([scene]), 9, HEIGHT, WIDTH, start=0.4, length=9 / FRAMES)
        latent = (vae.encode(video)[0] - mean) / std
        small = F.avg_pool3d(video / 2 + 0.5, (1, 8, 8))
        groups = torch.stack([small[:, :, 0], small[:, :, 1:5].mean(2), small[:, :, 5:9].mean(2)], dim=2)
        latents.append(latent.transpose(0, 1).flatten(1))
        colours.append(groups.transpose(0, 1).flatten(1))
    x, y = torch.cat(latents, 1).T, torch.cat(colours, 1).T
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], dim=1), y).solution
    return [[round(v, 5) for v in row] for row in solution[:-1].tolist()], [round(v, 5) for v in solution[-1].tolist()]


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _save(state: dict[str, Tensor], folder: Path, name: str, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    save_torch_state_dict(
        {key: value.to(dtype).contiguous() for key, value in state.items()},
        folder,
        filename_pattern=name + "{suffix}.safetensors",
        max_shard_size=SHARD,
    )


def settle_posterior(vae: VideoVAE) -> None:
    """Make the VAE's posterior as narrow as its code allows, so that a draw from it is its mean.

    The channels that the VAE does not use keep the prior's deviation, which after normalisation is up to 20. The
    transformer never saw this noise. As a picture or a clip to go on from, it would swamp what is there to see.
    """
    channels = vae.config.z_dim
    with torch.no_grad():
        vae.quant_conv.weight[channels:] = 0
        assert vae.quant_conv.bias is not None
        vae.quant_conv.bias[channels:] = -30


def export_transformer(model: TextToVideo, start: Path, output: Path) -> None:
    """Write the checkpoint `start` with a transformer that was trained for all tasks, and with the next version number,
    to `output`."""
    shutil.copytree(start, output, dirs_exist_ok=True)
    generation = output / "generation_config.json"
    _write(generation, json.loads(generation.read_text(encoding="utf-8")) | {"trained_tasks": ALL_TASKS})
    _save(model.transformer.state_dict(), output / "transformer", "diffusion_pytorch_model", torch.bfloat16)
    vae, _ = load_vae(start, "cpu")
    settle_posterior(vae)
    _save(vae.state_dict(), output / "vae", "diffusion_pytorch_model", torch.float16)
    write_manifest(output, read_manifest(start)[0] + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="folder of train_vae")
    parser.add_argument("--start", type=Path, required=True, help="folder of distill")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    out = args.output
    vae, statistics = load_vae(args.vae, "cpu")
    settle_posterior(vae)
    tokenizer = load_tokenizer()
    model = build(len(tokenizer), "cpu", args.start, compiled=False)
    factors, bias = rgb_factors(vae, statistics)

    _write(out / "model_index.json", MODEL_INDEX)
    _write(out / "generation_config.json", GENERATION | {"latent_rgb_factors": factors, "latent_rgb_bias": bias})
    tokenizer.save_pretrained(out / "tokenizer")
    _write(
        out / "scheduler" / "scheduler_config.json",
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": SHIFT},
    )
    c = vae.config
    _write(
        out / "vae" / "config.json",
        {
            "_class_name": "AutoencoderKLWan",
            "_diffusers_version": "0.42.1",
            "base_dim": c.base_dim,
            "z_dim": c.z_dim,
            "dim_mult": list(c.dim_mult),
            "num_res_blocks": c.num_res_blocks,
            "attn_scales": [],
            "temperal_downsample": list(c.temperal_downsample),
            "dropout": 0.0,
            "latents_mean": [round(v, 5) for v in statistics[0].tolist()],
            "latents_std": [round(v, 5) for v in statistics[1].tolist()],
            "is_residual": False,
            "in_channels": 3 * c.patch_size**2,
            "out_channels": 3 * c.patch_size**2,
            "patch_size": c.patch_size,
            "scale_factor_temporal": 4,
            "scale_factor_spatial": 8,
        },
    )
    _save(vae.state_dict(), out / "vae", "diffusion_pytorch_model", torch.float16)
    _write(
        out / "transformer" / "config.json",
        {"_class_name": "LongCatTransformer3DModel", **DiTConfig().to_json(), "text_tokens_zero_pad": False}
        | {"enable_bsa": True, "bsa_params": BSA_PARAMS},
    )
    _save(model.transformer.state_dict(), out / "transformer", "diffusion_pytorch_model", torch.bfloat16)
    encoder: Any = model.text_encoder
    encoder.config.architectures = ["UMT5EncoderModel"]
    encoder.config.save_pretrained(out / "text_encoder")
    state = {key: value for key, value in encoder.state_dict().items() if not key.endswith("embed_tokens.weight")}
    _save(state, out / "text_encoder", "model", torch.bfloat16)
    write_vocabulary(out)
    write_manifest(out, read_manifest(out)[0] + 1 if (out / NAME).exists() else 1)


if __name__ == "__main__":
    main()
