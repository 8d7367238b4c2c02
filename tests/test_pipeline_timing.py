"""Speed-ups from fabricated step times: load cancels out, what does not is said, sweeps are in the order of work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bsa import BSAConfig, Grid
from pipeline import EMBEDDED_CHECKPOINT, Axis, Sweep, SweepResult, SweepVideo, VideoResult, inspect_checkpoint
from pipeline.estimate.estimator import Estimator
from pipeline.machine.measure import OtherPrograms, Stopwatch
from pipeline.model.work_timer import WorkTimer
from pipeline.request.result import speed as speed_between
from pipeline.request.timing import Speed, Timing, equal_work, read_speed, read_timing, reference_steps, speed_of
from pipeline.request.workload import Workload

INFO = inspect_checkpoint(EMBEDDED_CHECKPOINT)
CPU = SimpleNamespace(type="cpu", index=None)
WALL = (10.0, 4.0)  # what a loaded machine's wall clock would say, 2.5
QUIET = {"decode": 4.0, "others": 0.02}


def timing(*steps: float, alike: tuple[int, ...] | None = None, **values) -> Timing:
    return Timing("CPU time", steps, alike or (0,) * len(steps), **QUIET | values)


def work(bsa: BSAConfig | None) -> Workload:
    return Workload.of(Grid(16, 16, 16), 1.0, bsa, 61)


class TestTypicalSeconds:
    @pytest.mark.parametrize(
        ("steps", "alike", "seconds"),
        [
            pytest.param((2.0, 2.0, 2.0), (0, 0, 0), 6.0, id="even"),
            pytest.param((2.0, 9.0, 2.0), (0, 0, 0), 6.0, id="one step disturbed"),
            pytest.param((1.0, 2.0, 4.0, 9.0), (0, 0, 0, 0), 12.0, id="even number: mean of the middle two"),
            pytest.param((5.0, 2.0, 2.0, 2.0), (9, 0, 0, 0), 11.0, id="a dense first step counts as itself"),
            pytest.param((1.0, 2.0, 6.0), (1, 2, 3), 9.0, id="every step of its own kind: the sum"),
        ],
    )
    def test_denoise(self, steps, alike, seconds):
        assert timing(*steps, alike=alike).denoise == pytest.approx(seconds)

    @pytest.mark.parametrize(
        ("bsa", "alike"),
        [
            pytest.param(None, (0, 0, 0), id="dense"),
            pytest.param(BSAConfig(0.75), (0, 0, 0), id="sparse"),
            pytest.param(BSAConfig(0.75, dense_steps=1), (10, 0, 0), id="first step dense"),
            pytest.param(BSAConfig(0.75, dense_layers=2), (2, 2, 2), id="first layers dense"),
            pytest.param(BSAConfig(0.75, select_every=2), (0, 11, 0), id="a step that selects nothing"),
            pytest.param(BSAConfig(None, 0.9), (11, 12, 13), id="the data decide: no two steps alike"),
            pytest.param(BSAConfig(None, 0.9, dense_steps=2), (10, 10, 13), id="but for dense ones"),
        ],
    )
    def test_equal_work(self, bsa, alike):
        assert equal_work(work(bsa), range(3), layers=10) == alike


class TestSpeed:
    def test_load_in_one_step_changes_nothing(self):
        quiet = speed_of(timing(4.0, 4.0, 4.0), timing(2.0, 2.0, 2.0), WALL)
        loaded = speed_of(timing(4.0, 9.0, 4.0), timing(2.0, 2.0, 7.0), WALL)
        assert quiet == loaded == Speed(2.0, 2.0, 2.0, "CPU time")
        assert quiet.sure

    def test_dense_passes_beside_the_sparse_steps_count_instead_of_the_dense_run(self):
        """The machine was half as fast in the sparse run, for both kinds of steps."""
        dense = timing(4.0, 4.0, 4.0, 4.0)
        sparse = timing(4.0, 4.0, 4.0, 4.0, reference=(8.0, 8.0, 8.0))
        assert speed_of(dense, sparse, WALL) == Speed(2.0, 2.0, 2.0, "CPU time")
        # a dense first step is a part of the sparse run: 4 x 8 over 8 + 3 x 4
        mixed = timing(8.0, 4.0, 4.0, 4.0, alike=(10, 0, 0, 0), reference=(8.0, 8.0, 8.0))
        assert speed_of(dense, mixed, WALL).ratio == pytest.approx(32 / 20)

    def test_sparse_passes_beside_the_dense_steps_count_instead_of_the_sparse_run(self):
        """The sparse video came first, and the machine was half as fast in the dense run, for both kinds of steps."""
        dense, beside = timing(8.0, 8.0, 8.0, 8.0), {"reference": (4.0, 4.0, 4.0)}
        assert speed_of(replace(dense, **beside), timing(2.0, 2.0, 2.0, 2.0), WALL) == Speed(2.0, 2.0, 2.0, "CPU time")
        # the first of the passes stands for a dense first step: 4 x 8 over 8 + 3 x 4
        mixed = timing(4.0, 2.0, 2.0, 2.0, alike=(10, 0, 0, 0))
        assert speed_of(replace(dense, reference=(8.0, 4.0, 4.0)), mixed, WALL).ratio == pytest.approx(32 / 20)
        # where the data decide, each stands for its own step: a machine twice as slow in all of them
        each = timing(1.0, 5.0, 3.0, 2.0, alike=(11, 12, 13, 14))
        assert speed_of(replace(dense, reference=(2.0, 6.0, 4.0)), each, WALL).ratio == pytest.approx(32 / 22)
        assert speed_of(replace(dense, **beside), timing(0.0, 2.0, 0.0, 0.0, alike=(1, 2, 3, 4)), WALL).ratio == 16

    def test_passes_of_another_sparse_video_do_not_count(self):
        def made(bsa, timing):
            spent = {"denoise": 1.0}
            return VideoResult(INFO.request("x", bsa=bsa), Path(), spent, 1, "", 1.0, 1, 1, True, "", {}, timing)

        ours, other = BSAConfig(0.75), BSAConfig(0.5)
        sparse = made(ours, timing(2.0, 2.0))
        for of, ratio in ((ours, 2.0), (other, 4.0)):
            beside = timing(8.0, 8.0, reference=(4.0, 4.0), reference_of=of.to_bsa_params())
            assert read_timing(json.loads(json.dumps(beside.to_dict()))) == beside
            assert speed_between(made(None, beside), sparse).ratio == ratio

    @pytest.mark.parametrize(
        ("steps", "places"),
        [
            pytest.param(8, (1, 4, 6), id="eight"),
            pytest.param(50, (8, 25, 41), id="fifty"),
            pytest.param(3, (0, 1, 2), id="three"),
            pytest.param(1, (0,), id="one"),
        ],
    )
    def test_where_the_passes_are(self, steps, places):
        assert reference_steps(steps) == places

    def test_slower_decoding_in_one_run_is_a_doubt_and_its_size_the_range(self):
        # everything of the dense run took 1.5 times as long, its decoding too: the true ratio is 2
        speed = speed_of(timing(6.0, 6.0, decode=6.0), timing(2.0, 2.0, decode=4.0), WALL)
        assert speed.ratio == pytest.approx(3.0)
        assert speed.low == pytest.approx(2.0) and speed.high == pytest.approx(4.5)
        assert speed.doubts == ("decoding is the same work in both, and it took 1.50 times as long in the dense run",)

    def test_it_may_be_the_other_run(self):
        speed = speed_of(timing(4.0, decode=4.0), timing(4.0, decode=8.0), WALL)
        assert speed.low <= 2.0 <= speed.high and "2.00 times as long in the sparse run" in speed.doubts[0]

    def test_other_programs_are_a_doubt_and_the_steps_the_range(self):
        speed = speed_of(timing(3.0, 4.0, 5.0, others=0.5), timing(1.5, 2.0, 2.5), WALL)
        assert speed.doubts == ("other programs used 50% of the processors",)
        # quartiles of 3, 4, 5 are 3.5 and 4.5, of 1.5, 2, 2.5 they are 1.75 and 2.25: more than a factor of 1.15
        assert (speed.low, speed.high) == (pytest.approx(3.5 / 2.25), pytest.approx(4.5 / 1.75))

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param({"decode": 4.3}, id="decoding within a tenth"),
            pytest.param({"decode": 0.01}, id="decoding too short to tell"),
            pytest.param({"others": 0.25}, id="a quarter of the processors"),
            pytest.param({"others": None}, id="load not known"),
        ],
    )
    def test_what_is_no_doubt(self, values):
        assert speed_of(timing(4.0, **values), timing(2.0), WALL).sure

    @pytest.mark.parametrize(
        "dense",
        [pytest.param(None, id="an earlier version"), pytest.param(Timing("GPU time", (1.0,), (0,), 1.0), id="other")],
    )
    def test_without_two_timings_of_one_clock_wall_seconds_count(self, dense):
        speed = speed_of(dense, timing(2.0), WALL)
        assert (speed.ratio, speed.clock, speed.sure) == (2.5, "wall time", True)

    def test_written_and_read_back(self):
        for speed in (Speed(2.0, 2.0, 2.0, "CPU time"), Speed(2.0, 1.5, 2.5, "GPU time", ("a", "b"))):
            assert read_speed(json.loads(json.dumps(speed.to_dict()))) == speed
        assert read_speed({"speedup": 1.5}) == Speed(1.5, 1.5, 1.5, "wall time")  # as earlier versions wrote it
        assert read_speed({}) is None
        whole = timing(1.0, 2.0, reference=(3.0,))
        assert read_timing(json.loads(json.dumps(whole.to_dict()))) == whole


def video(row: int | None, sparsity: float, seconds: float, density: float, **changes) -> SweepVideo:
    bsa = None if row is None else BSAConfig(sparsity)
    request = INFO.request("x", seed=1, bsa=bsa, **changes)
    spent = {"text": 0.1, "denoise": 99.0, "decode": 4.0, "total": 110.0}
    active = row is not None
    result = VideoResult(request, Path("v.mp4"), spent, 1, "", density, None, None, active, "", {}, timing(seconds))
    return SweepVideo(row, None if row is None else 0, request, result)


class TestSweep:
    rows = Axis.of("sparsity", "0.5, 0.75, 0.875")

    def made(self, *seconds: float) -> SweepResult:
        sweep = Sweep(INFO.request("x", bsa=BSAConfig(0.5)), self.rows)
        cells = [video(row, v, s, 1 - v) for row, (v, s) in enumerate(zip(self.rows.values, seconds))]
        return SweepResult(sweep, (), tuple(cells))

    @pytest.mark.parametrize(
        ("seconds", "pairs"),
        [
            pytest.param((6.0, 5.0, 4.0), [], id="in order"),
            pytest.param((6.0, 5.0, 5.2), [], id="within the noise"),
            pytest.param((6.0, 5.0, 5.4), [[[3, 1], [2, 1]]], id="the last is slower than the one before"),
            pytest.param((4.0, 5.0, 6.0), [[[2, 1], [1, 1]], [[3, 1], [1, 1]], [[3, 1], [2, 1]]], id="reversed"),
        ],
    )
    def test_less_work_that_takes_longer_is_said(self, seconds, pairs):
        assert self.made(*seconds).to_dict()["out_of_order"] == pairs

    @pytest.mark.parametrize("flipped", [False, True], ids=["seed by column", "seed by row"])
    def test_mean_and_spread_over_seeds(self, flipped):
        axes = [Axis.of("sparsity", "0.5, 0.75"), Axis.of("seed", "1, 2, 3")]
        sweep = Sweep(INFO.request("x", bsa=BSAConfig(0.5)), *(axes[::-1] if flipped else axes))
        cells = []
        for row in range(2):
            for column, psnr in enumerate((30.0 - 5 * row, 33.0, 36.0 + row)):
                place = (column, row) if flipped else (row, column)
                speed = Speed(2.0 + column, 2.0, 5.0, "CPU time")
                made = video(place[0], 0.5, 1.0, 0.5)
                cells.append(replace(made, column=place[1], speed=speed, psnr=psnr, ssim=0.9, recall=None))
        first, second = SweepResult(sweep, (), tuple(cells)).over_seeds()
        assert (first.setting, first.seeds) == ("sparsity 0.5", 3)
        assert (first.psnr, first.psnr_low, first.psnr_high) == (33.0, 30.0, 36.0)
        assert (second.setting, second.psnr_low, second.psnr_high) == ("sparsity 0.75", 25.0, 37.0)
        assert (first.speedup, first.speedup_low, first.speedup_high) == (3.0, 2.0, 4.0)

    def test_without_several_seeds_there_is_no_spread(self):
        assert self.made(6.0, 5.0, 4.0).over_seeds() == []

    def test_other_steps_are_other_work(self):
        result = self.made(6.0, 5.0, 4.0)
        other = video(2, 0.875, 9.0, 0.125, steps=50)
        assert SweepResult(result.sweep, (), (*result.cells[:2], other)).out_of_order() == []


def test_estimates_expect_the_speed_up_that_comparisons_measure():
    """Runs of a loaded machine: by the wall clock the sparse one was no faster, by the work it took half."""
    estimator = Estimator(INFO, CPU)
    dense = INFO.request("x", bsa=None)
    sparse = replace(dense, bsa=BSAConfig(0.75))
    for request, steps in ((dense, 4.0), (sparse, 2.0)):
        seconds = {"text": 0.1, "denoise": 30.0, "decode": 4.0, "total": 35.0}
        active = request.bsa is not None
        result = VideoResult(
            request, Path("v.mp4"), seconds, 2**30, "", 0.25 if active else 1.0, None, None, active, "", {}
        )
        estimator.observe(replace(result, timing=timing(*(steps,) * 8)))
    expected = estimator.estimate(sparse).speedup(estimator.estimate(dense))
    assert expected == pytest.approx(2.0, rel=0.25)  # a run of the other kind weighs a third in each estimate
    assert estimator.estimate(sparse).seconds["denoise"] == pytest.approx(30.0, rel=0.25)  # how long one waits


def test_earlier_runs_without_work_expect_by_the_wall_clock():
    estimator = Estimator(INFO, CPU)
    dense = estimator.estimate(INFO.request("x", bsa=None))
    assert (dense.work, dense.speedup(dense)) == (None, None)


class TestClocks:
    def test_sleeping_is_no_work(self):
        watch = Stopwatch(torch.device("cpu"))
        marks = [(0.0, 0.0), (5.0, 2.0)]
        assert (watch.wall(*marks), watch.work(*marks), watch.clock) == (5.0, 2.0, "CPU time")
        began = watch.mark()
        sum(range(10**5))
        assert watch.work(began, watch.mark()) > 0

    def test_steps_and_decoding_without_recording(self, monkeypatch):
        """The CPU clock advances by 2 s with every call of the velocity, by 5 s between them and 3 s in decoding."""
        now = 0.0
        monkeypatch.setattr("pipeline.machine.measure.time.process_time", lambda: now)
        timer = WorkTimer(torch.device("cpu"))

        def velocity(*inputs):
            nonlocal now
            now += 2.0
            return inputs[0]

        timed = timer.each(velocity)
        for _ in range(3):
            timed(torch.zeros(1), torch.zeros(1), torch.zeros(1), None)
            now += 5.0
        with timer.decoding():
            now += 3.0
        measured = timer.timing(work(BSAConfig(0.75)), layers=10, recorded=[0.5, 0.0, 0.0])
        assert (measured.steps, measured.decode, measured.alike) == ((1.5, 2.0, 2.0), 3.0, (0, 0, 0))
        assert measured.reference == () and timer.reference_seconds() == 0

    def test_references_are_timed_apart_from_their_steps(self, monkeypatch):
        now, calls = 0.0, []
        monkeypatch.setattr("pipeline.machine.measure.time.process_time", lambda: now)
        monkeypatch.setattr("pipeline.machine.measure.time.perf_counter", lambda: 10 * now)
        timer = WorkTimer(torch.device("cpu"))

        def takes(seconds: float, name: str):
            def velocity(*inputs):
                nonlocal now
                now += seconds
                calls.append(name)
                return inputs[0] + seconds

            return velocity

        timed = timer.each(takes(2.0, "sparse"), takes(6.0, "dense"), at=(1,))
        flows = [timed(torch.zeros(1), torch.zeros(1), torch.zeros(1), None).item() for _ in range(3)]
        with timer.decoding():
            pass
        measured = timer.timing(work(BSAConfig(0.75)), layers=10)
        assert calls == ["sparse", "dense", "sparse", "sparse"] and flows == [2.0, 2.0, 2.0]
        assert (measured.steps, measured.reference) == ((2.0, 2.0, 2.0), (6.0,))
        assert timer.reference_seconds() == 60.0

    def test_the_share_of_others(self, monkeypatch):
        """Of two processors, this process had 3 s and others 5 s in 8 s of the wall clock."""
        times = SimpleNamespace(wall=0.0, idle=0.0, busy=0.0, own=0.0)
        each = lambda: [Times(times.busy / 2, times.idle / 2)] * 2  # noqa: E731
        monkeypatch.setattr("pipeline.machine.measure.psutil.cpu_times", lambda percpu: each())
        monkeypatch.setattr("pipeline.machine.measure.os.sched_getaffinity", lambda _: {0, 1})
        monkeypatch.setattr("pipeline.machine.measure.time.perf_counter", lambda: times.wall)
        monkeypatch.setattr(
            "pipeline.machine.measure.psutil.Process", lambda: SimpleNamespace(cpu_times=lambda: Times(times.own, 0.0))
        )
        others = OtherPrograms()
        assert others.share() is None  # no time has passed
        times.wall, times.idle, times.busy, times.own = 8.0, 8.0, 8.0, 3.0
        assert others.share() == pytest.approx(5 / 16)


class Times(tuple):
    """psutil's named tuple of user and idle seconds."""

    def __new__(cls, user: float, idle: float):
        made = super().__new__(cls, (user, idle))
        made.user, made.idle, made.system = user, idle, 0.0
        return made
