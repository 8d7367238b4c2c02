"""Estimates before the run: what is counted, how measurements enter, what is refused, what is advised."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bsa import BlockLayout, BSAConfig, Grid, select_blocks
from pipeline import EMBEDDED_CHECKPOINT, LongCatPipeline, VideoRequest, VideoResult, inspect_checkpoint
from pipeline.checkpoint.shape import ModelShape
from pipeline.cli.main import main
from pipeline.estimate import cost, footprint, refusal
from pipeline.estimate.calibrate import measure
from pipeline.estimate.estimator import FILE_NAME, PHASES, Estimator
from pipeline.estimate.refusal import refuse
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.runs.plan import plan_to_load

CPU = SimpleNamespace(type="cpu", index=None)
INFO = inspect_checkpoint(EMBEDDED_CHECKPOINT)
SHAPE = ModelShape.read(INFO)
RATES = cost.reference_rates(CPU)
SPARSE = BSAConfig(sparsity=0.75)
# How much slower than the reference rates an imagined machine is, part by part.
MACHINE = {"linear": 2.0, "dense": 3.0, "sparse": 1.5, "ragged": 1.8, "decode": 2.5}


def request(frames=61, height=256, width=256, bsa=SPARSE, **changes) -> VideoRequest:
    values = {"prompt": "x", "num_frames": frames, "height": height, "width": width, "bsa": bsa}
    return VideoRequest(**{**values, "steps": 10, "guidance_scale": 1.0, "fps": 15, **changes})


def true_seconds(request: VideoRequest) -> dict[str, float]:
    """What the imagined machine takes."""
    grid, rows = request.grid, 2 if request.guidance_scale > 1 else 1
    layer = MACHINE["linear"] * cost.linear_seconds(SHAPE, rows * grid.volume, RATES)
    if request.bsa is None:
        layer += rows * MACHINE["dense"] * cost.dense_seconds(SHAPE, grid.volume, RATES)
    else:
        plan = request.bsa.blocks(grid)
        part = "ragged" if plan.ragged_k or plan.ragged_q else "sparse"
        sparse = cost.sparse_seconds(SHAPE, grid, request.bsa, cost.kept_blocks(request.bsa, grid), RATES)
        layer += rows * MACHINE[part] * sparse
    decode = cost.decode_seconds(SHAPE, request.num_frames, request.height, request.width, RATES)
    return {"text": 0.1, "denoise": request.steps * SHAPE.depth * layer, "decode": MACHINE["decode"] * decode}


def result(request: VideoRequest, slower: float = 1.0, memory: int = 2 * 2**30, density: float = 0.25) -> VideoResult:
    seconds = {phase: slower * value for phase, value in true_seconds(request).items()}
    work = request.workload
    return VideoResult(
        request=request,
        video=None,
        seconds={**seconds, "total": sum(seconds.values()) + 0.2},
        peak_memory=memory,
        peak_memory_label="process RSS",
        density=density if work.sparse else 1.0,
        blocks_kept=None,
        blocks_total=None,
        bsa_active=work.sparse,
        bsa_reason=work.reason,
        versions={},
    )


def calibration() -> list[dict]:
    """What `measure` would find on the imagined machine."""
    points = [{"part": "process", "bytes": 2**30}]
    for grid in (Grid(4, 8, 8), Grid(8, 15, 16), Grid(16, 16, 16)):
        ragged = SPARSE.blocks(grid).ragged_k > 0
        kept = cost.kept_blocks(SPARSE, grid)
        counted = {
            "linear": cost.linear_seconds(SHAPE, grid.volume, RATES),
            "dense": cost.dense_seconds(SHAPE, grid.volume, RATES),
            "sparse": cost.sparse_seconds(SHAPE, grid, SPARSE, kept, RATES),
        }
        for part, seconds in counted.items():
            slower = MACHINE["ragged" if part == "sparse" and ragged else part]
            point = {"part": part, "grid": list(grid), "seconds": slower * seconds}
            points.append({**point, "bsa": SPARSE.to_bsa_params()} if part == "sparse" else point)
    seconds = MACHINE["decode"] * cost.decode_seconds(SHAPE, 5, 96, 96, RATES)
    return [*points, {"part": "decode", "size": [5, 96, 96], "seconds": seconds}]


class TestCounting:
    def test_kept_selections_are_counted(self):
        kept = replace(SPARSE, select_every=2, dense_layers=3)
        assert footprint.selection_bytes(SHAPE, request()) == 0
        # 64 query blocks, each with 16 numbers and their count, in 4 bytes
        lists = (SHAPE.depth - 3) * SHAPE.heads * 64 * (16 + 1) * 4
        assert footprint.selection_bytes(SHAPE, request(bsa=kept)) == lists
        assert footprint.selection_bytes(SHAPE, request(bsa=kept, guidance_scale=4.0)) == 2 * lists
        kept = replace(kept, dense_layers=0)
        estimator = Estimator(INFO, CPU)
        estimator.calibrate(calibration())
        every, some = (estimator.estimate(request(bsa=bsa)) for bsa in (SPARSE, kept))
        assert some.seconds["denoise"] < every.seconds["denoise"]

    def test_shape_of_the_embedded_checkpoint(self):
        assert (SHAPE.hidden, SHAPE.depth, SHAPE.heads, SHAPE.ffn) == (256, 10, 4, 768)
        assert (SHAPE.decoder_width, SHAPE.decoder_patch) == (32, 2)
        assert SHAPE.parameters > INFO.parameters  # the other components count too

    def test_the_linear_layers_are_those_of_the_weights(self):
        # 6 E^2 of projections, 3 E F of the feed-forward; norms, biases and modulation make the small rest
        weights = SHAPE.depth * (8 * SHAPE.hidden**2 + 3 * SHAPE.hidden * SHAPE.ffn)
        assert 0.8 < weights / INFO.parameters < 1

    def test_dense_grows_with_the_square(self):
        assert cost.dense_seconds(SHAPE, 2000, RATES) == pytest.approx(4 * cost.dense_seconds(SHAPE, 1000, RATES))

    def test_a_cut_block_costs_as_much_as_a_whole_one(self):
        whole, cut = Grid(4, 8, 8), Grid(4, 7, 7)
        attended = [
            cost.sparse_seconds(SHAPE, grid, SPARSE, 2, RATES._replace(layout=0, select=0, ragged=1)) / grid.volume
            for grid in (whole, cut)
        ]
        assert attended[0] == pytest.approx(attended[1])

    @pytest.mark.parametrize("threshold", [0.3, 0.9, 0.99])
    def test_a_cdf_threshold_never_keeps_more_than_was_counted(self, threshold):
        grid, config = Grid(4, 12, 16), BSAConfig(sparsity=None, cdf_threshold=threshold)
        layout = BlockLayout(grid, config.chunk_k)
        q, k = torch.randn(2, 1, 2, grid.volume, 8, generator=torch.Generator().manual_seed(0))
        blocks = layout.to_blocks(q), layout.to_blocks(k)
        kept = select_blocks(*blocks, layout, layout, config, scale=0.35).counts.double().mean()
        # a whole block more than the share: the one that crosses the threshold
        assert kept <= cost.kept_blocks(config, grid) + 1
        assert cost.kept_blocks(config, grid, density=0.25) == min(3, threshold * 12)


class TestSeconds:
    def test_nothing_is_invented(self):
        found = Estimator(INFO, CPU).estimate(request())
        assert found.seconds is None
        assert found.basis == "no measurement yet"

    @pytest.mark.parametrize(
        "asked",
        [
            pytest.param(request(), id="sparse"),
            pytest.param(request(bsa=None), id="dense"),
            pytest.param(request(height=240), id="ragged"),
            pytest.param(request(frames=29, height=128, width=192, steps=3), id="small"),
            pytest.param(request(bsa=BSAConfig(sparsity=0.9375, chunk_k=Grid(4, 8, 8))), id="other blocks"),
            pytest.param(request(guidance_scale=4.0), id="guided"),
        ],
    )
    def test_a_calibration_tells_this_machine(self, asked):
        estimator = Estimator(INFO, CPU)
        estimator.calibrate(calibration())
        found = estimator.estimate(asked)
        truth = true_seconds(asked)
        # guided rows share a kernel launch, of which the model counts two
        assert found.seconds["denoise"] == pytest.approx(truth["denoise"], rel=0.05)
        assert found.seconds["decode"] == pytest.approx(truth["decode"])
        assert found.seconds["total"] == pytest.approx(sum(found.seconds[name] for name in PHASES))
        assert found.basis == "a short calibration on this machine"

    @pytest.mark.parametrize("asked", [request(), request(bsa=None)], ids=["sparse", "dense"])
    def test_one_run_is_enough_for_its_like(self, asked):
        estimator = Estimator(INFO, CPU)
        estimator.observe(result(replace(asked, steps=4)))
        found = estimator.estimate(asked)
        assert found.seconds["denoise"] == pytest.approx(true_seconds(asked)["denoise"])
        assert found.seconds["text"] == pytest.approx(0.1)
        assert found.basis == "1 run on this machine"

    def test_runs_outweigh_a_calibration_that_was_wrong(self):
        estimator = Estimator(INFO, CPU)
        estimator.calibrate([{**point, "seconds": 9 * point.get("seconds", 0)} for point in calibration()])
        estimator.observe(result(request()))
        assert estimator.estimate(request()).seconds["denoise"] == pytest.approx(true_seconds(request())["denoise"])

    def test_one_run_among_others_that_was_disturbed_does_not_count(self):
        estimator = Estimator(INFO, CPU)
        for slower in (1.0, 1.1, 20.0, 0.9):
            estimator.observe(result(request(), slower))
        found, truth = estimator.estimate(request()).seconds, true_seconds(request())
        assert 0.9 <= found["denoise"] / truth["denoise"] <= 1.1

    def test_a_machine_that_became_slower_is_believed(self):
        estimator = Estimator(INFO, CPU)
        for slower in [1.0] * 20 + [3.0] * 15:
            estimator.observe(result(request(), slower))
        found, truth = estimator.estimate(request()).seconds, true_seconds(request())
        assert found["denoise"] == pytest.approx(3 * truth["denoise"])

    def test_the_nearer_run_counts_more(self):
        estimator = Estimator(INFO, CPU)
        estimator.observe(result(request(height=512, width=512), 2.0))
        estimator.observe(result(request(height=128, width=128), 1.0))
        large, small = request(height=496, width=512), request(height=128, width=144)
        slower = [
            estimator.estimate(asked).seconds["denoise"] / true_seconds(asked)["denoise"] for asked in (large, small)
        ]
        assert slower[0] > 1.5 * slower[1]

    def test_a_cdf_threshold_learns_its_density(self):
        asked = request(bsa=BSAConfig(sparsity=None, cdf_threshold=0.9))
        estimator = Estimator(INFO, CPU)
        estimator.calibrate(calibration())
        before = estimator.estimate(asked).seconds["denoise"]
        seconds = {**true_seconds(asked), "denoise": before / 3, "total": 1.0}
        estimator.observe(replace(result(asked, density=0.2), seconds=seconds))
        assert estimator.estimate(asked).seconds["denoise"] == pytest.approx(before / 3)


class TestKeeping:
    def test_measurements_survive_and_belong_to_their_checkpoint(self, tmp_path, tiny_checkpoint):
        file = tmp_path / "estimates.json"
        first = Estimator(INFO, CPU, file)
        first.calibrate(calibration())
        first.observe(result(request()))
        assert Estimator(INFO, CPU, file).estimate(request()) == first.estimate(request())
        assert Estimator(inspect_checkpoint(tiny_checkpoint), CPU, file).estimate(request()).seconds is None

    def test_no_prompt_is_kept(self, tmp_path):
        file = tmp_path / "estimates.json"
        Estimator(INFO, CPU, file).observe(result(request(prompt="a secret wish")))
        assert "secret" not in file.read_text()

    def test_two_processes_add_to_one_file(self, tmp_path):
        file = tmp_path / "estimates.json"
        one, other = Estimator(INFO, CPU, file), Estimator(INFO, CPU, file)
        one.observe(result(request()))
        other.observe(result(request(bsa=None)))
        assert other.estimate(request()).basis == "2 runs on this machine"

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param("{", id="cut off"),
            pytest.param("[]", id="a list"),
            pytest.param('{"KEY": {"points": [{"part": "dense"}], "runs": [{}]}}', id="other fields"),
        ],
    )
    def test_a_damaged_file_costs_only_its_measurements(self, tmp_path, content):
        file = tmp_path / "estimates.json"
        Estimator(INFO, CPU, file).observe(result(request()))
        file.write_text(content.replace("KEY", next(iter(json.loads(file.read_text())))))
        estimator = Estimator(INFO, CPU, file)
        assert estimator.estimate(request()).seconds is None


class TestMemory:
    def refusal(self, asked, available):
        with pytest.raises(ValueError) as caught:
            Estimator(INFO, CPU).check(asked, available)
        return str(caught.value)

    def test_refuses_with_numbers_and_sizes_that_fit(self):
        asked, available = request(frames=193, height=1024, width=2048), 2 * 2**30
        text = self.refusal(asked, available)
        assert re.match(r"2048x1024 with 193 frames needs about [\d.]+ GiB of memory and 2\.0 GiB are available", text)
        frames, width, height = map(int, re.search(r"(\d+) frames at this size or (\d+)x(\d+) with all", text).groups())
        for fits, too_large in (
            (replace(asked, num_frames=frames), replace(asked, num_frames=frames + 4)),
            (replace(asked, width=width, height=height), replace(asked, width=width + 32, height=height + 16)),
        ):
            Estimator(INFO, CPU).check(fits, available)
            self.refusal(too_large, available)

    def test_one_frame_is_singular(self):
        def needed(asked):
            return asked.num_frames * asked.height * asked.width

        for frames, available, begins, ends in (
            (1, 64 * 64, "128x128 with 1 frame needs", "what fits: 64x64 with 1 frame"),
            (5, 128 * 128, "128x128 with 5 frames needs", "1 frame at this size or 48x48 with all 5 frames"),
        ):
            with pytest.raises(ValueError) as caught:
                refuse(request(frames=frames, height=128, width=128), needed, available, CPU)
            assert str(caught.value).startswith(begins) and str(caught.value).endswith(ends)

    def test_says_when_nothing_fits(self):
        assert "no size fits" in self.refusal(request(), 2**20)

    def test_a_measured_peak_refuses_what_counting_alone_would_try(self):
        estimator = Estimator(INFO, CPU)
        estimator.calibrate(calibration())
        estimator.check(request(), 3 * 2**30)
        for _ in range(3):
            estimator.observe(result(request(), memory=8 * 2**30))
        assert estimator.estimate(request()).memory == pytest.approx(8 * 2**30, rel=1e-6)
        with pytest.raises(ValueError, match="61 frames needs about"):
            estimator.check(request(), 3 * 2**30)

    def test_weights_that_cannot_fit_are_refused_before_loading(self, monkeypatch):
        monkeypatch.setattr(refusal, "available_memory", lambda device: 2**20)
        with pytest.raises(ValueError, match=r"the weights of longcat-tiny take 0\.\d GiB in fp32 and 0\.0 GiB"):
            Estimator(INFO, CPU, weights=LoadOptions(precision="fp32")).check_load()
        with pytest.raises(ValueError, match="the weights of longcat-tiny"):
            plan_to_load(INFO, [request()], AS_STORED, CPU)

    def test_the_command_line_refuses_before_loading(self, monkeypatch, capsys):
        monkeypatch.setattr(LongCatPipeline, "load", lambda *_, **__: pytest.fail("nothing may be loaded"))
        huge = ["--width", "2048", "--height", "2048", "--num-frames", "40001"]
        for command in (["generate"], ["generate", "--compare"], ["sweep", "--rows", "sparsity=0.5,0.75"]):
            assert main([*command, "--prompt", "x", *huge]) == 2
            assert "error: 2048x2048 with 40001 frames needs about" in capsys.readouterr().err


def test_the_command_line_tells_what_a_video_should_take(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    own = request(steps=INFO.defaults["num_inference_steps"])
    Estimator(INFO, CPU, tmp_path / "outputs" / FILE_NAME).observe(result(own))
    assert main(["info", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["seconds_expected"]["denoise"] == pytest.approx(true_seconds(own)["denoise"], abs=0.001)
    assert report["estimated_from"] == "1 run on this machine"
    assert 0 < report["memory_expected"] < report["memory_available"]


def test_a_real_pipeline_can_be_measured(tiny_pipeline):
    points = measure(tiny_pipeline)
    assert {point["part"] for point in points} == {"process", "linear", "dense", "sparse", "decode"}
    estimator = Estimator(tiny_pipeline.info, tiny_pipeline.device)
    estimator.calibrate(json.loads(json.dumps(points)))
    found = estimator.estimate(request(frames=17, height=64, width=64))
    assert all(found.seconds[phase] > 0 for phase in PHASES)
    idle = next(point["bytes"] for point in points if point["part"] == "process")
    assert found.memory > idle


@pytest.mark.parametrize(
    ("grid", "chunk", "factor"),
    [
        pytest.param(Grid(16, 16, 16), (4, 4, 4), 1.0, id="whole"),
        pytest.param(Grid(16, 15, 16), (4, 4, 4), RATES.ragged, id="rows-cut"),
        pytest.param(Grid(16, 16, 16), (4, 4, 5), RATES.ragged, id="columns-cut"),
        pytest.param(Grid(15, 16, 16), (4, 4, 4), RATES.ragged, id="frames-cut"),
    ],
)
def test_blocks_cut_by_the_edge_cost_more(grid, chunk, factor):
    """All of sparse attention, by the factor that was measured, and only where a block is cut."""
    bsa = BSAConfig(sparsity=0.75, chunk_q=chunk, chunk_k=chunk)
    seconds = cost.sparse_seconds(SHAPE, grid, bsa, 8, RATES)
    assert seconds / cost.sparse_seconds(SHAPE, grid, bsa, 8, RATES._replace(ragged=1.0)) == pytest.approx(factor)
    assert 1.2 <= RATES.ragged <= 2.0  # padding and masks were never free, and never doubled the time
