"""Training of the VAE: what moves counts more, a decoder alone keeps the latents; and the pool of clips."""

import json
import sys
from argparse import Namespace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from pipeline import EMBEDDED_CHECKPOINT
from training import data, train_vae
from training.tokenizer import load_tokenizer
from training.train_vae import MOTION_WEIGHT, loss_of, motion_of
from training.vae import VAEConfig, VideoVAE


@pytest.fixture
def jump():
    """Five frames of grey in which a white pixel goes one to the right between the second and the third."""
    video = torch.zeros(1, 3, 5, 8, 8)
    video[:, :, :2, 4, 4] = 1
    video[:, :, 2:, 4, 5] = 1
    return video


def test_motion_is_where_a_neighbouring_frame_differs(jump):
    moves = motion_of(jump)
    assert moves.shape == (1, 1, 5, 8, 8) and moves.sum() == 4
    assert (moves[0, 0, 1:3, 4, 4:6] == 1).all()
    assert motion_of(0.005 * jump).max() == pytest.approx(0.05)


class _Shifted(VideoVAE):
    """Decodes to the video itself, but for one pixel."""

    def __init__(self, video: torch.Tensor, at: tuple[int, ...]):
        super().__init__(VAEConfig(base_dim=8))
        self.answer = video.clone()
        self.answer[at] += 0.5

    def encode(self, video):
        return torch.zeros(1), torch.full((1,), -30.0)

    def decode(self, z):
        return self.answer


def test_an_error_of_what_moves_costs_more(jump):
    still, moving = (loss_of(_Shifted(jump, (0, 0, frame, 4, 4)), jump, kl_weight=0) for frame in (4, 2))
    assert still[1] == moving[1] > 0  # the plain L1 is reported
    assert 1.5 < moving[0] / still[0] < 1 + MOTION_WEIGHT  # their neighbours' differences count as the neighbours do


@pytest.mark.parametrize("decoder_only", [True, False])
def test_training_goes_on_from_the_checkpoint(tmp_path, monkeypatch, decoder_only):
    options = "--device cpu --eager --frames 5 --size 32 --crop 32 --batch 1 --minutes 0.01".split()
    options += ["--start", str(EMBEDDED_CHECKPOINT), "--output", str(tmp_path), *["--decoder-only"] * decoder_only]
    monkeypatch.setattr(sys, "argv", ["train_vae", *options])
    monkeypatch.setattr(train_vae, "measure", partial(train_vae.measure, clips=8))
    train_vae.main()
    before = load_file(EMBEDDED_CHECKPOINT / "vae" / "diffusion_pytorch_model.safetensors")
    after, report = load_file(tmp_path / "vae.safetensors"), json.loads((tmp_path / "vae.json").read_text())
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name].float())}
    known = json.loads((EMBEDDED_CHECKPOINT / "vae" / "config.json").read_text())["latents_std"]
    assert changed == {"post_quant_conv", "decoder"} | (set() if decoder_only else {"encoder", "quant_conv"})
    assert (report["latents_std"] == pytest.approx(known)) == decoder_only
    assert report["psnr_min"] < report["psnr_mean"] and report["psnr_moving"] < report["psnr_mean"]


@pytest.mark.parametrize("number", [0, 1])
def test_each_process_keeps_its_own_clips(tmp_path, monkeypatch, number):
    monkeypatch.setattr(data, "place", lambda: (number, 2))
    args = Namespace(pool_file=tmp_path / "pool.safetensors", pool=4, size=(5, 32), vae=EMBEDDED_CHECKPOINT)
    args.device, args.eager, args.seed, args.late, args.hard = "cpu", True, 1, 0.0, False
    made = data.open_pool(args, load_tokenizer())
    assert made.latents.shape == (2, 16, 2, 4, 4)
    assert [file.name for file in tmp_path.iterdir()] == [f"pool-{number}.safetensors"]
    monkeypatch.setattr(data, "make_pool", None)  # now it must read them
    again = data.open_pool(args, None)
    assert torch.equal(again.latents, made.latents) and torch.equal(again.ids, made.ids)
