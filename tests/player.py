"""What the tests of the compare player share: ways to make a pair, to move it and to read it."""

from __future__ import annotations

from browser import button, video
from browser import generate as generate_and_wait
from fake_pipeline import CHECKPOINT
from playwright.sync_api import expect

FPS = CHECKPOINT.defaults["fps"]
FRAMES = CHECKPOINT.defaults["num_frames"]
ASIDE_FRAMES = 1.0  # the promise of the player: never more than a frame apart

ASIDE = """() => {
    const [a, b] = ['dense', 'sparse'].map((arm) => document.querySelector(`.tile[data-arm="${arm}"] video`));
    return { aside: Math.abs(a.currentTime - b.currentTime), at: a.currentTime };
}"""
# Reads for so many seconds, and on until so many different values of a name were seen: a busy machine shows few frames.
WATCH = """async ([seconds, name, different]) => {
    const read = %s;
    const seen = [];
    const start = performance.now();
    const since = () => (performance.now() - start) / 1000;
    while (since() < seconds || (since() < 60 && new Set(seen.map((one) => one[name])).size < different)) {
        seen.push(read());
        await new Promise(requestAnimationFrame);
    }
    return seen;
}"""
HEAT = """() => {
    const canvas = document.querySelector('.heat-map');
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = pixels.filter((_, i) => i % 4 < 3);
    return { frame: canvas.dataset.frame, most: colours.reduce((most, value) => Math.max(most, value), 0) };
}"""


def put_back(page):
    """A pair as it is at first, whatever a test did with it: playing side by side at its own speed, without votes."""
    mode(page, "Side by side")
    button(page, "Speed 1").click()
    page.evaluate("Math.random = window.chance ?? Math.random")
    page.locator(".tally-clear").evaluate("clear => clear.click()")  # hidden where nobody voted
    page.locator(".overlay.wipe input").evaluate(
        "range => { range.value = 50; range.dispatchEvent(new Event('input', { bubbles: true })); }"
    )
    if button(page, "Loop").get_attribute("aria-pressed") == "false":
        button(page, "Loop").click()
    if button(page, "Play").is_visible():
        button(page, "Play").click()
    expect(player(page)).to_have_attribute("data-playing", "true")


def draw_lots(page, lot):
    """From now on, every lot is this one, from 0 to 1."""
    page.evaluate("lot => { window.chance ??= Math.random; Math.random = () => lot; }", lot)


def generate(page):
    generate_and_wait(page)
    expect(player(page)).to_have_attribute("data-pair", "true")


def player(page):
    return page.locator("#stage .player")


def mode(page, name):
    page.get_by_role("group", name="View").get_by_role("button", name=name).click()


def pause(page):
    page.get_by_role("button", name="Pause", exact=True).click()
    settled(page)


def settled(page):
    expect(player(page)).to_have_attribute("data-settled", "true")


def frames_shown(page):
    """The frame each clip stands at."""
    settled(page)
    return [int(video(page, arm).evaluate("video => video.currentTime") * FPS) for arm in ("dense", "sparse")]


def scrub_to(page, frame):
    page.get_by_label("Frame", exact=True).fill(str(frame))
    settled(page)
