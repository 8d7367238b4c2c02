"""Presets and the model field."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from app_server import running_page
from browser import button, chromium, fill, needs_chromium, open_group, open_page
from fake_hub import FakeHub, serving
from fake_pipeline import FakePipeline
from playwright.sync_api import expect

import app
from bsa import BSAConfig
from pipeline import EMBEDDED_CHECKPOINT, Cancelled, VideoRequest, inspect_checkpoint
from ui import Worker
from ui.form.model import ModelChange
from ui.form.preset_rules import BY_CELLS, Situation, longcat_bytes, presets
from ui.form.read import form_request
from ui.form.restore import form_values
from ui.jobs.job import Job
from ui.site import Site

INFO = inspect_checkpoint(EMBEDDED_CHECKPOINT)
LONGCAT = replace(INFO, path=INFO.path.parent, name="LongCat-Video", parameters=13_580_000_000, bsa=None, loras={})
LONGCAT = replace(LONGCAT, defaults={**INFO.defaults, "use_distill": False, "width": 832, "height": 480})
CPU, GPU = SimpleNamespace(type="cpu", index=None), SimpleNamespace(type="cuda", index=0)
GIB = 2**30
STUDY = Path(__file__).parents[1] / "benchmarks" / "results"


def missing(info, device, total) -> dict[str, tuple[str, ...]]:
    return {preset.name: preset.missing(Situation(info, device, total * GIB)) for preset in presets()}


class TestPresets:
    def test_on_a_cpu_with_the_embedded_checkpoint(self):
        found = missing(INFO, CPU, 16)
        ready = [name for name, absent in found.items() if not absent]
        assert ready == ["Embedded tiny (CPU)", "Distilled 16 steps", "Low memory"]
        assert found["LongCat 480p"] == ("LongCat-Video's 13.6 B checkpoint", "a GPU")

    @pytest.mark.parametrize(
        ("total", "ready"),
        [
            pytest.param(24, [], id="24 GiB"),
            pytest.param(60, ["LongCat 480p", "Low memory"], id="60 GiB"),
            pytest.param(80, ["LongCat 480p", "720p with BSA", "Low memory"], id="80 GiB"),
        ],
    )
    def test_on_a_gpu_with_longcat(self, total, ready):
        found = missing(LONGCAT, GPU, total)
        assert [name for name, absent in found.items() if not absent] == ready
        if not ready:
            assert found["LongCat 480p"] == found["Low memory"] == ("a start with --offload",)

    def test_refining_is_never_offered_without_its_adapter(self):
        for info, device in ((replace(INFO, loras={}), CPU), (LONGCAT, GPU)):
            assert "the adapter lora/refinement_lora.safetensors" in missing(info, device, 1000)["Refine"]
        assert missing(INFO, CPU, 16)["Refine"] == ("a clip on the stage or in Refine a clip",)

    def test_needs_come_from_the_model_of_memory(self):
        # measured on an H200: 36.8 GiB for the transformer alone at 704x1280x93; 10.6 GiB of text encoder, 0.2 of VAE
        hd = VideoRequest(
            prompt="x", width=1280, height=704, num_frames=93, steps=50, guidance_scale=1.0, fps=15, bsa=None
        )
        assert 1.0 < longcat_bytes(hd) / (47.6 * GIB) < 1.3
        # guidance makes two rows of the batch, so it takes more
        assert longcat_bytes(replace(hd, guidance_scale=4.0)) > longcat_bytes(hd)

    @pytest.mark.parametrize("info", [INFO, LONGCAT], ids=["embedded", "longcat"])
    @pytest.mark.parametrize("preset", [p for p in presets() if p.name != "Refine"], ids=lambda preset: preset.name)
    def test_the_form_makes_the_request_of_the_preset(self, info, preset):
        asked = info.request("x", **preset.values(info))
        assert form_request(info, {"cdf_threshold": 0.9, "keep_by": "top-k", **form_values(asked)}) == asked

    def test_reasons_are_those_of_the_study(self):
        """To 0.3 dB, because another run of the study may round otherwise."""
        rows = json.loads((STUDY / "quality.json").read_text())["rows"]
        psnr = {row["name"]: row["psnr"] for row in rows}
        gains = [psnr[f"{s} cells 4x4x4 4x4x4"] - psnr[f"{s} mean 4x4x4 4x4x4"] for s in (0.5, 0.75, 0.875, 0.9375)]
        low, high = (float(number) for number in re.findall(r"\d\.\d", BY_CELLS))
        assert (min(gains), max(gains)) == pytest.approx((low, high), abs=0.3)
        assert psnr["0.75 cells 4x4x4 4x4x4"] == pytest.approx(35, abs=0.5)  # 16 of 64 key blocks
        assert psnr["0.875 cells 4x4x4 4x4x4"] == pytest.approx(30, abs=0.5)  # 8 of them
        times = {row["what"]: row["ms"] for row in json.loads((STUDY / "selection.json").read_text())["rows"][18:22]}
        assert times["cells, forward"] / times["mean, forward"] == pytest.approx(1.06, abs=0.02)

    def test_attention_of_each_preset(self):
        found = {preset.name: preset.values(LONGCAT).get("bsa") for preset in presets()}
        assert found["LongCat 480p"] is None
        assert found["720p with BSA"] == BSAConfig(0.9375, selection="cells")
        assert found["Refine"] is None  # the checkpoint's own, which `CheckpointInfo.refinement` takes
        assert found["Low memory"].sparsity == 0.75 and found["Low memory"].selection == "cells"
        small = next(preset for preset in presets() if preset.name == "Low memory").values(INFO)
        assert small["bsa"] is None  # 8 x 10 x 10 tokens are 18 key blocks

    def test_low_memory_is_smaller(self):
        small = next(preset for preset in presets() if preset.name == "Low memory").values(INFO)
        assert (small["width"], small["height"], small["num_frames"]) == (160, 160, 29)


class TestWhoMayChangeTheModel:
    @pytest.mark.parametrize(
        ("options", "allowed"),
        [
            pytest.param([], True, id="this computer alone"),
            pytest.param(["--host", "0.0.0.0"], False, id="the network"),
            pytest.param(["--share"], False, id="a public link"),
            pytest.param(["--host", "0.0.0.0", "--model-switch"], True, id="asked for"),
            pytest.param(["--no-model-switch"], False, id="refused"),
        ],
    )
    def test_only_where_nobody_else_comes(self, options, allowed, monkeypatch):
        monkeypatch.delenv("SPACE_ID", raising=False)
        assert app.may_switch(app._parser().parse_args(options)) is allowed

    def test_not_on_a_space(self, monkeypatch):
        monkeypatch.setenv("SPACE_ID", "someone/space")
        assert app.may_switch(app._parser().parse_args([])) is False


class Switching(Worker):
    """A worker whose engine takes every checkpoint at once, except one named "broken"."""

    def load(self, path, owner=""):
        job = Job(owner=owner)
        job.state = "failed" if "broken" in str(path) else "done"
        job.error = "broken could not be loaded" if job.state == "failed" else ""
        return job


@pytest.fixture
def site(tmp_path):
    return Site(INFO, Switching(lambda say: FakePipeline(), tmp_path, INFO.name), device="cpu", model_switch=True)


@pytest.fixture
def hub(tiny_checkpoint, monkeypatch, tmp_path):
    with serving(FakeHub(tiny_checkpoint), monkeypatch, tmp_path / "cache") as hub:
        yield hub


def run(change: ModelChange, name: str) -> list[str]:
    async def follow():
        return [text async for text, _ in change.run(name, "me")]

    return asyncio.run(follow())


class TestModelChange:
    def test_a_folder(self, site, tiny_checkpoint):
        run(ModelChange(site), str(tiny_checkpoint))
        assert site.checkpoint.path == tiny_checkpoint
        assert site.estimates.of(site.checkpoint.request("x")).basis == "no measurement yet"

    def test_a_hub_id(self, site, hub):
        said = run(ModelChange(site), hub.repo)
        assert said[0] == "Looking at someone/longcat…"
        assert site.checkpoint.parameters == inspect_checkpoint(hub.root).parameters

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            pytest.param("", "name a checkpoint folder, or a model on the Hub", id="nothing"),
            pytest.param("/nowhere", "there is no checkpoint at /nowhere", id="no folder"),
            pytest.param("longcat", "'longcat' is neither a folder of this machine nor a name", id="no name"),
            pytest.param("someone/other", "there is neither a folder someone/other here nor", id="unknown"),
        ],
    )
    def test_errors_change_nothing_and_free_the_turn(self, site, hub, name, sentence):
        change = ModelChange(site)
        for _ in range(2):
            with pytest.raises(ValueError, match=sentence):
                run(change, name)
        assert site.checkpoint is INFO

    def test_a_model_that_cannot_be_loaded_leaves_the_former_one(self, site, tiny_checkpoint, tmp_path):
        (tmp_path / "broken").symlink_to(tiny_checkpoint)
        with pytest.raises(ValueError, match="broken could not be loaded"):
            run(ModelChange(site), str(tmp_path / "broken"))
        assert site.checkpoint is INFO

    def test_cancelling_is_immediate_and_only_one_runs(self, site, hub):
        hub.pause = 0.05
        change = ModelChange(site)
        refused = []

        async def follow():
            async for text, _ in change.run(hub.repo, "me"):
                if text.startswith("Downloading"):
                    other = change.run("someone/longcat", "you")
                    with pytest.raises(ValueError, match="another model is being fetched"):
                        await anext(other)
                    refused.append(text)
                    change.cancel()

        with pytest.raises(Cancelled):
            asyncio.run(follow())
        assert refused
        assert site.checkpoint is INFO
        hub.pause = 0.0
        run(change, hub.repo)
        assert site.checkpoint is not INFO


@needs_chromium
def test_a_preset_fills_the_form_and_the_others_say_what_is_missing(tmp_path):
    with running_page(FakePipeline(), tmp_path, INFO) as address, chromium() as browser:
        page = open_page(browser, address)
        open_group(page, "Presets and model")
        row = page.locator(".preset", has_text="LongCat 480p")
        expect(button(page, "LongCat 480p")).to_be_disabled()
        expect(row).to_contain_text("Needs LongCat-Video and")
        expect(row).to_contain_text("Missing here: LongCat-Video's 13.6 B checkpoint, a GPU.")
        expect(page.locator("#presets")).to_contain_text("The model is chosen when the server is started.")
        expect(page.locator("#model")).to_have_count(0)
        button(page, "Low memory").click()
        expect(page.locator("#plan")).to_contain_text("8 × 10 × 10 = 800 tokens")
        open_group(page, "Size, frames, steps, guidance, seed")
        expect(page.get_by_label("Width", exact=True)).to_have_value("160")


@needs_chromium
def test_another_model_from_the_hub(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(Worker, "load", Switching.load)
    with running_page(FakePipeline(), tmp_path, INFO, model_switch=True, device="cpu") as address:
        with chromium() as browser:
            page = open_page(browser, address)
            open_group(page, "Presets and model")
            field = page.locator("#model").get_by_role("textbox")
            fill(field, "nobody/nothing")
            button(page, "Load model").click()
            status = page.locator("#model-status")
            expect(status).to_contain_text("There is neither a folder nobody/nothing here nor")
            fill(field, hub.repo)
            with hub.held():
                button(page, "Load model").click()
                expect(button(page, "Cancel")).to_be_enabled()
            expect(status).to_contain_text("is loaded. The form has its settings now.")
            expect(button(page, "Embedded tiny (CPU)")).to_be_disabled()
            # its own size, 64x64 with 29 frames
            expect(page.locator("#plan")).to_contain_text("8 × 4 × 4 = 128 tokens")
