"""Paths on the disk: checks that they can be written or read, temporary folders, and the home folder."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import uuid
from pathlib import Path
from typing import BinaryIO

RESCUE = "BSA_RESCUE"  # environment variable: where `temporary_folder` is, for who must find again what is there


def check_writable(file: Path) -> None:
    """Raise ValueError if `file` could not be written, even after making its missing folders. Makes nothing itself."""
    remedy = "choose another place or change its permissions"
    try:
        os.fsencode(file)
        if file.is_dir():
            raise ValueError(f"cannot write {file}: it is a folder; add a file name")
        if file.exists():
            if not os.access(file, os.W_OK):
                raise ValueError(f"cannot overwrite {file}: permission denied; {remedy}")
            if not file.is_file():  # a pipe or a device: it is written directly, without a temporary file beside it
                return
        folder = next(folder for folder in file.parents if folder.exists())
        if not folder.is_dir():
            raise ValueError(f"cannot write {file}: {folder} is not a folder; {remedy}")
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror}; {remedy}") from None
    except UnicodeError:
        raise ValueError(f"cannot write {str(file)!r}: the name has invalid characters; choose another") from None
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write into the folder {folder}: {error.strerror}; {remedy}") from None


def temporary_folder() -> Path:
    """A new name in the system's folder for temporary files, or in the one that BSA_RESCUE names; nothing is made."""
    return Path(os.environ.get(RESCUE) or tempfile.gettempdir()) / f"longcat-{uuid.uuid4().hex[:8]}"


def expand_user(path: Path | str) -> Path:
    """Replace a leading ~ by the home folder. Raises ValueError if there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path} is in a home folder that does not exist; write the path in full") from None


def is_there(path: Path) -> bool:
    """Whether something exists at the path. False for a path that no file system would accept."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError as `open` does, and for anything that could block, such as a pipe."""
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError:  # a null character, or half of a surrogate pair
        raise OSError(errno.EINVAL, "no file can have this name") from None
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(errno.EINVAL, "it is not an ordinary file")
    return os.fdopen(number, "rb")
