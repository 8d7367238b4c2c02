"""Clips that lie about themselves, or are larger than anything that can be refined."""

from __future__ import annotations

import asyncio
import os
import resource
import struct
import subprocess
import sys
import threading

import imageio_ffmpeg
import numpy as np
import pytest
from app_server import WAIT_SECONDS

from pipeline.media import clip as clips
from pipeline.media.clip import inspect_clip, read_clip
from pipeline.media.comment import read_settings
from pipeline.media.write import write_video
from ui.access.clips import BUSY, MOST_WAITING, ClipReader

HUGE = 80_000_000


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    pixels = np.random.default_rng(0).integers(0, 255, (9, 32, 48, 3)).astype(np.uint8)
    write_video(path, pixels, 15, {})
    return path


def forged(path, kind, content):
    """The clip with the content of its first box of a kind replaced, by as many bytes at most."""
    data = bytearray(path.read_bytes())
    at = data.index(kind) + 4
    data[at : at + len(content)] = content
    path.write_bytes(data)
    return path


def with_fragment(path, samples):
    run = struct.pack(">IIII", 16, int.from_bytes(b"trun"), 0, samples)
    header = struct.pack(">IIII", 16, int.from_bytes(b"tfhd"), 0, 1)
    inner = struct.pack(">II", 8 + len(header + run), int.from_bytes(b"traf")) + header + run
    path.write_bytes(path.read_bytes() + struct.pack(">II", 8 + len(inner), int.from_bytes(b"moof")) + inner)
    return path


FORGERIES = [
    pytest.param(lambda path: forged(path, b"stsz", struct.pack(">III", 0, 1, HUGE)), id="sizes"),
    pytest.param(lambda path: forged(path, b"stts", struct.pack(">IIII", 0, 1, HUGE, 1)), id="times"),
    pytest.param(lambda path: with_fragment(path, HUGE), id="fragment"),
]


@pytest.mark.parametrize("forge", FORGERIES)
def test_more_samples_than_any_clip_has_are_refused_unread(clip, forge, monkeypatch):
    monkeypatch.setattr(clips.subprocess, "Popen", lambda *given, **options: pytest.fail("ffmpeg was started"))
    with pytest.raises(ValueError, match=f"claims to have {HUGE} pictures or pieces of sound"):
        inspect_clip(forge(clip))


@pytest.mark.parametrize("forge", FORGERIES)
def test_where_that_is_missed_ffmpeg_has_its_limits(clip, forge, monkeypatch):
    """It ends in a sentence or in the true frames, within the memory that it may take."""
    monkeypatch.setattr(clips, "MAX_SAMPLES", 2**40)
    try:
        assert inspect_clip(forge(clip)).frames <= 9
    except ValueError as error:
        assert "cannot be decoded" in str(error)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 <= clips.ADDRESS_SPACE


def test_limits_are_set_on_ffmpeg(clip, monkeypatch):
    seen = {}
    set_limits = clips._limit

    def note(process):
        set_limits(process)
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            seen[kind] = resource.prlimit(process, kind)[0]

    monkeypatch.setattr(clips, "_limit", note)
    assert inspect_clip(clip).frames == 9
    assert seen == {
        resource.RLIMIT_AS: clips.ADDRESS_SPACE,
        resource.RLIMIT_CPU: clips.CPU_SECONDS,
        resource.RLIMIT_FSIZE: clips.LARGEST_LOG,
        resource.RLIMIT_CORE: 0,
    }


def test_too_little_memory_is_a_sentence(clip, monkeypatch):
    monkeypatch.setattr(clips, "ADDRESS_SPACE", 2**20)
    with pytest.raises(ValueError, match="clip.mp4 cannot be decoded; copy or download it again"):
        inspect_clip(clip)


def test_a_decoder_that_hangs_is_ended(clip, tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    monkeypatch.setattr(clips, "WALL_SECONDS", 0.2)
    with pytest.raises(ValueError, match="cannot be decoded"):
        inspect_clip(clip)


def test_a_reader_who_leaves_ends_the_decoder(clip, monkeypatch):
    started = []
    start = subprocess.Popen

    def note(*given, **options):
        started.append(start(*given, **options))
        return started[-1]

    monkeypatch.setattr(clips.subprocess, "Popen", note)

    def leave(*frame):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clips._decode(clip, leave)
    assert started[0].returncode is not None


@pytest.mark.parametrize(
    ("limit", "value", "says"),
    [
        pytest.param("MAX_FRAMES", 8, "has more than 8 frames; cut it into shorter ones", id="frames"),
        pytest.param("MAX_PIXELS", 32 * 47, "is 48 x 32; use one of at most", id="pixels"),
        pytest.param("MAX_TOTAL", 32 * 48 * 5, "has more than 5 frames of 48 x 32; cut it", id="pixels-of-all"),
    ],
)
def test_bounds(clip, monkeypatch, limit, value, says):
    monkeypatch.setattr(clips, limit, value)
    for read in (inspect_clip, read_clip):
        with pytest.raises(ValueError, match=says):
            read(clip)


def test_the_frames_are_those_of_ffmpegs_own_rgb(clip):
    reader = imageio_ffmpeg.read_frames(str(clip))
    assert next(reader)["size"] == (48, 32)
    assert b"".join(reader) == read_clip(clip).tobytes()


@pytest.mark.parametrize("read", [inspect_clip, read_clip, read_settings])
@pytest.mark.parametrize("name", ["/" + "a" * 5000, "/a\0b", "/\ud800", "/tmp", "/dev/zero"])
def test_what_is_no_file(read, name):
    with pytest.raises(ValueError, match="^cannot read "):
        read(name)


@pytest.mark.parametrize("read", [inspect_clip, read_clip, read_settings])
def test_a_pipe_does_not_hang(read, tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="it is not an ordinary file"):
        read(tmp_path / "a.mp4")


class TestClipReader:
    def test_one_at_a_time_and_apart_from_the_loop(self):
        running, most, threads = 0, 0, set()

        def work(number):
            nonlocal running, most
            running += 1
            most = max(most, running)
            threads.add(threading.current_thread())
            running -= 1
            return number

        async def all_of_them():
            reader = ClipReader()
            return await asyncio.gather(*(reader.read("clip.mp4", work, number) for number in range(MOST_WAITING)))

        assert asyncio.run(all_of_them()) == list(range(MOST_WAITING))
        assert most == 1 and threading.main_thread() not in threads

    def test_the_loop_goes_on_meanwhile(self):
        async def run():
            reader, going = ClipReader(), threading.Event()
            reading = asyncio.ensure_future(reader.read("clip.mp4", going.wait, 60))
            await asyncio.sleep(0)  # a loop that the reading held would not come back from here
            assert not reading.done()
            going.set()
            return await reading

        assert asyncio.run(run())

    def test_the_end_of_the_program_does_not_wait(self):
        """Neither for a clip that is read nor for a model that is fetched."""
        code = "import threading; from ui.jobs.daemon import DaemonThread as T; T('x').submit(threading.Event().wait)"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=WAIT_SECONDS)

    def test_too_many_are_told(self):
        async def run():
            reader, going = ClipReader(), threading.Event()
            waiting = [asyncio.ensure_future(reader.read("clip.mp4", going.wait, 60)) for _ in range(MOST_WAITING)]
            await asyncio.sleep(0)
            with pytest.raises(ValueError, match=BUSY):
                await reader.read("clip.mp4", going.wait, 60)
            assert await reader.read(None, lambda: "no clip") == "no clip"
            going.set()
            await asyncio.gather(*waiting)
            return await reader.read("clip.mp4", lambda: "again")

        assert asyncio.run(run()) == "again"
