"""The page without a browser: form, plan, preview, table, readings, job worker and command line."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from app_server import until
from fake_pipeline import CHECKPOINT, FakePipeline
from PIL import Image

import app
from bsa import BSAConfig
from ui.form.plan_panel import plan_panel
from ui.form.read import form_request
from ui.jobs.job import VideoJob
from ui.jobs.worker import Worker
from ui.look.figures import figures
from ui.views.preview_strip import MAX_FRAMES, preview_strip
from ui.views.report import report_panel, table_rows

FORM = {
    "prompt": "a red ball",
    "negative_prompt": "",
    "mode": "both",
    "sparsity": 0.75,
    "keep_by": "top-k",
    "selection": "mean",
    "dense_steps": 0,
    "dense_layers": 0,
    "select_every": 1,
    "cdf_threshold": 0.9,
    **{f"chunk_{kind}_{axis}": 4 for kind in "qk" for axis in "thw"},
    "width": 96,
    "height": 64,
    "num_frames": 17,
    "steps": 4,
    "guidance_scale": 1.0,
    "seed": 7,
    "randomise": False,
}


class TestForm:
    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            pytest.param({}, BSAConfig(sparsity=0.75), id="top-k"),
            pytest.param({"keep_by": "mass"}, BSAConfig(sparsity=None, cdf_threshold=0.9), id="mass"),
            pytest.param({"keep_by": "top-k and mass"}, BSAConfig(sparsity=0.75, cdf_threshold=0.9), id="both"),
            pytest.param({"chunk_k_w": 8.0}, BSAConfig(sparsity=0.75, chunk_k=(4, 4, 8)), id="unequal chunks"),
            pytest.param({"mode": "dense", "sparsity": None}, None, id="dense needs no sparsity"),
        ],
    )
    def test_attention(self, change, expected):
        assert form_request(CHECKPOINT, FORM | change).bsa == expected

    def test_the_rest_reaches_the_request(self):
        request = form_request(CHECKPOINT, FORM | {"width": 112.0, "negative_prompt": "grey", "steps": 9})
        assert (request.width, request.height, request.num_frames, request.steps) == (112, 64, 17, 9)
        assert (request.prompt, request.negative_prompt, request.seed, request.fps) == ("a red ball", "grey", 7, 15)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            pytest.param({"width": 830}, "width 830 is not a multiple of 16; try 816 or 832", id="width"),
            pytest.param({"num_frames": 18}, "num_frames 18 is not of the form 4n + 1; try 17 or 21", id="frames"),
            pytest.param({"sparsity": 1.0}, "sparsity must be at least 0 and below 1, got 1.0", id="sparsity 1"),
            pytest.param({"chunk_q_h": 0}, "chunk_q must be three positive integers", id="chunk 0"),
            pytest.param({"chunk_q_h": 2.5}, "query chunk H 2.5 is not a whole number; try", id="half a row"),
            pytest.param({"height": None}, "height is empty; enter a number", id="empty field"),
            pytest.param({"seed": float("nan")}, "seed nan is not a whole number", id="not a number"),
            pytest.param({"seed": 10**400}, "seed is far too large; enter a smaller number", id="beyond floats"),
            pytest.param({"sparsity": 10**400}, "sparsity is far too large", id="sparsity beyond floats"),
            pytest.param({"prompt": None}, "the prompt is empty", id="no prompt"),
            pytest.param({"prompt": "x" * 10_000}, "the prompt has 10000 characters", id="endless prompt"),
        ],
    )
    def test_refuses(self, change, sentence):
        with pytest.raises(ValueError, match="^" + re.escape(sentence)) as caught:
            form_request(CHECKPOINT, FORM | change)
        assert "\n" not in str(caught.value)


class TestPlan:
    def test_divisible_grid(self):
        # 17 frames are 5 latent frames, 64x96 pixels are 4x6 tokens; chunks of 1x2x2 divide that
        text = plan_panel(CHECKPOINT, FORM | {f"chunk_{k}_{a}": {"t": 1}.get(a, 2) for k in "qk" for a in "thw"})
        assert "BSA active" in text
        assert "5 × 4 × 6 = 120 tokens" in text
        assert "5 × 2 × 3 = 30 blocks of 4 tokens" in text
        assert "none, the chunks divide the grid" in text
        assert "7 of 30 per query block (23.3%)" in text
        assert (text.count("<i class=on>"), text.count("<i>")) == (7, 23)

    def test_ragged_grid(self):
        # 5x4x6 in chunks of 4x4x4 is 2x1x2 blocks, of which only the first is whole
        text = plan_panel(CHECKPOINT, FORM)
        assert "2 × 1 × 2 = 4 blocks of 64 tokens" in text
        assert "3 query and 3 key blocks" in text

    def test_many_blocks_become_one_bar(self):
        text = plan_panel(CHECKPOINT, FORM | {"width": 1280, "height": 720, "num_frames": 93, "sparsity": 0.9375})
        assert "24 × 45 × 80 = 86,400 tokens" in text
        assert "90 of 1,440 per query block (6.2%)" in text
        assert "width:6.25%" in text

    def test_cdf_is_only_known_later(self):
        assert "at least 1 of 4 per query block" in plan_panel(CHECKPOINT, FORM | {"keep_by": "mass"})

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            pytest.param({"num_frames": 1}, "single latent frame", id="one frame"),
            pytest.param({"mode": "dense"}, "Dense attention was asked for", id="dense"),
        ],
    )
    def test_not_active_says_why(self, change, reason):
        text = plan_panel(CHECKPOINT, FORM | change)
        assert "BSA not active" in text
        assert reason in text

    def test_error_is_a_sentence(self):
        assert "Width 830 is not a multiple of 16; try 816 or 832" in plan_panel(CHECKPOINT, FORM | {"width": 830})

    def test_prompt_does_not_matter(self):
        assert plan_panel(CHECKPOINT, FORM | {"prompt": ""}) == plan_panel(CHECKPOINT, FORM)


class TestPreview:
    @pytest.mark.parametrize(
        ("shape", "frames", "size"),
        [
            pytest.param((7, 12, 3), 1, (12, 7), id="one image"),
            pytest.param((5, 8, 12, 3), 5, (12, 8), id="short clip"),
            pytest.param((31, 90, 160, 3), MAX_FRAMES, (160, 90), id="720p latents"),
            pytest.param((2, 100, 401, 3), 2, (134, 34), id="thinned out"),
        ],
    )
    def test_strip(self, shape, frames, size):
        strip = preview_strip(np.zeros(shape, np.uint8))
        assert (strip["frames"], strip["width"], strip["height"]) == (frames, *size)
        assert decoded(strip).size == (size[0], size[1] * frames)

    def test_frames_keep_their_order(self):
        clip = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (10, 120, 230)])
        levels = np.asarray(decoded(preview_strip(clip)))[4::8, 4, 0]
        # JPEG's rounding of a flat block is at most a few levels
        assert np.allclose(levels, [10, 120, 230], atol=4)

    def test_none(self):
        assert preview_strip(None) is None


def decoded(strip) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(strip["src"].partition(",")[2])))


@pytest.fixture
def worker_of(tmp_path):
    def make(pipeline) -> Worker:
        load = pipeline if callable(pipeline) else lambda say: pipeline
        return Worker(load, tmp_path, "fake").start()

    return make


class TestReport:
    def test_rows_and_figures(self, worker_of):
        job = worker_of(FakePipeline()).submit(VideoJob(form_request(CHECKPOINT, FORM), side_by_side=True))
        until(lambda: job.over, "the job")
        rows = dict(table_rows(job.results))
        assert rows["Peak memory (process RSS)"] == ["0.25 GiB", "0.25 GiB"]
        assert rows["Key blocks kept per query block"] == ["all", "1 of 4"]
        assert rows["Share of query-key pairs computed"] == ["100.0%", "25.0%"]
        assert rows["BSA active"][0] == "no: dense attention was asked for"
        assert rows["Seed"] == ["7", "7"]
        values = [value for value, *_ in figures(job.comparison)]
        assert values[:2] == [f"{job.comparison.speedup:.2f}×", f"{job.comparison.psnr:.1f} dB"]

    def test_before_a_run(self):
        assert "appear here" in report_panel({})


class TestCommandLine:
    def test_missing_checkpoint(self, tmp_path, capsys):
        assert app.main(["--model-path", str(tmp_path / "nowhere")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: there is no checkpoint at")
        assert error.count("\n") == 1

    def test_output_folder_is_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="file \\(File exists\\); choose another"):
            app.writable_folder(tmp_path / "file", "choose another")

    def test_help_names_every_flag(self, capsys):
        with pytest.raises(SystemExit) as left:
            app.main(["--help"])
        assert left.value.code == 0
        shown = capsys.readouterr().out
        for flag in ("--host", "--port", "--model-path", "--device", "--output-dir", "--share"):
            assert flag in shown
