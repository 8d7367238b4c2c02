"""The views of the compare player in Chromium: wipe, difference, blind A/B, and how they come and go."""

from __future__ import annotations

import io

import numpy as np
import pytest
from browser import Watch, button, expect_playing, needs_chromium, notice, open_page, reload, video
from fake_pipeline import COLOURS
from PIL import Image
from player import (
    FRAMES,
    HEAT,
    WATCH,
    draw_lots,
    frames_shown,
    generate,
    mode,
    pause,
    player,
    put_back,
    scrub_to,
)
from playwright.sync_api import expect

pytestmark = needs_chromium


@pytest.fixture
def page(pair):
    put_back(pair)
    return pair


def test_wipe_shows_dense_left_and_sparse_right_of_the_divider(page):
    pause(page)
    middle = (FRAMES - 1) // 2  # the square is in the middle of the picture
    scrub_to(page, middle)
    mode(page, "Wipe")
    divider = page.get_by_label("Wipe:")
    expect(divider).to_be_visible()
    frame = page.locator('.tile[data-arm="sparse"] .frame')
    expect(frame).to_have_css("clip-path", "inset(0px 0px 0px 50%)")
    divider.fill("80")
    expect(frame).to_have_css("clip-path", "inset(0px 0px 0px 80%)")
    assert nearest(colour_in_the_middle(page)) == "dense"
    divider.fill("20")
    assert nearest(colour_in_the_middle(page)) == "sparse"
    divider.focus()
    page.keyboard.press("ArrowRight")
    expect(frame).to_have_css("clip-path", "inset(0px 0px 0px 21%)")
    assert frames_shown(page) == [middle, middle], "the arrow moved the clips, not the divider"
    expect(divider).to_have_attribute("aria-valuetext", "21% dense, 79% sparse")


def test_the_divider_follows_the_pointer(page):
    mode(page, "Wipe")
    box = page.locator(".overlay.wipe").bounding_box()
    y = box["y"] + box["height"] / 3
    page.mouse.move(box["x"] + box["width"] * 0.5, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, y, steps=4)
    line = page.locator(".wipe .divider").bounding_box()
    page.mouse.up()
    assert line["x"] + line["width"] / 2 == pytest.approx(box["x"] + box["width"] * 0.75, abs=box["width"] / 100 + 1)
    expect_playing(page, "dense")


def test_the_divider_follows_a_finger(browser, address):
    page = open_page(browser, address, width=390, height=844, has_touch=True, is_mobile=True)
    generate(page)
    mode(page, "Wipe")
    overlay = page.locator(".overlay.wipe")
    overlay.scroll_into_view_if_needed()
    box = overlay.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    wipe = player(page).evaluate("player => parseFloat(getComputedStyle(player).getPropertyValue('--wipe'))")
    assert wipe == pytest.approx(25, abs=1)
    small = page.locator("#stage").evaluate(
        """stage => [...stage.querySelectorAll('button, input, .save')]
            .filter((control) => control.checkVisibility())
            .filter((control) => {
                const { width, height } = control.getBoundingClientRect();
                return width < 44 || height < 44;
            })
            .map((control) => control.className + control.textContent)"""
    )
    assert small == []
    page.wait_for_function("document.documentElement.scrollWidth <= 390")
    page.context.close()


def colour_in_the_middle(page):
    png = page.locator(".overlay.wipe").screenshot()
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float)
    height, width, _ = picture.shape
    return picture[int(height * 0.42) : int(height * 0.45), int(width * 0.47) : int(width * 0.53)].mean((0, 1))


def nearest(colour):
    return min(COLOURS, key=lambda arm: np.abs(colour - COLOURS[arm]).sum())


def test_the_heat_map_lights_up_where_the_clips_differ(page):
    pause(page)
    scrub_to(page, 4)
    mode(page, "Difference")
    page.wait_for_function(f"() => ({HEAT})().frame === '4'")
    assert page.evaluate(HEAT)["most"] > 200
    expect(page.locator(".heat-mean")).to_contain_text("of 255")
    faint = total_heat(page)
    button(page, "× 16").click()
    assert total_heat(page) > faint
    scrub_to(page, 11)
    page.wait_for_function(f"() => ({HEAT})().frame === '11'")
    left, right = page.locator(".heat-map").evaluate(
        """canvas => [0, canvas.width / 2].map((x) =>
            canvas.getContext('2d').getImageData(x, 0, canvas.width / 2, canvas.height).data
                .reduce((sum, value, i) => sum + (i % 4 < 3 ? value : 0), 0))"""
    )
    assert right > left, "the square is in the right half by now"
    button(page, "Play").click()
    seen = page.evaluate(WATCH % HEAT, [1, "frame", 4])
    assert len({reading["frame"] for reading in seen}) > 3, "the heat map stands still"


def total_heat(page):
    return page.locator(".heat-map").evaluate(
        """canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data
            .reduce((sum, value, i) => sum + (i % 4 < 3 ? value : 0), 0)"""
    )


# Every other picture of the sparse clip is told late, when the clip has already moved on.
LATE = """() => {
    const video = document.querySelector('.tile[data-arm="sparse"] video');
    const ask = video.requestVideoFrameCallback.bind(video);
    let count = 0;
    video.requestVideoFrameCallback = (act) => ask((now, shown) => {
        count += 1;
        for (const end = performance.now() + 120 * (count % 2); performance.now() < end;);
        act(now, shown);
    });
}"""


def test_the_heat_map_of_equal_clips_is_black_also_while_they_play(browser, address, monkeypatch):
    monkeypatch.setitem(COLOURS, "sparse", COLOURS["dense"])
    page = open_page(browser, address)
    generate(page)
    mode(page, "Difference")
    page.wait_for_function(f"() => ({HEAT})().frame !== undefined")
    for late in ("() => {}", LATE):
        page.evaluate(late)
        seen = page.evaluate(WATCH % HEAT, [2, "frame", 4])
        assert len({reading["frame"] for reading in seen}) > 3, "the heat map stands still"
        assert {reading["most"] for reading in seen} == {0}
        expect(page.locator(".heat-mean")).to_have_text("mean 0.00 of 255")
    page.context.close()


@pytest.mark.parametrize("lot", [pytest.param(0.1, id="dense-left"), pytest.param(0.9, id="sparse-left")])
def test_blind_hides_every_name_until_the_vote(page, lot):
    draw_lots(page, lot)
    mode(page, "Blind A/B")
    left, right = ("dense", "sparse") if lot < 0.5 else ("sparse", "dense")
    tiles = {arm: page.locator(f'.tile[data-arm="{arm}"]') for arm in ("dense", "sparse")}
    assert tiles[left].bounding_box()["x"] < tiles[right].bounding_box()["x"]
    for arm, letter in ((left, "A"), (right, "B")):
        assert tiles[arm].inner_text().strip() == letter
        for hidden in (".name", ".dot", ".save", ".caption"):
            expect(tiles[arm].locator(hidden)).to_be_hidden()
        expect(video(page, arm)).to_have_attribute("aria-label", f"Video {letter}")
    expect_playing(page, "dense")
    button(page, "A is better").click()
    for arm in tiles:
        expect(tiles[arm].locator(".name")).to_be_visible()
        expect(tiles[arm].locator(".save")).to_be_visible()
    name = {"dense": "dense attention", "sparse": "block sparse attention"}[left]
    expect(page.locator(".blind-text")).to_contain_text(f"You chose A, {name}.")
    expect(page.locator(".tally-text")).to_contain_text(f"1 for {left}")
    expect(button(page, "A is better")).to_be_hidden()


def test_the_tally_survives_a_reload(page):
    draw_lots(page, 0.1)
    mode(page, "Blind A/B")
    for choice in ("A is better", "B is better", "No difference", "A is better"):
        button(page, choice).click()
        button(page, "Shuffle again").click()
        expect(page.locator('.tile[data-arm="dense"] .name')).to_be_hidden()
    told = "Your votes: 2 for dense, 1 for sparse, 1 no difference."
    expect(page.locator(".tally-text")).to_have_text(told)
    again(page)
    mode(page, "Blind A/B")
    expect(page.locator(".tally-text")).to_have_text(told)
    button(page, "Clear").click()
    expect(page.locator(".tally-text")).to_have_text("No votes yet.")


def test_broken_storage_is_no_tally(page):
    page.evaluate('localStorage.setItem(\'bsa-blind-votes\', \'{"dense": "<img src=x>", "sparse": -3\')')
    again(page)
    mode(page, "Blind A/B")
    expect(page.locator(".tally-text")).to_have_text("No votes yet.")


def again(page):
    """Load the page again; it shows the pair that it showed before."""
    reload(page)
    expect(player(page)).to_have_attribute("data-pair", "true")


def test_sides_are_drawn_anew(page):
    mode(page, "Blind A/B")
    sides = set()
    for _ in range(25):  # all alike with a chance of 2**-24
        sides.add(player(page).get_attribute("data-swap"))
        button(page, "No difference").click()
        button(page, "Shuffle again").click()
    assert sides == {"true", "false"}


def test_a_new_run_shows_tiles_then_the_chosen_view_again(page, fake):
    draw_lots(page, 0.1)
    mode(page, "Blind A/B")
    with fake.held():
        button(page, "Generate").click()
        expect(player(page)).to_have_attribute("data-pair", "false")
        expect(page.get_by_role("group", name="View")).to_be_hidden()
        expect(page.locator('.tile[data-arm="dense"] .name')).to_be_visible()
        expect(page.locator('.tile[data-arm="sparse"] .label')).to_have_text("Waiting")
        button(page, "Stop").click()
        expect(notice(page)).to_contain_text("Stopped")
    expect(player(page)).to_have_attribute("data-mode", "blind")
    expect(page.locator('.tile[data-arm="dense"] .name')).to_be_hidden()


def test_one_video_has_its_own_controls(pair, browser, address):
    expect(video(pair, "dense")).not_to_have_attribute("controls", "")
    page = open_page(browser, address)
    page.get_by_label("Dense only").check()
    button(page, "Generate").click()
    expect(player(page)).to_have_attribute("data-pair", "false")
    expect(notice(page)).to_contain_text("Done with seed")
    expect(page.get_by_role("group", name="Playback")).to_be_hidden()
    expect(video(page, "dense")).to_have_attribute("controls", "")
    assert video(page, "dense").evaluate("video => video.loop")
    expect_playing(page, "dense")
    page.context.close()


def test_reduced_motion_starts_nothing(browser, address):
    page = open_page(browser, address, reduced_motion="reduce")
    generate(page)
    expect(button(page, "Play")).to_be_visible()
    assert frames_shown(page) == [0, 0]
    for arm in ("dense", "sparse"):
        assert video(page, arm).evaluate("video => video.paused && !video.ended")
    button(page, "Play").click()
    expect_playing(page, "sparse")
    page.context.close()


def test_every_control_has_a_name_and_nothing_complains(browser, address):
    watch = Watch()
    page = open_page(browser, address, watch)
    generate(page)
    for name in ("Wipe", "Difference", "Blind A/B", "Side by side"):
        mode(page, name)
        nameless = page.locator("#stage").evaluate(
            """stage => [...stage.querySelectorAll('button, input')]
                .filter((control) => !(control.getAttribute('aria-label') || control.textContent.trim())).length"""
        )
        assert nameless == 0
    assert watch.foreign == []
    assert watch.complaints == []
    page.context.close()
