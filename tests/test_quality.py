"""The figures of the study of quality, and that its settings are what their names say."""

import random
from itertools import product

import numpy as np
import pytest
import torch

from benchmarks.quality import held_out_scenes, name_of, run, study, summary
from benchmarks.quality_layers import probe
from benchmarks.quality_metrics import (
    agreement,
    block_masses,
    compare,
    interval,
    output_error,
    recall,
    said,
    shown,
    ssim,
)
from bsa import BlockLayout, BlockSelection, BSAConfig, Grid, block_sparse_attention
from pipeline.media import similarity
from pipeline.model.content import Judge
from pipeline.transformer.forward import attend_dense
from training.judge import NAMES


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


def tokens(grid, heads=2, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, batch, heads, grid.volume, 16, generator=generator, dtype=torch.float32)


def blocks_of(grid, chunk):
    """The block of every token in raster order, by definition."""
    places = [tuple(at // side for at, side in zip(place, chunk, strict=True)) for place in product(*map(range, grid))]
    numbers = {place: number for number, place in enumerate(sorted(set(places)))}
    return [numbers[place] for place in places]


RAGGED = [
    pytest.param(Grid(4, 4, 4), Grid(2, 2, 2), Grid(2, 2, 2), id="whole"),
    pytest.param(Grid(3, 5, 7), Grid(2, 2, 4), Grid(2, 3, 2), id="ragged, different chunks"),
    pytest.param(Grid(1, 3, 2), Grid(4, 4, 4), Grid(1, 1, 1), id="one query block"),
]


@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k"), RAGGED)
@pytest.mark.parametrize("selection", ["mean", "cells"])
def test_recall_and_error_are_those_of_explicit_attention(grid, chunk_q, chunk_k, selection):
    """Token by token: the mass of the keys whose block is kept, and the output of the keys that are kept."""
    q, k, v = tokens(grid)
    config = BSAConfig(0.6, None, chunk_q, chunk_k, selection)
    out, kept = block_sparse_attention(q, k, v, grid, config, return_selection=True)
    q_layout, k_layout = BlockLayout(grid, chunk_q), BlockLayout(grid, chunk_k)
    mask, of_query, of_key = kept.mask(k_layout.blocks.volume), blocks_of(grid, chunk_q), blocks_of(grid, chunk_k)
    shares, expected = [], torch.empty_like(v)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for token, query in enumerate(q[b, h]):
                weights = (k[b, h].double() @ query.double() / 4).softmax(0)
                seen = torch.tensor([bool(mask[b, h, of_query[token], block]) for block in of_key])
                shares.append(float(weights[seen].sum()))
                expected[b, h, token] = ((weights * seen / weights[seen].sum()) @ v[b, h].double()).float()
    dense = attend_dense(q, k, v, grid)
    # fp32 against fp64
    assert recall(block_masses(q, k, k_layout), kept, q_layout) == pytest.approx(sum(shares) / len(shares), abs=1e-5)
    wanted = float((expected - dense).norm() / dense.norm())
    assert output_error(out, dense) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("grid", "chunk_q", "chunk_k"), RAGGED)
def test_everything_kept_is_dense(grid, chunk_q, chunk_k):
    q, k, v = tokens(grid)
    q_layout, k_layout = BlockLayout(grid, chunk_q), BlockLayout(grid, chunk_k)
    out, kept = block_sparse_attention(q, k, v, grid, BSAConfig(0.0, None, chunk_q, chunk_k), return_selection=True)
    assert recall(block_masses(q, k, k_layout), kept, q_layout) == pytest.approx(1)
    assert output_error(out, attend_dense(q, k, v, grid)) < 1e-5
    nothing = BlockSelection(kept.indices, torch.zeros_like(kept.counts))
    assert recall(block_masses(q, k, k_layout), nothing, q_layout) == 0


def test_a_probe_measures_every_layer_and_leaves_the_video_dense():
    grid, configs = Grid(4, 8, 8), {"a": BSAConfig(0.5), "b": BSAConfig(0.75), "dense": BSAConfig(0.5, dense_layers=1)}
    made = {}

    def generate(layers):
        for step in range(2):
            for layer, attend in enumerate(layers):
                q, k, v = tokens(grid, seed=10 * step + layer)
                made[step, layer] = torch.equal(attend(q, k, v, grid, 0), attend_dense(q, k, v, grid))

    found = probe(generate, 3, configs)
    assert all(made.values()) and len(made) == 6
    assert found.keys() == {"a", "b"}
    for layer in range(3):
        calls = []
        for step in range(2):
            q, k, v = tokens(grid, seed=10 * step + layer)
            _, kept = block_sparse_attention(q, k, v, grid, configs["b"], return_selection=True)
            layout = BlockLayout(grid, Grid(4, 4, 4))
            calls.append(recall(block_masses(q, k, layout), kept, layout))
        assert found["b"]["recall"][layer] == pytest.approx(sum(calls) / 2, abs=1e-4)  # four digits are kept
        assert found["a"]["recall"][layer] > found["b"]["recall"][layer]


class Known(Judge):
    """Knows a clip by the level of its first pixel."""

    def judge(self, video):
        level = ((video[:, 0, 0, 0, 0] + 1) * 127.5).round().long()
        return {"colour": level % 9, "shape": level % 8, "motion": level % 11}


def test_flips_are_clips_with_another_colour_shape_or_motion():
    levels = torch.tensor([0, 5, 9, 200], dtype=torch.uint8).view(4, 1, 1, 1, 1).expand(4, 3, 2, 4, 4)
    seen = shown(Known(NAMES), levels)
    assert seen.tolist() == [[0, 0, 0], [5, 5, 5], [0, 1, 9], [2, 0, 2]]
    assert agreement(seen, seen) == [1, 1, 1, 1]
    assert agreement(seen, seen[[0, 1, 0, 3]]) == [1, 1, 0, 1]  # the colour is the same, the shape is not


def test_the_study_judges_prompts_with_one_object_alone():
    """Frames of one level, by what is asked: dense ones say what the prompt does in the first, sparse ones never."""
    scenes = held_out_scenes(8)
    single = [scene for scene in scenes if scene.attributes["kind"] == "shapes1"]
    assert 0 < len(single) < 8
    truth = said(single)
    assert [NAMES["colour"][one] for one in truth[:, 0]] == [scene.attributes["colour0"] for scene in single]

    class Told(Judge):
        def judge(self, video):
            right = float(video[0, 0, 0, 0, 0]) > 0
            guess = truth[: len(video)] if right else (truth[: len(video)] + 1) % torch.tensor([9, 8, 11])
            return dict(zip(NAMES, guess.T, strict=True))

    class Fake:
        def frames(self, captions, seeds, attention):
            noise = torch.Generator().manual_seed(len(captions))
            level = 60 if isinstance(attention, BSAConfig) else 200
            frames = torch.randint(0, 9, (len(captions), 3, 2, 16, 16), generator=noise) + level
            return frames.byte()

    made = run(Fake(), {"sparse": BSAConfig(0.5)}, scenes, 8, float("inf"), Told(NAMES))["clips"]
    assert made["dense"] == {"follows": [1.0] * len(single)}
    assert made["sparse"]["same"] == made["sparse"]["follows"] == [0.0] * len(single)
    assert len(made["sparse"]["psnr"]) == 8
    told = summary(made["sparse"], None)
    assert (told["flips"], told["judged"], told["follows"]) == (len(single), len(single), 0)
    assert "same" not in told
    assert summary(made["dense, another kernel"], None)["flips"] == 0


def test_without_a_judge_nothing_is_said_of_meaning():
    told = summary({"psnr": [30.0, 40.0], "ssim": [0.9, 1.0]}, None)
    assert told == {"psnr": 35.0, "ssim": 0.95, "worst_psnr": 30.0}
