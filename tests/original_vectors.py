"""Writes tests/data/conditioning_6b3f4b8.npz with the original LongCat-Video code: tasks with conditioning frames.

    python tests/original_vectors.py CLONE [FILE.npz]

CLONE is a clone of github.com/meituan-longcat/LongCat-Video at commit 6b3f4b8582a8bc3f20f795735f5383716c4ba794. Its
code runs unmodified, in fp32 on a CPU, on the weights of tests/tiny_checkpoint.py with three blocks. What it imports
and a CPU does not have is replaced: xformers' attention by PyTorch's, loguru by nothing; its Triton kernels run in
Triton's interpreter. VAE and text encoder are those of diffusers and transformers. test_pipeline_original.py compares.

Stored are, of every result, at most 512 evenly spaced values.
"""

from __future__ import annotations

import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DEPTH, SEED, PROMPT = 3, 7, "a red circle bounces"
GRID = (8, 8, 16)  # tokens: 16 blocks of 4x4x4
SIZE = (128, 256)  # pixels of the same, in place of the 480p sizes
BSA = {"sparsity": 0.75, "cdf_threshold": None, "chunk_3d_shape_q": [4, 4, 4], "chunk_3d_shape_k": [4, 4, 4]}


class Forward(NamedTuple):
    """One call of the transformer with `given` conditioning frames; cached: their keys and values were kept."""

    given: int
    sparse: bool = False
    cached: bool = False


FORWARDS = {
    "forward-image": Forward(1),
    "forward-clip": Forward(4),
    "forward-clip-sparse": Forward(4, sparse=True),
    "forward-cached": Forward(4, cached=True),
    "forward-cached-sparse": Forward(4, sparse=True, cached=True),
}
# Whole generations: the settings that both codes take by these names.
GENERATIONS: dict[str, dict[str, Any]] = {
    "image-guided": {"task": "i2v", "steps": 3, "guidance_scale": 3.0, "negative_prompt": "dark"},
    "image-distilled": {"task": "i2v", "steps": 4, "guidance_scale": 1.0, "use_distill": True},
    "clip-guided": {"task": "vc", "steps": 3, "guidance_scale": 3.0, "kv_cache": "off", "sparse": True},
    "clip-cached-guided": {"task": "vc", "steps": 3, "guidance_scale": 3.0, "kv_cache": "device", "sparse": True},
    "clip-cached-dense": {"task": "vc", "steps": 4, "guidance_scale": 1.0, "kv_cache": "device", "enhance_hf": True},
}
# Refinements of the clip at its own rate, whose first 5 frames are refined already: 4 + 4 latent frames.
REFINEMENTS = {"refined-dense": {"sparse": False}, "refined-sparse": {"sparse": True}}
REFINED_BEFORE = 5
FRAMES = 29  # of a video: 8 latent frames


def sample(values: Tensor) -> np.ndarray:
    flat = values.flatten()
    return flat[:: max(1, flat.numel() // 512)][:512].float().numpy()


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def forward_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents of two rows that begin alike, timesteps, text and its mask."""
    t, h, w = GRID
    latents = noise(2, 16, t, 2 * h, 2 * w, seed=21)
    latents[1, :, :4] = latents[0, :, :4]
    mask = torch.arange(12) < torch.tensor([12, 7])[:, None]
    return latents, torch.tensor([700.0, 300.0]), noise(2, 12, 32, seed=22), mask.long()


def pictures(seed: int = 11) -> np.ndarray:
    """A clip of 17 frames of noise; its last frame serves as the image."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (17, 48, 80, 3), dtype=torch.uint8, generator=generator).numpy()


def original_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """FastVideo's weights under the names of the original, with its fused projections."""
    renamed = {}
    parts = (
        ("patch_embed.", "x_embedder."), ("time_embedder.linear_1.", "t_embedder.mlp.0."),
        ("time_embedder.linear_2.", "t_embedder.mlp.2."), ("caption_embedder.linear_1.", "y_embedder.y_proj.0."),
        ("caption_embedder.linear_2.", "y_embedder.y_proj.2."), (".adaln_linear_1.", ".adaLN_modulation.1."),
        (".norm_cross.", ".pre_crs_attn_norm."), (".self_attn.to_out.", ".attn.proj."), (".self_attn.", ".attn."),
        (".cross_attn.to_out.", ".cross_attn.proj."), (".cross_attn.to_q.", ".cross_attn.q_linear."),
        ("final_layer.adaln_linear.", "final_layer.adaLN_modulation.1."), ("final_layer.proj.", "final_layer.linear."),
    )  # fmt: skip
    for name, weight in weights.items():
        if ".to_k." in name or ".to_v." in name or ".self_attn.to_q." in name:
            continue  # in one of the fused ones below
        for ours, theirs in parts:
            name = name.replace(ours, theirs)
        renamed[name] = weight
    for name in weights:
        if ".to_k." in name:
            fused = [weights[name.replace("to_k", f"to_{one}")] for one in "qkv"]
            if ".cross_attn." in name:
                renamed[name.replace("to_k", "kv_linear")] = torch.cat(fused[1:])
            else:
                renamed[name.replace("self_attn.to_k", "attn.qkv")] = torch.cat(fused)
    return renamed


def stand_ins() -> None:
    """Modules that the original imports and this machine need not have."""
    xformers, ops, fmha, bias = (types.ModuleType(name) for name in ("xformers", "ops", "fmha", "attn_bias"))

    class BlockDiagonalMask:
        @staticmethod
        def from_seqlens(queries: list[int], keys: list[int]) -> tuple[list[int], list[int]]:
            return queries, keys

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: Any = None, op: Any = None) -> Tensor:
        lengths = attn_bias or ([q.shape[1]], [k.shape[1]])
        rows = (x.transpose(1, 2).split(sizes, 2) for x, sizes in zip((q, k, v), (*lengths, lengths[1]), strict=True))
        out = [F.scaled_dot_product_attention(*row) for row in zip(*rows, strict=True)]
        return torch.cat(out, 2).transpose(1, 2).contiguous()

    ops.memory_efficient_attention, ops.fmha, fmha.attn_bias = attention, fmha, bias
    bias.BlockDiagonalMask, xformers.ops = BlockDiagonalMask, ops
    loguru = types.ModuleType("loguru")
    loguru.logger = types.SimpleNamespace(warning=print)
    sys.modules.update({"xformers": xformers, "xformers.ops": ops, "loguru": loguru})


def load(clone: Path, folder: Path) -> Any:
    """The original's pipeline on the checkpoint in `folder`."""
    from diffusers import AutoencoderKLWan
    from diffusers.video_processor import VideoProcessor  # noqa: F401  before the stand-ins, which it would look into
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, UMT5EncoderModel

    stand_ins()
    sys.path.insert(0, str(clone))
    from longcat_video import pipeline_longcat_video as module
    from longcat_video.modules.longcat_video_dit import LongCatVideoTransformer3DModel
    from longcat_video.modules.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    dit = LongCatVideoTransformer3DModel(
        hidden_size=64, depth=DEPTH, num_heads=2, caption_channels=32, adaln_tembed_dim=32, frequency_embedding_size=64,
        enable_xformers=True, bsa_params=BSA, cp_split_hw=[1, 1],
    )  # fmt: skip
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    dit.load_state_dict(original_names(weights))
    pipeline = module.LongCatVideoPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae"),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=12.0),
        dit=dit.eval(),
    )
    pipeline.device = "cpu"
    pipeline.get_condition_shape = lambda *_, **__: SIZE
    pipeline._clear_cache = module.torch_gc = lambda *_: None
    return pipeline


@torch.no_grad()
def run_forward(dit: Any, case: Forward) -> Tensor:
    latents, time, text, mask = forward_inputs()
    dit.enable_bsa() if case.sparse else dit.disable_bsa()
    steps = time[:, None].repeat(1, latents.shape[2])
    text, mask, given = text[:, None], mask[:, None, None], case.given
    if not case.cached:
        steps[:, :given] = 0
        return dit(latents, steps, text, mask, num_cond_latents=given)
    clean = latents[:1, :, :given], torch.zeros(1, given), text[:1]
    _, cache = dit(*clean, return_kv=True, skip_crs_attn=True)
    return dit(latents[:, :, given:], steps[:, given:], text, mask, num_cond_latents=given, kv_cache_dict=cache)


def run_generation(pipeline: Any, settings: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Final latents, timesteps and sigmas."""
    from PIL import Image

    settings = {"negative_prompt": "", "use_distill": False, **settings}
    pipeline.dit.enable_bsa() if settings.get("sparse") else pipeline.dit.disable_bsa()
    given = [Image.fromarray(frame) for frame in pictures()]
    common = {
        "prompt": PROMPT, "negative_prompt": settings["negative_prompt"], "num_frames": FRAMES, "output_type": "latent",
        "num_inference_steps": settings["steps"], "guidance_scale": settings["guidance_scale"],
        "use_distill": settings["use_distill"], "generator": torch.Generator().manual_seed(SEED),
    }  # fmt: skip
    if settings["task"] == "i2v":
        latents = pipeline.generate_i2v(given[-1], **common)
    else:
        latents = pipeline.generate_vc(
            given, **common, use_kv_cache=settings["kv_cache"] != "off", enhance_hf=settings.get("enhance_hf", False)
        )
    return latents, pipeline.scheduler.timesteps, pipeline.scheduler.sigmas


def run_refinement(pipeline: Any, sparse: bool) -> Tensor:
    """Final latents, without an adapter."""
    from PIL import Image

    pipeline.dit.enable_bsa() if sparse else pipeline.dit.disable_bsa()
    clip, before = ([Image.fromarray(frame) for frame in pictures(seed)] for seed in (11, 12))
    torch.manual_seed(SEED)  # of the posteriors and the noise, which take no generator
    return pipeline.generate_refine(
        video=before, prompt=PROMPT, stage1_video=clip, num_cond_frames=REFINED_BEFORE, output_type="latent",
        spatial_refine_only=True,
    )  # fmt: skip


def main(clone: Path, target: Path) -> None:
    os.environ["TRITON_INTERPRET"] = os.environ["TORCHDYNAMO_DISABLE"] = "1"
    from tiny_checkpoint import write_tiny_checkpoint

    written = {}
    with tempfile.TemporaryDirectory() as folder:
        pipeline = load(clone, write_tiny_checkpoint(Path(folder) / "checkpoint", depth=DEPTH))
        for name, case in FORWARDS.items():
            written[name] = sample(run_forward(pipeline.dit, case))
            print(name, flush=True)
        for name, settings in GENERATIONS.items():
            latents, timesteps, sigmas = run_generation(pipeline, settings)
            written |= {name: sample(latents), f"{name}.timesteps": timesteps.numpy(), f"{name}.sigmas": sigmas.numpy()}
            print(name, flush=True)
        for name, options in REFINEMENTS.items():
            written[name] = sample(run_refinement(pipeline, **options))
            print(name, flush=True)
    np.savez_compressed(target, **written)
    print(f"written to {target}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    here = Path(__file__).parent
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else here / "data" / "conditioning_6b3f4b8.npz")
