"""Makes videos that each begin with the end of the one before, keeps each as it finishes, and joins them at the end.

Everything is in one folder: an MP4 of each video without the frames that the one before it has already, its last frames
without loss, and a JSON file that lists the finished ones. So a stop, a crash or a full disk costs the video that was
being made, and the next run goes on after the last finished one.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.machine.memory import release_memory
from pipeline.machine.whole_files import write_whole
from pipeline.media.comment import describe, without_places
from pipeline.media.join import join_videos
from pipeline.media.write import write_video
from pipeline.request.result import Generator, OnStep, VideoResult
from pipeline.request.video import VideoRequest

logger = logging.getLogger("pipeline")

_FORMAT = 1  # of the JSON file


class Chain(Protocol):
    """Videos to make one after the other; `LongVideo` is one."""

    @property
    def name(self) -> str:
        """Of its files."""

    @property
    def carried(self) -> int:
        """Number of frames at the end of each that the next one begins with."""

    def __len__(self) -> int: ...

    def overlap(self, number: int) -> int:
        """Number of frames at the beginning of one that the one before it has already."""

    def segment(self, number: int, before: Path) -> VideoRequest:
        """The request of one. before: a file with the end of the one before it."""

    def prepared(self, number: int, before: Path) -> AbstractContextManager[VideoRequest]:
        """The same, in a block in which everything is there that the request reads."""

    def described(self) -> dict[str, Any]:
        """The settings of the whole in the joined video, beside the request of its first part."""


class OtherPart(ValueError):
    """A finished part was made otherwise than is asked for now. number: of the part, from 1. what: the first setting
    that differs, in words."""

    def __init__(self, message: str, number: int, what: str) -> None:
        super().__init__(message)
        self.number, self.what = number, what


@dataclass(frozen=True)
class ChainResult:
    """A finished chain: the joined video, its number of frames and rate, and what is said of each part."""

    video: Path
    frames: int
    fps: int
    parts: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**self.__dict__, "video": str(self.video), "seconds": round(self.frames / self.fps, 3)}


class ChainStore:
    """The folder of a chain. Reading it makes no files.

    most: so many of the finished parts are looked at; all that the chain asks for by default.

    Raises:
        ValueError: the folder holds parts that were made otherwise than the chain asks for, or a damaged list.
    """

    def __init__(self, folder: Path, chain: Chain, checkpoint: str, most: int | None = None) -> None:
        self.folder = folder
        self._chain = chain
        self._checkpoint = checkpoint
        self._list = folder / f"{chain.name}s.json"
        self.parts = self._read(len(chain) if most is None else most)

    def video(self, number: int) -> Path:
        """The file of one part, counted from 0."""
        return self.folder / f"{self._chain.name}-{number + 1:03}.mp4"

    def end(self, number: int) -> Path:
        """The file with the last frames of one part, without loss."""
        return self.folder / f"{self._chain.name}-{number + 1:03}.end.mp4"

    def add(self, result: VideoResult, frames: np.ndarray) -> None:
        """Keep the part that was made next. Raises OSError where it cannot be written."""
        number, request = len(self.parts), result.request
        said = describe(request, result.versions, self._checkpoint)
        new = frames[self._chain.overlap(number) :]
        if len(new) < len(frames):
            write_video(self.video(number), new, request.fps, said)
        write_video(self.end(number), frames[-self._chain.carried :], request.fps, said, lossless=True)
        part = {"video": self.video(number).name, "frames": len(new), **said, "seconds": result.seconds}
        self._write([*self.parts, part])
        self.parts.append(part)

    def join(self, video: Path) -> ChainResult:
        """Write all parts as one video. Raises OSError where that cannot be."""
        first = self.parts[0]
        said = {name: first[name] for name in ("request", "versions", "checkpoint")}
        said |= self._chain.described() | {"parts": len(self.parts)}
        join_videos([self.video(number) for number in range(len(self.parts))], video, said)
        frames = sum(part["frames"] for part in self.parts)
        return ChainResult(video, frames, first["request"]["fps"], self.parts)

    def take_over(self, folder: Path, count: int) -> None:
        """Begin with copies of the first `count` parts of another folder, which stays as it is.

        Raises:
            ValueError: they are not all there.
            OtherPart: they were made otherwise than this chain asks for.
            OSError: they cannot be copied.
        """
        other = ChainStore(folder, self._chain, self._checkpoint, most=count)
        if len(other.parts) < count:
            raise ValueError(
                f"of the {count} {self._chain.name}s to keep, {len(other.parts)} are there; make it from the beginning"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            for file in (self.video(number), self.end(number)):
                shutil.copyfile(folder / file.name, file)
        self.parts = other.parts
        self._write(self.parts)

    def _read(self, most: int) -> list[dict[str, Any]]:
        """The finished parts whose files are there, `most` at most."""
        try:
            content = json.loads(self._list.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{self._list} cannot be read ({error}); choose another folder, or remove it") from None
        parts: list[dict[str, Any]] = []
        try:
            if content["format"] != _FORMAT:
                raise ValueError(f"its format is {content['format']}, not {_FORMAT}")
            for number, part in enumerate(content["parts"][:most]):
                if not (self.video(number).is_file() and self.end(number).is_file()):
                    break
                self._check(number, part)
                parts.append(part)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self._list} is damaged ({error!r}); choose another folder, or remove it") from None
        return parts

    def _check(self, number: int, part: dict[str, Any]) -> None:
        try:
            made = VideoRequest.from_dict(part["request"])
        except ValueError as error:
            raise TypeError(str(error)) from None
        asked = without_places(self._chain.segment(number, self.end(number - 1)))
        other = next((name for name in asked.__slots__ if getattr(made, name) != getattr(asked, name)), None)
        if part["checkpoint"] != self._checkpoint:
            other = "checkpoint"
        if other is not None:
            what = other.replace("_", " ")
            raise OtherPart(
                f"{self.folder} holds {self._chain.name} {number + 1} with another {what}; choose another folder, or "
                f"remove {self.video(number).name} to make it and all after it again",
                number + 1,
                what,
            )

    def _write(self, parts: list[dict[str, Any]]) -> None:
        content = {"format": _FORMAT, "parts": parts}
        write_whole(self._list, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def make_next(
    pipeline: Generator, chain: Chain, store: ChainStore, on_step: OnStep | None = None
) -> tuple[VideoResult, np.ndarray]:
    """Make the first part that is missing in the store, and keep it. Returns it with all its frames, uint8
    [T, H, W, 3], those included that the part before it has already.

    Raises ValueError, OSError and others as `generate_frames` does.
    """
    number = len(store.parts)
    with chain.prepared(number, store.end(number - 1)) as request:
        result, frames = pipeline.generate_frames(request, on_step, store.video(number))
    store.add(result, frames)
    return result, frames


def run_chain(
    pipeline: Generator,
    chain: Chain,
    store: ChainStore,
    video: Path,
    on_step: OnStep | None = None,
    *,
    on_begin: Callable[[int], None] | None = None,
) -> ChainResult:
    """Make what is missing in the store, then join everything into `video`.

    Args:
        on_step: gets the updates of every generation; may raise `Cancelled` to stop.
        on_begin: told the number of each part before it is made.

    Raises:
        ValueError, OSError and others as `generate_frames` does. Finished parts stay, and a log line says so.
    """
    try:
        for number in range(len(store.parts), len(chain)):
            if on_begin is not None:
                on_begin(number)
            make_next(pipeline, chain, store, on_step)
            release_memory()  # what one part left in the allocator's cache must not burden the next
        return store.join(video)
    except BaseException:
        if store.parts:
            logger.warning(
                "%d of %d %ss are kept in %s; another run with this folder goes on after them",
                *(len(store.parts), len(chain), chain.name, store.folder),
            )
        raise
