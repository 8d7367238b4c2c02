"""The shipped checkpoint, served by `python app.py`: once in Chromium and once through gradio_client."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import psutil
import pytest
from app_server import running_program, until
from browser import button, chromium, expect_playing, fill_number, needs_chromium, notice, open_group, open_page
from gradio_client import Client, handle_file
from playwright.sync_api import expect

from pipeline import EMBEDDED_CHECKPOINT, inspect_checkpoint
from pipeline.media.clip import read_clip

STEPS = 2  # enough to go through every stage; the quality of the video is checked elsewhere
FRAMES = 29  # two seconds to play
RUN_MS = 300_000  # far above what two short generations take on two cores, only against hanging


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_program(tmp_path_factory.mktemp("app"), "app.py", "--device", "cpu") as running:
        yield running


@pytest.fixture
def address(server):
    return server[1]


@needs_chromium
def test_press_generate_and_see_two_playing_videos(address):
    with chromium() as browser:
        page = open_page(browser, address)
        open_group(page, "Size, frames, steps, guidance, seed")
        fill_number(page, "number input for Denoising steps", STEPS)
        fill_number(page, "Frames", FRAMES)
        button(page, "Generate").click()
        expect(notice(page)).to_contain_text("Done with seed", timeout=RUN_MS)
        expect_playing(page, "dense")
        expect_playing(page, "sparse")
        report = page.locator("#report").inner_text()
        figures = page.locator("#stage .figures").inner_text()
        assert re.search(r"\d\.\d+×\s+denoising speed-up", figures)  # a range on a busy machine
        assert re.search(r"\d+\.\d dB\s+PSNR", figures)
        assert "BSA active\tno: dense attention was asked for\tyes:" in report


def test_compare_through_the_client(address):
    info = inspect_checkpoint(EMBEDDED_CHECKPOINT)
    client = Client(address, verbose=False)
    dense, sparse, report = client.predict("a red ball", steps=STEPS, seed=3, num_frames=9, api_name="/compare")
    for path in (dense, sparse):
        details = next(imageio_ffmpeg.read_frames(path))
        assert details["codec"] == "h264"
        assert details["pix_fmt"].startswith("yuv420p")
        assert details["size"] == (info.defaults["width"], info.defaults["height"])
    assert report["sparse"]["bsa_active"] is True
    assert report["sparse"]["density"] < report["dense"]["density"] == 1.0
    assert report["dense"]["request"]["seed"] == report["sparse"]["request"]["seed"] == 3
    assert 0 < report["ssim"] <= 1


def test_every_task_through_the_client(address):
    """From a picture, on from its end, and a story of two segments, each tiny."""
    client = Client(address, verbose=False)
    small = {"width": 64, "height": 64, "num_frames": 9, "steps": STEPS, "sparsity": 0.5, "seed": 3}
    picture = handle_file(Path(__file__).parents[1] / "assets/pictures/ball.png")
    made, report = client.predict(picture, "a red ball bounces", **small, api_name="/image_to_video")
    assert (report["request"]["from_image"], report["bsa_active"]) == ({"image": "image.png"}, True)
    assert "note" not in report
    more, report = client.predict(
        handle_file(made), "a red ball rises", cond_frames=5, **small, api_name="/continue"
    )
    assert report["request"]["from_frames"]["cond_frames"] == 5
    given = np.abs(read_clip(more)[:5].astype(int) - read_clip(made)[-5:]).mean()
    assert given < 12  # of 255: they went through the VAE and H.264 once more
    video, report = client.predict(["a red ball rises", "it falls"], cond_frames=5, **small, api_name="/long")
    assert [one["seed"] for one in report["segments"]] == [3, 4]
    parts = [read_clip(one["videos"]["sparse"]) for one in report["segments"]]
    np.testing.assert_array_equal(read_clip(video), np.concatenate(parts))
    assert [len(part) for part in parts] == [9, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="reads which libraries another process has loaded")
def test_the_server_has_made_videos_without_torch(server):
    """Those that the tests before asked for; the process that computes is the server's child."""
    process = psutil.Process(server[0].pid)

    def libraries(one):
        return {Path(region.path).name for region in one.memory_maps()}

    until(lambda: any("torch" in name for child in process.children() for name in libraries(child)), "the engine")
    assert not any("torch" in name for name in libraries(process))
