"""The page from a phone to a 4K screen, in both languages: nothing scrolls sideways, nothing is cut off."""

from __future__ import annotations

import time

import pytest
from app_server import WAIT_SECONDS, running_page
from browser import chromium, needs_chromium, open_memory, open_page
from fake_pipeline import FakePipeline
from playwright.sync_api import expect

pytestmark = needs_chromium

# Boxes that reach over the edge, and words that their own box cuts off; a grid of clips may scroll within itself.
OUTSIDE = """() => [...document.querySelectorAll('.gradio-container *')]
    .filter((node) => node.checkVisibility() && !node.closest('.sweep-scroll, .visually-hidden, .sr'))
    .filter((node) => node.getBoundingClientRect().right > innerWidth + 1)
    .map((node) => node.outerHTML.slice(0, 120))"""
CUT = """() => [...document.querySelectorAll('button, label, th, td, dt, dd, p, h1, h2, h3, figcaption, .badge')]
    .filter((node) => node.checkVisibility() && node.innerText && !node.closest('.sweep-scroll, .visually-hidden, .sr'))
    .filter((node) => getComputedStyle(node).overflowX !== 'visible' && node.scrollWidth > node.clientWidth + 1)
    .map((node) => node.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with a finished pair, all settings open. It is resized, as a window is."""
    with running_page(
        FakePipeline(step_seconds=0.01), tmp_path_factory.mktemp("outputs"), model_switch=True
    ) as address:
        with chromium() as browser:
            page = open_page(browser, address)
            for group in page.locator("#settings button.label-wrap").all():
                group.click()
            open_memory(page)
            page.locator("#generate").click()
            expect(page.locator("#notice .notice[data-kind=done]")).to_be_visible()
            yield page


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    ("width", "height"),
    [
        pytest.param(390, 844, id="phone"),
        pytest.param(768, 1024, id="tablet"),
        pytest.param(1440, 900, id="laptop"),
        pytest.param(2560, 1440, id="wide"),
        pytest.param(3840, 2160, id="4k"),
    ],
)
def test_everything_has_room(page, width, height, language):
    page.set_viewport_size({"width": width, "height": height})
    page.locator(f'[data-language="{language}"]').click()
    for name in ("result", "inspector", "history", "sweep_tab"):
        tab = page.locator(f'#details button[role="tab"][data-tab-id="{name}"]:visible')
        tab.click()  # none hides in a menu
        expect(tab).to_have_attribute("aria-selected", "true")
        assert width > 480 or tab.bounding_box()["height"] >= 44, "less than a finger needs"
        page.wait_for_timeout(150)  # what draws itself to the width that it has does so soon, on most machines
        for script in (f"[document.documentElement.scrollWidth].filter((wide) => wide > {width})", OUTSIDE, CUT):
            nothing(page, script)


def nothing(page, script):
    """The script finds nothing, or soon nothing any more."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (found := page.evaluate(script)) and time.monotonic() < deadline:
        page.wait_for_timeout(200)
    assert found == []


def test_a_large_screen_is_used(page):
    """The videos are larger there, and what was measured stands beside them."""
    sizes = {}
    for width, height in ((1440, 900), (3840, 2160)):
        page.set_viewport_size({"width": width, "height": height})
        parts = ("#stage", "#details", '.tile[data-arm="dense"] video')
        sizes[width] = [page.locator(part).bounding_box() for part in parts]
    (stage, details, small), (wide_stage, wide_details, large) = sizes[1440], sizes[3840]
    assert details["y"] >= stage["y"] + stage["height"]
    assert wide_details["x"] >= wide_stage["x"] + wide_stage["width"]
    assert large["width"] > 1.5 * small["width"]
