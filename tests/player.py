"""What the tests of the compare player share: a page with a finished pair, and ways to move and read it."""

from __future__ import annotations

import pytest
from app_server import running_page
from browser import generate as generate_and_wait
from browser import open_page, video
from fake_pipeline import CHECKPOINT, FakePipeline
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


@pytest.fixture(scope="module")
def fake():
    return FakePipeline()


@pytest.fixture(scope="module")
def address(fake, tmp_path_factory):
    with running_page(fake, tmp_path_factory.mktemp("outputs")) as address:
        yield address


@pytest.fixture
def page(browser, address):
    page = open_page(browser, address)
    generate(page)
    yield page
    page.context.close()


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
