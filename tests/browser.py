"""Chromium for the tests of the page. Playwright's own build cannot play H.264, so the system's is used."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH, and only a system build plays H.264: apt-get install chromium"
)
DESKTOP = {"width": 1440, "height": 900}
WAIT_MS = 120_000  # far above what any of this takes, only against hanging
expect.set_options(timeout=WAIT_MS)


@contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required", *arguments]
        )
        yield browser
        browser.close()


@dataclass
class Watch:
    """What a page asked of other hosts, and what it complained about."""

    foreign: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def attach(self, page: Page, address: str) -> None:
        home = urlsplit(address).netloc

        def on_request(request):
            if urlsplit(request.url).scheme.startswith(("http", "ws")) and urlsplit(request.url).netloc != home:
                self.foreign.append(request.url)

        page.on("request", on_request)
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))


def open_page(
    browser: Browser, address: str, watch: Watch | None = None, width: int = 1440, height: int = 900, **context: Any
) -> Page:
    """The page in a context of its own, once its form has the values that it will have. context: further options."""
    page = new_tab(browser, viewport={"width": width, "height": height}, **context)
    if watch is not None:
        watch.attach(page, address)
    enter(page, address)
    return page


def new_tab(browser: Browser, viewport: dict[str, int] = DESKTOP, **context: Any) -> Page:
    """An empty tab in a context of its own."""
    tab = browser.new_context(viewport=viewport, **context).new_page()
    tab.set_default_timeout(WAIT_MS)
    return tab


def enter(page: Page, address: str) -> None:
    # "networkidle" never comes, because the page asks for readings every second
    page.goto(address, wait_until="domcontentloaded")
    expect(page.locator("#generate")).to_be_enabled()


def enter_as_stranger(tab: Page, address: str) -> None:
    """Open the page again in a tab, as a visitor who was never there. It takes half the work of a first time: the tab
    has fetched and compiled the page's scripts."""
    for other in tab.context.pages:
        if other is not tab:
            other.close()
    storage = {"origin": address, "storageTypes": "cookies,local_storage,indexeddb"}
    tab.context.new_cdp_session(tab).send("Storage.clearDataForOrigin", storage)
    tab.set_viewport_size(DESKTOP)
    enter(tab, address)


def reload(page: Page) -> None:
    """Load the page again and wait until its form has the values that it will have."""
    page.reload(wait_until="domcontentloaded")
    expect(page.locator("#generate")).to_be_enabled()


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def drawn(page: Page) -> None:
    """What the page had to do until its next picture is done, and the picture is shown."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def open_group(page: Page, name: str) -> None:
    page.get_by_role("button", name=name).click()
    drawn(page)


def open_memory(page: Page) -> None:
    """Open the panel of memory, which is one line at first."""
    fold = page.locator(".live-fold")
    if fold.get_attribute("aria-expanded") == "false":
        fold.click()
    drawn(page)


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    drawn(page)


def fill(box: Locator, value: Any) -> None:
    """Type a value and leave the field.

    Gradio makes the fields of a group or a tab when it is opened, and gives them their values again just before they
    are drawn: a script can type earlier than that, and would lose what it typed.
    """
    expect(box).to_be_visible()
    drawn(box.page)
    box.fill(str(value))
    box.press("Tab")
    expect(box).to_have_value(str(value))


def fill_number(page: Page, label: str, value: float) -> None:
    fill(page.get_by_label(label, exact=True), value)


def notice(page: Page) -> Locator:
    return page.locator("#notice .notice")


def video(page: Page, arm: str) -> Locator:
    return page.locator(f'.tile[data-arm="{arm}"] video')


def generate(page: Page) -> None:
    """Press Generate and wait for the end of this run: what an earlier run left on the page looks the same."""
    shown = "() => [...document.querySelectorAll('.tile')].map(tile => tile.dataset.video || '')"
    before = page.evaluate(shown)
    button(page, "Generate").click()
    page.wait_for_function(f"before => ({shown})().some(job => job && !before.includes(job))", arg=before)
    expect(notice(page)).to_contain_text("Done with seed")
    expect(button(page, "Generate")).to_be_enabled()


def expect_playing(page: Page, arm: str) -> None:
    """The video has a picture and its time moves on."""
    page.wait_for_function(
        """arm => {
            const video = document.querySelector(`.tile[data-arm="${arm}"] video`);
            return video.readyState >= 2 && video.videoWidth > 0 && !video.paused;
        }""",
        arg=arm,
    )
    before = video(page, arm).evaluate("video => video.currentTime")
    page.wait_for_function(
        """([arm, before]) => document.querySelector(`.tile[data-arm="${arm}"] video`).currentTime !== before""",
        arg=[arm, before],
    )
