"""Video files: names, what is checked before the work, and what becomes of a video that cannot be written."""

import os
import stat
import sys
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from pipeline.engine.child import load_longcat
from pipeline.machine.paths import check_writable, expand_user
from pipeline.machine.whole_files import write_whole
from pipeline.media.write import prepare_output, write_video

FRAMES = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), dtype=np.uint8)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, empty and ours."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def failing_ffmpeg(tmp_path, monkeypatch):
    """An ffmpeg that writes half a file and ends with code 1 in every folder whose name begins with "full"."""
    real = imageio_ffmpeg.get_ffmpeg_exe()
    code = (
        "file = pathlib.Path(sys.argv[-1].removeprefix('file:'))\n"
        "if file.parent.name.startswith('full'):\n"
        "    file.write_bytes(b'half')\n"
        "    sys.exit(f'{file}: No space left on device')\n"
        f"os.execv({real!r}, [{real!r}, *sys.argv[1:]])\n"
    )
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program(tmp_path / "ffmpeg", code))


def program(path: Path, code: str) -> str:
    path.write_text(f"#!{sys.executable}\nimport os, pathlib, sys\n{code}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("plain.mp4", id="plain"),
        pytest.param("new/folders/v.mp4", id="new-folders"),
        pytest.param('it\'s a "quote" 🙂 and spaces.mp4', id="quotes-emoji"),
        pytest.param("a:b.mp4", id="colon"),
        pytest.param("-v.mp4", id="dash"),
        pytest.param("%03d.mp4", id="percent"),
        pytest.param("UPPER.MP4", id="upper"),
        pytest.param("x" * 251 + ".mp4", id="longest"),
    ],
)
def test_names(name, tmp_path, monkeypatch):
    """Relative, as on a command line: a file of that name and nothing beside it."""
    monkeypatch.chdir(tmp_path)
    write_video(prepare_output(name), FRAMES, 15, {"prompt": "🙂"})
    assert [path for path in Path(".").rglob("*") if path.is_file()] == [Path(name)]
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / name))[0] == len(FRAMES)


def test_a_full_disk_keeps_the_video_elsewhere(tmp_path, temporary, failing_ffmpeg):
    output = tmp_path / "full" / "v.mp4"
    with pytest.raises(OSError, match="no space left on the disk .* the video was kept as ") as failure:
        write_video(output, FRAMES, 15, {})
    kept = Path(str(failure.value).partition("the video was kept as ")[2])
    assert kept.is_relative_to(temporary)
    assert imageio_ffmpeg.count_frames_and_secs(str(kept))[0] == len(FRAMES)
    assert list(output.parent.iterdir()) == []


def test_no_place_at_all(tmp_path, temporary, failing_ffmpeg, monkeypatch):
    """Says so, and leaves an older video of that name as it was."""
    (temporary / "file").touch()
    monkeypatch.setattr("pipeline.media.write.temporary_folder", lambda: temporary / "file" / "full")
    output = tmp_path / "full" / "v.mp4"
    output.parent.mkdir()
    output.write_bytes(b"older")
    with pytest.raises(OSError, match="cannot take it either .Not a directory.; free some space, or choose another"):
        write_video(output, FRAMES, 15, {})
    assert output.read_bytes() == b"older"
    assert list(output.parent.iterdir()) == [output] and list(temporary.iterdir()) == [temporary / "file"]


def test_an_encoder_that_fails_at_the_end_keeps_the_frames(tmp_path, temporary, monkeypatch):
    """Bit for bit, and without that encoder."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program(tmp_path / "ffmpeg", "sys.exit('no memory for it')"))
    with pytest.raises(OSError, match="no memory for it; its frames, 15 per second, were kept as PNG") as failure:
        write_video(tmp_path / "v.mp4", FRAMES, 15, {})
    folder = Path(str(failure.value).partition("PNG files in ")[2])
    assert folder.is_relative_to(temporary)
    kept = [np.asarray(Image.open(file)) for file in sorted(folder.iterdir())]
    np.testing.assert_array_equal(kept, FRAMES)
    assert not (tmp_path / "v.mp4").exists()


def test_interrupted_while_writing(tmp_path):
    class Interrupted:
        shape = FRAMES.shape

        def __iter__(self):
            yield FRAMES[0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "v.mp4", Interrupted(), 15, {})
    assert list(tmp_path.iterdir()) == []


def test_without_ffmpeg(tmp_path, monkeypatch):
    """Known before the work, not after it."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="there is no ffmpeg at .*nothing; run `make install`"):
        prepare_output(tmp_path / "v.mp4")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        pytest.param(
            f"args = ['mpeg5' if word == 'libx264' else word for word in sys.argv[1:]]\n"
            f"os.execv({imageio_ffmpeg.get_ffmpeg_exe()!r}, ['ffmpeg', *args])",
            r"make H.264 videos with libx264 \(.*Unknown encoder 'mpeg5'.*\); run `make install` for one that can",
            id="no-encoder",
        ),
        pytest.param("sys.exit(3)", r"\(it ended with code 3\); run `make install`", id="broken"),
    ],
)
def test_without_the_encoder(code, says, tmp_path, monkeypatch):
    """Neither the output is prepared nor a model loaded."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program(tmp_path / "ffmpeg", code))
    for begin in (lambda: prepare_output(tmp_path / "v.mp4"), lambda: load_longcat(print, "nowhere", "cpu")):
        with pytest.raises(ValueError, match=says):
            begin()


class TestWholeFiles:
    def test_they_replace_or_leave_what_is_there(self, tmp_path):
        file = tmp_path / "report.json"
        write_whole(file, "ä")
        assert file.read_bytes() == "ä".encode()
        with pytest.raises(UnicodeError):
            write_whole(file, "half a character: \ud800")
        assert file.read_bytes() == "ä".encode()
        assert list(tmp_path.iterdir()) == [file]

    def test_a_link_stays(self, tmp_path):
        (tmp_path / "link.mp4").symlink_to(tmp_path / "elsewhere.mp4")
        write_video(prepare_output(tmp_path / "link.mp4"), FRAMES, 15, {})
        assert (tmp_path / "link.mp4").is_symlink()
        assert (tmp_path / "elsewhere.mp4").read_bytes()[4:8] == b"ftyp"

    def test_a_pipe_takes_what_it_gets(self, tmp_path):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        with os.fdopen(os.open(pipe, os.O_RDWR)) as reader:
            write_whole(pipe, "text\n")
            assert reader.readline() == "text\n"
        assert list(tmp_path.iterdir()) == [pipe]


def test_checks_make_nothing(tmp_path, temporary):
    prepare_output(tmp_path / "a" / "b" / "v.mp4")
    prepare_output(None)
    check_writable(tmp_path / "c" / "report.json")
    assert list(tmp_path.iterdir()) == [temporary] and list(temporary.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("locked/v.mp4", "cannot write into the folder .*: Permission denied", id="folder"),
        pytest.param("locked/new/v.mp4", "cannot write into the folder .*: Permission denied", id="new-folder"),
        pytest.param("kept.mp4", "cannot overwrite .*: permission denied", id="file"),
    ],
)
def test_no_permission(tmp_path, name, says):
    (tmp_path / "locked").mkdir(mode=0o500)
    (tmp_path / "kept.mp4").touch(mode=0o400)
    with pytest.raises(ValueError, match=says):
        check_writable(tmp_path / name)


def test_devices_and_pipes_are_written_to_as_they_are():
    check_writable(Path("/dev/null"))


def test_a_home_that_does_not_exist():
    with pytest.raises(ValueError, match="home folder that does not exist; write the path in full"):
        expand_user("~nobody-of-this-name/v.mp4")
