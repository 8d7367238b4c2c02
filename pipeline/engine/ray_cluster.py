"""Engines as actors of a Ray cluster. The only module that imports Ray, which is an optional package.

Ray finds the machines, starts the actors, notices lost ones, and carries their messages through its object store.
The actor is a `pipeline.engine.node.Node`, which runs the same engine as a server without a cluster.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.engine.node import PIECE, Message, Node
from pipeline.engine.remote import Link, LinkLost
from pipeline.request.video import VideoRequest

INSTALL = 'pip install -c requirements.txt "ray>=2.44"'
AT_ONCE = 4  # calls of one actor: a task, the readings, and a cancellation while both go on
AHEAD = 32  # messages that an actor may be ahead of the page: at most 128 MiB of the object store


class RayCluster:
    """A Ray cluster that this process joins, with room for so many engines.

    address: "host:6379" of its head, or "auto" for one that runs on this machine.
    gpus: of each engine. device: cuda, cpu, or auto for the processor where the cluster has no GPU.

    Raises:
        ValueError: Ray is not installed, there is no cluster, or it has not so many GPUs or processors.
    """

    def __init__(self, address: str, engines: int, gpus: int, device: str = "auto") -> None:
        if importlib.util.find_spec("ray") is None:
            raise ValueError(f"--ray needs the package ray, which is not installed; `{INSTALL}` adds it")
        import ray

        self._ray = ray
        if not ray.is_initialized():
            try:
                ray.init(
                    address=address,
                    namespace="longcat-bsa",
                    logging_level=logging.WARNING,
                    configure_logging=False,
                    _skip_env_hook=True,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                first = next(iter(str(error).splitlines()), "")
                raise ValueError(f"no Ray cluster at {address} ({first}); start one with `ray start --head`") from None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._on_gpus = device == "cuda" or (device == "auto" and any(node.get("GPU") for node in nodes))
        self._each = gpus if self._on_gpus else _processors(nodes, engines)
        devices = [int(node.get("GPU" if self._on_gpus else "CPU", 0)) for node in nodes]
        _check_room(devices, engines, gpus if self._on_gpus else 1, "GPU" if self._on_gpus else "processor")

    @property
    def device(self) -> str:
        """The device that the engines load the model to."""
        return "cuda:0" if self._on_gpus else "cpu"

    @property
    def text(self) -> str:
        """The devices of each engine, in words."""
        unit = "GPU" if self._on_gpus else "processor thread"
        return f"{self._each} {unit}{'s' if self._each > 1 else ''} of the cluster"

    def place(self, target: str, arguments: dict[str, Any]) -> Link:
        """Have a `Node` begin on a machine with room. Returns at once; its streams wait until there is one."""
        needs = {"num_gpus": self._each, "num_cpus": 1} if self._on_gpus else {"num_cpus": self._each}
        actor = self._ray.remote(_Actor).options(max_concurrency=AT_ONCE, scheduling_strategy="SPREAD", **needs)
        return _RayLink(self._ray, actor.remote(target, arguments, None if self._on_gpus else self._each))

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()


class _Actor(Node):
    """threads: of the processor that its engine is to use; None for as many as it likes."""

    def __init__(self, target: str, arguments: dict[str, Any], threads: int | None) -> None:
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it to 1 for an actor of one processor
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)
        super().__init__(target, arguments)

    def generate_from(
        self, request: VideoRequest, references: list[list[Any]], name: str, task: int
    ) -> Iterator[Message]:
        """`generate`, whose sources are in the object store."""
        import ray

        yield from self.generate(request, (map(ray.get, pieces) for pieces in references), name, task)


class _RayLink:
    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray = ray
        self._actor = actor

    def stream(self, method: str, *arguments: Any) -> Iterator[Message]:
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": AHEAD}
        try:
            for reference in getattr(self._actor, method).options(**options).remote(*arguments):
                yield self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise LinkLost(next(iter(str(error).splitlines()), type(error).__name__)) from error

    def generate(self, request: VideoRequest, sources: Sequence[Path], name: str, task: int) -> Iterator[Message]:
        stored = [[self._ray.put(piece) for piece in _pieces(source)] for source in sources]
        return self.stream("generate_from", request, stored, name, task)

    def cancel(self, task: int) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._actor.cancel.remote(task)

    def end(self) -> None:
        # its process group dies with the actor's process: the engine ends itself when its parent is gone
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor)


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            yield piece


def _processors(nodes: list[dict[str, float]], engines: int) -> int:
    """The most processors for each of so many engines, none of which is on two machines; at least one."""
    counts = [int(node.get("CPU", 0)) for node in nodes]
    return max((each for each in range(1, max(counts, default=0) + 1) if _fits(counts, each) >= engines), default=1)


def _fits(devices: list[int], each: int) -> int:
    """How many engines that need `each` of something fit onto machines with so much of it."""
    return sum(there // each for there in devices)


def _check_room(devices: list[int], engines: int, each: int, unit: str) -> None:
    most = _fits(devices, each)
    if engines > most:
        there = ", ".join(map(str, devices)) or "no"
        own = f"{each} {unit}{'s' if each > 1 else ''}"
        fewer = f"--gpus {max(devices)} or fewer" if any(devices) else "--device cpu"
        remedy = f"use --engines {most} or fewer" if most else f"use {fewer}"
        raise ValueError(
            f"{engines} engines of {own} each do not fit: the {len(devices)} machines of the cluster have {there} "
            f"{unit}s; {remedy}, or add machines"
        )
