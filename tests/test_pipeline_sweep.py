"""Sweeps: the cells, the order of the videos, the measurements, failures, and the Pareto front."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from bsa import BSAConfig
from pipeline import Cancelled, StepUpdate, Sweep, VideoRequest, VideoResult, run_sweep
from pipeline.media.similarity import psnr, ssim
from pipeline.sweeps.sweep_axes import parse_axis
from pipeline.sweeps.sweep_result import pareto_front

BASE = VideoRequest(
    prompt="a red ball",
    height=64,
    width=96,
    num_frames=17,
    steps=4,
    guidance_scale=1.0,
    fps=15,
    seed=7,
    bsa=BSAConfig(sparsity=0.75),
)


class Painter:
    """Makes grey frames at once: their brightness is the seed, the noise on them grows with the sparsity.

    seconds: of the denoising of a request. fails: returns the exception to raise for a request, or None.
    """

    device = torch.device("cpu")

    def __init__(self, seconds=lambda request: 1.0, fails=lambda request: None):
        self.seconds, self.fails = seconds, fails
        self.made: list[VideoRequest] = []

    def generate_frames(self, request, on_step, output):
        if on_step is not None:
            on_step(StepUpdate("denoise", 0, request.steps, 0.0))
        if (error := self.fails(request)) is not None:
            raise error
        self.made.append(request)
        output.write_bytes(b"video")
        frames = paint(request)
        work = request.workload
        seconds = {"text": 0.5, "denoise": self.seconds(request), "decode": 0.25, "total": 2.0}
        return (
            VideoResult(request, output, seconds, 2**20, "process RSS", 0.3, None, None, work.sparse, work.reason, {}),
            frames,
        )


def paint(request):
    frames = np.full((request.num_frames, request.height, request.width, 3), 100 + request.seed % 50, np.uint8)
    if request.bsa is not None:
        noise = np.random.default_rng(0).normal(0, 20 * (request.bsa.sparsity or 0), frames.shape)
        frames = (frames + noise).clip(0, 255).astype(np.uint8)
    return frames


def sweep(rows, columns=None, base=BASE):
    return Sweep(base, parse_axis(rows), None if columns is None else parse_axis(columns))


class TestGrid:
    def test_cells_vary_what_is_swept_and_nothing_else(self):
        runs = sweep("sparsity=0.5,0.875", "chunk=2x4x4,4x4x4/4x4x8").runs()
        assert [(run.row, run.column) for run in runs] == [(None, None), (0, 0), (0, 1), (1, 0), (1, 1)]
        expected = BSAConfig(sparsity=0.875, chunk_q=(4, 4, 4), chunk_k=(4, 4, 8))
        assert runs[-1].request == replace(BASE, bsa=expected)
        assert runs[0].request == replace(BASE, bsa=None)

    def test_ways_to_score_and_dense_layers(self):
        runs = sweep("selection=mean,cells", "dense_layers=0,2").runs()
        assert [run.request.bsa for run in runs[1:]] == [
            replace(BASE.bsa, selection=scores, dense_layers=layers)
            for scores in ("mean", "cells")
            for layers in (0, 2)
        ]

    def test_one_dense_reference_per_seed_and_steps_before_its_cells(self):
        runs = sweep("steps=2,4", "seed=1,2").runs()
        assert len(runs) == 8
        told = set()
        for run in runs:
            key = run.request.seed, run.request.steps
            if run.row is None:
                assert run.request.bsa is None and key not in told
                told.add(key)
            assert key in told
        assert len(told) == 4

    def test_file_names_are_different(self):
        for grid in (sweep("steps=2,4", "seed=1,2"), sweep("sparsity=0.5,0.75", "chunk=2x2x2,4x4x4")):
            names = [run.name for run in grid.runs()]
            assert len(set(names)) == len(names)

    @pytest.mark.parametrize(
        ("base", "rows", "columns", "rule"),
        [
            pytest.param((0.75, None), "sparsity=0.5", None, (0.5, None), id="same rule"),
            pytest.param((0.75, None), "cdf-threshold=0.9", None, (None, 0.9), id="the other rule alone"),
            pytest.param((None, 0.9), "sparsity=0.5", None, (0.5, None), id="sparsity alone"),
            pytest.param((0.75, 0.9), "cdf-threshold=0.8", None, (0.75, 0.8), id="both stay"),
            pytest.param((0.75, None), "sparsity=0.5", "cdf-threshold=0.8", (0.5, 0.8), id="both swept"),
        ],
    )
    def test_selection_rules(self, base, rows, columns, rule):
        bsa = BSAConfig(sparsity=base[0], cdf_threshold=base[1])
        cell = sweep(rows, columns, replace(BASE, bsa=bsa)).runs()[-1].request.bsa
        assert (cell.sparsity, cell.cdf_threshold) == rule

    @pytest.mark.parametrize(
        ("rows", "columns", "base", "sentence"),
        [
            pytest.param("seed=1", "seed=2", {}, "rows and columns both sweep the seed; choose two", id="same"),
            pytest.param(
                "seed=1,2", "sparsity=0.5,1.5", {}, "the cell seed 1, sparsity 1.5 cannot be made: sparsity", id="cell"
            ),
            pytest.param("steps=2,0", None, {}, "the cell steps 0 cannot be made: steps 0 is outside", id="steps 0"),
            pytest.param("seed=-1", None, {}, "the cell seed -1 cannot be made", id="negative seed"),
            pytest.param(
                "seed=" + ",".join(map(str, range(13))),
                "steps=1,2,3,4,5",
                {},
                "13 x 5 values make 65 cells, the limit is 64; leave some out",
                id="too many",
            ),
            pytest.param("seed=1", None, {"bsa": None}, "a sweep needs block sparse attention", id="dense"),
            pytest.param("seed=1", None, {"num_frames": 1}, "nothing to sweep: num_frames 1 is", id="one frame"),
        ],
    )
    def test_refuses(self, rows, columns, base, sentence):
        with pytest.raises(ValueError) as caught:
            sweep(rows, columns, replace(BASE, **base))
        assert str(caught.value).startswith(sentence)


class TestRun:
    def test_measures_each_cell_against_its_own_dense_video(self, tmp_path):
        painter = Painter(seconds=lambda request: 6.0 if request.bsa is None else 2.0 + request.seed)
        result = run_sweep(painter, sweep("seed=1,2", "sparsity=0.5,0.75"), output_dir=tmp_path)
        assert [cell.speedup for cell in result.cells] == [2.0, 2.0, 1.5, 1.5]
        for cell in result.cells:
            dense, sparse = paint(replace(cell.request, bsa=None)), paint(cell.request)
            assert cell.psnr == psnr(dense, sparse)
            assert cell.ssim == ssim(dense, sparse)
            assert result.dense_of(cell).request == replace(cell.request, bsa=None)
        assert len(painter.made) == 6

    def test_a_failing_cell_is_noted_and_the_sweep_goes_on(self, tmp_path):
        def fails(request):
            if request.bsa is not None and request.bsa.sparsity == 0.5:
                return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

        result = run_sweep(Painter(fails=fails), sweep("sparsity=0.25,0.5,0.75"), output_dir=tmp_path)
        assert [cell.error for cell in result.cells] == ["", "out of memory", ""]
        assert result.cells[1].result is None and result.cells[1].speedup is None
        assert result.cells[2].psnr is not None

    def test_without_its_dense_video_a_cell_is_made_but_not_compared(self, tmp_path):
        def fails(request):
            return RuntimeError("broken") if request.bsa is None and request.seed == 1 else None

        result = run_sweep(Painter(fails=fails), sweep("seed=1,2"), output_dir=tmp_path)
        first, second = result.cells
        assert first.result is not None and (first.speedup, first.psnr, first.ssim) == (None, None, None)
        assert second.speedup == 1.0
        assert result.dense[0].error == "RuntimeError: broken"

    def test_nothing_made_is_an_error(self, tmp_path):
        painter = Painter(fails=lambda request: ValueError("the prompt has 900 tokens; shorten it"))
        with pytest.raises(ValueError, match="^none of the 3 videos could be made: the prompt has 900 tokens"):
            run_sweep(painter, sweep("sparsity=0.25,0.5"), output_dir=tmp_path)

    def test_a_full_disk_ends_the_sweep(self, tmp_path):
        def fails(request):
            return OSError("no space left on the disk") if request.bsa is not None else None

        with pytest.raises(OSError, match="no space"):
            run_sweep(Painter(fails=fails), sweep("sparsity=0.25,0.5"), output_dir=tmp_path)

    def test_cancelling_keeps_what_is_done(self, tmp_path):
        painter, told = Painter(), []

        def on_step(update):
            if len(painter.made) == 3:
                raise Cancelled

        with pytest.raises(Cancelled):
            run_sweep(painter, sweep("sparsity=0.25,0.5,0.75"), on_step, tmp_path, on_result=told.append)
        assert [len(result.cells) for result in told] == [0, 1, 2]
        kept = json.loads((tmp_path / "sweep.json").read_text())
        assert [cell["sparsity"] for cell in kept["cells"]] == [0.25, 0.5]
        assert all((tmp_path / cell["video"]).is_file() for cell in kept["dense"] + kept["cells"])

    def test_recall_comes_from_the_attention_record(self, tmp_path, monkeypatch):
        class Record:
            @staticmethod
            def load(path):
                assert path.name == "sparse-row1-column1.attention.npz"
                return type("Loaded", (), {"summary": lambda self: {"recall": 0.875}})()

        monkeypatch.setattr("pipeline.sweeps.run_sweep.AttentionRecord", Record)
        (tmp_path / "sparse-row1-column1.attention.npz").touch()
        result = run_sweep(Painter(), sweep("sparsity=0.25,0.5"), output_dir=tmp_path)
        assert [cell.recall for cell in result.cells] == [0.875, None]

    def test_an_unwritable_folder_is_found_before_the_first_video(self, tmp_path):
        (tmp_path / "file").touch()
        painter = Painter()
        with pytest.raises(ValueError, match="cannot write"):
            run_sweep(painter, sweep("seed=1"), output_dir=tmp_path / "file")
        assert not painter.made


class TestExport:
    @pytest.fixture
    def result(self, tmp_path):
        def fails(request):
            if request.bsa is not None and request.bsa.sparsity == 0.5:
                return RuntimeError('two\nlines, and "quotes"')

        return run_sweep(Painter(fails=fails), sweep("sparsity=0,0.5,0.75"), output_dir=tmp_path)

    def test_csv_has_units_and_a_line_per_video(self, result, tmp_path):
        rows = list(csv.DictReader(io.StringIO((tmp_path / "sweep.csv").read_text())))
        assert [row["attention"] for row in rows] == ["dense", "sparse", "sparse", "sparse"]
        assert rows[1]["denoise_seconds [s]"] == "1.0"
        assert rows[1]["psnr [dB]"] == "inf"
        assert float(rows[3]["psnr [dB]"]) == result.cells[2].psnr
        assert rows[3]["peak_memory [bytes]"] == str(2**20)
        assert rows[2]["error"] == 'RuntimeError: two lines, and "quotes"'
        assert rows[2]["psnr [dB]"] == rows[0]["sparsity"] == ""

    def test_json_is_strict_and_complete(self, result, tmp_path):
        def no_constants(name):
            raise AssertionError(name)

        document = json.loads((tmp_path / "sweep.json").read_text(), parse_constant=no_constants)
        assert VideoRequest.from_dict(document["request"]) == BASE
        assert document["axes"] == [{"name": "sparsity", "values": [0.0, 0.5, 0.75]}]
        assert document["units"]["psnr"] == "dB"
        assert document["cells"][0]["psnr"] is None and document["cells"][0]["ssim"] == 1.0
        assert document["pareto_front"]["psnr"] == [[1, 1]]


class TestPareto:
    @pytest.mark.parametrize(
        ("points", "front"),
        [
            pytest.param([], [], id="none"),
            pytest.param([(1, 1)], [0], id="one"),
            pytest.param([(1, 3), (2, 2), (3, 1), (1, 1)], [0, 1, 2], id="chain and a dominated point"),
            pytest.param([(2, 2), (2, 2), (1, 2), (2, 1)], [0, 1], id="equal points stay, ties in one fall"),
            pytest.param([(1, math.inf), (2, math.inf), (3, 5)], [1, 2], id="infinite"),
            pytest.param([(math.nan, 9), (9, math.nan), (1, 1)], [2], id="not a number"),
        ],
    )
    def test_cases(self, points, front):
        assert pareto_front(points) == front

    def test_a_staircase_agrees(self):
        """The front of random points is what a scan from the fastest down leaves: each strictly better than before."""
        rng = random.Random(0)
        for _ in range(200):
            points = [(rng.randrange(6), rng.randrange(6)) for _ in range(rng.randrange(1, 20))]
            stairs, best = set(), -1
            for speed, quality in sorted(set(points), reverse=True):
                if quality > best:
                    stairs.add((speed, quality))
                    best = quality
            assert {points[index] for index in pareto_front(points)} == stairs
            assert pareto_front(points) == [index for index, point in enumerate(points) if point in stairs]

    def test_the_dense_video_takes_part(self, tmp_path):
        times = {0.25: 8.0, 0.5: 4.0, 0.75: 2.0, 0.875: 3.0}
        painter = Painter(seconds=lambda request: 6.0 if request.bsa is None else times[request.bsa.sparsity])
        result = run_sweep(painter, sweep("sparsity=0.25,0.5,0.75,0.875"), output_dir=tmp_path)
        # 0.25 is slower than dense; 0.875 is slower than 0.75 and noisier
        assert [cell.request.bsa.sparsity for cell in result.front("psnr")] == [0.75, 0.5]
        assert result.front("ssim") == result.front("psnr")
        assert result.front("recall") == []
