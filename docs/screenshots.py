"""Takes the pictures of docs/screenshots: `python docs/screenshots.py`.

It serves the page with the embedded checkpoint, and drives it in Chromium by Playwright. The first picture is of a
finished run, the others of the pair of assets/premade, which a new visitor sees.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright
from recording import ROOT, START_SECONDS, served

FOLDER = ROOT / "docs" / "screenshots"
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


def opened(browser: Browser, address: str, **options: Any) -> Page:
    """The page of a new visitor, with its model ready and the first pair playing."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(1000 * START_SECONDS)
    page.goto(address, wait_until="domcontentloaded")
    page.locator('#header .pill[data-state="ready"]').wait_for()
    page.locator('.player[data-playing="true"]').wait_for()
    return page


def take(page: Page, name: str) -> None:
    """Save the whole page, with the videos paused where much is to be seen."""
    page.keyboard.press("Escape")
    page.locator(".transport .play").click()
    page.evaluate("document.querySelectorAll('.tile video').forEach((video) => { video.currentTime = 1.4; })")
    page.wait_for_timeout(1500)
    page.screenshot(path=FOLDER / f"{name}.png", full_page=True)
    page.context.close()


def main() -> None:
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with (
        tempfile.TemporaryDirectory() as name,
        served(Path(name)) as address,
        sync_playwright() as playwright,
    ):
        arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=arguments)
        page = opened(browser, address, **DESKTOP)
        page.get_by_role("button", name="Generate", exact=True).click()
        page.get_by_text("Done with seed").first.wait_for()
        take(page, "desktop")
        take(opened(browser, address, **DESKTOP, color_scheme="dark"), "dark")
        take(opened(browser, address, **DESKTOP, locale="zh-CN"), "chinese")
        take(opened(browser, address, **PHONE), "phone")
        page = opened(browser, address, **DESKTOP)
        page.get_by_role("tab", name="Inside the attention").click()
        page.wait_for_timeout(3000)
        take(page, "inside")
        browser.close()


if __name__ == "__main__":
    main()
