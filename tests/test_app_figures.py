"""The headline figures: one number where nothing speaks against it, a range with its reason where something does."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_pipeline import CHECKPOINT

from bsa import BSAConfig
from pipeline import Comparison, VideoResult
from pipeline.request.timing import Speed
from ui.views.figures import figures, figures_html

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
    assert f'<li data-sure="{str(speed.sure).lower()}"><b>{value}</b>' in figures_html(comparison(speed))


def test_likeness_says_that_it_is_measured_before_compression():
    found = {figure.name: figure for figure in figures(comparison(SURE))}
    assert found["PSNR"].value == "31.2 dB" and found["SSIM"].value == "0.910"
    assert all("before compression" in found[name].hint for name in ("PSNR", "SSIM"))
