"""Clips as phones and recorders make them: frames at odd times, pixels that are not square."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from pipeline.media import clip as clips
from pipeline.media.clip import even, inspect_clip, read_clip

FRAMES = np.repeat(np.arange(17, dtype=np.uint8)[:, None, None, None] * 13 + 20, 3, axis=-1)
FRAMES = np.tile(FRAMES, (1, 32, 48, 1))  # each of another brightness


def write(path: Path, filters: str, fps: str = "15") -> Path:
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "48x32", "-r", fps, "-i", "-"]
    timed = ["-vf", filters, "-fps_mode", "passthrough", "-enc_time_base", "1:9000", "-video_track_timescale", "9000"]
    coded = [*timed, "-c:v", "libx264", "-crf", "5"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, *coded, "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, input=FRAMES.tobytes(), check=True)
    return path


def numbers(path: Path) -> list[int]:
    """Which frames were read, by their brightness."""
    return [round((frame.mean() - 20) / 13) for frame in read_clip(path)]


def test_frames_at_odd_times_keep_their_pace(tmp_path):
    """8 frames in a quarter of a second, and 9 in the 1.25 seconds after it."""
    path = write(tmp_path / "odd.mp4", "settb=1/9000,setpts='if(lt(N,9),N/32,0.25+(N-8)*0.15625)/TB'")
    clip = inspect_clip(path)
    assert (clip.frames, clip.fps) == (17, 11), "17 frames in 1.5 seconds"
    shown = numbers(path)
    assert len(shown) == clip.frames
    times = [n / 32 if n < 9 else 0.25 + (n - 8) * 0.15625 for n in range(17)]
    for number, moment in zip(shown, np.arange(17) / 11, strict=True):
        assert number == max(n for n, time in enumerate(times) if time <= moment + 1e-3)


@pytest.mark.parametrize(
    ("fps", "stated"), [("15", 15), ("24000/1001", 24), ("12.5", 12)], ids=["15", "23.976", "12.5"]
)
def test_even_frames_are_all_read(fps, stated, tmp_path):
    path = write(tmp_path / "even.mp4", "null", fps)
    assert inspect_clip(path).fps == stated
    assert numbers(path) == list(range(17))


def test_a_clock_of_milliseconds_is_even():
    chosen, rate = even(np.round(np.arange(40) / 29.97, 3) + 5)
    assert chosen.tolist() == list(range(40)) and round(rate) == 30


@pytest.mark.parametrize(("aspect", "width"), [("4/3", 64), ("1/2", 24)])
def test_pixels_become_square(aspect, width, tmp_path):
    path = write(tmp_path / "wide.mp4", f"setsar={aspect}")
    clip = inspect_clip(path)
    assert (clip.height, clip.width) == (32, width)
    assert read_clip(path).shape == (17, 32, width, 3)


def test_long_pauses_are_refused(tmp_path, monkeypatch):
    """One picture for each second of them would be a thousand copies."""
    path = write(tmp_path / "pause.mp4", "settb=1/9000,setpts='if(lt(N,16),N/15,2000)/TB'")
    with pytest.raises(ValueError, match="shows 17 frames in 2000 seconds; cut it into pieces without such long"):
        inspect_clip(path)
    path = write(tmp_path / "short.mp4", "settb=1/9000,setpts='if(lt(N,16),N/15,30)/TB'")
    assert inspect_clip(path).frames == 31
    monkeypatch.setattr(clips, "MAX_TOTAL", 48 * 32 * 20)
    with pytest.raises(ValueError, match="shows 17 frames in 30 seconds"):
        read_clip(path)
