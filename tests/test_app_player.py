"""The compare player in Chromium: two real clips of the fake pipeline, played, scrubbed and stepped as one."""

from __future__ import annotations

import pytest
from browser import button, expect_playing, needs_chromium, video
from player import (
    ASIDE,
    ASIDE_FRAMES,
    FPS,
    FRAMES,
    WATCH,
    frames_shown,
    pause,
    player,
    put_back,
    scrub_to,
    settled,
)
from playwright.sync_api import expect

pytestmark = needs_chromium


@pytest.fixture
def page(pair):
    put_back(pair)
    return pair


def test_a_pair_plays_as_one_and_stays_within_a_frame(page):
    expect_playing(page, "dense")
    expect_playing(page, "sparse")
    for name in ("Speed 1", "Speed 0.5", "Speed 0.25"):
        button(page, name).click()
        expect(button(page, name)).to_have_attribute("aria-pressed", "true")
        seen = page.evaluate(WATCH % ASIDE, [2, "at", 6])
        assert len({reading["at"] for reading in seen}) > 5, "the clips stand still"
        assert max(reading["aside"] for reading in seen) * FPS <= ASIDE_FRAMES
        rate = video(page, "dense").evaluate("video => video.playbackRate")
        assert rate == float(name.split()[1])


def test_it_recovers_from_a_clip_that_runs_away(page):
    video(page, "sparse").evaluate("(video) => { video.currentTime = Math.max(0, (video.currentTime + 0.5) % 1.1); }")
    page.wait_for_function(f"() => ({ASIDE})().aside * {FPS} <= {ASIDE_FRAMES}")
    expect_playing(page, "dense")
    expect_playing(page, "sparse")


def test_pause_and_scrub_show_the_same_frame(page):
    pause(page)
    dense, sparse = frames_shown(page)
    assert dense == sparse
    for frame in (3, FRAMES - 1, 0, 9):
        scrub_to(page, frame)
        assert frames_shown(page) == [frame, frame]
        expect(page.locator(".place")).to_contain_text(f"{frame + 1} / {FRAMES}")
    expect(page.get_by_label("Frame", exact=True)).to_have_attribute("aria-valuetext", f"frame 10 of {FRAMES}")
    assert video(page, "dense").evaluate("video => video.paused")


def test_a_fast_drag_ends_where_it_was_let_go(page):
    pause(page)
    page.get_by_label("Frame", exact=True).evaluate(
        """range => { for (let i = 0; i < 15; i += 1) { range.value = i; range.dispatchEvent(new Event('input')); } }"""
    )
    assert frames_shown(page) == [14, 14]


def test_scrubbing_while_it_plays_plays_on(page):
    scrub_to(page, 2)
    expect_playing(page, "dense")
    expect_playing(page, "sparse")
    seen = page.evaluate(WATCH % ASIDE, [1, "at", 2])
    assert max(reading["aside"] for reading in seen) * FPS <= ASIDE_FRAMES


def test_frame_steps_by_button_and_by_key(page):
    pause(page)
    scrub_to(page, 5)
    button(page, "Next frame").click()
    assert frames_shown(page) == [6, 6]
    button(page, "Previous frame").click()
    assert frames_shown(page) == [5, 5]
    player(page).focus()
    for key, frame in ((".", 6), ("ArrowRight", 7), (",", 6), ("ArrowLeft", 5), ("End", FRAMES - 1), (".", FRAMES - 1)):
        page.keyboard.press(key)
        assert frames_shown(page) == [frame, frame], key
    for key, frame in (("Home", 0), (",", 0)):
        page.keyboard.press(key)
        assert frames_shown(page) == [frame, frame], key
    page.get_by_label("Frame", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert frames_shown(page) == [1, 1]


def test_a_step_stops_playing(page):
    button(page, "Next frame").click()
    settled(page)
    expect(button(page, "Play")).to_be_visible()
    dense, sparse = frames_shown(page)
    assert dense == sparse


def test_space_plays_and_pauses(page):
    player(page).focus()
    page.keyboard.press(" ")
    expect(button(page, "Play")).to_be_visible()
    assert video(page, "sparse").evaluate("video => video.paused")
    page.keyboard.press(" ")
    expect_playing(page, "dense")
    expect_playing(page, "sparse")
    button(page, "Pause").focus()
    page.keyboard.press(" ")
    expect(button(page, "Play")).to_be_visible()


def test_keys_outside_the_player_are_left_alone(page):
    pause(page)
    scrub_to(page, 4)
    page.locator("#prompt textarea").fill("")
    page.locator("#prompt textarea").press_sequentially("a , . b")
    expect(page.locator("#prompt textarea")).to_have_value("a , . b")
    assert frames_shown(page) == [4, 4]


def test_loop_goes_round_and_can_be_turned_off(page):
    page.wait_for_function(
        f"""() => {{
            const at = ({ASIDE})().at;
            const round = at < (window.before || 0);
            window.before = at;
            return round;
        }}"""
    )
    button(page, "Loop").click()
    expect(button(page, "Loop")).to_have_attribute("aria-pressed", "false")
    expect(button(page, "Play")).to_be_visible()
    assert frames_shown(page) == [FRAMES - 1, FRAMES - 1]
    button(page, "Loop").click()  # else it may be over before anybody looks
    button(page, "Play").click()
    expect_playing(page, "sparse")
