"""What a clip shows, and what a PSNR is worth: the classifier and the yardstick that the included checkpoint brings."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bsa import BSAConfig
from pipeline import EMBEDDED_CHECKPOINT, Comparison, FromClip, VideoResult, inspect_checkpoint
from pipeline.checkpoint.yardstick import FILE, Yardstick, read_yardstick
from pipeline.media.similarity import psnr, psnr_of_frames
from pipeline.model.content import FOLDER, WEIGHTS, read_contents
from pipeline.request.result import read_comparison
from pipeline.request.timing import Speed
from training.data import sample_test_scenes
from training.judge import ASIDE, NAMES, SUBJECTS
from training.render import pack, render

INFO = inspect_checkpoint(EMBEDDED_CHECKPOINT)
CONTENTS = read_contents(EMBEDDED_CHECKPOINT)
RED_BALL = {"colour": ("red", 0.99), "shape": ("ball", 0.98), "motion": ("bounce", 0.97)}
STICK = {"rounding": (56.2, 48.5, 60.2), "other_seed": (20.2, 7.9, 28.4)}


class TestClassifier:
    def test_it_knows_what_it_was_trained_on(self):
        config = json.loads((EMBEDDED_CHECKPOINT / FOLDER / "config.json").read_text())
        assert config["names"] == {name: list(values) for name, values in NAMES.items()}
        assert (config["subjects"], config["aside"]) == (SUBJECTS, ASIDE)

    def test_it_recognises_renders_of_held_out_scenes(self):
        scenes = sample_test_scenes(random.Random(5), 6)
        clips = ((render(pack(scenes), 12, 128, 128) + 1) * 127.5).byte().permute(0, 2, 3, 4, 1).numpy()
        told = [CONTENTS.of("a ball", clip) for clip in clips]
        right = [
            said[name][0] == scene.attributes[f"{name}0"]
            for said, scene in zip(told, scenes, strict=True)
            for name in NAMES
        ]
        assert np.mean(right) >= 0.9  # of held-out renders it knows 98 to 100 % of each (training/results)

    @pytest.mark.parametrize(
        ("prompt", "asked"),
        [
            pytest.param("a red ball bounces over green hills", True, id="one"),
            pytest.param("A CLIP of a big pink Heart beats like a heart on navy", True, id="a motion with its word"),
            pytest.param("a white ring moves in a circle at night", True, id="another such motion"),
            pytest.param("a blue plus sign spins under the stars", True, id="two words, and stars that are none"),
            pytest.param("a blue square rises and an orange triangle falls", False, id="two things"),
            pytest.param("snow falls on a mountain range", False, id="no thing"),
            pytest.param("a cat on a mat", False, id="unknown"),
        ],
    )
    def test_it_judges_prompts_with_one_known_thing(self, prompt, asked):
        frames = np.zeros((5, 32, 32, 3), np.uint8)
        assert (CONTENTS.of(prompt, frames) is not None) == asked

    @pytest.mark.parametrize("damage", ["missing", "cut off", "other"])
    def test_a_checkpoint_can_do_without(self, damage, tmp_path):
        folder = tmp_path / FOLDER
        if damage != "missing":
            shutil.copytree(EMBEDDED_CHECKPOINT / FOLDER, folder)
        if damage == "cut off":
            (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
        if damage == "other":
            (folder / "config.json").write_text('{"names": {"colour": ["red"], "shape": [], "motion": []}}')
        assert read_contents(tmp_path) is None


class TestYardstick:
    def test_the_included_one_is_that_of_the_benchmark(self):
        report = json.loads((Path(__file__).parents[1] / "benchmarks/results/likeness.json").read_text())
        found, kinds = read_yardstick(EMBEDDED_CHECKPOINT), report["summary"]["kinds"]
        assert found.rounding == tuple(kinds["dense, another kernel"]["psnr"])
        assert found.other_seed == tuple(kinds["other seed"]["psnr"])

    @pytest.mark.parametrize(
        ("changes", "measured"),
        [
            pytest.param({}, True, id="as measured"),
            pytest.param({"seed": 9, "bsa": None}, True, id="other seed and attention"),
            pytest.param({"steps": 16}, False, id="steps"),
            pytest.param({"width": 272}, False, id="size"),
            pytest.param({"num_frames": 29}, False, id="length"),
        ],
    )
    def test_it_counts_for_what_was_measured(self, changes, measured):
        request = INFO.request("x", **changes)
        assert (read_yardstick(EMBEDDED_CHECKPOINT).for_request(request) is not None) == measured

    def test_not_for_refinements(self):
        stick = Yardstick({"steps": 50}, *STICK.values())
        request = INFO.request("x", steps=50, use_distill=False)
        assert stick.for_request(request) == STICK
        clip = replace(request, lora="refine", start=FromClip(video="a.mp4", double_frames=False))
        assert stick.for_request(clip) is None

    @pytest.mark.parametrize(
        "text", [None, "", "[]", '{"of": {}}', '{"of": {"steps": 8}, "rounding": [1, 2], "other_seed": [1, 2, 3]}']
    )
    def test_a_checkpoint_can_do_without(self, text, tmp_path):
        if text is not None:
            (tmp_path / FILE).write_text(text)
        assert read_yardstick(tmp_path) is None


def video(bsa: BSAConfig | None, shows) -> VideoResult:
    seconds = {"text": 0.1, "denoise": 4.0, "decode": 1.0, "total": 5.2}
    request = INFO.request("a red ball bounces", bsa=bsa)
    values = (request, Path("v.mp4"), seconds, 1, "RSS", 1.0, None, None, bsa is not None, "", {})
    return VideoResult(*values, shows=shows, yardstick=STICK)


def comparison(dense=RED_BALL, sparse=RED_BALL, value: float = 24.0, frames=(30.0, 18.25, 25.0)) -> Comparison:
    videos = video(None, dense), video(BSAConfig(0.75), sparse)
    return Comparison(*videos, Speed(2.0, 2.0, 2.0, "CPU time"), value, 0.9, frames)


@pytest.mark.parametrize(
    ("dense", "sparse", "same"),
    [
        pytest.param(RED_BALL, RED_BALL, True, id="same"),
        pytest.param(RED_BALL, RED_BALL | {"motion": ("spin", 0.95)}, False, id="another motion"),
        pytest.param(RED_BALL, RED_BALL | {"colour": ("pink", 0.89)}, None, id="not sure of one"),
        pytest.param(RED_BALL, None, None, id="not asked"),
    ],
)
def test_same_content(dense, sparse, same):
    assert comparison(dense, sparse).same_content is same


def test_the_figures_of_a_comparison_come_back():
    made = comparison(frames=(30.0, float("inf"), 25.0))
    again = read_comparison(made.dense, made.sparse, json.loads(json.dumps(made.figures(), allow_nan=False)))
    assert again == made
    assert (made.worst_frame, comparison().worst_frame, comparison(frames=()).worst_frame) == (2, 1, None)
    early = read_comparison(made.dense, made.sparse, {"speedup": 1.5, "psnr": None, "ssim": 1.0})
    assert (early.psnr, early.frames, early.speedup) == (float("inf"), (), 1.5)
    assert read_comparison(made.dense, made.sparse, {}) is None


def test_psnr_of_frames():
    first = np.zeros((3, 4, 5, 3), np.uint8)
    second = first.copy()
    second[1], second[2] = 10, 20
    whole, each = psnr_of_frames(first, second)
    assert each == pytest.approx((np.inf, 10 * np.log10(255**2 / 100), 10 * np.log10(255**2 / 400)))
    # of the mean of the errors 0, 100 and 400, which is not the mean of the three
    assert whole == psnr(first, second) == pytest.approx(10 * np.log10(255**2 * 3 / 500))
