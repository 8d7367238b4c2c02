"""Refining on the page: choosing a clip, what it does to the form, the run, and its way through the history."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from app_server import running_page
from browser import button, chromium, expect_playing, generate, needs_chromium, notice, open_group, open_page, video
from fake_pipeline import CHECKPOINT, FakePipeline
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import expect
from safetensors.torch import save_file

from pipeline import EMBEDDED_CHECKPOINT, VideoRequest, inspect_checkpoint, read_settings
from pipeline.media.clip import inspect_clip
from pipeline.media.write import write_video
from ui.form.inputs import adapter_choices
from ui.form.preset_rules import NO_CLIP, NO_REFINEMENT, Situation, presets
from ui.form.read import form_request
from ui.form.restore import form_values
from ui.jobs.job import VideoJob

FOLDER = tempfile.TemporaryDirectory()
ADAPTER = Path(FOLDER.name, "adapter.safetensors")
save_file({"x_embedder.lora_down": torch.ones(1, 2), "x_embedder.lora_up": torch.ones(3, 1)}, ADAPTER)
ADAPTED = replace(CHECKPOINT, loras={"refine": ADAPTER, "distill": ADAPTER}, linear={"x_embedder": (3, 2)})


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "holiday.mp4"
    write_video(path, np.zeros((9, 64, 96, 3), np.uint8), 15, {})
    return inspect_clip(path)


def test_the_form_makes_the_request_of_the_clip(clip):
    request = ADAPTED.refinement("x", clip, t_thresh=0.3, double_frames=False)
    assert form_request(ADAPTED, {"cdf_threshold": 0.9, "keep_by": "top-k", **form_values(request)}) == request


def test_a_job_keeps_its_clip(clip, tmp_path):
    """The upload may be gone by the time somebody wants the run again."""
    job = VideoJob(ADAPTED.refinement("x", clip, steps=2), side_by_side=False)
    job.folder = tmp_path / "job"
    job.folder.mkdir()
    pipeline = FakePipeline()
    job.run(pipeline, lambda update: None)
    clip.path.unlink()
    kept = pipeline.requests[0].start.video
    assert inspect_clip(kept).frames == 9 and Path(kept).parent == job.folder
    assert job.report()["request"]["refine"]["video"] == "clip.mp4"  # a name: where it lies is the server's business
    assert form_values(job.request)["refine"] == kept


def test_a_clip_that_is_gone_is_said(clip, tmp_path):
    job = VideoJob(ADAPTED.refinement("x", clip), side_by_side=False)
    job.folder = tmp_path
    clip.path.unlink()
    with pytest.raises(ValueError, match="the clip to refine is gone; choose it again"):
        job.run(FakePipeline(), lambda update: None)


@pytest.mark.parametrize(
    ("info", "clip_there", "missing"),
    [
        pytest.param(CHECKPOINT, False, (NO_REFINEMENT, NO_CLIP), id="nothing"),
        pytest.param(CHECKPOINT, True, (NO_REFINEMENT,), id="clip-only"),
        pytest.param(ADAPTED, False, (NO_CLIP,), id="adapter-only"),
        pytest.param(ADAPTED, True, (), id="both"),
    ],
)
def test_the_preset_says_what_is_missing(info, clip_there, missing):
    refine = next(preset for preset in presets() if preset.refines)
    device = type("Cpu", (), {"type": "cpu", "index": None})
    assert refine.missing(Situation(info, device, 2**34, clip_there)) == missing


def test_the_few_step_preset_uses_the_adapter():
    few = next(preset for preset in presets() if preset.name == "Distilled 16 steps")
    request = ADAPTED.request("x", **few.values(ADAPTED))
    assert (request.lora, request.use_distill, request.steps, request.guidance_scale) == ("distill", True, 16, 1.0)
    assert adapter_choices(ADAPTED) == [("None", ""), ("distill", "distill"), ("refine", "refine")]


@needs_chromium
def test_the_strength_of_an_adapter_has_a_slider(address):
    with chromium() as browser:
        page = open_page(browser, address)
        open_group(page, "Size, frames, steps, guidance, seed")
        field, slider = page.locator("#lora input"), page.locator("#lora-strength input[type=number]")
        expect(slider).to_be_hidden()
        field.click()
        page.get_by_role("option", name="distill").click()
        expect(slider).to_be_visible()
        slider.fill("0.5")
        slider.press("Enter")
        expect(field).to_have_value("distill:0.5")
        field.fill("distill:0.7+refine")
        field.press("Enter")
        expect(slider).to_be_hidden()
        field.fill("refine:0.25")
        field.press("Enter")
        expect(slider).to_have_value("0.25")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running_page(FakePipeline(step_seconds=0), tmp_path_factory.mktemp("outputs"), ADAPTED) as address:
        yield address


class TestApi:
    @pytest.fixture
    def client(self, address):
        return Client(address, verbose=False)

    def test_refine(self, client):
        client.predict("a red ball", job_id="first", num_frames=9, api_name="/compare")
        made, report = client.predict("first", seed=3, t_thresh=0.3, sparsity=0.5, api_name="/refine")
        assert (inspect_clip(made).frames, inspect_clip(made).height) == (18, 96)
        asked = report["request"]
        assert (asked["prompt"], asked["lora"], asked["seed"]) == ("a red ball", "refine", 3)
        assert asked["refine"] == {"video": "clip.mp4", "t_thresh": 0.3, "double_frames": True}
        assert asked["bsa"]["sparsity"] == 0.5

    def test_generate_with_an_adapter(self, client):
        _, report = client.predict("x", lora="distill", steps=2, api_name="/generate")
        assert (report["request"]["lora"], report["request"]["use_distill"]) == ("distill", True)

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            pytest.param({"clip": "/etc/passwd"}, "job_id '/etc/passwd' is not a job of yours", id="a-path"),
            pytest.param({"t_thresh": 3.0}, "t_thresh 3.0 is not a noise level", id="level"),
            pytest.param({"attention": "all"}, "attention 'all' is unknown", id="attention"),
        ],
    )
    def test_bad_values(self, client, values, sentence):
        client.predict("x", job_id="first", num_frames=5, steps=1, api_name="/generate")
        with pytest.raises(AppError) as caught:
            client.predict(**{"clip": "first"} | values, api_name="/refine")
        assert sentence in str(caught.value)

    def test_example(self, address):
        example = Path(__file__).parents[1] / "examples" / "api_refine.py"
        done = subprocess.run([sys.executable, example, address], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert "34 frames of 144 x 96 in" in done.stdout


@needs_chromium
def test_refine_the_clip_on_the_stage(tmp_path):
    """Make a clip, press the preset, refine it side by side, and find it in the history with its clip."""
    pipeline = FakePipeline(step_seconds=0)
    with running_page(pipeline, tmp_path, ADAPTED) as address, chromium() as browser:
        page = open_page(browser, address)
        open_group(page, "Presets and model")
        row = page.locator(".preset", has_text="Makes a finer, larger clip")
        expect(row).to_contain_text("Missing here: a clip on the stage")
        generate(page)
        expect(button(page, "Refine")).to_be_enabled()
        button(page, "Refine").click()
        expect(notice(page)).to_contain_text("17 frames of 96 × 64 will become 34 of 144 × 96, in 5 of 50 steps.")
        expect(page.locator("#refine-clip")).to_contain_text("dense")
        expect(page.locator("#plan")).to_contain_text("12 × 6 × 9 = 648 tokens")
        generate(page)
        for arm in ("dense", "sparse"):
            expect_playing(page, arm)
            assert video(page, arm).evaluate("video => [video.videoWidth, video.videoHeight]") == [144, 96]
        expect(page.locator("#report")).to_contain_text("clip.mp4, from noise level 0.5 of a schedule of 50 steps")
        dense, sparse = pipeline.requests[-2:]
        assert sparse == replace(dense, bsa=sparse.bsa)
        assert (sparse.lora, sparse.num_frames, sparse.fps) == ("refine", 34, 30)

        # back to new videos, then the run's settings again, clip included
        page.locator("#refine-clip").get_by_role("button", name="Clear").click()
        expect(notice(page)).to_contain_text("No clip is chosen any more.")
        expect(page.locator("#plan")).to_contain_text("5 × 4 × 6 = 120 tokens")
        page.get_by_role("tab", name="History").click()
        page.locator("#history").get_by_role("button", name="Use the settings of").first.click()
        expect(page.locator("#refine-clip")).to_contain_text("clip")
        expect(page.locator("#plan")).to_contain_text("12 × 6 × 9 = 648 tokens")


@needs_chromium
def test_a_file_is_refined_or_refused_with_the_reason(tmp_path, clip):
    with running_page(FakePipeline(step_seconds=0), tmp_path / "out", ADAPTED) as address, chromium() as browser:
        page = open_page(browser, address)
        open_group(page, "Refine a clip")
        page.locator("#refine-clip input[type=file]").set_input_files(clip.path)
        expect(notice(page)).to_contain_text("9 frames of 96 × 64 will become 18")
        page.get_by_label("Twice as many frames").click()
        expect(page.locator("#plan")).to_contain_text("4 × 6 × 9 = 216 tokens")
        page.locator("#refine-clip").get_by_role("button", name="Clear").click()
        liar = tmp_path / "liar.mp4"
        liar.write_bytes(b"not a video at all")
        page.locator("#refine-clip input[type=file]").set_input_files(liar)
        expect(notice(page)).to_contain_text("is not an MP4 video")
    with running_page(FakePipeline(), tmp_path / "none") as address, chromium() as browser:
        page = open_page(browser, address)
        open_group(page, "Refine a clip")
        page.locator("#refine-clip input[type=file]").set_input_files(clip.path)
        expect(notice(page)).to_contain_text("has no LoRA adapter 'refine' (there is none)")
        expect(page.locator("#refine-clip input[type=file]")).to_be_attached()  # taken off again


def test_the_embedded_checkpoint_has_its_own_adapter():
    embedded = inspect_checkpoint(EMBEDDED_CHECKPOINT)
    embedded.check_lora("refine")
    assert list(embedded.loras) == ["refine"]


def test_the_file_of_a_refinement_names_its_clip(clip, tmp_path):
    job = VideoJob(ADAPTED.refinement("x", clip, steps=2), side_by_side=False)
    job.folder = tmp_path / "job"
    job.folder.mkdir()
    job.run(FakePipeline(), lambda update: None)
    said = read_settings(job.results["sparse"].video).request
    assert isinstance(said, VideoRequest) and said.start.t_thresh == 0.5


def test_a_dropped_file_names_no_place_of_the_server(clip, tmp_path):
    """Its settings may say anything; none of it becomes a file that the page shows."""
    request = ADAPTED.refinement("x", clip).to_dict()
    for place in (__file__, "LICENSE", "../LICENSE", "/"):
        request["refine"]["video"] = place
        hostile = tmp_path / "hostile.mp4"
        write_video(hostile, np.zeros((5, 32, 32, 3), np.uint8), 15, {"request": request})
        assert form_values(read_settings(hostile).request)["refine"] is None
