"""Colours of video files: what is written is what browsers show, at every size, and what is read back."""

from __future__ import annotations

import base64
import io
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from browser import chromium, needs_chromium
from PIL import Image

from pipeline.media.clip import read_clip
from pipeline.media.write import write_video
from ui.storage.files import poster

RGB = ["ff0000", "00ff00", "0000ff", "ffff00", "00ffff", "ff00ff", "c82828", "28c828", "2828c8", "fa780a", "808080"]
COLOURS = np.array([list(bytes.fromhex(rgb)) for rgb in RGB])
SIZES = [(480, 832), (704, 1280), (720, 1280), (1280, 704)]  # browsers take untagged files for BT.709 from 720 rows on
CLOSE = 4  # of 255; the wrong matrix is off by up to 39

# Colours as GPUs convert them: without this, Chromium's own code does, whose blue is short of 255 in BT.709.
SHADERS = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
SHOWN = """async ([source, columns, row]) => {
    const video = document.createElement("video");
    video.muted = true;
    video.src = source;
    document.body.append(video);
    await new Promise((done, fail) => {
        video.onerror = () => fail(video.error.message);
        video.requestVideoFrameCallback(done);
        video.play();
    });
    const canvas = Object.assign(document.createElement("canvas"), {width: video.videoWidth, height: row + 1});
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    video.remove();
    return columns.map((x) => [...context.getImageData(x, row, 1, 1).data].slice(0, 3));
}"""


def patches(height: int, width: int, frames: int = 2) -> np.ndarray:
    """Upright stripes, one of each colour."""
    picture = np.repeat(COLOURS, np.diff(np.linspace(0, width, len(COLOURS) + 1).astype(int)), axis=0)
    return np.broadcast_to(picture.astype(np.uint8), (frames, height, width, 3))


def middles(width: int) -> list[int]:
    return [int(width * (number + 0.5) / len(COLOURS)) for number in range(len(COLOURS))]


def off(picture: np.ndarray) -> int:
    """The largest difference from the stripes in the middle of a picture."""
    height, width, _ = picture.shape
    return int(np.abs(picture[height // 2, middles(width)].astype(int) - COLOURS).max())


@needs_chromium
def test_chromium_shows_the_colours_that_were_written(tmp_path):
    with chromium(*SHADERS) as browser:
        page = browser.new_page()
        for height, width in SIZES:
            write_video(tmp_path / "video.mp4", patches(height, width), 15, {})
            source = "data:video/mp4;base64," + base64.b64encode((tmp_path / "video.mp4").read_bytes()).decode()
            shown = page.evaluate(SHOWN, [source, middles(width), height // 2])
            assert np.abs(np.array(shown) - COLOURS).max() <= CLOSE, (height, shown)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]} rows")
def test_what_is_written_is_read_back(size, tmp_path):
    write_video(tmp_path / "video.mp4", patches(*size), 15, {})
    assert off(read_clip(tmp_path / "video.mp4")[0]) <= CLOSE
    stored = (tmp_path / "video.mp4").read_bytes()
    assert b"colrnclx" + bytes([0, 1, 0, 1, 0, 1, 0]) in stored, "BT.709 thrice, and no full range"


def test_a_poster_has_the_colours_of_its_video(tmp_path):
    write_video(tmp_path / "video.mp4", patches(720, 1280), 15, {})
    jpeg = base64.b64decode(poster(tmp_path / "video.mp4", 0).partition(",")[2])
    assert off(np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))) <= 2 * CLOSE


@pytest.mark.parametrize("height", [480, 720])
@pytest.mark.parametrize(
    ("matrix", "range_", "tagged"),
    [
        pytest.param("bt709", "tv", True, id="BT.709"),
        pytest.param("bt601", "tv", True, id="BT.601"),
        pytest.param("bt601", "pc", True, id="full range"),
        pytest.param("bt601", "tv", False, id="untagged"),  # as this program wrote them, at every size
    ],
)
def test_clips_of_others_are_read_by_their_tags(matrix, range_, tagged, height, tmp_path):
    convert(tmp_path / "clip.mp4", patches(height, 640), matrix, range_, tagged)
    assert off(read_clip(tmp_path / "clip.mp4")[0]) <= CLOSE


def convert(path: Path, frames: np.ndarray, matrix: str, range_: str, tagged: bool) -> None:
    _, height, width, _ = frames.shape
    name = "smpte170m" if matrix == "bt601" else matrix
    filters = f"scale=out_color_matrix={matrix}:out_range={range_},"
    if tagged:
        filters += f"setparams=range={range_}:color_primaries={name}:color_trc={name}:colorspace={name}"
    else:
        filters += "setparams=range=unknown:colorspace=unknown"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "15", "-i", "-"]
    coded = ["-vf", filters, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "10"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, *coded, str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True)
