"""The search for the fastest sparsity above a floor: against trying all of them, its limits, and its report."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
from test_pipeline_sweep import BASE, Painter, paint

from bsa import BSAConfig
from pipeline import Cancelled, Floor, Search, SweepVideo, run_sweep
from pipeline.cli.main import main
from pipeline.media.similarity import psnr, ssim
from pipeline.request.timing import Speed
from pipeline.sweeps.search import SPARSITIES

LONG = replace(BASE, num_frames=93, height=256, width=256)  # 6 x 4 x 4 key blocks of 4x4x4
SMALL = replace(BASE, bsa=BSAConfig(chunk_q=(1, 1, 1), chunk_k=(1, 1, 1)))  # 5 x 4 x 6 key blocks
FAST = Painter(seconds=lambda request: 10.0 * (1 - (0 if request.bsa is None else request.bsa.sparsity)))


class TestFloor:
    @pytest.mark.parametrize(
        ("text", "floor"),
        [
            pytest.param("psnr=30", Floor("psnr", 30.0), id="psnr"),
            pytest.param("SSIM = 0.95", Floor("ssim", 0.95), id="ssim, spaces"),
        ],
    )
    def test_is_read(self, text, floor):
        assert Floor.parse(text) == floor

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            pytest.param("psnr", "'psnr' is not NAME=VALUE; write psnr=30", id="no value"),
            pytest.param("psnr=loud", "'psnr=loud' is not NAME=VALUE", id="word"),
            pytest.param("lpips=0.1", "the floor is of 'lpips'; choose among psnr, ssim", id="unknown"),
            pytest.param("ssim=30", "a floor of 30 SSIM is outside 0 to 1", id="dB for SSIM"),
            pytest.param("psnr=-3", "a floor of -3 dB PSNR is outside 0 to 100", id="negative"),
            pytest.param("psnr=inf", "a floor of inf dB PSNR is outside", id="infinite"),
        ],
    )
    def test_refuses(self, text, sentence):
        with pytest.raises(ValueError) as caught:
            Floor.parse(text)
        assert str(caught.value).startswith(sentence)

    @pytest.mark.parametrize("value", [None, "30", True], ids=["empty", "text", "true"])
    def test_a_form_may_give_anything(self, value):
        with pytest.raises(ValueError, match="^floor "):
            Floor("psnr", value)


class TestChoice:
    """Without videos: the search is told made-up figures."""

    @staticmethod
    def play(
        search: Search, quality: dict[float, float | None], speedup=lambda sparsity: 1 + sparsity
    ) -> list[SweepVideo]:
        made: list[SweepVideo] = []
        while (run := search.next_run(made)) is not None:
            video = SweepVideo(run.row, run.column, run.request, result=object())
            if run.row is not None:
                sparsity = run.request.bsa.sparsity
                video = replace(video, psnr=quality[sparsity], speed=Speed(*[speedup(sparsity)] * 3, "CPU time"))
            made.append(video)
        return made

    def test_finds_what_trying_all_would_find(self):
        """Of all falling likenesses with four videos; the definition tries every sparsity."""
        search, rng = Search.of(LONG, Floor("psnr", 30.0)), random.Random(0)
        values = search.rows.values
        assert len(values) == 15
        for _ in range(200):
            falling = sorted((rng.uniform(20, 40) for _ in values), reverse=True)
            quality = dict(zip(values, falling, strict=True))
            made = self.play(search, quality)
            good = [sparsity for sparsity in values if quality[sparsity] >= 30]
            found = search.found(made)
            assert (found and found.request.bsa.sparsity) == (good[-1] if good else None)
            assert len(made) <= 1 + 4
            tried = [video.row for video in made]
            assert len(set(tried)) == len(tried)

    def test_ends_early_with_the_best_so_far(self):
        search = Search.of(LONG, Floor("psnr", 30.0), most=2)
        made = self.play(search, dict.fromkeys(SPARSITIES, 35.0))
        assert [video.row for video in made] == [None, 7, 11]
        assert search.found(made).row == 11

    def test_a_sparse_video_slower_than_dense_is_not_found(self):
        search = Search.of(LONG, Floor("psnr", 30.0))
        made = self.play(search, dict.fromkeys(SPARSITIES, 35.0), speedup=lambda sparsity: 0.9)
        assert search.found(made) is None
        assert search.verdict(made) == "no sparsity that was tried keeps 30 dB PSNR and is faster than dense attention"

    def test_a_video_that_failed_counts_as_not_good_enough(self):
        search = Search.of(LONG, Floor("psnr", 30.0))
        made = self.play(search, {s: None if s > 0.7 else 35.0 for s in SPARSITIES})
        assert search.found(made).request.bsa.sparsity == 0.6875

    def test_equal_numbers_of_kept_blocks_are_tried_once(self):
        few = replace(BASE, num_frames=61, height=128, width=128)  # 4 x 2 x 2 key blocks of 4x4x4
        kept = [few.bsa.blocks(few.grid).k_blocks.volume] + [
            run.request.bsa.blocks(few.grid).min_kept for run in Search.of(few, Floor()).runs()[1:]
        ]
        assert kept[0] == 16 and len(set(kept)) == len(kept)

    def test_what_is_not_expected_to_be_faster_is_left_out(self):
        def seconds(request):
            return 10.0 if request.bsa is None else 15 * (1 - request.bsa.sparsity)

        assert min(Search.of(LONG, Floor(), seconds=seconds).rows.values) == 0.375
        with pytest.raises(
            ValueError, match="no sparsity is expected to be faster than dense attention, which takes 10 s"
        ):
            Search.of(LONG, Floor(), seconds=lambda request: 10.0 + (request.bsa is not None))

    @pytest.mark.parametrize(
        ("changes", "most", "sentence"),
        [
            pytest.param({"bsa": None}, 4, "a search needs block sparse attention", id="dense"),
            pytest.param({"num_frames": 1}, 4, "nothing to search: num_frames 1 is a single latent", id="one frame"),
            pytest.param({}, 0, "0 sparse videos find nothing; allow at least 1", id="none"),
            pytest.param({}, 1.5, "number of videos 1.5 is not a whole number", id="a half"),
        ],
    )
    def test_refuses(self, changes, most, sentence):
        with pytest.raises(ValueError) as caught:
            Search.of(replace(LONG, **changes), Floor(), most)
        assert str(caught.value).startswith(sentence)

    def test_the_rest_of_the_attention_stays(self):
        bsa = BSAConfig(None, 0.9, chunk_q=(2, 4, 4), chunk_k=(2, 4, 4), selection="cells", dense_layers=1)
        for run in Search.of(replace(LONG, bsa=bsa), Floor()).runs()[1:]:
            assert run.request.bsa == replace(bsa, cdf_threshold=None, sparsity=run.request.bsa.sparsity)


class TestRun:
    @pytest.mark.parametrize("quality", ["psnr", "ssim"])
    def test_real_videos_and_their_report(self, tmp_path, quality):
        measure = {"psnr": psnr, "ssim": ssim}[quality]
        sparse = {s: paint(replace(SMALL, bsa=BSAConfig(s))) for s in SPARSITIES}
        figures = {sparsity: measure(paint(SMALL.dense), frames) for sparsity, frames in sparse.items()}
        floor = Floor(quality, (figures[0.5625] + figures[0.625]) / 2)
        best = max(sparsity for sparsity, figure in figures.items() if figure >= floor.least)
        result = run_sweep(FAST, Search.of(SMALL, floor), output_dir=tmp_path)
        report = json.loads((tmp_path / "sweep.json").read_text())
        assert len(result.cells) == 4
        [row, _] = report["search"].pop("found")
        assert report["axes"][0]["values"][row - 1] == best
        assert report["search"] == {"quality": quality, "floor": floor.least, "most": 4}
        assert report["request"]["bsa"]["cdf_threshold"] is None
        verdict = result.sweep.verdict(tuple(result.videos()))
        assert verdict.startswith(
            f"sparsity {best:g} is the fastest that keeps {floor}: denoising {1 / (1 - best):.2f}x"
        )

    def test_without_the_dense_video_nothing_is_searched(self, tmp_path):
        painter = Painter(fails=lambda request: torch.OutOfMemoryError("no") if request.bsa is None else None)
        with pytest.raises(ValueError, match="none of the 1 videos could be made: out of memory"):
            run_sweep(painter, Search.of(SMALL, Floor()), output_dir=tmp_path)

    def test_cancelling_keeps_what_is_done(self, tmp_path):
        painter = Painter()

        def on_step(update):
            if len(painter.made) == 3:
                raise Cancelled

        with pytest.raises(Cancelled):
            run_sweep(painter, Search.of(SMALL, Floor()), on_step, tmp_path)
        assert len(json.loads((tmp_path / "sweep.json").read_text())["cells"]) == 2


class TestCommandLine:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            pytest.param(("--sparsity", "0.5"), "--sparsity is what find searches for", id="sparsity"),
            pytest.param(("--cdf-threshold", "0.9"), "--cdf-threshold is what find searches for", id="cdf"),
            pytest.param(("--floor", "psnr"), "'psnr' is not NAME=VALUE", id="floor"),
            pytest.param(("--most", "0"), "0 sparse videos find nothing", id="most"),
            pytest.param(("--dense",), "--dense leaves nothing to sweep", id="dense"),
        ],
    )
    def test_refuses_before_anything_is_loaded(self, options, sentence, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["find", "--prompt", "x", *options]) == 2
        assert sentence in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_finds_on_a_real_model(self, tiny_checkpoint, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        size = [
            "--height",
            "64",
            "--width",
            "96",
            "--num-frames",
            "17",
            "--steps",
            "2",
            "--chunk-q=2x2x2",
            "--chunk-k=2x2x2",
        ]
        words = ["find", "--model-path", str(tiny_checkpoint), "--prompt", "a red ball", "--device", "cpu"]
        assert main([*words, *size, "--floor", "psnr=100", "--most", "2", "--output", "found"]) == 0
        shown = capsys.readouterr()
        assert "no sparsity that was tried keeps 100 dB PSNR and is faster than dense attention" in shown.out
        assert "video 3 of at most 3: sparsity" in shown.err
        report = json.loads((tmp_path / "found" / "sweep.json").read_text())
        assert report["search"]["found"] is None and len(report["cells"]) == 2
        assert all((tmp_path / "found" / one["video"]).is_file() for one in report["dense"] + report["cells"])
