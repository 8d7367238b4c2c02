"""The files of a checkpoint that count, in a folder of their own, for loaders that take whatever they find there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.checkpoint.layout import CONFIGS, FASTVIDEO, MODEL_INDEX, WEIGHTS, fastvideo_config, layout_of
from pipeline.checkpoint.safetensors_files import read_json, weight_files


@contextmanager
def linked(checkpoint: Path) -> Iterator[Path]:
    """A temporary folder in FastVideo's layout, with links to a checkpoint's configurations and weights.

    FastVideo reads every *.safetensors that it finds by a pattern: a second set of weights would be mixed in, and a
    path with brackets in it would hold none at all. For a checkpoint in the original's layout the folder has an index
    and a transformer's configuration of its own; the weights keep the original's names.
    """
    layout = layout_of(checkpoint)
    with tempfile.TemporaryDirectory(prefix="longcat-links-") as folder:
        view = Path(folder)
        for component, config in CONFIGS.items():
            source, target = checkpoint / layout.folder(component), view / component
            target.mkdir()
            weights = weight_files(source, checkpoint) if component in WEIGHTS else []
            for file in (source / config, *weights):
                (target / file.name).symlink_to(file)
        if layout is FASTVIDEO:
            (view / "model_index.json").symlink_to(checkpoint / "model_index.json")
        else:
            (view / "model_index.json").write_text(json.dumps(MODEL_INDEX), encoding="utf-8")
            original = read_json(checkpoint / layout.configs["transformer"], checkpoint)
            described = view / "transformer" / CONFIGS["transformer"]
            described.unlink()  # the link alone
            described.write_text(json.dumps(fastvideo_config(original)), encoding="utf-8")
        yield view
