"""The page's server's options for its engines, and the engines that they describe."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.info import CheckpointInfo
from pipeline.cli.numbers import whole_option
from pipeline.cli.read import read_weights
from pipeline.engine.engine import Engine
from pipeline.engine.process import EngineProcess
from pipeline.engine.ray_cluster import RayCluster
from pipeline.engine.remote import RemoteEngine
from pipeline.engine.share import Share, check_engines, shares

log = logging.getLogger("ui")

ENGINE = "pipeline.engine.child:load_longcat"  # what makes videos in a process of its own


def add_engines(parser: argparse.ArgumentParser) -> None:
    """The options that `Engines.read` reads."""
    several = parser.add_argument_group("several engines")
    several.add_argument(
        "--engines",
        type=whole_option,
        default=1,
        metavar="K",
        help="so many videos at a time, each on --gpus GPUs of its own; on a CPU the threads are divided",
    )
    several.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the engines on the machines of this Ray cluster, HOST:6379 or auto; needs the package ray",
    )


@dataclass(frozen=True)
class Engines:
    """The engines that make the videos: on parts of this machine, or on a cluster.

    device: what the page may expect to be computed on before an engine has said it, as for `expected_device`.
    """

    options: argparse.Namespace
    parts: tuple[Share, ...]
    cluster: RayCluster | None
    device: str

    @classmethod
    def read(cls, options: argparse.Namespace) -> Engines:
        """Read the options, and join the cluster that they name.

        Raises ValueError if the device does not exist, or has not room for so many engines.
        """
        if options.ray is None:
            parts = shares(options.device, options.gpus, options.engines)
            return cls(options, tuple(parts), None, options.device)
        if options.model_switch:
            raise ValueError(
                "--model-switch loads models into a folder of this machine, which the machines of --ray do not see; "
                "leave out one of the two"
            )
        if options.device not in ("auto", "cuda", "cpu"):
            raise ValueError(f"--ray chooses the GPUs and --device {options.device} names one; use auto, cuda or cpu")
        check_engines(options.engines)
        cluster = RayCluster(options.ray, options.engines, options.gpus, options.device)
        return cls(options, (), cluster, "auto")

    def begin(self, checkpoint: CheckpointInfo) -> list[Engine]:
        """The engines, which a worker starts."""
        if self.cluster is not None:
            log.info("%d engines, each on %s", self.options.engines, self.cluster.text)
            given = self._arguments(checkpoint, self.cluster.device)
            return [RemoteEngine(self.cluster, ENGINE, **given) for _ in range(self.options.engines)]
        engines: list[Engine] = []
        for number, share in enumerate(self.parts, 1):
            given = self._arguments(checkpoint, share.device or self.device)
            engines.append(EngineProcess(ENGINE, share=share, **given))
            if len(self.parts) > 1:
                log.info("engine %d of %d: %s", number, len(self.parts), share.text)
        return engines

    def close(self) -> None:
        """Leave the cluster, after the engines were closed."""
        if self.cluster is not None:
            self.cluster.close()

    def _arguments(self, checkpoint: CheckpointInfo, device: str) -> dict[str, Any]:
        given = {"path": str(checkpoint.path), "device": device} | read_weights(self.options).arguments
        return given if checkpoint.lora_dir is None else given | {"lora_dir": str(checkpoint.lora_dir)}
