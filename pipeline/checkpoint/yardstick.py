"""Puts the PSNR of a checkpoint's videos in proportion, with two values measured beforehand: after rounding alone, and
with another seed.

They lie in the checkpoint's file yardstick.json, which benchmarks/likeness.py writes. A checkpoint without it has none:
another model, or another size, would make other videos.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline.request.video import VideoRequest

logger = logging.getLogger("pipeline")

FILE = "yardstick.json"


@dataclass(frozen=True)
class Yardstick:
    """Mean, 5 % and 95 % of the PSNR in dB over held-out prompts, against the dense video.

    of: the fields of a request for which it was measured, with their values.
    rounding: of the same video by another kernel. other_seed: of the same prompt from another seed.
    """

    of: dict[str, int]
    rounding: tuple[float, float, float]
    other_seed: tuple[float, float, float]

    def for_request(self, request: VideoRequest) -> dict[str, tuple[float, float, float]] | None:
        """{"rounding", "other_seed"} if it was measured for such videos, else None."""
        if request.start.clip is not None or any(getattr(request, name) != value for name, value in self.of.items()):
            return None
        return {"rounding": self.rounding, "other_seed": self.other_seed}


def read_yardstick(checkpoint: Path) -> Yardstick | None:
    """The yardstick of a checkpoint; None if it brings none, or one that cannot be read."""
    file = checkpoint / FILE
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        of = {str(name): int(value) for name, value in values["of"].items() if hasattr(VideoRequest, name)}
        return Yardstick(of, _three(values["rounding"]), _three(values["other_seed"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("the yardstick %s cannot be read: %s", file, error)
        return None


def _three(values: object) -> tuple[float, float, float]:
    mean, low, high = map(float, values)  # type: ignore[call-overload]  # what is no list of three numbers raises
    return mean, low, high
