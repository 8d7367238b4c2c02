"""The interface that a worker needs of an engine, in whatever process or on whatever machine the pipeline runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.engine.share import Share
from pipeline.machine.resources import Resources
from pipeline.request.load_options import LoadOptions
from pipeline.request.result import Generator

Say = Callable[[str], None]


class Engine(Protocol):
    """An engine of a worker: a pipeline in a child process, on another machine, or in this process.

    on_exit: called from another thread whenever the pipeline's process has ended, for any reason.
    tries: number of attempts to start it.
    share: what it has of this machine.
    """

    on_exit: Callable[[], None]
    share: Share

    @property
    def tries(self) -> int: ...

    @property
    def alive(self) -> bool: ...

    @property
    def pid(self) -> int | None:
        """The id of its process on this machine, if there is one."""

    @property
    def why(self) -> str:
        """The reason why it is no longer alive, as a sentence."""

    @property
    def path(self) -> Path:
        """The checkpoint folder that `start` loads."""

    @property
    def weights(self) -> LoadOptions:
        """The options that the model's weights are loaded with."""

    def start(self, say: Say) -> Generator:
        """Load the pipeline anew and return it. say: called with sentences on the progress."""

    def torch_memory(self) -> dict[str, int] | None:
        """Latest known bytes "allocated" and "reserved" by PyTorch's CUDA allocator, or None on a CPU."""

    def reading(self) -> Elsewhere | None:
        """The machine that it runs on, if that is not this one."""

    def calibrate(self) -> list[dict[str, Any]]: ...

    def check_switch(self, path: str | Path) -> None:
        """Raise ValueError if it cannot switch to the checkpoint `path`."""

    def switch(self, path: Path) -> None:
        """Make every later `start` load the checkpoint `path`."""

    def cancel(self) -> None:
        """End the task that runs now, if any."""

    def close(self) -> None:
        """End the process. No other is started."""


@dataclass(frozen=True)
class Elsewhere:
    """An engine's machine where it is not this one.

    resources: its newest reading; None before the first.
    available, total: bytes of the device's memory that a video may take there, the loaded weights included, and all.
    """

    resources: Resources | None = None
    available: int = 0
    total: int = 0
