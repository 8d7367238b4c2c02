"""Refines a long video as a job, window by window.

The job has its own copy of the segments, in the folder segments/, because the run that made them may be deleted. So it
can be done again, with other settings too, as long as it is kept itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.runs.chain import ChainStore
from pipeline.runs.long_refinement import LongRefinement
from ui.jobs.records import RESTORE
from ui.storage.store import Record
from ui.tasks.chain_job import ChainJob, read_back

SEGMENTS = "segments"  # folder of the copies


@dataclass(eq=False)
class WindowsJob(ChainJob):
    """The refinement of a long video, whose parts are its windows."""

    PLACE = "Window {number} of {total}"

    @property
    def refinement(self) -> LongRefinement:
        """The plan."""
        assert isinstance(self.long, LongRefinement)  # `of` sets it
        return self.long

    def take_sources(self) -> None:
        plan = self.refinement
        segments = ChainStore(self.folder / SEGMENTS, plan.video, self.checkpoint)
        if len(segments.parts) < len(plan):  # else it began before
            segments.take_over(plan.segments.folder, len(plan))
        request = replace(plan.request, start=self.keep_source(plan.request.start))
        self.long = replace(plan, segments=segments, request=request)

    def asked(self) -> dict[str, Any]:
        made_by = {"checkpoint": self.checkpoint, "kept": self.kept}
        return super().asked() | {"windows": self.refinement.to_dict() | made_by}


def windows_plan(asked: dict[str, Any], folder: Path) -> LongRefinement:
    """The plan that a record keeps of a job. folder: of the job. Raises ValueError if it cannot be read."""
    return LongRefinement.from_dict(asked, folder / SEGMENTS, str(asked.get("checkpoint")))


def _restore(record: Record, folder: Path) -> WindowsJob:
    values = dict(record.request or {})
    asked, side_by_side = values["windows"], values["side_by_side"]
    options = {"checkpoint": asked["checkpoint"], "kept": asked["kept"]}
    job = WindowsJob.of(windows_plan(asked, folder), side_by_side, **options)
    read_back(job, record, folder)
    return job


RESTORE["windows"] = _restore
