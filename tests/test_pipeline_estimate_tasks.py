"""What videos with given frames cost, counted by hand: keys and values that are kept, tokens and pairs of a step."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from bsa import BSAConfig
from pipeline import EMBEDDED_CHECKPOINT, FromFrames, FromImage, FromNoise, VideoRequest, inspect_checkpoint
from pipeline.estimate import cost, footprint, refusal
from pipeline.estimate.estimator import Estimator
from pipeline.request.load_options import AS_STORED
from ui.form.preset_rules import LONGCAT_SHAPE

CPU, GPU = SimpleNamespace(type="cpu", index=None), SimpleNamespace(type="cuda", index=0)
INFO = inspect_checkpoint(EMBEDDED_CHECKPOINT)
RATES = cost.reference_rates(CPU)
KEPT, OFF = FromFrames(video="clip.mp4"), FromFrames(video="clip.mp4", kv_cache="off")
SPARSE = BSAConfig(0.75)


def request(start, height=480, width=832, **changes) -> VideoRequest:
    values = {"prompt": "x", "num_frames": 93, "height": height, "width": width, "bsa": None, "start": start}
    return VideoRequest(**{**values, "steps": 50, "guidance_scale": 1.0, "fps": 15, **changes})


@pytest.mark.parametrize(("height", "width", "gigabytes"), [(480, 832, 4.9), (704, 1280, 11.1)])
def test_bytes_of_the_cache(height, width, gigabytes):
    """48 layers, keys and values of 4 latent frames in bfloat16; the blocks' mean keys beside them are a percent."""
    tokens = 4 * (height // 16) * (width // 16)
    asked = request(KEPT, height, width)
    kept = footprint.kv_cache_bytes(LONGCAT_SHAPE, asked, GPU)
    assert kept == 48 * 2 * tokens * 4096 * 2 == pytest.approx(gigabytes * 1e9, rel=0.01)
    with_means = footprint.kv_cache_bytes(LONGCAT_SHAPE, replace(asked, bsa=SPARSE), GPU)
    assert kept < with_means < 1.03 * kept
    cells = replace(SPARSE, selection="cells")  # eight of them in bfloat16 in place of a mean in fp32
    with_cells = footprint.kv_cache_bytes(LONGCAT_SHAPE, replace(asked, bsa=cells), GPU)
    assert with_cells - kept == 4 * (with_means - kept)
    for start in (OFF, FromImage(image="x.png")):
        assert footprint.kv_cache_bytes(LONGCAT_SHAPE, request(start, height, width), GPU) == 0


def test_a_cache_on_the_host_takes_one_layer_of_the_device():
    on_device, on_host = (
        footprint.least_bytes(LONGCAT_SHAPE, request(FromFrames(video="x", kv_cache=place)), GPU, AS_STORED)
        for place in ("device", "host")
    )
    kept = footprint.kv_cache_bytes(LONGCAT_SHAPE, request(KEPT), GPU)
    assert on_device - on_host == kept - kept // 48


@pytest.mark.parametrize("start", [FromNoise(), KEPT], ids=["noise", "clip"])
def test_selections_that_are_kept_take_their_bytes(start):
    asked = request(start, 704, 1280, bsa=SPARSE)
    kept = replace(asked, bsa=replace(SPARSE, select_every=2))
    lists = footprint.selection_bytes(LONGCAT_SHAPE, kept)
    assert lists > 2**30
    for count in (footprint.least_bytes, footprint.activation_bytes):
        assert count(LONGCAT_SHAPE, kept, GPU) - count(LONGCAT_SHAPE, asked, GPU) == lists


def counted(asked) -> float:
    """Denoising seconds at the reference rates, which `cost` is tested for elsewhere."""
    estimator = Estimator(INFO, CPU)
    return estimator._counted("denoise", asked, None)


def test_a_step_with_given_frames_computes_fewer_pairs():
    """Queries of C given frames see C frames, the other T - C see all T."""
    asked = request(OFF, 256, 256, num_frames=61, steps=10)
    shape, frame, steps = Estimator(INFO, CPU)._shape, 256, INFO.steps_run(asked)
    linear = cost.linear_seconds(shape, 12 * frame, RATES) + cost.linear_seconds(shape, 4 * frame, RATES)
    pairs = (4 * 4 + 12 * 16) * frame**2
    expected = steps * shape.depth * (linear + 4 * pairs * shape.hidden / RATES.dense)
    assert counted(asked) == pytest.approx(expected)


def test_kept_frames_run_once():
    shape, frame = Estimator(INFO, CPU)._shape, 256
    asked = request(KEPT, 256, 256, num_frames=61, steps=10)
    steps = INFO.steps_run(asked)
    step = cost.linear_seconds(shape, 12 * frame, RATES) + 4 * 12 * 16 * frame**2 * shape.hidden / RATES.dense
    once = cost.linear_seconds(shape, 4 * frame, RATES) + 4 * 4 * 4 * frame**2 * shape.hidden / RATES.dense
    assert counted(asked) == pytest.approx(shape.depth * (steps * step + once))
    for bsa in (None, SPARSE):
        assert counted(replace(asked, bsa=bsa)) < counted(replace(asked, bsa=bsa, start=OFF))


def test_encoding_is_a_phase_of_as_many_frames_as_are_given():
    estimator = Estimator(INFO, CPU)
    estimator._points = [("decode", 256 * 256, 1.0)]
    seconds = estimator.estimate(request(KEPT, 256, 256, num_frames=61)).seconds
    assert seconds["encode"] == pytest.approx(0.6 * 13 / 61 * seconds["decode"])
    assert "encode" not in estimator.estimate(request(FromNoise(), 256, 256)).seconds


def test_what_does_not_fit_names_a_length_that_still_has_new_frames():
    asked = request(KEPT, num_frames=93)
    with pytest.raises(ValueError, match="what fits: 17 frames at this size"):
        refusal.refuse(asked, lambda other: other.num_frames, 20, GPU)
    with pytest.raises(ValueError) as refused:
        refusal.refuse(asked, lambda other: other.num_frames, 16, GPU)
    assert "frames at this size" not in str(refused.value)


def test_a_cache_that_the_host_cannot_take(monkeypatch):
    monkeypatch.setattr(refusal, "available_memory", lambda device: 4 * 2**30)
    with pytest.raises(ValueError, match=r"keys and values .* take 5.0 GiB of the host's memory and 4.0 GiB are"):
        refusal.check_cache_fits(5 * 2**30)
    refusal.check_cache_fits(3 * 2**30)
