"""Training and scores of the tasks that begin with given frames: a picture, or the end of a clip."""

import copy
import json
import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import UMT5Config, UMT5EncoderModel

from pipeline import EMBEDDED_CHECKPOINT, inspect_checkpoint
from pipeline.model.content import Judge
from pipeline.transformer.forward import attend_dense
from training import scores
from training.captions import PLACES, as_prompt
from training.data import GIVEN, Pool, draw_start, held_out_scenes
from training.dit import DiTConfig, LongCatDiT
from training.export import export_transformer, settle_posterior
from training.finetune import learn
from training.judge import NAMES
from training.manifest import faults, read_manifest
from training.render import pack, render
from training.sampling import TextToVideo, sample
from training.scenes import EVEN, HARD, SHAPES, sample_scene
from training.sharpness import acutance, outline
from training.tasks import TASKS, Studio, psnr, score, seam, sheet
from training.tokenizer import TEXT_TOKENS, encode, load_tokenizer
from training.train_dit import build, draw_given, flow_loss
from training.vae import VAEConfig, VideoVAE


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module")
def tiny(tokenizer):
    """A random model of two blocks, whose adaLN is not zero, so that every part of it acts."""
    torch.manual_seed(0)
    text = UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    dit = LongCatDiT(DiTConfig(24, 2, 2, 16, 8, 16))
    for p in dit.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    return TextToVideo(UMT5EncoderModel(text), dit).eval()


def a_pool(clips: int = 3, frames: int = 6, least: tuple[int, ...] | None = None) -> Pool:
    latents = torch.randn(clips, 16, frames, 4, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    words = torch.ones(clips, 2, TEXT_TOKENS, dtype=torch.long)
    return Pool(latents, words, words, torch.tensor(least or (0,) * clips))


def empty(tokenizer):
    return encode(tokenizer, [""])


@pytest.mark.parametrize("given", GIVEN)
def test_given_frames_are_clean_and_do_not_count(tokenizer, given):
    pool = a_pool(clips=1)
    clip, seen = pool.latents[0].float(), []

    def velocity(noisy, sigma, text, mask, attend, frames):
        """Exact in the frames that are made, and absurd in those that are given."""
        seen.append((noisy, frames))
        right = (clip - noisy) / sigma.view(-1, 1, 1, 1, 1)
        right[:, :, :frames] += 1000
        return right

    model = SimpleNamespace(encode=lambda ids, mask: None, velocity=velocity)
    torch.manual_seed(0)
    loss = flow_loss(model, pool, empty(tokenizer), 8, 6, attend_dense, given)
    noisy, frames = seen[0]
    assert frames == given
    torch.testing.assert_close(noisy[:, :, :given], clip[:, :given].expand(8, -1, -1, -1, -1))
    assert not torch.allclose(noisy[:, :, given:], clip[:, given:].expand(8, -1, -1, -1, -1))
    assert loss < 1e-4  # rounding, divided by the smallest noise level


def test_something_always_remains_to_be_made():
    rng, shares = random.Random(1), (0.2, 0.4, 0.4)
    drawn = {frames: {draw_given(rng, shares, frames) for _ in range(60)} for frames in (1, 4, 5)}
    assert drawn == {1: {0}, 4: {0, 1}, 5: set(GIVEN)}


def test_sampling_leaves_given_frames_as_they_are_and_makes_the_rest():
    clean, noise = torch.randn(2, 2, 4, 5, 2, 2)

    def velocity(x, sigma):
        """Exact in the frames that are made, and absurd in those that are given."""
        exact = (clean - x) / sigma.view(-1, 1, 1, 1, 1)
        exact[:, :, :2] += 1000
        return exact

    made = sample(velocity, noise, 6, clean[:, :, :2])
    assert torch.equal(made[:, :, :2], clean[:, :, :2])
    torch.testing.assert_close(made, clean, atol=1e-5, rtol=1e-5)


def test_a_clip_that_begins_late_is_drawn_only_where_enough_of_it_is_given():
    pool = a_pool(4, 2, least=(0, 0, 1, 4))
    pool.latents[:] = torch.arange(4.0).view(-1, 1, 1, 1, 1)
    torch.manual_seed(0)
    drawn = {given: set(pool.batch(64, 2, given)[0].flatten().tolist()) for given in GIVEN}
    assert drawn == {0: {0, 1}, 1: {0, 1, 2}, 4: {0, 1, 2, 3}}


@pytest.mark.parametrize(
    "motions, needed",
    [
        pytest.param(("right", None), 1, id="one way"),
        pytest.param(("spin", "left"), 1, id="two that go one way"),
        pytest.param(("sway", None), 4, id="to and fro"),
        pytest.param(("up", "circle"), 4, id="one of two to and fro"),
    ],
)
def test_what_comes_and_goes_is_not_told_by_one_picture(motions, needed):
    attributes = {"kind": "shapes2"} | {f"motion{i}": name for i, name in enumerate(motions) if name}
    scene = SimpleNamespace(attributes=attributes)
    start, least = draw_start(random.Random(1), scene, late=1.0)
    assert 0 < start <= 1 and least == needed
    assert draw_start(random.Random(1), scene, late=0.0) == (0.0, 0)


def test_the_scored_prompts_are_those_of_the_stored_scores():
    """Changes to the grammar must not move them, or scores before and after could not be compared."""
    stored = json.loads(scores.RESULTS.read_text())["captions"]
    assert [scene.caption for scene in held_out_scenes(len(stored))] == stored


def test_hard_scenes_are_more_often_what_was_drawn_worst():
    def share(mix, wanted) -> float:
        drawn = (sample_scene(random.Random(seed), mix).attributes for seed in range(1200))
        return sum(map(wanted, drawn)) / 1200

    for wanted in (
        lambda a: "hexagon" in (a.get("shape0"), a.get("shape1")),
        lambda a: "bounce" in (a.get("motion0"), a.get("motion1")),
        lambda a: a.get("event", "").startswith("pan"),
    ):
        assert share(HARD, wanted) > 1.3 * share(EVEN, wanted) > 0


def test_prompts_leave_the_known_words_in_order():
    def words(text: str) -> list[str]:
        return [word.strip(",.").lower() for word in text.split()]

    rng, changed = random.Random(3), 0
    for scene in (sample_scene(random.Random(seed)) for seed in range(300)):
        said = as_prompt(rng, scene)
        changed += said != scene.caption
        meant = iter(words(scene.caption))
        assert all(word in meant for word in words(said) if word not in PLACE)  # `in` goes on from the last one
    assert 30 < changed < 90


PLACE = set(" ".join(PLACES).split()) | {""}  # may come in the place of a studio


@pytest.mark.parametrize(
    "blur, low, high",
    [
        pytest.param(1, 0.99, 1.01, id="from one pixel to the next"),
        pytest.param(3, 0.32, 0.35, id="over three pixels"),
        pytest.param(7, 0.14, 0.19, id="over seven pixels"),
    ],
)
def test_acutance_is_the_share_of_an_edge_between_two_pixels(blur, low, high):
    edge = (torch.arange(64) > 31).float().expand(1, 1, 64, 64)
    soft = F.avg_pool2d(edge, (1, blur), 1, (0, blur // 2), count_include_pad=False)
    assert low <= acutance(soft.expand(3, 2, 64, 64) * 2 - 1) < high


def one_shape(shape: str, motion: str = "spin"):
    for seed in range(20_000):
        scene = sample_scene(random.Random(seed))
        a = scene.attributes
        if (a["kind"], a.get("shape0"), a.get("motion0"), a.get("backdrop")) == ("shapes1", shape, motion, "plain"):
            return scene
    raise AssertionError(f"no {shape}")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_outline_tells_every_shape(shape):
    scene = one_shape(shape, "spin" if shape not in ("ball", "ring") else "up")
    frame = render(pack([scene]), 1, 128, 128, start=0.4, length=0.0)[0, :, 0]
    found = outline(frame, shape)
    assert found.told == shape and found.fit > 0.85  # a thin ring of few pixels fits worst


def test_an_egg_fits_a_ball_badly_and_an_empty_frame_not_at_all():
    scene = one_shape("ball", "up")
    frame = render(pack([scene]), 1, 128, 128, start=0.5, length=0.0)
    egg = F.interpolate(frame[:, :, 0], size=(170, 128), mode="bilinear")[0]
    whole, squeezed = (outline(image, "ball").fit for image in (frame[0, :, 0], egg))
    assert squeezed < 0.88 < 0.94 < whole
    assert outline(torch.zeros(3, 64, 64), "ball") is None


def test_a_seam_shows_where_the_picture_jumps():
    steady = torch.arange(20.0).view(1, -1, 1, 1).expand(3, -1, 4, 4) / 20
    assert seam(steady, 13) == pytest.approx(1, rel=1e-3)
    jump = steady + 0.1 * (torch.arange(20) > 12).view(1, -1, 1, 1)
    assert seam(jump, 13) == pytest.approx(3, rel=1e-3)  # 0.05 a frame, and 0.15 at the seam
    assert seam(jump, 1) == pytest.approx(1, rel=1e-3)


def test_each_task_is_scored_dense_and_sparse(tiny, tokenizer):
    torch.manual_seed(1)
    vae, scenes = VideoVAE(VAEConfig(base_dim=4)).eval(), held_out_scenes(3)
    studio = Studio(tiny, vae, (torch.zeros(16), torch.ones(16)), tokenizer, (21, 32, 32), batch=2)
    report, made = score(studio, Judge(NAMES).eval(), scenes, tuple(TASKS), (None, 0.5))
    assert set(report) == {"render"} | {f"{task} {how}" for task in TASKS for how in ("dense", "0.5")}
    assert all(report[name]["clips"] == 3 and set(NAMES) < set(report[name]) for name in report)
    # the first frame of a causal VAE is the first latent's alone, so what is given comes back as the VAE draws it
    video = render(pack(scenes), *studio.size)
    alone = [psnr(studio.decode(studio.encode(clip[None, :, :1]))[0], clip[:, :1]) for clip in video]
    assert report["picture dense"]["psnr of what was given"] == pytest.approx(sum(alone) / 3, abs=0.01)
    assert report["continuation 0.5"]["seam, worst"] >= report["continuation 0.5"]["seam"] > 0
    assert not torch.equal(made["picture dense"][0], made["picture 0.5"][0])
    assert sheet(made["render"], frames=3, side=16).shape == (48, 48, 3)


def test_both_stages_of_the_fine_tuning_train_the_transformer_alone(tiny, tokenizer):
    args = SimpleNamespace(device="cpu", seed=1, lr=1e-3, lr_distill=1e-3, ema=0.9, batch=2, frames=6)
    args.given, args.dense, args.guidance = (0.4, 0.3, 0.3), 0.5, 2.0
    tiny = copy.deepcopy(tiny).train()
    before = {name: p.detach().clone() for name, p in tiny.named_parameters()}
    for distil in (False, True):
        run = learn(tiny, a_pool(), args, empty(tokenizer), until=0.0, distil=distil)
        assert run.count >= 4
    changed = {name.split(".")[0] for name, p in tiny.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"transformer"} and all(p.isfinite().all() for p in tiny.parameters())


def test_a_settled_posterior_is_its_mean():
    torch.manual_seed(2)
    vae, video = VideoVAE(VAEConfig(base_dim=4)).eval(), torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        mean, _ = vae.encode(video)
        settle_posterior(vae)
        settled, logvar = vae.encode(video)
    torch.testing.assert_close(settled, mean)
    assert (0.5 * logvar).exp().max() < 1e-6


def test_the_export_loads_again_with_the_next_version(tokenizer, tmp_path):
    model = build(len(tokenizer), "cpu", EMBEDDED_CHECKPOINT, compiled=False)
    with torch.no_grad():
        model.transformer.final_layer.proj.bias.fill_(0.5)
    export_transformer(model, EMBEDDED_CHECKPOINT, tmp_path / "longcat-tiny")
    assert not faults(tmp_path / "longcat-tiny")
    assert read_manifest(tmp_path / "longcat-tiny")[0] == read_manifest(EMBEDDED_CHECKPOINT)[0] + 1
    assert inspect_checkpoint(tmp_path / "longcat-tiny").trained_tasks == ("t2v", "i2v", "vc")
    again = build(len(tokenizer), "cpu", tmp_path / "longcat-tiny", compiled=False).state_dict()
    assert all(torch.equal(again[name], p) for name, p in model.state_dict().items())
