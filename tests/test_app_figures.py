"""The headline figures: one number where nothing speaks against it, a range with its reason where something does."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from fake_pipeline import CHECKPOINT

from bsa import BSAConfig
from pipeline import Comparison, VideoResult
from pipeline.request.timing import Speed
from ui.look.figures import figures
from ui.views.likeness import content_text, likeness_html
from ui.views.report import table_rows

SURE = Speed(1.954, 1.954, 1.954, "CPU time")
DOUBTS = ("decoding is the same work in both, and it took 1.31 times as long in the dense run",)
UNSURE = Speed(1.954, 1.48, 2.53, "CPU time", DOUBTS)


def comparison(speed: Speed, psnr: float = 31.25) -> Comparison:
    videos = []
    for bsa in (None, BSAConfig(0.75)):
        seconds = {"text": 0.1, "denoise": 4.0, "decode": 1.0, "total": 5.2}
        request, density = CHECKPOINT.request("x", bsa=bsa), 1.0 if bsa is None else 0.25
        videos.append(
            VideoResult(request, Path("v.mp4"), seconds, 1, "RSS", density, None, None, bsa is not None, "", {})
        )
    return Comparison(*videos, speed, psnr, 0.91)


def test_steps_that_ran():
    pair = comparison(SURE)
    name = "Steps run, the others by TeaCache"
    whole = {"dense": replace(pair.dense, passes=8, skipped=0), "sparse": pair.sparse}  # as of an earlier version
    assert name not in dict(table_rows(whole))
    some = {"dense": replace(pair.dense, passes=8, skipped=0), "sparse": replace(pair.sparse, passes=3, skipped=5)}
    assert dict(table_rows(some))[name] == ["8 of 8", "3 of 8"]


@pytest.mark.parametrize(
    ("speed", "value", "name", "hint"),
    [
        pytest.param(SURE, "1.95×", "denoising speed-up", "dense seconds ÷ sparse seconds, in CPU time", id="sure"),
        pytest.param(
            UNSURE,
            "1.5 to 2.5×",
            "denoising speed-up, not certain",
            "Decoding is the same work in both, and it took 1.31 times as long in the dense run. "
            "Make both again when the machine is idle.",
            id="in doubt",
        ),
    ],
)
def test_the_speed_up(speed, value, name, hint):
    first = figures(comparison(speed))[0]
    assert first == (value, name, hint, speed.sure)


def test_likeness_says_that_it_is_measured_before_compression():
    found = {figure.name: figure for figure in figures(comparison(SURE))}
    assert found["PSNR"].value == "31.2 dB" and found["SSIM"].value == "0.910"
    assert all("before compression" in found[name].hint for name in ("PSNR", "SSIM"))


RED_BALL = {"colour": ("red", 0.99), "shape": ("ball", 0.98), "motion": ("bounce", 0.97)}
STICK = {"rounding": (56.2, 48.5, 60.2), "other_seed": (20.2, 7.9, 28.4)}


def with_likeness(psnr: float, sparse=RED_BALL, stick=STICK) -> Comparison:
    made = comparison(SURE, psnr)
    videos = {
        arm: replace(result, shows=shows, yardstick=stick)
        for arm, result, shows in (("dense", made.dense, RED_BALL), ("sparse", made.sparse, sparse))
    }
    return replace(made, **videos, frames=(30.0, 18.25, float("inf"), 25.0))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        pytest.param(
            with_likeness(24.0),
            "Both show a red ball, motion: bounce. The PSNR is no higher than between two seeds, so it is the same "
            "content at another place or moment.",
            id="elsewhere",
        ),
        pytest.param(with_likeness(35.0), "Both show a red ball, motion: bounce.", id="in the same place"),
        pytest.param(with_likeness(24.0, stick=None), "Both show a red ball, motion: bounce.", id="no yardstick"),
        pytest.param(
            with_likeness(24.0, RED_BALL | {"shape": ("ring", 0.96)}),
            "They show different things: dense a red ball (motion: bounce), sparse a red ring (motion: bounce).",
            id="something else",
        ),
        pytest.param(with_likeness(24.0, RED_BALL | {"shape": ("ring", 0.5)}), "", id="not sure"),
        pytest.param(with_likeness(24.0, None), "", id="not judged"),
    ],
)
def test_what_the_two_show(made, said):
    assert content_text(made) == said
    assert said in unescape(likeness_html(made))


def test_the_curve_and_what_it_is_worth():
    text = unescape(likeness_html(with_likeness(24.0)))
    assert "PSNR of each frame against dense, before compression" in text
    assert "Worst frame: 2 of 4, 18.2 dB" in text
    assert "Rounding alone (dense attention by another kernel): 56.2 dB" in text
    assert "Another seed of the same prompt: 20.2 dB, mostly 7.9 to 28.4" in text
    points = re.search(r'points="([^"]+)"', text)[1].split()
    # the top is at 6, the bottom at 104: rounding and infinity, and the worst frame
    assert [point.split(",") for point in points] == [
        ["0.0", "73.7"],
        ["200.0", "104.0"],
        ["400.0", "6.0"],
        ["600.0", "86.6"],
    ]


def test_without_figures_of_frames_or_a_yardstick_nothing_is_made_up():
    assert likeness_html(comparison(SURE)) == ""
    text = likeness_html(with_likeness(24.0, stick=None))
    assert "Worst frame" in text and "Rounding" not in text and "Another seed" not in text
