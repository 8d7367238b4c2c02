"""The sweep tab in Chromium, over the fake pipeline."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from app_server import running_page, until
from browser import (
    Watch,
    button,
    expect_playing,
    fill,
    fill_number,
    needs_chromium,
    open_group,
    open_page,
    open_tab,
    reload,
)
from fake_pipeline import FakePipeline
from playwright.sync_api import Page, expect

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(browser, address):
    """Of a visitor who types and starts nothing."""
    page = open_page(browser, address)
    page.on("dialog", lambda dialog: pytest.fail(f"markup ran: {dialog.message}"))
    open_tab(page, "Sweep")
    yield page
    page.context.close()


class Fragile(FakePipeline):
    """Has too little memory for a sparsity of 0.9."""

    def generate_frames(self, request, on_step, output):
        if request.bsa is not None and request.bsa.sparsity == 0.9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().generate_frames(request, on_step, output)


def write(page: Page, rows: str, columns: str = "4x4x4") -> None:
    fill(page.get_by_label("Values of the rows"), rows)
    fill(page.get_by_label("Values of the columns"), columns)


def status(page: Page):
    return page.locator(".sweep-status")


def cell(page: Page, row: int, column: int):
    return page.locator(f'.sweep-grid .clip[data-place="{row} {column}"]')


def test_a_grid_its_plot_its_files_and_a_clip_on_the_stage(browser, tmp_path):
    with running_page(Fragile(), tmp_path) as address:
        watch = Watch()
        page = open_page(browser, address, watch)
        open_tab(page, "Sweep")
        write(page, "0.5, 0.75, 0.9", "2x4x4, 4x4x4")
        expect(page.locator("#sweep_plan")).to_contain_text("6 sparse and 1 dense videos")
        button(page, "Run sweep").click()
        expect(status(page)).to_contain_text("5 videos in")
        expect(status(page)).to_contain_text("2 could not be made")
        expect(page.locator(".sweep")).to_have_attribute("data-state", "done")  # drawn for the last time
        expect(cell(page, 0, 0).locator(".fact")).to_contain_text("×")
        expect(cell(page, 2, 1)).to_contain_text("out of memory")
        expect(cell(page, 2, 1)).to_be_disabled()

        # the clips that can be seen loop together
        page.locator(".sweep-grid").scroll_into_view_if_needed()
        together = """() => {
            const clips = [...document.querySelectorAll('.sweep-grid video')].filter((v) => !v.paused);
            const times = clips.map((v) => v.currentTime * 15);
            return clips.length > 1 && Math.max(...times) - Math.min(...times) < 1;
        }"""
        page.wait_for_function(together)

        # one point per measured video and the dense one; the numbers are told by focus and by name
        points = page.locator(".sweep-chart .point")
        expect(points).to_have_count(5)
        names = [point.get_attribute("aria-label") for point in points.all()]
        assert sum(name.startswith("Dense:") for name in names) == 1
        page.locator('.sweep-chart .point[role="button"]').first.focus()
        expect(page.locator(".plot-tip")).to_contain_text("dB")
        button(page, "SSIM").click()
        expect(page.locator(".sweep-chart .axis").last).to_contain_text("SSIM")

        with page.expect_download() as csv_file:
            page.locator(".sweep-csv").click()
        rows = list(csv.DictReader(csv_file.value.path().open()))
        assert [row["error"] for row in rows] == ["", "", "", "", "", "out of memory", "out of memory"]
        with page.expect_download() as json_file:
            page.locator(".sweep-json").click()
        assert len(json.loads(json_file.value.path().read_text())["cells"]) == 6

        cell(page, 1, 0).click()
        expect_playing(page, "dense")
        expect_playing(page, "sparse")
        expect(page.locator("#stage .player")).to_have_attribute("data-pair", "true")
        page.get_by_role("tab", name="Result", exact=True).click()
        expect(page.locator("#stage .figures")).to_contain_text("denoising speed-up")
        assert not watch.foreign
        assert not watch.complaints


def test_one_setting_is_a_row_with_its_plot_beside_it(browser, tmp_path):
    """Sparsity 0 keeps every block, and is there to begin with: it shows how alike two equal computations are."""
    with running_page(FakePipeline(), tmp_path) as address:
        page = open_page(browser, address, width=1600)
        open_tab(page, "Sweep")
        expect(page.get_by_label("Values of the rows")).to_have_value(re.compile(r"^0, "))
        page.get_by_label("Columns", exact=True).click()
        page.get_by_role("option", name="None", exact=True).click()
        fill(page.get_by_label("Values of the rows"), "0, 0.5, 0.75")
        button(page, "Run sweep").click()
        expect(status(page)).to_contain_text("4 videos in")
        expect(page.locator(".sweep-grid thead th")).to_have_text(["sparsity 0", "sparsity 0.5", "sparsity 0.75"])
        first, last = cell(page, 0, 0).bounding_box(), cell(page, 2, 0).bounding_box()
        assert first["y"] == last["y"] and first["x"] < last["x"], "the values do not run from left to right"
        plot = page.locator(".sweep-plot").bounding_box()
        assert plot["x"] > last["x"] and abs(plot["y"] - page.locator(".sweep-scroll").bounding_box()["y"]) < 5
        page.set_viewport_size({"width": 390, "height": 844})
        expect(page.locator(".sweep-chart svg")).to_be_visible()
        assert page.locator(".sweep-plot").bounding_box()["y"] > cell(page, 0, 0).bounding_box()["y"] + 100
        page.context.close()


POINTS = """(points) => {
    const root = document.createElement('div');
    root.style.width = '600px';
    document.body.append(root);
    paretoPlot(root, () => {}).set({ points, labels: { x: 'x', y: 'PSNR' }, least: 0.5, most: null, useful: 50 });
    const height = (mark) => { const box = mark.getBBox(); return box.y + box.height / 2; };
    return [
        [...root.querySelectorAll('.point')].map((point) => [point.ariaLabel, height(point.querySelector('.mark'))]),
        [...root.querySelectorAll('.tick')].map((tick) => tick.textContent),
    ];
}"""


def test_what_nobody_sees_does_not_press_the_rest_together(page):
    """Values above 50 dB and infinite ones stand on lines of their own, which say so."""
    page.add_script_tag(path=Path(__file__).parents[1] / "ui/static/pareto.js")
    shown = {"20": 20.0, "30": 30.0, "96": 96.5, "copy": float("inf")}
    points = [{"x": 1 + y / 100, "y": y, "name": name, "short": name, "text": ""} for name, y in shown.items()]
    points[-1]["x"] = 2
    marks, ticks = page.evaluate(POINTS, points)
    height = {name.removesuffix(": "): place for name, place in marks}
    assert height["copy"] < height["96"] < height["30"] < height["20"]
    assert height["20"] - height["30"] > 60, "10 dB take less of 192 px than on a scale up to 96 dB"
    assert "∞" in ticks and "> 50" in ticks and "60" not in ticks


class Faster(FakePipeline):
    """Takes less time for a sparser video, and is unlike the dense one from a sparsity of 0.8 on."""

    def generate_frames(self, request, on_step, output):
        self.step_seconds = 0.05 * (1 - (0 if request.bsa is None else request.bsa.sparsity))
        result, frames = super().generate_frames(request, on_step, output)
        noise = 40 if request.bsa is not None and request.bsa.sparsity > 0.8 else 1
        return result, (np.full_like(frames, 60) + noise * (request.bsa is not None)).astype(np.uint8)


def test_the_fastest_sparsity_above_a_floor_is_found(browser, tmp_path):
    with running_page(Faster(), tmp_path) as address:
        page = open_page(browser, address)
        open_tab(page, "Sweep")
        open_group(page, "Chunk shapes and block selection")
        for axis in "THW":
            fill_number(page, f"Query {axis}", 1)
            fill_number(page, f"Key {axis}", 1)
        fill_number(page, "At least", 200)
        button(page, "Find my sparsity").click()
        expect(page.locator("#sweep_plan [role=alert]")).to_contain_text("A floor of 200 dB PSNR is outside 0 to 100")
        fill_number(page, "At least", 40)
        button(page, "Find my sparsity").click()
        expect(status(page)).to_contain_text("Sparsity 0.75 is the fastest that keeps 40 dB PSNR: denoising")
        expect(status(page)).to_contain_text("5 videos in")
        expect(page.locator('.sweep-grid .clip[data-state="done"]:visible')).to_have_count(4)
        expect(page.locator(".sweep-grid .clip:visible")).to_have_count(4)  # what was not tried takes no place
        reload(page)
        open_tab(page, "Sweep")
        expect(status(page)).to_contain_text("Sparsity 0.75 is the fastest")
        expect(button(page, "Find my sparsity")).to_be_enabled()
        page.context.close()


def test_a_reload_finds_the_running_sweep_and_stop_keeps_what_is_done(browser, tmp_path):
    fake = FakePipeline()
    with running_page(fake, tmp_path) as address, fake.held(after=2):
        page = open_page(browser, address)
        open_tab(page, "Sweep")
        write(page, "0.25, 0.5, 0.75", "2x4x4, 4x4x4")
        button(page, "Run sweep").click()
        expect(cell(page, 0, 0)).to_have_attribute("data-state", "done")
        reload(page)
        open_tab(page, "Sweep")
        expect(cell(page, 0, 0)).to_have_attribute("data-state", "done")
        expect(button(page, "Run sweep")).to_be_disabled()
        button(page, "Stop sweep").click()
        expect(status(page)).to_contain_text("Stopped: ")
        expect(button(page, "Run sweep")).to_be_enabled()
        until(lambda: fake.running == 0, "the end of the sweep")
        (document,) = tmp_path.glob("*/sweep.json")
        made = json.loads(document.read_text())
        assert len(made["cells"]) == 1
        reload(page)
        open_tab(page, "Sweep")
        expect(cell(page, 0, 0)).to_have_attribute("data-state", "done")
        expect(status(page)).to_contain_text("Stopped: ")
        # somebody else sees nothing of it
        other = open_page(browser, address)
        open_tab(other, "Sweep")
        for _ in range(2):  # each waits for another reading than the last: by then, a sweep would be there
            with other.expect_response(lambda answer: "component_server" in answer.url):
                pass
        expect(other.locator(".sweep-grid .clip")).to_have_count(0)


def test_a_sweep_survives_a_restart_of_the_server(browser, tmp_path):
    """The first server ends in the middle of the fourth video."""
    fake = FakePipeline()
    with fake.held(after=3), running_page(fake, tmp_path) as address:
        page = open_page(browser, address)
        open_tab(page, "Sweep")
        write(page, "0.25, 0.5, 0.75")
        button(page, "Run sweep").click()
        expect(cell(page, 1, 0)).to_have_attribute("data-state", "done")
        state = page.context.storage_state()
        page.context.close()
    with running_page(FakePipeline(), tmp_path) as address:
        for origin in state["origins"]:
            origin["origin"] = address
        page = open_page(browser, address, storage_state=state)
        open_tab(page, "Sweep")
        expect(status(page)).to_contain_text("Stopped: 3 of 4 videos are done and kept")
        for row, made in enumerate(["done", "done", "waiting"]):
            expect(cell(page, row, 0)).to_have_attribute("data-state", made)
        expect(cell(page, 1, 0).locator(".fact")).to_contain_text("dB")
        expect(page.locator(".sweep-csv")).to_be_visible()
        cell(page, 0, 0).click()
        expect_playing(page, "dense")
        expect_playing(page, "sparse")
        expect(button(page, "Run sweep")).to_be_enabled()
        # a newer one takes its place in the tab, and the history brings it back
        write(page, "0.5")
        button(page, "Run sweep").click()
        expect(status(page)).to_contain_text("2 videos in")
        expect(page.locator(".sweep-grid .clip")).to_have_count(1)
        page.get_by_role("tab", name="History").click()
        page.locator(".history-run").nth(1).get_by_role("button", name="Show this run").click()
        expect(status(page)).to_contain_text("Stopped: 3 of 4 videos are done and kept")
        expect(page.get_by_role("tab", name="Sweep")).to_have_attribute("aria-selected", "true")


@pytest.mark.parametrize(
    ("rows", "columns", "sentence"),
    [
        pytest.param("0.5, x", "4x4x4", "Sparsity 'x' is not a number; write a list such as 0.5", id="word"),
        pytest.param("0.5, 1.5", "4x4x4", "The cell sparsity 1.5, chunk 4x4x4 cannot be made", id="cell"),
        pytest.param("0.5", "4,4,4", "Chunk '4' is not three whole numbers; write 4x4x4", id="chunk"),
        pytest.param("<img src=x onerror=alert(1)>", "4x4x4", "Sparsity '<img src=x onerror=alert(1)>'", id="markup"),
    ],
)
def test_a_bad_list_is_a_sentence(page, fake, rows, columns, sentence):
    write(page, rows, columns)
    expect(page.locator("#sweep_plan [role=alert]")).to_contain_text(sentence)
    button(page, "Run sweep").click()
    expect(page.locator("#sweep_plan [role=alert]")).to_contain_text(sentence)
    assert not fake.requests


def test_another_setting_brings_its_list_and_leaving_the_choice_brings_none(page):
    rows, values = page.get_by_label("Rows", exact=True), page.get_by_label("Values of the rows")
    fill(values, "0.125")
    rows.focus()
    page.keyboard.press("Tab")
    expect(values).to_be_focused()
    fill(page.get_by_label("Values of the columns"), "bad")
    expect(page.locator("#sweep_plan [role=alert]")).to_contain_text("Chunk 'bad'")  # the server has answered since
    expect(values).to_have_value("0.125")
    rows.click()
    page.get_by_role("option", name="Seed").click()
    expect(values).not_to_have_value("0.125")
    expect(rows).to_have_value("Seed")
