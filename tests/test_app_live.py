"""The chart of memory over time in Chromium: on a host without a driver, and on GPUs of the stub driver."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from app_server import answers, free_port, running_page, until
from browser import Watch, generate, needs_chromium, open_memory, open_page
from fake_pipeline import SampledPipeline
from playwright.sync_api import expect
from stub_driver import needs_compiler

from pipeline.machine.resources import ResourceSampler


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The page on a machine without a driver."""

    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pynvml, "nvmlInit", fail)
        samples, sample = [], ResourceSampler._sample
        patch.setattr(ResourceSampler, "_sample", lambda *given: (sample(*given), samples.append(given)))
        pipeline = SampledPipeline(lambda: len(samples), step_seconds=0.1)
        with running_page(pipeline, tmp_path_factory.mktemp("host")) as address:
            yield address


@pytest.fixture(scope="module")
def gpus(tmp_path_factory):
    """(address, function that overrules what NVML says) of the page on two GPUs."""
    folder = tmp_path_factory.mktemp("gpus")
    url = f"http://127.0.0.1:{(port := free_port())}"
    program = [sys.executable, str(Path(__file__).with_name("gpu_server.py")), str(folder), str(port)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            program, env=os.environ | {"STEP_SECONDS": "0.15"}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            until(lambda: answers(url) or server.poll() is not None, "the page to answer")
            assert server.poll() is None, (folder / "log").read_text()
            yield url, lambda **values: (folder / "values.json").write_text(json.dumps(values))
        finally:
            os.killpg(server.pid, 15)
            server.wait()


def row(page, name: str):
    return page.locator(".live-values tbody tr").filter(has_text=name)


def place(page, name: str):
    return page.locator(".live-places button").filter(has_text=name)


@needs_chromium
class TestOnAHost:
    def test_a_run_with_its_phases_and_peaks(self, browser, host):
        watch = Watch()
        page = open_page(browser, host, watch)
        live = page.locator("#live")
        expect(live.locator(".live-chart")).to_be_hidden()
        expect(live.locator(".live-short")).to_have_text(re.compile(r"^this process \d+\.\d\d GiB$"))
        open_memory(page)
        expect(live.locator(".live-title")).to_have_text("Host memory (no NVIDIA GPU)")
        expect(live.locator(".live-note")).to_contain_text("its driver is not installed")
        expect(row(page, "This process (RSS)").locator("td").first).to_contain_text(".")
        expect(place(page, "Host")).to_contain_text("CPU")
        generate(page)
        expect(live.locator(".arm-name")).to_have_text(["Dense", "Sparse"])
        expect(live.locator(".band")).to_have_count(6)
        expect(live.locator(".peak")).to_have_count(4)  # two curves, twice
        for cell in row(page, "This process (RSS)").locator("td").all():
            expect(cell).to_have_text(re.compile(r"\d"))
        expect(page.locator("#live_summary")).to_contain_text("Sparse peak, This process (RSS)")
        page.locator(".live-fold").click()
        peaks = r"Dense peak \d+\.\d\d GiB · Sparse peak \d+\.\d\d GiB"
        expect(live.locator(".live-short")).to_have_text(re.compile(peaks))
        open_memory(page)
        page.reload(wait_until="domcontentloaded")
        expect(live.locator(".arm-name")).to_have_text(["Dense", "Sparse"])
        other = open_page(browser, host)  # another visitor
        open_memory(other)
        other.locator(".live-windows button", has_text="2 min").click()
        expect(other.locator("#live .busy").first).to_be_attached()
        expect(other.locator("#live .band")).to_have_count(0)
        assert watch.complaints == [] and watch.foreign == []
        for one in (page, other):
            one.context.close()

    def test_values_by_keyboard_and_pointer(self, browser, host):
        page = open_page(browser, host)
        open_memory(page)
        generate(page)
        expect(page.locator("#live .band")).to_have_count(6)  # the whole run, a tenth of which is more than 0.05 s
        chart = page.get_by_role("slider", name="Time in the memory chart")
        chart.focus()
        page.keyboard.press("Home")
        expect(page.locator(".live-when")).to_have_text("At 0.0 s")
        page.keyboard.press("PageUp")
        expect(page.locator(".live-when")).not_to_have_text("At 0.0 s")
        assert "This process (RSS): " in chart.get_attribute("aria-valuetext")
        page.keyboard.press("Escape")
        expect(page.locator(".live-when")).to_have_text("Now")
        chart.hover(position={"x": 200, "y": 80})
        expect(page.locator(".live-when")).to_contain_text("At ")
        row(page, "Host used").get_by_role("button").click()
        expect(page.locator("#live .curve.used")).to_have_count(0)
        page.context.close()

    def test_a_lost_connection_is_said_and_made_up_for(self, browser, host):
        page = open_page(browser, host)
        expect(page.locator(".live-age")).to_have_text("live")
        page.context.set_offline(True)
        expect(page.locator(".live-age")).to_have_text("no connection")
        page.context.set_offline(False)
        expect(page.locator(".live-age")).to_have_text("live")
        page.context.close()


@needs_chromium
@needs_compiler
class TestOnGpus:
    def test_the_gpu_in_use_its_peaks_and_its_faults(self, browser, gpus):
        address, say = gpus
        watch = Watch()
        page = open_page(browser, f"{address}?__theme=dark", watch)
        live = page.locator("#live")
        expect(live.locator(".live-title")).to_have_text("GPU memory")
        open_memory(page)
        expect(place(page, "GPU 1")).to_have_attribute("aria-pressed", "true")
        expect(place(page, "GPU 1")).to_contain_text("28.50 of 140.00 GiB")
        expect(place(page, "GPU 1")).to_contain_text("0% busy · 90 of 700 W · 34 °C")
        generate(page)
        cells = row(page, "GPU used").locator("td")
        expect(cells).to_have_text(["28.50", "40.05", "39.00", "−1.05 (−2.6%)"])
        expect(row(page, "PyTorch allocated").locator("td").nth(1)).to_have_text("37.00")
        expect(live.locator(".arm-name")).to_have_text(["Dense", "Sparse"])
        expect(live.locator(".curve.used")).to_have_css("stroke", "rgb(203, 213, 225)")  # the dark page's colour

        say(gpu1_fault=15)
        expect(live.locator(".live-note")).to_contain_text("GPU 1: no reading, NVML says: GPU is lost")
        expect(place(page, "GPU 1")).to_contain_text("no reading")
        expect(place(page, "GPU 0")).to_contain_text("1.00 of 140.00 GiB")
        expect(cells.nth(1)).to_have_text("40.05")
        say(gpu1_fault=None, gpu1_utilization=None)
        expect(place(page, "GPU 1")).to_contain_text("28.50 of 140.00 GiB")
        expect(live.locator(".live-note")).to_have_text("GPU 1 does not report its utilisation (Not Supported)")
        assert watch.complaints == []

        place(page, "GPU 0").click()
        expect(row(page, "GPU used").locator("td").first).to_have_text("1.00")
        expect(row(page, "PyTorch")).to_have_count(0)
        place(page, "Host").click()
        expect(live.locator(".live-title")).to_have_text("Host memory")
        page.context.close()
