"""What `training/` optimises is what FastVideo loads, name by name; and the scenes say what they show."""

import json
import math
import random

import pytest
import torch

from pipeline.model.content import Judge, view
from training import render as renderer
from training import scores
from training.data import held_out, sample_test_scenes, sample_training_scenes
from training.dit import DiTConfig, LongCatDiT
from training.evaluate import held_out_scenes, read_frames, shares, tensor
from training.judge import NAMES, draw, labels
from training.optim import Muon, trapezoid
from training.render import pack, render
from training.sampling import euler, sample, shifted_sigmas
from training.scenes import COLOURS, OBJECT_FIELDS, sample_scene
from training.tokenizer import TEXT_TOKENS, encode, load_tokenizer, train_tokenizer
from training.vae import VAEConfig, VideoVAE


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(captions=3000)


def randomised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
    return module


@pytest.mark.parametrize("frames", [pytest.param(1, id="image"), pytest.param(5, id="5"), pytest.param(13, id="13")])
def test_vae_equals_fastvideos_frame_by_frame_vae(frames):
    """FastVideo's feature cache and our whole-clip convolutions are the same network; fp32 rounding only."""
    from fastvideo.configs.models.vaes import WanVAEConfig
    from fastvideo.configs.models.vaes.wanvae import WanVAEArchConfig
    from fastvideo.models.vaes.wanvae import AutoencoderKLWan

    config = VAEConfig(base_dim=8)
    ours = randomised(VideoVAE(config), 0)
    arch = WanVAEArchConfig(
        base_dim=8,
        z_dim=16,
        dim_mult=config.dim_mult,
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=config.temperal_downsample,
        in_channels=12,
        out_channels=12,
        patch_size=2,
    )
    theirs = AutoencoderKLWan(WanVAEConfig(arch_config=arch, load_encoder=True, load_decoder=True))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    video = torch.randn(1, 3, frames, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mean, _ = ours.encode(video)
        torch.testing.assert_close(mean, theirs.encode(video).mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(ours.decode(mean).clamp(-1, 1), theirs.decode(mean), atol=1e-6, rtol=1e-5)
    assert mean.shape == (1, 16, (frames - 1) // 4 + 1, 4, 6)


def test_transformer_has_the_parameters_of_the_embedded_checkpoint(asset):
    from safetensors.torch import load_file

    stored = {}
    for shard in (asset / "transformer").glob("*.safetensors"):
        stored |= {name: tuple(tensor.shape) for name, tensor in load_file(shard).items()}
    assert stored == {name: tuple(p.shape) for name, p in LongCatDiT(DiTConfig()).named_parameters()}


@pytest.fixture
def asset():
    from pipeline import EMBEDDED_CHECKPOINT

    return EMBEDDED_CHECKPOINT


def test_training_reads_captions_as_the_pipeline_does(asset):
    from transformers import AutoTokenizer

    shipped, read = AutoTokenizer.from_pretrained(asset / "tokenizer"), load_tokenizer()
    text = "Two red balls, 你好 🎈 over THE sea"
    assert shipped(text)["input_ids"] == read(text)["input_ids"]


def test_tokenizer_keeps_words_whole_and_leaves_out_what_it_does_not_know(tokenizer):
    assert tokenizer.tokenize("A Red ball")[-2:] == ["▁red", "▁ball"]
    ids = tokenizer("velvet ball 🎈 球")["input_ids"]
    assert ids == tokenizer("Ball")["input_ids"] and ids[-1] == tokenizer.eos_token_id
    ids, mask = encode(tokenizer, ["", "a ball " * 100])
    assert ids.shape == (2, TEXT_TOKENS) and mask.sum(1).tolist() == [1, TEXT_TOKENS]


def test_no_training_scene_is_held_out_and_every_test_scene_is():
    assert not any(map(held_out, sample_training_scenes(random.Random(1), 300)))
    tests = sample_test_scenes(random.Random(2), 30)
    assert all(held_out(scene) and scene.attributes["kind"] == "shapes1" for scene in tests)


def test_every_kind_of_scene_renders_inside_the_range():
    rng = random.Random(3)
    scenes = [sample_scene(rng) for _ in range(24)]
    video = render(pack(scenes), 3, 16, 24)
    assert video.shape == (24, 3, 3, 16, 24)
    assert torch.isfinite(video).all() and video.amin() >= -1 and video.amax() <= 1
    assert (video.std(dim=(1, 2, 3, 4)) > 0.01).all()


def test_a_window_is_that_part_of_the_frame():
    scenes = [sample_scene(random.Random(4))]
    whole, part = render(pack(scenes), 3, 32, 32), render(pack(scenes), 3, 32, 32, window=(8, 16, 8, 12))
    torch.testing.assert_close(part, whole[..., 8:16, 16:28], atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [pytest.param(1, id="scene by scene"), pytest.param(12, id="together")])
def test_what_no_clip_shows_is_left_out_and_changes_nothing(monkeypatch, count):
    scenes = [sample_scene(random.Random(seed)) for seed in range(24)]
    packed = [pack(scenes[i : i + count]) for i in range(0, len(scenes), count)]
    quick = [render(p, 2, 16, 24) for p in packed]
    monkeypatch.setattr(renderer, "_seen", lambda weight: True)
    for p, video in zip(packed, quick, strict=True):
        torch.testing.assert_close(video, render(p, 2, 16, 24), atol=1e-6, rtol=0)  # sums of zeros and one term


def test_the_shape_has_the_colour_that_the_caption_names():
    scenes = [s for s in (sample_scene(random.Random(i)) for i in range(400)) if s.attributes.get("motion0") == "pulse"]
    scenes = [s for s in scenes if s.attributes["kind"] == "shapes1" and s.attributes["shape0"] == "ball"]
    assert len(scenes) >= 3
    for scene in scenes:
        assert scene.attributes["colour0"] in scene.caption.lower()
        numbers = scene.numbers["objects"]
        row, column = int((1 - numbers[2]) * 32), int((1 + numbers[1]) * 32)
        pixel = (render(pack([scene]), 1, 64, 64)[0, :, 0, row, column] + 1) / 2
        named = torch.tensor(COLOURS[scene.attributes["colour0"]])
        assert torch.nn.functional.cosine_similarity(pixel, named, dim=0) > 0.9


@pytest.mark.parametrize(
    "motion, alike, direction",
    [
        pytest.param("bounce", {"phase": 0.0}, "frequency", id="bounces from the floor"),
        pytest.param("spin", {"angle": 0.0}, "spin", id="spins from upright, one way round"),
        pytest.param(
            "circle", {"phase": math.pi / 2, "y0": 0.0}, "frequency", id="circles from the top, one way round"
        ),
        pytest.param("sway", {"phase": -math.pi / 2}, "frequency", id="sways from the middle"),
    ],
)
def test_what_comes_round_again_begins_alike_and_goes_one_way(motion, alike, direction):
    """Of several courses for one prompt the model makes a mixture."""
    scenes = (sample_scene(random.Random(seed)) for seed in range(600))
    objects = [
        dict(zip(OBJECT_FIELDS, scene.numbers["objects"], strict=False))
        for scene in scenes
        if scene.attributes.get("motion0") == motion
    ]
    assert len(objects) >= 20
    for name, value in alike.items():
        assert {o[name] for o in objects} == {value}
    speeds = [o[direction] for o in objects]
    assert max(map(abs, speeds)) < 1.12 * min(map(abs, speeds)) and len({speed > 0 for speed in speeds}) == 1


def test_schedule_ends_clean_and_an_exact_velocity_lands_on_the_clean_latent():
    sigmas = shifted_sigmas(12, "cpu")
    assert sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    clean, noise = torch.randn(2, 4, 1, 2, 2), torch.randn(2, 4, 1, 2, 2)
    # rectified flow: the velocity from noise to clean is the same everywhere on the line
    torch.testing.assert_close(sample(lambda x, s: clean - noise, noise, 12), clean, atol=1e-5, rtol=1e-5)
    half = euler(noise, clean - noise, torch.ones(2), torch.full((2,), 0.5))
    torch.testing.assert_close(half, (clean + noise) / 2)


def test_muon_moves_every_direction_by_the_same_amount():
    """The orthogonalised update has singular values near one, whatever the gradient's spectrum."""
    p = torch.nn.Parameter(torch.zeros(8, 6))
    u, _, v = torch.linalg.svd(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    p.grad = u @ torch.diag(torch.tensor([10.0, 5, 2, 1, 0.5, 0.3])) @ v
    Muon([p], lr=1.0, weight_decay=0.0).step()
    moved = torch.linalg.svdvals(p.detach()) / (0.2 * 8**0.5)
    assert moved.amin() > 0.5 and moved.amax() < 1.4  # five Newton-Schulz steps reach 0.7 to 1.2, in bf16


def test_trapezoid_rises_stays_and_falls():
    assert trapezoid(0.01) == pytest.approx(0.5) and trapezoid(0.3) == 1 and trapezoid(0.8) == pytest.approx(0.5)


def test_the_judge_of_a_clip_sees_what_it_was_trained_on():
    """A video of 61 frames, shrunk, is nearly the twelve frames at the small size that training draws."""
    scenes = held_out_scenes(4)
    seen = view(render(pack(scenes), 61, 112, 112))
    assert seen.shape == (4, 12, 3, 112, 112)
    # frames of 61 are picked to the nearest, so an edge moves by up to half of the way between two frames
    assert (seen - draw(scenes, 12, "cpu")).abs().mean() < 0.02
    told = Judge(NAMES).eval().judge(render(pack(scenes), 5, 32, 32))
    assert {name: guess.shape for name, guess in told.items()} == dict.fromkeys(NAMES, (4,))


def test_the_score_counts_what_was_recognised():
    scenes = held_out_scenes(4)
    truth = {name: [NAMES[name][i] for i in index] for name, index in labels(scenes).items()}
    assert shares(truth, scenes) == {"colour": 1, "shape": 1, "motion": 1, "all three": 1}
    wrong = {"colour": ["none", *truth["colour"][1:]], "shape": truth["shape"], "motion": ["none"] * 4}
    assert shares(wrong, scenes) == {"colour": 0.75, "shape": 1, "motion": 0, "all three": 0}


def test_a_video_file_is_read_as_it_was_written(tmp_path):
    from pipeline.media.write import write_video

    ramp = torch.linspace(20, 230, 32).byte().expand(5, 48, 32).unsqueeze(-1).repeat(1, 1, 1, 3).numpy()
    write_video(tmp_path / "ramp.mp4", ramp, 15, {})
    frames = read_frames(tmp_path / "ramp.mp4")
    assert frames.shape == ramp.shape and abs(frames.astype(int) - ramp).mean() < 3  # lossy
    assert tensor(frames).shape == (1, 3, 5, 48, 32)


def test_the_document_shows_the_stored_scores():
    report = json.loads(scores.RESULTS.read_text())
    assert scores.BEGIN + scores.table(report) + scores.END in scores.DOCUMENT.read_text(encoding="utf-8")
    assert len(report["captions"]) == report["prompts"]
    assert all(len(said) == report["prompts"] for guesses in report["guesses"].values() for said in guesses.values())


def test_the_interval_of_a_share():
    assert scores.interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson 1927, as in textbooks
    assert scores.interval(1.0, 10)[1] == pytest.approx(1.0)
