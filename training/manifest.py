"""The `MANIFEST` of a checkpoint: its version and the sha256 of each file.

    python -m training.manifest assets/longcat-tiny --version 7    # writes it
    cd assets/longcat-tiny && sha256sum -c MANIFEST                # checks it, without this program

The version counts the sets of weights that this repository has had.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path

NAME = "MANIFEST"


def digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_manifest(folder: Path, version: int) -> None:
    lines = [f"# {folder.resolve().name}, version {version}"]
    lines += [f"{digest(folder / name)}  {name}" for name in _files(folder)]
    (folder / NAME).write_text("\n".join(lines) + "\n")


def read_manifest(folder: Path) -> tuple[int, dict[str, str]]:
    """The version, and the sha256 of each file by its path below the folder."""
    title, *lines = (folder / NAME).read_text().splitlines() or [""]
    version = re.fullmatch(r"# .+, version (\d+)", title)
    rows = [re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line) for line in lines]
    if version is None or None in rows:
        raise ValueError(f"{folder / NAME} is no manifest; write it with python -m training.manifest {folder}")
    return int(version[1]), {row[2]: row[1] for row in rows if row}


def faults(folder: Path) -> list[str]:
    """The differences between a folder and its manifest, a sentence for each file."""
    _, listed = read_manifest(folder)
    there = _files(folder)
    return [
        *(f"{name} is listed and missing" for name in listed if name not in there),
        *(f"{name} is not listed" for name in there if name not in listed),
        *(f"{name} has changed" for name in there if name in listed and digest(folder / name) != listed[name]),
    ]


def _files(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if path.as_posix() != NAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--version", type=int, required=True)
    args = parser.parse_args()
    write_manifest(args.folder, args.version)


if __name__ == "__main__":
    main()
