"""Turns the form into a job: one video, a pair, or a long video.

A long video can go on after segments of an earlier one. The form then names that run and the number of segments to
keep. Those must agree with the form's settings; the prompts and seeds after them are free.
"""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.request.start import Start
from pipeline.runs.chain import ChainStore, OtherPart
from pipeline.runs.long_video import LongVideo
from ui.form.read import SIDE_BY_SIDE, form_long, form_request, is_long
from ui.jobs.job import VideoJob
from ui.site import Site
from ui.tasks.long_job import LongJob

GONE = "the segments to go on after are gone; clear that choice to make all of them"
NOT_ALL = "of the {kept} segments to keep, {found} are there; go on after an earlier one, or make all of them"
OTHER_ARMS = "the segments to keep are {kept} ones alone; make {kept} ones now, too, or make all segments"
OTHER_SETTING = "segment {number}, which is to be kept, has another {what}; put that back, or make all segments"
OTHER_START = "the segments to keep begin with another picture or clip; put that back, or make all of them"
FEWER = "{kept} segments are to be kept and {count} are asked for; ask for more, or keep fewer"


def job_of_form(site: Site, form: Mapping[str, Any], owner: str) -> VideoJob:
    """The job that the form describes, not yet submitted. owner: whose earlier runs it may go on after.

    Raises ValueError with one sentence for what cannot be made.
    """
    request = form_request(site.checkpoint, form, site.estimates.choose)
    both = form["mode"] == SIDE_BY_SIDE
    if not is_long(form):
        return VideoJob(request, side_by_side=both)
    after = find_after(site, form["after"], owner) if form.get("after") else None
    return long_job(site, form_long(site.checkpoint, form, request), both, after)


def long_job(
    site: Site, video: LongVideo, side_by_side: bool, after: tuple[LongJob, int] | None = None
) -> LongJob:
    """A job for a long video. after: an earlier one, and the number of its segments that are kept.

    Raises ValueError for segments that cannot be kept.
    """
    name = site.checkpoint.name
    if after is None:
        return LongJob.of(video, side_by_side, checkpoint=name)
    before, kept = after
    if kept > len(video):
        raise ValueError(FEWER.format(kept=kept, count=len(video)))
    job = LongJob.of(_after(before.video, video, kept), side_by_side, checkpoint=name, source=before.folder, kept=kept)
    if not set(job.arms) <= set(before.arms):
        raise ValueError(OTHER_ARMS.format(kept=" and ".join(before.arms)))
    for arm in job.arms:
        plan = job.video.dense if arm == "dense" else job.video
        try:
            found = len(ChainStore(before.folder / arm, plan, name, most=kept).parts)
        except OtherPart as error:
            raise ValueError(OTHER_SETTING.format(number=error.number, what=error.what)) from None
        if found < kept:
            raise ValueError(NOT_ALL.format(kept=kept, found=found))
    return job


def after_text(job: LongJob, kept: int) -> str:
    """How the form names the segments that a long video goes on after."""
    return f"{job.id} {kept}"


def find_after(site: Site, text: str, owner: str) -> tuple[LongJob, int]:
    """The run and the number of segments that `after_text` named. Raises ValueError if they are gone."""
    name, _, kept = text.partition(" ")
    job = site.worker.find(name, owner)
    if not isinstance(job, LongJob) or not kept.isdecimal() or not 0 < int(kept) <= len(job.segments):
        raise ValueError(GONE)
    return job, int(kept)


def _after(before: LongVideo, video: LongVideo, kept: int) -> LongVideo:
    """The plan with the seeds, and the beginning, of the segments that are kept."""
    begins = before.request.start
    if not _same(begins, video.request.start):
        raise ValueError(OTHER_START)
    seeds = tuple(before.seed(number) if number < kept else video.seed(number) for number in range(len(video)))
    request = replace(video.request, seed=seeds[0], start=begins)
    return replace(video, request=request, seeds=seeds)


def _same(one: Start, other: Start) -> bool:
    """Whether two videos begin alike; the file may lie elsewhere now."""
    if type(one) is not type(other):
        return False
    if one.source is None or other.source is None:
        return True
    try:
        return filecmp.cmp(one.source, other.source, shallow=False)
    except OSError:
        return False

