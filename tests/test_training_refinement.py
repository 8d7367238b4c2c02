"""Training the refinement adapter: what it learns from, what it learns, and the file that comes of it."""

import numpy as np
import pytest
import torch

from pipeline.model.begin import enlarge as enlarge_one
from pipeline.transformer.forward import attend_dense
from pipeline.weights.lora import load_lora
from training.dit import DiTConfig, LongCatDiT
from training.refinement import START, Pairs, adapt, enlarge, integrate, refinement_loss, switch, write_adapter


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return LongCatDiT(DiTConfig(hidden_size=32, num_attention_heads=2, depth=2, caption_channels=8))


class Straight:
    """A model whose velocity is that of straight lines to one clip: (clean - x) / sigma."""

    def __init__(self, clean):
        self.clean, self.asked = clean, []

    def encode(self, ids, mask):
        return ids

    def velocity(self, x, sigma, text, mask, attend):
        self.asked.append(sigma)
        return (self.clean - x) / sigma.view(-1, 1, 1, 1, 1)


def test_a_new_adapter_changes_nothing_and_its_file_fits(transformer, tmp_path):
    layers = adapt(transformer, rank=3)
    assert all(not part.up.any() for part in layers.values())
    assert sorted(layers) == sorted(
        f"blocks.{i}.{layer}"
        for i in range(2)
        for layer in (
            *(f"{kind}.{name}" for kind in ("self_attn", "cross_attn") for name in ("to_q", "to_k", "to_v", "to_out")),
            *(f"ffn.{name}" for name in ("w1", "w2", "w3")),
        )
    )
    switch(transformer, None)
    assert not any(hasattr(module, "lora") for module in transformer.modules())
    write_adapter(layers, tmp_path / "refinement_lora.safetensors")
    loaded = load_lora(tmp_path / "refinement_lora.safetensors", transformer)
    assert loaded.keys() == layers.keys()
    for name, part in loaded.items():
        assert part.scale == 1 and torch.equal(part.down, layers[name].down.bfloat16().float())


def test_clips_are_enlarged_as_the_pipeline_enlarges_them():
    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    given = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    # the order of the interpolations differs, and with it fp32 rounding
    torch.testing.assert_close(enlarge(given, 10, 24), enlarge_one(frames, 10, 24, 24), rtol=0, atol=1e-5)


def test_the_loss_is_zero_for_straight_lines_from_the_enlarged_to_the_fine_clip():
    torch.manual_seed(1)
    fine = torch.randn(1, 4, 2, 4, 4)
    pairs = Pairs(torch.randn_like(fine), fine, torch.zeros(1, 3), torch.ones(1, 3))
    model = Straight(fine)
    assert refinement_loss(model, pairs, 64, attend_dense) < 1e-6
    levels = torch.cat(model.asked)
    assert levels.min() > 0 and levels.max() == START and 4 <= (levels == START).sum() < 32
    wrong = Straight(pairs.enlarged)
    assert refinement_loss(wrong, pairs, 64, attend_dense) > 1


def test_steps_go_from_each_level_to_the_next():
    clean, begin = torch.randn(2, 2, 4, 1, 3, 3).unbind(0)
    model = Straight(clean)
    made = integrate(model, begin, (None, None), torch.tensor([0.5, 0.3, 0.1, 0.0]), attend_dense)
    assert [float(level[0]) for level in model.asked] == pytest.approx([0.5, 0.3, 0.1])
    torch.testing.assert_close(made, clean, rtol=0, atol=1e-5)
