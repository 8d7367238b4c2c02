"""The files of a checkpoint that count, in a folder of their own, for loaders that take whatever they find."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.checkpoint.info import CONFIGS, WEIGHTS
from pipeline.checkpoint.safetensors_files import weight_files


@contextmanager
def linked(checkpoint: Path) -> Iterator[Path]:
    """A temporary folder of links to its configurations and weights.

    FastVideo reads every *.safetensors that it finds by a pattern: a second set of weights would be mixed in, and a
    path with brackets in it would hold none at all.
    """
    with tempfile.TemporaryDirectory(prefix="longcat-links-") as folder:
        view = Path(folder)
        (view / "model_index.json").symlink_to(checkpoint / "model_index.json")
        for component, config in CONFIGS.items():
            (view / component).mkdir()
            weights = weight_files(checkpoint / component, checkpoint) if component in WEIGHTS else []
            for file in (checkpoint / component / config, *weights):
                (view / component / file.name).symlink_to(file)
        yield view
