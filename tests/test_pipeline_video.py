"""Video files: names, what is checked before the work, and what becomes of a video that cannot be written."""

import os
import stat
import sys
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from pipeline.machine.paths import check_writable, expand_user
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
    program = tmp_path / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, sys\n"
        "file = pathlib.Path(sys.argv[-1].removeprefix('file:'))\n"
        "if file.parent.name.startswith('full'):\n"
        "    file.write_bytes(b'half')\n"
        "    sys.exit(f'{file}: No space left on device')\n"
        f"os.execv({real!r}, [{real!r}, *sys.argv[1:]])\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


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
    monkeypatch.setattr("pipeline.media.write.temporary_folder", lambda: temporary / "full")
    output = tmp_path / "full" / "v.mp4"
    output.parent.mkdir()
    output.write_bytes(b"older")
    with pytest.raises(OSError, match="cannot take it either; free some space, or choose another place"):
        write_video(output, FRAMES, 15, {})
    assert output.read_bytes() == b"older"
    assert list(output.parent.iterdir()) == [output] and list(temporary.iterdir()) == []


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
    with pytest.raises(RuntimeError, match="there is no ffmpeg at .*nothing; run `make install`"):
        prepare_output(tmp_path / "v.mp4")


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
