"""Makes a long video as a job, segment by segment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.runs.long_video import LongVideo
from ui.jobs.records import RESTORE
from ui.storage.store import Record
from ui.tasks.chain_job import ChainJob, read_back


@dataclass(eq=False)
class LongJob(ChainJob):
    """A long video, whose parts are its segments."""

    PLACE = "Segment {number} of {total}"

    @property
    def video(self) -> LongVideo:
        """The plan."""
        assert isinstance(self.long, LongVideo)  # `of` sets it
        return self.long

    def take_sources(self) -> None:
        request = self.video.request
        self.long = replace(self.video, request=replace(request, start=self.keep_source(request.start)))

    def asked(self) -> dict[str, Any]:
        return super().asked() | {"long": self.video.to_dict(), "kept": self.kept}


def _restore(record: Record, folder: Path) -> LongJob:
    values = dict(record.request or {})
    job = LongJob.of(LongVideo.from_dict(values["long"]), values["side_by_side"], kept=values["kept"])
    read_back(job, record, folder)
    return job


RESTORE["long"] = _restore
