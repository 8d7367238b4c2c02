"""The pair of videos that a visitor sees first, who has made none: made before, with the measurements of that run.

    python -m pipeline generate --compare --record --prompt "..." --seed N \\
        --output assets/premade --json assets/premade/report.json

makes it, with --model-path by another checkpoint. Nothing is stated that its report and its videos do not say.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline import Comparison, VideoResult, read_settings
from pipeline.request.result import read_comparison
from ui.jobs.job import ARMS, VideoJob
from ui.jobs.records import stored_result

log = logging.getLogger("ui")

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "premade"
ID = "premade"
ABOUT = "Pre-made with {name} on {device}: “{prompt}”, seed {seed}. Generate makes your own."


@dataclass(frozen=True)
class Premade:
    """A finished job, and the sentence that says where it is from; without a pair, None and nothing."""

    job: VideoJob | None = None
    about: str = ""

    @classmethod
    def read(cls, folder: Path = FOLDER) -> Premade:
        """The pair in a folder. A missing or damaged one is logged, and the page begins without."""
        try:
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            found = {arm: stored_result(report[arm], folder) for arm in ARMS}
            videos = {arm: result for arm, result in found.items() if result is not None}
            pair = read_comparison(**videos, values=report)
            if pair is None:
                raise ValueError("its report compares nothing")
            name = read_settings(pair.sparse.video).checkpoint
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("the pair in %s cannot be shown: %s", folder, error)
            return cls()
        return cls(_job(pair, folder), _about(pair.sparse, name))


NOTHING = Premade()


def _job(pair: Comparison, folder: Path) -> VideoJob:
    job = VideoJob(pair.sparse.request, side_by_side=True)
    job.id, job.folder, job.state = ID, folder, "done"
    job.results, job.comparison = {"dense": pair.dense, "sparse": pair.sparse}, pair
    return job


def _about(result: VideoResult, name: str | None) -> str:
    request = result.request
    device = result.versions.get("device", "a machine that it does not name")
    return ABOUT.format(name=name or "a checkpoint", device=device, prompt=request.prompt, seed=request.seed)
