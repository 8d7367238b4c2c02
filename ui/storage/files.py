"""Folders of jobs on the disk: their names, their size, and their removal, which never leaves the output folder."""

from __future__ import annotations

import base64
import logging
import os
import re
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg

log = logging.getLogger("ui")

FOLDER = re.compile(r"\d{8}-\d{6}-[0-9a-f]{12}")  # the names that the worker gives; nothing else is ever removed
POSTER_HEIGHT = 160


def job_folder(output_dir: Path, name: str) -> Path | None:
    """The job's folder. None unless it is a real folder, directly in the output folder, with a job's name."""
    folder = output_dir / name
    if not FOLDER.fullmatch(name) or folder.is_symlink() or not folder.is_dir():
        return None
    return folder


def remove_folder(output_dir: Path, name: str) -> None:
    """Remove a job's folder. Links in it are removed, but not their targets. Raises OSError without permission."""
    folder = job_folder(output_dir, name)
    if folder is not None:
        shutil.rmtree(folder)
    elif name and os.path.lexists(output_dir / name):
        log.warning("%r is no folder of a job and was not removed", name)


def folder_bytes(output_dir: Path, name: str) -> int:
    """Bytes that a removal of the folder would free. Links count only themselves, and files that vanish count 0."""
    folder = job_folder(output_dir, name)
    total = 0
    for where, _, files in os.walk(folder) if folder else ():
        for file in files:
            try:
                total += os.lstat(os.path.join(where, file)).st_size
            except OSError:
                continue
    return total


def poster(video: Path, at: float) -> str:
    """The picture at `at` seconds as a small JPEG in a data URL, or "" if the file has none there."""
    return picture(video, f"scale=-2:{POSTER_HEIGHT}", at=at, quality=4)


def picture(video: Path, filters: str, quality: int, at: float = 0.0) -> str:
    """The first picture that ffmpeg's filters make of a video, as a JPEG in a data URL, or "" if there is none.

    quality: ffmpeg's scale for JPEG, from 2 (best) to 31. at: the second of the video at which to start.
    """
    filters += ",scale=out_color_matrix=bt601:out_range=pc"  # what a JPEG is taken for, whatever the video is
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-ss", f"{at:.3f}", "-i", str(video), "-vf", filters]
    command += ["-frames:v", "1", "-c:v", "mjpeg", "-q:v", str(quality), "-f", "image2pipe", "-"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError):
        log.warning("no picture could be made of %s", video.name)
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(done.stdout).decode() if done.stdout else ""


PRIVATE = ".app"  # folder in the output folder for files that nobody may fetch


def private_folder(output_dir: Path) -> Path:
    """The folder for the app's own files. Made if necessary, with access for this user only."""
    folder = output_dir / PRIVATE
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
