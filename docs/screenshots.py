"""Takes the pictures of docs/screenshots: `python docs/screenshots.py`.

It serves the page with the embedded checkpoint, and drives it in Chromium by Playwright. The first picture is of a
finished run, the others of the pair of assets/premade, which a new visitor sees.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Page
from recording import ROOT, visited

FOLDER = ROOT / "docs" / "screenshots"
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


def take(page: Page, name: str) -> None:
    """Save the whole page, with the videos paused where much is to be seen."""
    page.keyboard.press("Escape")
    page.locator(".transport .play").click()
    page.evaluate("document.querySelectorAll('.tile video').forEach((video) => { video.currentTime = 1.4; })")
    page.wait_for_timeout(1500)
    page.screenshot(path=FOLDER / f"{name}.png", full_page=True)
    page.context.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as name, visited(Path(name)) as visit:
        page = visit(**DESKTOP)
        page.get_by_role("button", name="Generate", exact=True).click()
        page.get_by_text("Done with seed").first.wait_for()
        take(page, "desktop")
        take(visit(**DESKTOP, color_scheme="dark"), "dark")
        take(visit(**DESKTOP, locale="zh-CN"), "chinese")
        take(visit(**PHONE), "phone")
        page = visit(**DESKTOP)
        page.get_by_role("tab", name="Inside the attention").click()
        page.wait_for_timeout(3000)
        take(page, "inside")


if __name__ == "__main__":
    main()
