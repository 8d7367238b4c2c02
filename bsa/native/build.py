"""Compiles a C file into a shared object on first use, and loads it. Imports no PyTorch.

Objects are kept in a folder that only their user can write to, under a name that stands for source and options: another
version is another file, and nobody else's code is loaded. An object is compiled beside its place and moved there, so
processes that start together each make one, and the last of the equal ones stays.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

logger = logging.getLogger("bsa")

FLAGS = ("-O2", "-std=c11", "-shared", "-fPIC")
_COMPILERS = ("gcc", "cc", "clang")
_LIMIT_S = 120


class NotBuilt(Exception):
    """There is no object; the text says why, as the end of a sentence."""


def load(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    """The compiled source. flags: besides `FLAGS`.

    Raises NotBuilt if there is no private folder to keep it in, no compiler and no object of an earlier run, or the
    compiler fails.
    """
    folder, text = _folder(), source.read_bytes()
    options = (*FLAGS, *flags)
    digest = hashlib.sha256(b"\0".join((text, *(option.encode() for option in options)))).hexdigest()
    path = folder / f"{source.stem}-{digest[:32]}.so"
    if not path.exists():
        _compile(source, options, path)
    _check_owner(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NotBuilt(f"{path} cannot be loaded ({error}); delete it to have it made again") from error


def cache_folder() -> Path:
    """Where objects are kept: in XDG_CACHE_HOME, or .cache of the user's home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longcat-bsa" / "native"


def _folder() -> Path:
    """The folder, made if need be."""
    try:
        path = cache_folder()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise NotBuilt(f"there is no folder to keep compiled code in ({error}); set XDG_CACHE_HOME") from error
    _check_owner(path)
    return path


def _check_owner(path: Path) -> None:
    """Raise NotBuilt if somebody else could have written here."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.filemode(found.st_mode)
        raise NotBuilt(
            f"others may have written {path} ({mode}, owner {found.st_uid}); it must be yours and writable for you "
            "alone: delete it, or set XDG_CACHE_HOME to a folder of your own"
        )


def _compile(source: Path, options: tuple[str, ...], path: Path) -> None:
    compiler = _compiler()
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [*compiler, *options, str(source), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, errors="replace")
            if done.returncode:
                said = " ".join(done.stderr.split())[:300]
                raise NotBuilt(f"{shlex.join(compiler)} could not compile {source.name}: {said}")
            made.chmod(0o700)
            made.replace(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuilt(f"{source.name} could not be compiled ({error})") from error
    logger.info("Compiled %s in %.1f s, kept in %s", source.name, time.monotonic() - began, path.parent)


def _compiler() -> list[str]:
    """The words of a command: CC of the environment, or one that there is. Raises NotBuilt without one."""
    given = shlex.split(os.environ.get("CC", ""))
    if given:
        return given
    found = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if found is None:
        raise NotBuilt("there is no C compiler; install gcc, or set CC")
    return [found]
