"""Files that appear complete or not at all: written beside their place under another name, and then put there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A name to write to, of the same kind and in the same folder. What is there at the end takes the place of `file`;
    after an error nothing is left of it.

    A link stays, and what it leads to is replaced. A pipe or a device takes what it gets as it is written.
    """
    file = Path(os.path.realpath(file))
    if file.exists() and not file.is_file():
        yield file
        return
    partial = file.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:8]}.partial{file.suffix}")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write UTF-8. Raises OSError when that cannot be."""
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partials(folder: Path, process: int) -> None:
    """Remove the files that a killed process could not remove itself."""
    for left in folder.glob(f".{process}-*.partial*"):
        with suppress(OSError):
            left.unlink()
