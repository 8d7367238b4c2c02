"""Requests: geometry, defaults and every value that cannot be used."""

import json

import pytest

from bsa import BSAConfig, Grid
from pipeline import VideoRequest
from pipeline.checkpoint.info import LONGCAT_DEFAULTS

GOOD = {
    "prompt": "a red circle",
    "height": 64,
    "width": 64,
    "num_frames": 29,
    "steps": 3,
    "guidance_scale": 1.0,
    "fps": 15,
    "bsa": BSAConfig(sparsity=0.5),
}


def request(**changes):
    return VideoRequest(**(GOOD | changes))


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        pytest.param((480, 832, 93), Grid(24, 30, 52), id="480p"),
        pytest.param((720, 1280, 93), Grid(24, 45, 80), id="720p-odd-rows"),
        pytest.param((480, 848, 121), Grid(31, 30, 53), id="fastvideo-preset"),
        pytest.param((256, 256, 61), Grid(16, 16, 16), id="embedded"),
        pytest.param((16, 16, 1), Grid(1, 1, 1), id="smallest"),
    ],
)
def test_grid(size, grid):
    height, width, frames = size
    made = request(height=height, width=width, num_frames=frames)
    assert made.grid == grid
    assert made.latent_shape == (grid.t, grid.h * 2, grid.w * 2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"width": 830}, "width 830 is not a multiple of 16; try 816 or 832", id="width"),
        pytest.param({"height": 8}, "height 8 is too small", id="height-small"),
        pytest.param({"height": -64}, "height -64 is too small", id="height-negative"),
        pytest.param({"height": 64.5}, "height 64.5 is not a whole number; try one such as 64", id="height-float"),
        pytest.param({"seed": None}, "seed is empty; enter a number", id="seed-none"),
        pytest.param({"fps": "15"}, "fps '15' is not a number", id="fps-text"),
        pytest.param({"seed": 1e30}, "seed is far too large", id="seed-beyond-all"),
        pytest.param({"num_frames": 20}, "num_frames 20 is not of the form 4n + 1; try 17 or 21", id="frames"),
        pytest.param({"num_frames": 4}, "try 1 or 5", id="frames-below-five"),
        pytest.param({"num_frames": 0}, "num_frames 0 is too small", id="frames-zero"),
        pytest.param({"prompt": " \n"}, "the prompt is empty", id="prompt-empty"),
        pytest.param({"prompt": "\u200b\u2060\ufeff\u200d\u3164\ufe0f"}, "the prompt is empty", id="prompt-no-width"),
        pytest.param({"prompt": "\0\x1b"}, "the prompt is empty", id="prompt-control"),
        pytest.param({"prompt": "x" * 10_000}, "10000 characters, the limit is 5000", id="prompt-long"),
        pytest.param({"negative_prompt": "x" * 10_000}, "the negative prompt has 10000", id="negative-prompt-long"),
        pytest.param({"prompt": "a\ud800b"}, "invalid character at position 1", id="prompt-lone-surrogate"),
        pytest.param({"prompt": None}, "the prompt is a NoneType", id="prompt-none"),
        pytest.param({"steps": 0}, "steps 0 is outside 1 to 1000", id="steps-zero"),
        pytest.param({"steps": True}, "steps True is not a number", id="steps-bool"),
        pytest.param({"steps": 60, "use_distill": True}, "use at most 50", id="steps-distilled"),
        pytest.param({"guidance_scale": 0.5}, "guidance_scale 0.5 is outside 1 to 100", id="guidance-low"),
        pytest.param({"guidance_scale": float("nan")}, "guidance_scale nan", id="guidance-nan"),
        pytest.param({"seed": -1}, "seed -1 is outside", id="seed"),
        pytest.param({"seed": 2**63}, "seed 9223372036854775808 is outside", id="seed-large"),
        pytest.param({"fps": 0}, "fps 0 is outside", id="fps"),
        pytest.param({"bsa": {"sparsity": 0.5}}, "pass a BSAConfig", id="bsa-dict"),
    ],
)
def test_refused(changes, says):
    with pytest.raises(ValueError, match="^[^\n]+$") as refusal:
        request(**changes)
    assert says in str(refusal.value)


def test_emoji_is_text():
    assert request(prompt="🙂 圆").prompt == "🙂 圆"
    assert request(prompt="🏳\ufe0f\u200d🌈").prompt == "🏳\ufe0f\u200d🌈"


def test_a_whole_guidance_scale_is_written_as_any_other():
    assert json.dumps(request(guidance_scale=4).to_dict()) == json.dumps(request(guidance_scale=4.0).to_dict())


@pytest.mark.parametrize(
    ("changes", "active", "says"),
    [
        pytest.param({}, True, "keeps 1 of 2 key blocks", id="sparse"),
        pytest.param({"bsa": BSAConfig(cdf_threshold=0.9)}, True, "as many as the cdf threshold needs of 2", id="cdf"),
        pytest.param({"bsa": None}, False, "dense attention was asked for", id="dense"),
        pytest.param({"num_frames": 1}, False, "single latent frame", id="one-frame"),
    ],
)
def test_workload(changes, active, says):
    work = request(**changes).workload
    assert work.sparse is active and (work.bsa is not None) is (work.blocks is not None) is active
    assert says in work.reason


@pytest.mark.parametrize(("scale", "rows"), [(1, 1), (1.0, 1), (1.5, 2), (4, 2)])
def test_rows_of_guidance(scale, rows):
    assert request(guidance_scale=scale).workload.rows == rows


def test_whole_numbers_as_json_has_them():
    """The form, the API and a script give the same request, and it is written the same."""
    made = request(seed=4.0, steps=8.0, num_frames=5.0, guidance_scale=2)
    assert made == request(seed=4, steps=8, num_frames=5, guidance_scale=2.0)
    assert json.dumps(made.to_dict()) == json.dumps(request(seed=4, steps=8, num_frames=5, guidance_scale=2).to_dict())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="sparse"),
        pytest.param({"bsa": None}, id="dense"),
        pytest.param({"bsa": BSAConfig(sparsity=None, cdf_threshold=0.5, chunk_q=Grid(2, 3, 5))}, id="cdf-only"),
        pytest.param({"prompt": "🙂\0", "seed": 7, "use_distill": True, "negative_prompt": "dark"}, id="other-fields"),
    ],
)
def test_round_trip_through_json(changes):
    made = request(**changes)
    assert VideoRequest.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param({"prompt": "x", "colour": "red"}, "unknown request field 'colour'", id="unknown"),
        pytest.param({"prompt": "x", "bsa": None}, "missing 6 required keyword-only arguments", id="missing"),
    ],
)
def test_from_dict_refuses(values, says):
    with pytest.raises(ValueError, match=says):
        VideoRequest.from_dict(values)


def test_longcat_defaults_make_a_request():
    names = {"num_inference_steps": "steps"}
    made = request(**{names.get(key, key): value for key, value in LONGCAT_DEFAULTS.items()})
    assert made.grid == Grid(24, 30, 52)
