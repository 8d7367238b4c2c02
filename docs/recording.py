"""Records the page as an animated picture, docs/images/page.webp: `python docs/recording.py`.

It serves the page with the embedded checkpoint, drives it in Chromium by Playwright, takes what Chromium's screencast
shows, and lets ffmpeg make a WebP of it that is no larger than 2 MB. Nothing is staged: the videos are the pair of
assets/premade, and the run at the end is a real one, stopped when the recording is.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imageio_ffmpeg
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SIZE = {"width": 1280, "height": 860}
FPS = 8
LARGEST = 2_000_000  # bytes
QUALITIES = (75, 60, 45, 30)  # of the WebP; the first that is small enough
START_SECONDS = 300
LONGEST = 0.4  # seconds that one picture stays: where a busy machine draws nothing, nothing is to be seen


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The page over the embedded checkpoint, as a program of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app.py", "--port", str(port), "--output-dir", str(folder / "outputs")]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while not _answers(address):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the page did not start; run python app.py to see why")
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


@contextmanager
def visited(folder: Path) -> Iterator[Callable[..., Page]]:
    """The page in Chromium. What is yielded opens it for a new visitor, with options of Playwright's `new_context`, and
    returns it with its model ready and the first pair playing."""
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    with served(folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=arguments)

        def visit(**options: Any) -> Page:
            page = browser.new_context(**options).new_page()
            page.set_default_timeout(1000 * START_SECONDS)
            page.goto(address, wait_until="domcontentloaded")
            page.locator('#header .pill[data-state="ready"]').wait_for()
            page.locator('.player[data-playing="true"]').wait_for()
            return page

        yield visit
        browser.close()


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address).status == 200
    except OSError:
        return False


def act(page: Page) -> None:
    """What the recording shows."""

    def stay(seconds: float) -> None:
        page.wait_for_timeout(1000 * seconds)

    box = page.locator('.tile[data-arm="sparse"] .frame').bounding_box() or {}
    x, y, width, height = (box[name] for name in ("x", "y", "width", "height"))
    stay(1.5)
    for across, down in ((0.5, 0.55), (0.85, 0.15)):  # the heart, then the sky
        page.mouse.move(x + across * width, y + down * height, steps=12)
        page.mouse.click(x + across * width, y + down * height)
        stay(2.2)
    page.keyboard.press("Escape")
    page.locator('.modes [data-mode="wipe"]').click()
    for share in (50, 20, 50, 80, 50):
        page.locator(".wipe-at").fill(str(share))
        stay(0.35)
    page.locator('.modes [data-mode="heat"]').click()
    stay(1.5)
    page.locator('.modes [data-mode="side"]').click()
    for _ in range(2):
        page.get_by_role("button", name="Surprise me").click()
        stay(0.8)
    page.locator("#generate").click()
    stay(3)


def record(page: Page, folder: Path) -> Path:
    """Take the screencast while `act` runs. Returns a list of the pictures with their durations, for ffmpeg."""
    shown: list[tuple[float, Path]] = []
    session = page.context.new_cdp_session(page)

    def keep(frame: dict) -> None:
        file = folder / f"{len(shown):05}.jpg"
        file.write_bytes(base64.b64decode(frame["data"]))
        shown.append((frame["metadata"]["timestamp"], file))
        session.send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})

    session.on("Page.screencastFrame", keep)
    session.send("Page.startScreencast", {"format": "jpeg", "quality": 92, "everyNthFrame": 2})
    act(page)
    session.remove_listener("Page.screencastFrame", keep)
    session.send("Page.stopScreencast")
    times = [at for at, _ in shown]
    lines = [
        f"file '{file}'\nduration {min(LONGEST, max(0.001, after - at)):.4f}"
        for (at, file), after in zip(shown, [*times[1:], times[-1] + 0.5], strict=True)
    ]
    listed = folder / "pictures.txt"
    listed.write_text("\n".join([*lines, f"file '{shown[-1][1]}'"]))
    return listed


def assemble(listed: Path, output: Path, width: int) -> None:
    """Write the WebP at the best quality that keeps it below the limit. Raises ValueError if none does."""
    for quality in QUALITIES:
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-v",
            "error",
            "-y",
            "-f",
            "concat",
            "-safe",
            "0",
            "-i",
            str(listed),
        ]
        command += ["-vf", f"fps={FPS},scale={width}:-2:flags=lanczos", "-c:v", "libwebp_anim"]
        command += ["-quality", str(quality), "-compression_level", "4", "-loop", "0", "-an", str(output)]
        subprocess.run(command, check=True)
        if output.stat().st_size <= LARGEST:
            print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, quality {quality}")
            return
    size = output.stat().st_size / 1e6
    raise ValueError(f"{output} is {size:.1f} MB at the lowest quality; a --width below {width} makes it smaller")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "page.webp")
    parser.add_argument("--width", type=int, default=800, help="of the picture, in pixels")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, visited(Path(name)) as visit:
        listed = record(visit(viewport=SIZE), Path(name))
        assemble(listed, args.output, args.width)


if __name__ == "__main__":
    main()
