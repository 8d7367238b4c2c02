"""The page in Chromium, over the fake pipeline."""

from __future__ import annotations

import pytest
from app_server import running_page, until
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

from ui.form.inputs import EXAMPLES

pytestmark = needs_chromium

EVIL = "<img src=x onerror='window.pwned=1'> ${window.pwned=1} {{value}} <script>window.pwned=1</script>"


def test_two_playing_videos_without_foreign_requests_or_complaints(browser, address):
    watch = Watch()
    page = open_page(browser, address, watch)
    generate(page)
    expect_playing(page, "dense")
    expect_playing(page, "sparse")
    expect(page.locator("#stage .figures")).to_contain_text("denoising speed-up")
    expect(page.locator("#report")).to_contain_text("Peak memory (process RSS)")
    open_group(page, "Size, frames, steps, guidance, seed")
    expect(notice(page)).to_have_text(f"Done with seed {page.get_by_label('Seed', exact=True).input_value()}.")
    assert watch.foreign == []
    assert watch.complaints == []
    page.context.close()


def test_progress_and_preview_while_it_runs(page, fake):
    open_group(page, "Size, frames, steps, guidance, seed")
    fill_number(page, "number input for Denoising steps", 60)
    with fake.held():
        button(page, "Generate").click()
        tile = page.locator('.tile[data-arm="dense"]')
        expect(tile.locator(".label")).to_contain_text("of 60")
        expect(tile.locator("canvas")).to_be_visible()
        expect(tile.get_by_role("progressbar")).to_have_attribute("aria-valuemax", "60")
        expect(tile.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "1")
        expect(page.locator('.tile[data-arm="sparse"] .label')).to_have_text("Waiting")
        expect(page.locator("#header .pill")).to_contain_text("is making a video")
        assert (
            tile.locator("canvas").evaluate(
                "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
            )
            > 2
        ), "the preview is blank"
        button(page, "Stop").click()
        expect(notice(page)).to_contain_text("Stopped")


def test_plan_follows_the_controls(page):
    plan = page.locator("#plan")
    expect(plan).to_contain_text("1 of 4 per query block")
    fill_number(page, "number input for Sparsity", 0.25)
    expect(plan).to_contain_text("3 of 4 per query block (75.0%)")
    page.get_by_label("Sparse only").check()
    open_group(page, "Size, frames, steps, guidance, seed")
    fill_number(page, "Width", 830)
    expect(plan).to_contain_text("Width 830 is not a multiple of 16; try 816 or 832")
    fill_number(page, "Width", 832)
    expect(plan).to_contain_text("5 × 4 × 52 = 1,040 tokens")
    open_group(page, "Chunk shapes and block selection")
    fill_number(page, "Query T", 0)
    expect(plan).to_contain_text("must be three positive integers")
    fill_number(page, "Query T", 5)
    expect(plan).to_contain_text("1 × 1 × 13 = 13 blocks of 80 tokens")
    fill_number(page, "Frames", 1)
    expect(plan).to_contain_text("BSA not active")


def test_cdf_threshold_appears_when_chosen(page):
    open_group(page, "Chunk shapes and block selection")
    expect(page.locator("#cdf_threshold")).to_be_hidden()
    page.get_by_label("CDF threshold", exact=True).check()
    expect(page.locator("#cdf_threshold")).to_be_visible()
    expect(page.locator("#plan")).to_contain_text("at least 1 of 4")


def test_stop_ends_within_a_step_and_the_page_works_on(page, fake):
    generate(page)
    old = video(page, "dense").get_attribute("src")
    requests = len(fake.requests)
    with fake.held():
        button(page, "Generate").click()
        until(lambda: len(fake.requests) > requests and fake.running, "the run")
        button(page, "Stop").click()
        expect(notice(page)).to_contain_text("Stopped")
    assert len(fake.requests) == requests + 1, "the sparse video was started after Stop"
    assert video(page, "dense").get_attribute("src") == old
    expect(page.locator('.tile[data-arm="dense"] .older')).to_be_visible()
    generate(page)
    assert video(page, "dense").get_attribute("src") != old
    expect_playing(page, "sparse")


def test_bad_input_is_a_sentence_and_keeps_the_videos(page):
    generate(page)
    before = [video(page, arm).get_attribute("src") for arm in ("dense", "sparse")]
    figures = page.locator("#report").inner_text()
    page.locator("#prompt textarea").fill("")
    button(page, "Generate").click()
    expect(notice(page)).to_have_text("The prompt is empty; describe the video in a sentence or two.")
    page.locator("#prompt textarea").fill("a ball")
    open_group(page, "Size, frames, steps, guidance, seed")
    fill_number(page, "Frames", 18)
    button(page, "Generate").click()
    expect(notice(page)).to_have_text("Number of frames 18 is not of the form 4n + 1; try 17 or 21.")
    assert [video(page, arm).get_attribute("src") for arm in ("dense", "sparse")] == before
    assert page.locator("#report").inner_text() == figures
    expect_playing(page, "dense")
    expect_playing(page, "sparse")
    fill_number(page, "Frames", 17)
    generate(page)


def test_one_video_alone(page):
    page.get_by_label("Dense only").check()
    generate(page)
    expect_playing(page, "dense")
    expect(page.locator('.tile[data-arm="sparse"]')).to_be_hidden()


def test_a_fixed_seed_is_used(page, fake):
    open_group(page, "Size, frames, steps, guidance, seed")
    page.get_by_label("New seed each time").uncheck()
    fill_number(page, "Seed", 123)
    generate(page)
    assert {request.seed for request in fake.requests[-2:]} == {123}


def test_an_example_fills_the_prompt(page):
    page.get_by_role("button", name="Fireworks").click()
    expect(page.locator("#prompt textarea")).to_have_value(EXAMPLES["Fireworks"])


def test_prompt_is_never_markup(page, fake):
    fake.fail_with = ValueError(EVIL)
    try:
        page.locator("#prompt textarea").fill(f"fail {EVIL}")
        button(page, "Generate").click()
        expect(notice(page)).to_contain_text("<img src=x")
    finally:
        fake.fail_with = None
    page.locator("#prompt textarea").fill(EVIL)
    generate(page)
    assert fake.requests[-1].prompt == EVIL
    assert page.evaluate("window.pwned") is None


def test_readings_refresh_while_a_video_is_made_in_every_tab(browser, address, fake):
    pages = [open_page(browser, address) for _ in range(2)]
    with fake.held():
        button(pages[0], "Generate").click()
        until(lambda: fake.running, "the run")
        for page in pages:
            page.bring_to_front()
            expect(page.locator("#live .live-short")).to_contain_text("GiB")
            expect(page.locator("#header .pill")).to_contain_text("is making a video")
            for _ in range(2):  # each waits for another answer than the last
                with page.expect_response(lambda answer: "component_server" in answer.url):
                    pass
    for page in pages:
        page.context.close()


@pytest.mark.parametrize(
    "width", [pytest.param(390, id="phone"), pytest.param(768, id="tablet"), pytest.param(1440, id="desktop")]
)
def test_no_sideways_scrolling(browser, address, width):
    page = open_page(browser, address, width=width)
    generate(page)
    for name in ("Chunk shapes and block selection", "Size, frames, steps, guidance, seed"):
        open_group(page, name)
    page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
    dense, sparse = page.evaluate(
        "['dense', 'sparse'].map((arm) => document.querySelector(`.tile[data-arm=${arm}]`).getBoundingClientRect())"
    )
    if width == 390:
        assert sparse["y"] >= dense["y"] + dense["height"], "the videos are not stacked"
    else:
        assert dense["y"] == sparse["y"], "the videos are not side by side"
    page.context.close()


def test_the_state_of_loading_is_shown(browser, tmp_path):
    def load(say):
        say("Loading 13.6 B parameters")
        raise ValueError("device 'cuda' was asked for, but there is none; use cpu")

    with running_page(load, tmp_path) as address:
        page = open_page(browser, address)
        expect(page.locator("#header .pill")).to_contain_text("could not be loaded: device 'cuda' was asked for")
        button(page, "Generate").click()
        expect(notice(page)).to_contain_text("but there is none; use cpu")
        page.context.close()
