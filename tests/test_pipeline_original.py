"""Tasks with conditioning frames against the original LongCat-Video code: see original_vectors.py, which ran it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import original_vectors as original
import pytest
import torch
from latents import final_latents
from PIL import Image
from tiny_checkpoint import write_tiny_checkpoint

from bsa import BSAConfig, block_sparse_attention
from pipeline import FromClip, LongCatPipeline
from pipeline.media.clip import inspect_clip
from pipeline.media.picture import inspect_picture
from pipeline.media.write import write_video
from pipeline.model import begin
from pipeline.transformer.fast_forward import fast_forward
from pipeline.transformer.forward import attend_dense, longcat_forward
from pipeline.transformer.kv_cache import KeyValues

STORED = np.load(Path(__file__).parent / "data" / "conditioning_6b3f4b8.npz")
SPARSE = BSAConfig.from_bsa_params(original.BSA)


def distance(values: torch.Tensor, case: str) -> float:
    ours, theirs = original.sample(values).astype(np.float64), STORED[case].astype(np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("original") / "longcat-random", depth=original.DEPTH)
    return LongCatPipeline.load(folder, device="cpu")


def plain(model, inputs, config, **given):
    def sparse(q, k, v, grid, conditioning):
        return block_sparse_attention(q, k, v, grid, config, conditioning=conditioning)

    with torch.no_grad():
        return longcat_forward(model, *inputs, sparse if config else attend_dense, **given)


def fast(model, inputs, config, **given):
    return fast_forward(model, *inputs, config, **given)


@pytest.mark.parametrize("forward", [plain, fast])
@pytest.mark.parametrize("name", original.FORWARDS)
def test_forwards(pipeline, forward, name):
    case, model = original.FORWARDS[name], pipeline._model.transformer
    latents, time, text, mask = original.forward_inputs()
    given, config, cache = case.given, SPARSE if case.sparse else None, None
    if case.cached:
        cache = KeyValues()
        clean = latents[:1, :, :given], torch.zeros(1), text[:1], mask[:1]
        forward(model, clean, config, conditioning=given, cache=cache)
        latents = latents[:, :, given:]
    out = forward(model, (latents, time, text, mask), config, conditioning=given, cache=cache)
    # fp32 in another order through three blocks: measured 4e-7. Text that reaches the given frames would be 0.2, and
    # queries of theirs that see everything 0.06.
    assert distance(out, name) < 1e-5


@pytest.mark.parametrize("forward", ["plain", "fast"])
@pytest.mark.parametrize("name", original.GENERATIONS)
def test_final_latents(pipeline, monkeypatch, tmp_path, forward, name):
    """Resizing, VAE and its draw, noise, schedule, guidance, update and transformer, end to end."""
    settings, frames, info = dict(original.GENERATIONS[name]), original.pictures(), pipeline.info
    height, width = original.SIZE
    common = {"height": height, "width": width, "num_frames": original.FRAMES, "seed": original.SEED}
    common["bsa"] = SPARSE if settings.pop("sparse", False) else None
    monkeypatch.setattr(pipeline, "forward", forward)
    if settings.pop("task") == "i2v":
        Image.fromarray(frames[-1]).save(tmp_path / "image.png")
        picture = inspect_picture(tmp_path / "image.png")
        request = info.image_to_video(original.PROMPT, picture, **settings, **common)
    else:
        write_video(tmp_path / "clip.mp4", frames, 15, {})
        monkeypatch.setattr(begin, "read_clip", lambda path: frames)  # before H.264 took its share
        settings.setdefault("enhance_hf", False)
        request = info.continuation(original.PROMPT, inspect_clip(tmp_path / "clip.mp4"), **settings, **common)
    latents = final_latents(pipeline, request, monkeypatch)
    # fp32 through up to 13 steps: measured 7e-7.
    assert distance(latents, name) < 1e-4


@pytest.mark.parametrize("forward", ["plain", "fast"])
@pytest.mark.parametrize("name", original.REFINEMENTS)
def test_refinement_after_refined_frames(pipeline, monkeypatch, tmp_path, forward, name):
    """Padding in front and behind, three draws, clean latents of what is refined, and five steps of the rest."""
    height, width = original.SIZE
    clips = {tmp_path / "clip.mp4": original.pictures(), tmp_path / "before.mp4": original.pictures(12)}
    for path, frames in clips.items():
        write_video(path, frames, 15, {})
    monkeypatch.setattr(begin, "read_clip", lambda path: clips[Path(path)])  # before H.264 took its share
    monkeypatch.setattr(pipeline, "forward", forward)
    # the adapter has a test of its own (test_pipeline_refine.py)
    monkeypatch.setattr(type(pipeline.info), "check_lora", lambda info, name: None)
    monkeypatch.setattr(pipeline._model.lora, "use", lambda name: None)
    clip, before = map(inspect_clip, clips)
    start = FromClip(
        video=str(clip.path), double_frames=False, refined=str(before.path), cond_frames=original.REFINED_BEFORE
    )
    bsa = SPARSE if original.REFINEMENTS[name]["sparse"] else None
    common = {"height": height, "width": width, "seed": original.SEED, "bsa": bsa, "start": start}
    request = pipeline.info.refinement(original.PROMPT, clip, double_frames=False, **common)
    assert distance(final_latents(pipeline, request, monkeypatch), name) < 1e-4  # as above


@pytest.mark.parametrize("name", ["image-guided", "image-distilled", "clip-cached-dense"])
def test_schedules(pipeline, name):
    """The regular one, the distilled one, and a continuation's for fine details."""
    settings = original.GENERATIONS[name]
    request = replace(
        pipeline.info.request("x"), steps=settings["steps"], use_distill=settings.get("use_distill", False)
    )
    model = pipeline._model
    batch = model.start(request)
    model.encode_text(batch)
    model.set_timesteps(batch)
    schedule = begin.Schedule(model.scheduler.timesteps, model.scheduler.sigmas)
    if settings.get("enhance_hf"):
        schedule = begin.enhanced_schedule(schedule.timesteps)
    # equal up to the last bit or two of a division in fp32
    np.testing.assert_allclose(schedule.timesteps, STORED[f"{name}.timesteps"], rtol=3e-7)
    np.testing.assert_allclose(schedule.sigmas, STORED[f"{name}.sigmas"], rtol=3e-7)
