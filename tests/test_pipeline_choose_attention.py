"""The automatic choice of attention: against a plain search over all settings, and in every case that has a rule."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from test_pipeline_estimate import calibration

from bsa import BSAConfig
from pipeline import EMBEDDED_CHECKPOINT, FromClip, VideoRequest, inspect_checkpoint
from pipeline.cli.main import main
from pipeline.cli.parser import build_parser
from pipeline.cli.read import read_request
from pipeline.estimate.advice import WORTH
from pipeline.estimate.choose_attention import LEAST_KEPT, NEARLY, SCORES, SPARSITIES, choose_attention
from pipeline.estimate.estimator import Estimate, Estimator
from pipeline.machine.device import DeviceName
from pipeline.media.comment import read_settings

INFO = inspect_checkpoint(EMBEDDED_CHECKPOINT)
LONGCAT = BSAConfig()  # 0.9375, 4x4x4
HD = INFO.request("x", width=1280, height=704, num_frames=93, steps=50, guidance_scale=4.0, use_distill=False)
SD = replace(HD, width=832, height=480)
GIB = 2**30


def machine(dense: float, sparse: dict[tuple[float, str], float] | float, memory=lambda request: GIB):
    """An estimate from the seconds of denoising by (sparsity, scores)."""

    def estimate(request: VideoRequest) -> Estimate:
        seconds = dense
        if request.bsa is not None:
            key = request.bsa.sparsity, request.bsa.selection
            seconds = sparse[key] if isinstance(sparse, dict) else sparse
        return Estimate({"denoise": seconds, "total": seconds}, memory(request), "process RSS", 0, "3 runs")

    return estimate


def linear(dense: float, fixed: float, cells: float = 0.0):
    """A machine whose sparse time is what is fixed and the kept share of the rest."""
    times = {(s, c): fixed + (dense - fixed) * (1 - s) + cells * (c == "cells") for s in SPARSITIES for c in SCORES}
    return machine(dense, times)


@pytest.mark.parametrize(
    ("request_", "estimate", "chosen"),
    [
        pytest.param(HD, linear(600, 100), (0.9375, "cells"), id="attention is most: sparsest, cells cost nothing"),
        pytest.param(HD, linear(600, 100, cells=60), (0.9375, "mean"), id="cells cost too much"),
        pytest.param(HD, linear(600, 480), (0.75, "cells"), id="little to save: closest of the nearly fastest"),
        pytest.param(HD, linear(600, 560), None, id="nothing to save"),
        pytest.param(replace(HD, num_frames=1), linear(600, 1), None, id="a single latent frame"),
        pytest.param(replace(HD, width=96, height=64), linear(600, 1), None, id="12 key blocks"),
        pytest.param(INFO.request("x"), linear(10, 1), (0.75, "cells"), id="64 key blocks: 16 are left at 0.75"),
    ],
)
def test_time_decides_and_likeness_among_the_nearly_fastest(request_, estimate, chosen):
    found = choose_attention(request_, LONGCAT, estimate)
    assert (found.bsa and (found.bsa.sparsity, found.bsa.selection)) == chosen
    assert found.auto.startswith("automatic: ")
    assert replace(found, bsa=request_.bsa, auto=None) == request_  # nothing else changes


def test_against_a_search_over_all_settings():
    """Of the settings that take up to a tenth longer than the fastest, the first in order of likeness, if BSA pays."""
    rng, seen = random.Random(0), set()
    for _ in range(300):
        base = BSAConfig(rng.choice([0.5, 0.8, 0.9375, None]), 0.9, chunk_q=(4, 4, 4), chunk_k=(4, 4, 4))
        asked = replace(
            SD, width=16 * rng.randint(8, 52), height=16 * rng.randint(8, 30), num_frames=4 * rng.randint(1, 30) + 1
        )
        times = {(s, c): rng.uniform(1, 3) for s in SPARSITIES for c in SCORES}
        dense = rng.uniform(1, 4)
        blocks = base.blocks(asked.grid).k_blocks.volume
        allowed = [
            key
            for key in sorted(times)
            if key[0] <= (base.sparsity or 1) and int((1 - key[0]) * blocks + 1e-6) >= LEAST_KEPT
        ]  # sorted: by sparsity, and "cells" before "mean"
        expected = None
        if allowed:
            fastest = min(times[key] for key in allowed)
            if dense >= WORTH * fastest:
                expected = [key for key in allowed if times[key] <= NEARLY * fastest][0]
        found = choose_attention(asked, base, machine(dense, times)).bsa
        assert (found and (found.sparsity, found.selection)) == expected
        assert found is None or (found.chunk_q, found.cdf_threshold) == (base.chunk_q, None)
        seen.add(expected)
    assert len(seen) == 1 + len(SPARSITIES) * len(SCORES)


def test_a_machine_that_was_not_measured_follows_the_usual_rules():
    def unknown(request):
        return Estimate(None, GIB, "process RSS", 0, "no measurement yet")

    large, small = (choose_attention(one, LONGCAT, unknown) for one in (HD, SD))
    assert large.bsa == replace(LONGCAT, selection="cells") and "84,480 tokens" in large.auto
    assert small.bsa is None and "37,440 tokens" in small.auto
    for one in (large, small):
        assert "has not been measured yet" in one.auto
    assert choose_attention(HD, LONGCAT, lambda request: None) == large  # a model without estimates


@pytest.mark.parametrize(
    ("dense", "sparse", "chosen", "words"),
    [
        pytest.param(
            9, 5, (0.9375, "cells"), "fits into memory at about 5.0 GiB; dense attention would need 9.0", id="no dense"
        ),
        pytest.param(
            5, 9, None, "dense, which fits into memory at about 5.0 GiB; BSA would need 9.0 GiB", id="no sparse"
        ),
        pytest.param(9, 9, None, "would take", id="neither: the plan refuses, time is weighed"),
    ],
)
def test_what_does_not_fit_is_not_chosen(dense, sparse, chosen, words):
    estimate = machine(100, 99, lambda request: GIB * (dense if request.bsa is None else sparse))
    found = choose_attention(HD, LONGCAT, estimate, available=8 * GIB)
    assert (found.bsa is not None) == (chosen is not None)
    assert words in found.auto


def test_a_refinement_takes_the_setting_that_its_adapter_knows():
    clip = replace(HD, start=FromClip(video="clip.mp4"), num_frames=186, guidance_scale=1.0, lora="refine")
    assert choose_attention(clip, LONGCAT, machine(100, 50)).bsa == LONGCAT
    assert choose_attention(clip, LONGCAT, machine(100, 95)).bsa is None


def test_numbers_in_the_reason_are_the_estimates():
    found = choose_attention(INFO.request("x"), INFO.sparse, linear(10, 2))
    assert found.auto == (
        "automatic: sparsity 0.75 by cells at about 4 s of denoising, where dense attention takes 10 s; "
        "each query block keeps 16 of 64 key blocks"
    )
    assert choose_attention(SD, LONGCAT, machine(100, 95)).auto == (
        "automatic: dense at about 100 s of denoising; the fastest BSA setting would take 95 s"
    )


def test_times_without_load_decide_where_they_are_known():
    """Other programs ran beside the sparse video alone: by the wall clock it was no faster, by its work a third."""
    work = {(s, c): 400.0 for s in SPARSITIES for c in SCORES} | {(0.9375, "mean"): 200.0}
    by_wall = machine(600, 610)

    def estimate(request: VideoRequest) -> Estimate:
        took = 600.0 if request.bsa is None else work[request.bsa.sparsity, request.bsa.selection]
        return replace(by_wall(request), work=took)

    assert choose_attention(HD, LONGCAT, by_wall).bsa is None
    found = choose_attention(HD, LONGCAT, estimate)
    assert (found.bsa.sparsity, found.bsa.selection) == (0.9375, "mean")
    assert "at about 200 s of denoising, where dense attention takes 600 s" in found.auto


def test_a_calibration_is_enough():
    estimator = Estimator(INFO, DeviceName("cpu"))
    estimator.calibrate(calibration())
    found = choose_attention(INFO.request("x"), INFO.sparse, estimator.estimate)
    dense, sparse = (estimator.estimate(one).seconds["denoise"] for one in (found.dense, found))
    assert found.bsa == replace(INFO.sparse, selection="cells") and dense >= WORTH * sparse
    assert f"at about {sparse:.3g} s of denoising, where dense attention takes {dense:.3g} s" in found.auto


class TestWrittenDown:
    REQUEST = choose_attention(INFO.request("x"), INFO.sparse, linear(10, 2))

    def test_settings_say_what_was_chosen_and_why(self):
        written = json.loads(json.dumps(self.REQUEST.to_dict()))
        assert written["bsa"]["sparsity"] == 0.75 and written["bsa"]["selection"] == "cells"
        assert written["auto"] == self.REQUEST.auto
        assert VideoRequest.from_dict(written) == self.REQUEST

    def test_settings_of_earlier_versions_and_for_them(self):
        asked = INFO.request("x")
        assert "auto" not in asked.to_dict()
        assert VideoRequest.from_dict(asked.to_dict()) == asked

    def test_what_it_is_compared_with_was_not_chosen(self):
        assert self.REQUEST.dense == replace(INFO.request("x"), bsa=None)
        assert self.REQUEST.dense.workload.reason == "dense attention was asked for"

    @pytest.mark.parametrize("value", [3, "x" * 6000, "\ud800"], ids=["number", "endless", "half a character"])
    def test_odd_reasons_are_refused(self, value):
        with pytest.raises(ValueError, match="the auto "):
            VideoRequest.from_dict(self.REQUEST.to_dict() | {"auto": value})


def parsed(*options: str) -> VideoRequest:
    args = build_parser().parse_args(["generate", "--prompt", "x", *options])
    return read_request(args, INFO)


class TestCommandLine:
    @pytest.mark.parametrize(
        ("options", "bsa"),
        [
            pytest.param(("--bsa", "off"), None, id="off"),
            pytest.param(("--bsa", "on"), INFO.sparse, id="on"),
            pytest.param(("--bsa", "on", "--sparsity", "0.5"), replace(INFO.sparse, sparsity=0.5), id="on, changed"),
            pytest.param(("--bsa", "auto"), INFO.sparse, id="auto starts from the checkpoint's"),
        ],
    )
    def test_the_option(self, options, bsa):
        assert parsed(*options).bsa == bsa

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            pytest.param(
                ("--bsa", "auto", "--sparsity", "0.5"), "--bsa auto chooses the attention and --sparsity", id="auto"
            ),
            pytest.param(("--bsa", "off", "--chunk-q", "4x4x4"), "--bsa off and --chunk-q contradict", id="off"),
            pytest.param(("--bsa", "off", "--compare"), "--bsa off and --compare contradict", id="compare"),
            pytest.param(("--bsa", "auto", "--dense"), "--dense and --bsa auto contradict", id="dense"),
        ],
    )
    def test_contradictions(self, options, sentence):
        with pytest.raises(ValueError, match=sentence):
            parsed(*options)

    def test_a_sweep_chooses_nothing(self, capsys):
        assert main(["sweep", "--prompt", "x", "--rows", "seed=1", "--bsa", "auto"]) == 2
        assert "--bsa auto leaves nothing to sweep" in capsys.readouterr().err

    def test_info_says_what_would_be_chosen(self, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["info", "--bsa", "auto", "--num-frames", "1"]) == 0
        assert "automatic: dense, as LongCat always does with a single latent frame" in capsys.readouterr().out


def test_the_pipeline_measures_itself_and_the_video_says_why(tiny_pipeline, tmp_path):
    store = tmp_path / "new" / "estimates.json"
    request = tiny_pipeline.info.request("a red ball", num_frames=17, steps=1, height=64, width=96)
    chosen = tiny_pipeline.choose_attention(request, store)
    assert json.loads(store.read_text())  # so the next one takes no measurement
    assert chosen.bsa is None and "key blocks are too few" in chosen.auto
    result = tiny_pipeline.generate(chosen, output=tmp_path / "video.mp4")
    assert result.bsa_reason == chosen.auto
    assert read_settings(result.video).request.auto == chosen.auto
