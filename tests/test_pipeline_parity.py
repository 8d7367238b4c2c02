"""The pipeline against the original LongCat-Video code.

tests/data/longcat_video_6b3f4b8.npz was written by running that code (github.com/meituan-longcat/LongCat-Video,
commit 6b3f4b8582a8bc3f20f795735f5383716c4ba794) in fp32 on a CPU: `get_timesteps_sigmas` with the scheduler's
`set_timesteps`, and `generate_t2v(..., output_type="latent")` with the weights of tests/tiny_checkpoint.py under
their original names, transformers' own UMT5 encoder, and the noise of seed 7. xformers' attention was computed by
PyTorch's scaled_dot_product_attention, the sparse case by LongCat's Triton kernel in Triton's interpreter.
The adapter of tests/tiny_checkpoint.py went through `load_lora` and `enable_loras`; `generate_refine` ran with its
global random numbers seeded 7, on 13 frames of noise of seed 11, with diffusers' VAE class, at 64 x 128 pixels in place
of 720p; see test_pipeline_lora.py and test_pipeline_refine.py.
Of each latent video every n-th value is stored, at most 512.
"""

import dataclasses

import numpy as np
import pytest
from latents import ORIGINAL, assert_parity, final_latents

from bsa import BSAConfig
from pipeline.model.schedule import longcat_sigmas

PROMPT = "a red circle bounces &amp; spins  🙂"
HALF = BSAConfig(sparsity=0.5)


@pytest.mark.parametrize(
    ("steps", "distilled"),
    [
        pytest.param(1, False, id="regular-1"),
        pytest.param(3, False, id="regular-3"),
        pytest.param(16, False, id="regular-16"),
        pytest.param(50, False, id="regular-50"),
        pytest.param(8, True, id="distill-8"),
        pytest.param(16, True, id="distill-16"),
        pytest.param(50, True, id="distill-50"),
    ],
)
def test_schedule(tiny_pipeline, steps, distilled):
    """Timesteps and sigmas that FastVideo's stages arrive at, shift 12 included."""
    name = f"{'distill' if distilled else 'regular'}-{steps}"
    model = tiny_pipeline._model
    request = tiny_pipeline.info.request("x", steps=steps, use_distill=distilled)
    batch = model.start(request)
    model.encode_text(batch)
    model.initial_latents(batch)
    # Both sides compute shift * s / (1 + (shift - 1) * s) in fp32 from the same s: equal up to the
    # last bit or two of numpy's division, which differs between releases.
    np.testing.assert_allclose(model.scheduler.timesteps, ORIGINAL[f"{name}.timesteps"], rtol=3e-7)
    np.testing.assert_allclose(model.scheduler.sigmas, ORIGINAL[f"{name}.sigmas"], rtol=3e-7)
    assert len(longcat_sigmas(steps, use_distill=distilled)) == steps


@pytest.mark.parametrize(
    ("case", "zero_text_padding", "fields"),
    [
        pytest.param(
            "masked-guided",
            False,
            {
                "height": 32,
                "width": 48,
                "num_frames": 5,
                "steps": 3,
                "guidance_scale": 4.0,
                "negative_prompt": "blurry",
            },
            id="dense-guided-padding-masked",
        ),
        pytest.param(
            "zero-padded-guided",
            True,
            {"height": 32, "width": 48, "num_frames": 5, "steps": 3, "guidance_scale": 4.0},
            id="dense-guided-padding-zeroed",
        ),
        pytest.param(
            "distilled",
            False,
            {"height": 48, "width": 32, "num_frames": 9, "steps": 4, "guidance_scale": 1.0, "use_distill": True},
            id="dense-distilled-unguided",
        ),
        pytest.param(
            "sparse-guided",
            False,
            {
                "height": 64,
                "width": 128,
                "num_frames": 29,
                "steps": 2,
                "guidance_scale": 3.0,
                "negative_prompt": "dark",
                "bsa": HALF,
            },
            id="sparse-guided",
        ),
    ],
)
def test_latents(tiny_pipeline, monkeypatch, case, zero_text_padding, fields):
    """Prompt cleaning, encoder, padding, schedule, guidance, update and transformer, end to end."""
    monkeypatch.setattr(tiny_pipeline._model, "zero_text_padding", zero_text_padding)
    request = tiny_pipeline.info.request(PROMPT, seed=7, **({"bsa": None} | fields))
    assert_parity(final_latents(tiny_pipeline, request, monkeypatch), case)


def test_padding_does_not_matter(tiny_pipeline, monkeypatch):
    """Whatever the text encoder says at padded positions changes nothing."""
    request = dataclasses.replace(
        tiny_pipeline.info.request("a blue square", guidance_scale=2.0, negative_prompt="red"), bsa=None
    )
    _, clean = tiny_pipeline.generate_frames(request)
    encode = tiny_pipeline._model.encode_text

    def poisoned(batch):
        encoded = encode(batch)
        encoded.states[encoded.mask == 0] = 1e3
        return encoded

    monkeypatch.setattr(tiny_pipeline._model, "encode_text", poisoned)
    _, frames = tiny_pipeline.generate_frames(request)
    np.testing.assert_array_equal(frames, clean)
