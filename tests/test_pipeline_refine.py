"""Refinement: the original's mathematics, and what is asked for it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from latents import ORIGINAL, assert_parity, final_latents
from tiny_checkpoint import write_lora

from bsa import BSAConfig
from pipeline import LongCatPipeline, VideoRequest, read_settings
from pipeline.media.clip import inspect_clip, read_clip
from pipeline.media.write import write_video
from pipeline.model import begin
from pipeline.model.begin import enlarge
from pipeline.model.schedule import refine_schedule
from pipeline.request.refinement import latent_frames, refined_size, steps_run
from pipeline.request.start import FromClip, FromNoise, read_start

PROMPT = "a red circle bounces &amp; spins  🙂"


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint, tmp_path_factory):
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("refine") / "longcat-random")
    write_lora(folder, "refinement_lora")
    return LongCatPipeline.load(folder, device="cpu")


@pytest.fixture(scope="module")
def frames():
    """The clip that the original refined for tests/data: 13 frames of 24 x 40 pixels of noise."""
    generator = torch.Generator().manual_seed(11)
    return torch.randint(0, 256, (13, 24, 40, 3), dtype=torch.uint8, generator=generator).numpy()


@pytest.fixture
def clip(frames, tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, frames, 15, {})
    return inspect_clip(path)


CASES = [
    pytest.param("refine-dense", {"double_frames": False, "bsa": None}, id="dense-spatial"),
    pytest.param("refine-sparse", {"bsa": BSAConfig(sparsity=0.5)}, id="sparse-spatial-and-temporal"),
    pytest.param("refine-from-0.8", {"t_thresh": 0.8, "bsa": None}, id="dense-from-0.8"),
]


@pytest.mark.parametrize(("case", "settings"), CASES)
def test_latents_of_the_original(pipeline, frames, clip, monkeypatch, case, settings):
    """generate_refine with the adapter: enlarging, padding, VAE, both draws of seed 7, schedule, denoising."""
    monkeypatch.setattr(begin, "read_clip", lambda path: frames)  # before H.264 took its share
    request = pipeline.info.refinement(PROMPT, clip, height=64, width=128, seed=7, **settings)
    assert_parity(final_latents(pipeline, request, monkeypatch), case)


@pytest.mark.parametrize(
    ("case", "level"),
    [pytest.param("refine-dense", 0.5, id="0.5"), pytest.param("refine-from-0.8", 0.8, id="0.8")],
)
def test_schedule_of_the_original(pipeline, clip, case, level):
    model = pipeline._model
    request = pipeline.info.refinement("x", clip, t_thresh=level)
    batch = model.start(request)
    model.encode_text(batch)
    model.set_timesteps(batch)
    schedule = refine_schedule(model.scheduler.timesteps, level)
    np.testing.assert_allclose(schedule.timesteps, ORIGINAL[f"{case}.timesteps"], rtol=3e-7)
    np.testing.assert_allclose(schedule.sigmas, ORIGINAL[f"{case}.sigmas"], rtol=3e-7)
    assert steps_run(50, level, pipeline.info.shift) == len(schedule.timesteps)


@pytest.mark.parametrize("row", ORIGINAL["refine-sizes"].tolist(), ids=lambda row: f"{row[0]}x{row[1]}")
def test_sizes_of_the_original(row):
    height, width, *expected = row
    assert list(refined_size(height, width)) == expected


def test_a_smaller_checkpoint_takes_the_same_step_up():
    # LongCat goes from 632 to 960 pixels on a side, so a model of 256 x 256 goes to 389, and the nearest 16 are 384
    assert refined_size(256, 256, 256 * 256) == (384, 384)
    assert refined_size(192, 320, 256 * 256) == (304, 496)


@pytest.mark.parametrize(
    ("frames", "latents"),
    [(1, 4), (13, 4), (14, 8), (16, 8), (61, 16), (93, 24), (122, 32), (186, 48)],
)
def test_latent_frames(frames, latents):
    """Whole groups of four that decode to at least so many frames; 24 and 48 are LongCat's own."""
    assert latent_frames(frames) == latents
    assert 4 * latents - 3 >= frames > 4 * (latents - 4) - 3


def test_enlarging_keeps_first_and_last_and_is_linear_between():
    steps = np.zeros((3, 2, 2, 3), np.uint8)
    steps[1], steps[2] = 100, 200
    video = (enlarge(steps, 5, 4, 6)[0, 0, :, 0, 0] + 1) / 2 * 255
    assert video.shape == (13,)  # filled up to four latent frames
    torch.testing.assert_close(video, torch.tensor([0.0, 50, 100, 150, 200] + [200] * 8), rtol=0, atol=1e-3)


def test_the_whole_way(pipeline, clip, tmp_path):
    """Size, frames, rate, phases, steps and what the file says of itself."""
    request = pipeline.info.refinement("a red circle", clip, height=64, width=128)
    phases = {}
    pipeline.record = True
    try:
        result = pipeline.generate(
            request, lambda update: phases.update({update.phase: (update.step, update.total)}), tmp_path / "fine.mp4"
        )
    finally:
        pipeline.record = False
    assert read_clip(result.video).shape == (26, 64, 128, 3)
    assert inspect_clip(result.video).fps == 30
    assert phases == {"text": (1, 1), "encode": (8, 8), "denoise": (5, 5), "decode": (8, 8)}
    assert result.bsa_active
    assert set(result.seconds) == {"text", "encode", "denoise", "decode", "total"}
    said = read_settings(result.video).request
    assert said == replace(request, start=request.start.at("clip.mp4"))  # a name, no path
    assert (tmp_path / "fine.attention.npz").is_file()


def test_the_seed_decides(pipeline, clip):
    request = pipeline.info.refinement("x", clip, height=64, width=64, seed=3, t_thresh=0.2)
    (_, first), (_, again), (_, other) = (
        pipeline.generate_frames(each) for each in (request, request, replace(request, seed=4))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_request_travels_as_json(pipeline, clip):
    request = pipeline.info.refinement("x", clip, t_thresh=0.25, double_frames=False)
    assert VideoRequest.from_dict(request.to_dict()) == request


def good(**changes):
    values = {"prompt": "x", "height": 64, "width": 64, "num_frames": 26, "steps": 50, "guidance_scale": 1.0, "fps": 30,
              "bsa": None, "lora": "refine", "start": FromClip(video="clip.mp4")}  # fmt: skip
    return VideoRequest(**values | changes)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        pytest.param(lambda: good(lora=None), "needs the LoRA adapter .* use lora 'refine'", id="no-adapter"),
        pytest.param(lambda: good(start=FromNoise(), num_frames=25), "choose a clip, or another adapter", id="noise"),
        pytest.param(lambda: good(guidance_scale=4.0), "refines without guidance; use 1", id="guidance"),
        pytest.param(lambda: good(use_distill=True), "turn the few-step schedule off", id="distilled"),
        pytest.param(lambda: good(num_frames=25), "num_frames 25 is not what a refinement makes", id="odd"),
        pytest.param(lambda: good(start="clip.mp4"), r"start is a str; pass FromNoise\(\), FromImage", id="a-path"),
        pytest.param(lambda: FromClip(video=""), "pass the path of an MP4 file", id="no-clip"),
        pytest.param(lambda: FromClip(video="x", t_thresh=0), "t_thresh 0.0 is not a noise level", id="level-0"),
        pytest.param(lambda: FromClip(video="x", t_thresh=float("nan")), "nan is not a noise level", id="level-nan"),
        pytest.param(
            lambda: FromClip(video="x", double_frames=1), "double_frames 1 is not true or false", id="frames"
        ),
        pytest.param(
            lambda: read_start({"refine": {"clip": "x"}}), "the refinement is incomplete: .*'clip'", id="unknown"
        ),
        pytest.param(lambda: inspect_clip("/nowhere/clip.mp4"), "cannot read the clip /nowhere/clip.mp4", id="nowhere"),
        pytest.param(lambda: inspect_clip(__file__), "test_pipeline_refine.py is not an MP4 video", id="no-mp4"),
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_without_the_adapter_nothing_is_refined(tiny_pipeline, clip):
    with pytest.raises(ValueError, match="no LoRA adapter 'refine' .*put refinement_lora.safetensors into"):
        tiny_pipeline.info.refinement("x", clip)


class TestClips:
    def test_a_cut_file(self, clip):
        data = clip.path.read_bytes()
        clip.path.write_bytes(data[:200])
        with pytest.raises(ValueError, match="clip.mp4 cannot be decoded"):
            inspect_clip(clip.path)

    def test_a_playlist_in_disguise_names_no_other_file(self, tmp_path):
        """What looks like an MP4 to us must not be read as a list of files by ffmpeg."""
        liar = tmp_path / "liar.mp4"
        liar.write_bytes(b"\0\0\0\x10ftypisom\n#EXTM3U\n/etc/passwd\n")
        with pytest.raises(ValueError, match="liar.mp4 cannot be decoded"):
            inspect_clip(liar)

    def test_one_that_was_replaced(self, pipeline, clip):
        request = pipeline.info.refinement("x", clip, height=64, width=64)
        write_video(clip.path, np.zeros((5, 32, 32, 3), np.uint8), 15, {})
        with pytest.raises(ValueError, match="the clip has 5 frames, .* num_frames is 26"):
            pipeline.generate(request)

    def test_a_vae_without_an_encoder(self, pipeline, clip, monkeypatch):
        monkeypatch.setattr(pipeline._model, "encodes", False)
        with pytest.raises(ValueError, match="VAE has no encoder"):
            pipeline.generate(pipeline.info.refinement("x", clip, height=64, width=64))
