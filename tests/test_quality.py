"""The figures of the study of quality, and that its settings are what their names say."""

import random

import numpy as np
import pytest
import torch

from benchmarks.quality import held_out_scenes, name_of, study
from benchmarks.quality_metrics import compare, interval, ssim
from bsa import BSAConfig
from pipeline.media import similarity


@pytest.fixture
def clips():
    rng = np.random.default_rng(0)
    dense = rng.integers(0, 256, (2, 6, 24, 20, 3), dtype=np.uint8)
    noise = rng.integers(-9, 10, dense.shape)
    noise[1] *= 3
    video = (dense.astype(int) + noise).clip(0, 255).astype(np.uint8)
    return video, dense


def tensor(frames):
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3)


def test_figures_are_those_of_the_page(clips):
    video, dense = clips
    told = compare(tensor(video), tensor(dense))
    for clip in range(2):
        assert told["psnr"][clip] == pytest.approx(similarity.psnr(video[clip], dense[clip]), abs=1e-3)
        # scikit-image averages where the whole window fits, as here; fp32 against fp64
        assert told["ssim"][clip] == pytest.approx(similarity.ssim(video[clip], dense[clip]), abs=1e-4)
        frames = [similarity.psnr(a[None], b[None]) for a, b in zip(video[clip], dense[clip], strict=True)]
        assert told["worst_frame"][clip] == pytest.approx(min(frames), abs=1e-3)
    assert told["psnr"][0] > told["psnr"][1] and told["flicker"][0] < told["flicker"][1]


def test_equal_clips(clips):
    told = compare(tensor(clips[1]), tensor(clips[1]))
    assert told["psnr"] == told["worst_frame"] == pytest.approx([100, 100])
    assert told["flicker"] == [0, 0]
    assert ssim(*[tensor(clips[1])[0].float()] * 2) == pytest.approx(1)


def test_an_interval_holds_the_mean():
    rng = random.Random(1)
    values = [rng.gauss(2, 1) for _ in range(100)]
    low, high = interval(values)
    assert low < sum(values) / 100 < high
    assert high - low == pytest.approx(4 / 10, rel=0.3)  # two standard errors either way


def test_settings_have_names_of_their_own():
    settings = study()
    assert all(name_of(config) == name for name, config in settings.items())
    assert name_of(BSAConfig(0.75)) in settings  # the baseline of the gains
    assert len(set(settings.values())) == len(settings)


def test_prompts_are_the_same_every_time():
    captions = [scene.caption for scene in held_out_scenes(4)]
    assert captions == [scene.caption for scene in held_out_scenes(6)][:4]
    assert len(set(captions)) == 4
