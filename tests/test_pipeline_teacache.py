"""TeaCache: which steps it skips, against the formula written out in float64, and what becomes of a video."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bsa import BSAConfig, Grid
from pipeline import FromImage, VideoRequest, compare
from pipeline.cli.inspect import run_inspect
from pipeline.cli.main import _print_result
from pipeline.estimate.estimator import Estimator
from pipeline.media.attention_record import AttentionRecord, record_path
from pipeline.model.denoising import denoise
from pipeline.model.teacache import TeaCache
from pipeline.request.timing import equal_work
from pipeline.runs import make_video
from pipeline.transformer.kept_selections import KeptSelections

SPARSE = BSAConfig(sparsity=0.5, chunk_q=Grid(2, 2, 2), chunk_k=Grid(2, 2, 2))
NOTHING = torch.zeros(1)


def signals(steps: int) -> list[torch.Tensor]:
    """A walk whose changes differ from step to step by a factor of several."""
    random = torch.Generator().manual_seed(3)
    moves = torch.randn(steps, 5, 7, generator=random) * (0.02 + 0.2 * torch.rand(steps, 1, 1, generator=random))
    return list(1 + moves.cumsum(0))


def steps_run(values: list[torch.Tensor], threshold: float) -> list[int]:
    """The rule in float64: arXiv 2411.19108, equation 5, with the first and the last step always run."""
    ran, total = [], 0.0
    for step, value in enumerate(values):
        if step:
            before = values[step - 1].double()
            total += float((value.double() - before).abs().sum() / before.abs().sum())
        if step in (0, len(values) - 1) or total >= threshold:
            ran.append(step)
            total = 0.0
    return ran


@pytest.mark.parametrize("threshold", [0.0, 0.03, 0.1, 0.37, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 17])
def test_steps_that_run(threshold, steps):
    values = signals(steps)
    given = iter(values)
    cache = TeaCache(threshold, steps, lambda timestep: next(given))
    due = [cache.due(NOTHING) for _ in range(steps)]
    expected = steps_run(values, threshold)
    assert [step for step, runs in enumerate(due) if runs] == cache.ran == expected
    assert len(expected) == steps or threshold > 0


def test_thresholds_of_the_walk_differ():
    """Or the test above would see one kind of decision alone."""
    counts = [len(steps_run(signals(17), threshold)) for threshold in (0.0, 0.03, 0.1, 0.37, 1.0)]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) >= 4


def test_what_is_no_number_runs():
    values = iter([torch.zeros(3), torch.ones(3), torch.full((3,), float("nan")), torch.ones(3), torch.ones(3)])
    cache = TeaCache(1.0, 5, lambda timestep: next(values))
    assert [cache.due(NOTHING) for _ in range(5)] == [True] * 5


def test_spans_name_the_steps_since_the_last_run():
    values = iter([torch.tensor([value]) for value in (1.0, 1.01, 1.02, 2.0, 2.01, 2.02)])
    cache = TeaCache(0.5, 6, lambda timestep: next(values))
    spans = cache.spans()
    assert [next(spans) for _ in range(6) if cache.due(NOTHING)] == [range(1), range(1, 4), range(4, 6)]


# -- the denoising loop -----------------------------------------------------------------------------

SIGMAS = torch.linspace(1, 0, 8) ** 1.3


def run_loop(due=None, scale=1.0, conditioning=0, cached=False):
    """Returns the latents, the timesteps of the calls, and the reported steps."""
    calls, steps = [], []

    def velocity(latents, timestep, text, mask):
        calls.append(round(timestep[0].item(), 3))
        return torch.sin(3 * latents + torch.arange(len(latents)).view(-1, 1, 1, 1, 1)) - latents

    noise = torch.randn(1, 3, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    more = {} if due is None else {"due": due}
    made = denoise(
        velocity,
        SimpleNamespace(timesteps=SIGMAS[:-1] * 1000, sigmas=SIGMAS),
        noise,
        NOTHING,
        None,
        guidance_scale=scale,
        dtype=torch.float32,
        on_step=lambda done, total, clean: steps.append((done, total, clean is not None)),
        conditioning=conditioning,
        cached=cached,
        **more,
    )
    return made, calls, steps


LOOPS = [
    pytest.param({}, id="plain"),
    pytest.param({"scale": 3.0}, id="guided"),
    pytest.param({"conditioning": 1}, id="conditioned"),
    pytest.param({"conditioning": 1, "cached": True, "scale": 3.0}, id="kept-keys"),
]


@pytest.mark.parametrize("options", LOOPS)
def test_a_threshold_of_zero_changes_no_bit(options):
    cache = TeaCache(0.0, 7, lambda timestep: pytest.fail("nothing is to be measured"))
    with_cache, without = run_loop(cache.due, **options), run_loop(**options)
    assert torch.equal(with_cache[0], without[0]) and with_cache[1:] == without[1:]


@pytest.mark.parametrize("options", LOOPS)
def test_a_skipped_step_goes_straight_on(options, monkeypatch):
    """So steps that were skipped make one longer step of the one before: the same as a schedule without them."""
    seen = []

    def measured(timestep):
        seen.append((timestep.dtype, timestep.shape, round(timestep.item(), 3)))
        return torch.tensor([2.0 ** len(seen) if len(seen) in (4, 5) else 1.0])

    cache = TeaCache(0.9, 7, measured)
    made, calls, steps = run_loop(cache.due, **options)
    # what is given is not measured, nor guidance's second row
    assert seen == [(torch.float32, (1,), round(value.item(), 3)) for value in 1000 * SIGMAS[:-1]]
    assert cache.ran == [0, 3, 4, 5, 6]
    assert calls == [round(1000 * SIGMAS[step].item(), 3) for step in cache.ran]
    assert steps == [(0, 7, False), *((done, 7, True) for done in range(1, 8))]
    monkeypatch.setitem(globals(), "SIGMAS", SIGMAS[[0, 3, 4, 5, 6, 7]])
    # a sum of three steps against one: fp32 rounding of numbers around 1
    torch.testing.assert_close(made, run_loop(**options)[0], rtol=0, atol=2e-6)


# -- selections that skipped steps would have made --------------------------------------------------


def test_a_selection_does_not_outlive_a_skipped_step_that_selects():
    bsa = replace(SPARSE, select_every=2)
    kept = KeptSelections(bsa)
    kept.begin(0)
    kept.keep(0, "of step 0")
    kept.begin(1)
    assert kept.of(0) == "of step 0"
    for step in range(2, 4):  # step 2 was skipped
        kept.begin(step)
    assert kept.of(0) is None
    work = SimpleNamespace(bsa=bsa)
    assert equal_work(work, (0, 1, 2, 3), layers=10) == (0, 11, 0, 11)
    assert equal_work(work, (0, 1, 3), layers=10) == (0, 11, 0)


# -- the request ------------------------------------------------------------------------------------


def request_of(**changes):
    values = {"prompt": "x", "height": 64, "width": 64, "num_frames": 9, "steps": 5, "guidance_scale": 1.0, "fps": 15}
    return VideoRequest(**{**values, "bsa": None, **changes})


@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan")])
def test_a_threshold_out_of_range(value):
    with pytest.raises(ValueError, match=f"teacache_thresh {value} is outside 0 to 1; use 0 to run every step, or"):
        request_of(teacache_thresh=value)


def test_a_request_keeps_its_threshold():
    request = request_of(teacache_thresh=0.25, bsa=SPARSE)
    assert VideoRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    assert request.dense.teacache_thresh == 0.25
    assert "teacache_thresh" not in request_of().to_dict()  # which earlier versions can read


# -- videos -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tiny_pipeline):
    return tiny_pipeline.info.request("a red circle", bsa=SPARSE, num_frames=9, steps=6)


@pytest.fixture
def steps_alike(monkeypatch):
    """Every step like the one before, so that the first and the last alone run."""
    monkeypatch.setattr(make_video, "embed_timestep", lambda model, timestep, frames: torch.ones(1))


@pytest.mark.usefixtures("steps_alike")
@pytest.mark.parametrize("forward", ["plain", "fast"])
def test_a_high_threshold_runs_the_ends(tiny_pipeline, asked, forward, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tiny_pipeline, "forward", forward)
    monkeypatch.setattr(tiny_pipeline, "record", True)
    updates = []
    video = tmp_path / "video.mp4"
    request = replace(asked, teacache_thresh=1.0, guidance_scale=2.0, negative_prompt="blue")
    result, frames = tiny_pipeline.generate_frames(request, updates.append, video)
    assert (result.passes, result.skipped) == (2, 4)
    assert [update.step for update in updates if update.phase == "denoise"] == list(range(7))
    assert all(update.preview is not None for update in updates if update.phase == "denoise" and update.step)
    assert len(result.timing.steps) == len(result.timing.alike) == 2
    assert json.loads(json.dumps(result.to_dict()["passes"])) == 2
    record = AttentionRecord.load(record_path(video))
    assert record.sampled.steps == (0, 5)
    assert np.isnan(record.density).all((1, 2)).tolist() == [False, True, True, True, True, False]
    summary = record.summary()
    assert summary["density_by_step"][1] is None
    assert summary["density"] == pytest.approx(np.nanmean(record.density))
    json.dumps(summary, allow_nan=False)
    told = io.StringIO()
    run_inspect(SimpleNamespace(record=record_path(video)), told)
    assert "skipped   4 of 6 steps, by TeaCache" in told.getvalue() and "nan" not in told.getvalue()
    _print_result(result, None)
    assert "passes    2 of 6 steps, the others by TeaCache" in capsys.readouterr().out
    whole, other = tiny_pipeline.generate_frames(replace(request, teacache_thresh=0.0))
    assert (whole.passes, whole.skipped) == (6, 0) and not np.array_equal(frames, other)


@pytest.mark.usefixtures("steps_alike")
def test_after_a_picture(tiny_pipeline, asked, tmp_path):
    """Whose frames keep their latents."""
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    request = replace(asked, teacache_thresh=1.0, start=FromImage(image=str(tmp_path / "red.png")), bsa=None)
    assert tiny_pipeline.generate(request).passes == 2


def test_what_is_measured_is_the_embedding_of_the_timestep(tiny_pipeline, asked):
    """As the schedule and the weights alone say it, in float64."""
    request = replace(asked, teacache_thresh=1.0)
    with tiny_pipeline.exclusive() as model:
        model.start(request)
        embedder, values = model.transformer.time_embedder, []
        layers = embedder.linear_1, embedder.linear_2
        first, second = ([part.detach().double().numpy() for part in (one.weight, one.bias)] for one in layers)
        half = embedder.frequency_embedding_size // 2
        for timestep in model.scheduler.timesteps.double().numpy():
            angles = timestep * np.exp(-np.log(10000) * np.arange(half) / half)
            h = first[0] @ np.concatenate([np.cos(angles), np.sin(angles)]) + first[1]
            values.append(torch.from_numpy(second[0] @ (h / (1 + np.exp(-h))) + second[1]))
    expected = steps_run(values, 1.0)
    assert 2 < len(expected) < 6 and tiny_pipeline.generate(request).passes == len(expected)


@pytest.mark.usefixtures("steps_alike")
def test_both_videos_of_a_pair_have_it(tiny_pipeline, asked, tmp_path):
    pair = compare(tiny_pipeline, replace(asked, teacache_thresh=1.0), output_dir=tmp_path)
    assert (pair.dense.passes, pair.sparse.passes) == (2, 2)
    assert pair.dense.timing.reference == pair.sparse.timing.reference == ()
    assert pair.speedup == pytest.approx(pair.dense.timing.denoise / pair.sparse.timing.denoise)


@pytest.mark.usefixtures("steps_alike")
def test_an_estimate_is_an_upper_bound_and_does_not_learn_from_it(tiny_pipeline, asked):
    estimator = Estimator(tiny_pipeline.info, tiny_pipeline.device)
    skipping = replace(asked, teacache_thresh=1.0)
    estimator.observe(tiny_pipeline.generate(skipping))
    assert estimator.estimate(skipping).seconds is None
    estimator.observe(tiny_pipeline.generate(asked))
    whole, at_most = estimator.estimate(asked), estimator.estimate(skipping)
    assert (whole.at_most, at_most.at_most) == (False, True) and whole.seconds == at_most.seconds
