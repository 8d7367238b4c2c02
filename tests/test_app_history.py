"""The History tab in Chromium, over the fake pipeline."""

from __future__ import annotations

import re
import shutil

import pytest
from app_server import until
from browser import (
    Watch,
    button,
    expect_playing,
    fill_number,
    generate,
    needs_chromium,
    notice,
    open_group,
    open_page,
    video,
)
from playwright.sync_api import expect
from test_app_browser import EVIL

from pipeline import VideoRequest
from ui.storage.store import Record
from ui.views.history import run_view

REQUEST = VideoRequest(
    prompt="x", height=64, width=96, num_frames=17, steps=4, guidance_scale=1.0, seed=9, fps=15, bsa=None
)


class TestView:
    @pytest.mark.parametrize(
        ("report", "figures"),
        [
            pytest.param({"speedup": 1.5, "psnr": 31.25}, ["1.50× faster", "PSNR 31.2 dB"], id="faster"),
            pytest.param({"speedup": 0.5, "psnr": None}, ["0.50× the speed", "PSNR identical"], id="slower, equal"),
            pytest.param(
                {"speedup": 2.0, "speedup_range": [1.52, 2.6], "doubts": ["x"], "psnr": 31.25},
                ["1.5 to 2.6× the speed, not certain", "PSNR 31.2 dB"],
                id="in doubt",
            ),
            pytest.param({}, [], id="one video"),
        ],
    )
    def test_figures(self, report, figures):
        record = Record("a", "visitor:a", "video", "done", request=REQUEST.to_dict(), report=report)
        assert run_view(record)["figures"] == figures

    def test_a_row_without_a_request_can_only_be_deleted(self):
        view = run_view(Record("a", "visitor:a", "", "interrupted"))
        assert (view["settings"], view["playable"], view["state"]) == (False, False, "Interrupted: the server ended")


def make(page, prompt: str, mode: str = "Dense and sparse side by side") -> None:
    page.locator("#prompt textarea").fill(prompt)
    page.get_by_label(mode).check()
    generate(page)


def runs(page):
    page.get_by_role("tab", name="History").click()
    return page.locator(".history-run")


def test_a_failed_run_is_there_with_its_sentence(page, fake, monkeypatch):
    monkeypatch.setattr(fake, "fail_with", OSError(28, "No space left on device"))
    page.locator("#prompt textarea").fill("fail")
    button(page, "Generate").click()
    expect(notice(page)).to_contain_text("No space left on device")
    run = runs(page).first
    expect(run.locator(".history-state")).to_contain_text("Failed: ")
    expect(run.locator(".history-state")).to_contain_text("No space left on device")
    expect(button(run, "Use the settings of: fail")).to_be_visible()


@needs_chromium
def test_newest_first_and_a_click_shows_a_run(browser, address):
    watch = Watch()
    page = open_page(browser, address, watch)
    make(page, "first")
    first = video(page, "sparse").get_attribute("src")
    report = page.locator("#report").inner_text()
    make(page, "second", "Dense only")
    cards = runs(page)
    expect(cards).to_have_count(2)
    assert [card.locator(".history-prompt").inner_text() for card in cards.all()] == ["second", "first"]
    expect(cards.nth(0).locator(".history-shown")).to_be_visible()
    expect(cards.nth(1)).to_contain_text(re.compile(r"\d\.\d\d× .*PSNR \d+\.\d dB"))
    expect(cards.nth(1)).to_contain_text("96 × 64, 17 frames, 4 steps, seed")
    expect(cards.nth(1).locator("img")).to_have_count(2)
    expect(cards.nth(0).locator("img")).to_have_count(1)
    assert cards.nth(1).locator("img").first.evaluate("image => image.decode().then(() => image.naturalHeight)") == 160
    cards.nth(1).get_by_role("button", name="Show this run: first").press("Enter")
    expect(video(page, "sparse")).to_have_attribute("src", first)
    expect_playing(page, "dense")
    expect(runs(page).nth(1).locator(".history-shown")).to_be_visible()
    page.get_by_role("tab", name="Result").click()
    expect(page.locator("#stage .figures")).to_contain_text("denoising speed-up")
    assert page.locator("#report").inner_text() == report
    assert (watch.foreign, watch.complaints) == ([], [])
    page.context.close()


@needs_chromium
def test_settings_go_back_into_the_form(page, fake):
    open_group(page, "Size, frames, steps, guidance, seed")
    fill_number(page, "number input for Denoising steps", 7)
    fill_number(page, "number input for Sparsity", 0.5)
    make(page, "old one")
    wanted = fake.requests[-1]
    fill_number(page, "number input for Denoising steps", 3)
    fill_number(page, "number input for Sparsity", 0.25)
    make(page, "new one", "Dense only")
    runs(page).nth(1).get_by_role("button", name="Use the settings of: old one").click()
    expect(page.locator("#prompt textarea")).to_have_value("old one")
    expect(notice(page)).to_contain_text("settings of that run are in the form")
    expect(page.get_by_label("Dense and sparse side by side")).to_be_checked()
    expect(page.get_by_label("New seed each time")).not_to_be_checked()
    generate(page)
    assert fake.requests[-1] == wanted


@needs_chromium
def test_delete_one_then_all(page, outputs):
    for prompt in ("one", "two", "three"):
        make(page, prompt, "Dense only")
    cards = runs(page)
    expect(cards).to_have_count(3)
    folders = {card.get_attribute("data-job"): card.locator(".history-prompt").inner_text() for card in cards.all()}
    cards.nth(1).get_by_role("button", name="Delete: two").click()
    button(page, "Keep").click()
    expect(cards).to_have_count(3)
    cards.nth(1).get_by_role("button", name="Delete: two").press("Enter")
    button(page, "Delete").press("Enter")
    expect(cards).to_have_count(2)
    left = {prompt for job, prompt in folders.items() if list(outputs.glob(f"*-{job}"))}
    assert left == {"one", "three"}
    button(page, "Delete all").click()
    page.keyboard.press("Escape")
    expect(cards).to_have_count(2)
    button(page, "Delete all").click()
    button(page, "Delete").click()
    expect(page.locator(".history-empty")).to_be_visible()
    assert not [job for job in folders if list(outputs.glob(f"*-{job}"))]


@needs_chromium
def test_prompts_are_never_markup(page):
    make(page, EVIL, "Sparse only")
    card = runs(page).first
    expect(card.locator(".history-prompt")).to_have_text(EVIL)
    card.get_by_role("button", name="Show this run").click()
    card.get_by_role("button", name="Use the settings of").click()
    expect(notice(page)).to_contain_text("settings of that run")
    expect(page.locator("#prompt textarea")).to_have_value(EVIL)
    page.get_by_role("tab", name="Result").click()
    button(page, "Copy as Python").click()
    expect(page.locator("#code pre")).to_contain_text("<img src=x")
    assert page.evaluate("window.pwned") is None


@needs_chromium
def test_videos_deleted_by_hand(page, outputs):
    make(page, "gone", "Dense only")
    make(page, "still here", "Dense only")
    job = runs(page).nth(1).get_attribute("data-job")
    shutil.rmtree(next(outputs.glob(f"*-{job}")))
    runs(page).nth(1).get_by_role("button", name="Show this run: gone").click()
    expect(notice(page)).to_contain_text("videos of this run are gone")
    runs(page).nth(1).get_by_role("button", name="Use the settings of: gone").click()
    expect(page.locator("#prompt textarea")).to_have_value("gone")


@needs_chromium
def test_an_older_run_can_be_watched_while_another_is_made(page, fake):
    make(page, "older", "Dense only")
    old = video(page, "dense").get_attribute("src")
    open_group(page, "Size, frames, steps, guidance, seed")
    fill_number(page, "number input for Denoising steps", 100)
    page.locator("#prompt textarea").fill("newer")
    with fake.held():
        button(page, "Generate").click()
        until(lambda: fake.running, "the run")
        cards = runs(page)
        expect(cards.first).to_contain_text("newer")
        cards.nth(1).get_by_role("button", name="Show this run: older").click()
        expect(page.locator('.tile[data-arm="dense"]')).to_have_attribute("data-state", "video")
        expect(video(page, "dense")).to_have_attribute("src", old)
        seen = fake.reports_while_held
        until(lambda: fake.reports_while_held > seen + 1, "further reports")
        expect(page.locator('.tile[data-arm="dense"]')).to_have_attribute("data-state", "video")
        cards.first.get_by_role("button", name="Show this run: newer").click()
        expect(page.locator('.tile[data-arm="dense"] .label')).to_contain_text("of 100")
        button(page, "Stop").click()
        expect(notice(page)).to_contain_text("Stopped")


@needs_chromium
@pytest.mark.parametrize("width", [pytest.param(390, id="phone"), pytest.param(1440, id="desktop")])
def test_no_sideways_scrolling(browser, address, width):
    page = open_page(browser, address, width=1440)
    make(page, "word" * 200, "Dense only")
    runs(page)
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
    page.context.close()
