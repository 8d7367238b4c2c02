"""Turns the form into a job: one video, a pair, a long video, or the refinement of one.

A long video can go on after segments of an earlier one. The form then names that run and the number of segments to
keep. Those must agree with the form's settings; the prompts and seeds after them are free. A refinement can go on after
windows of an earlier one in the same way, if nothing but later prompts differs.
"""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.request.start import Start
from pipeline.request.video import VideoRequest
from pipeline.runs.chain import ChainStore, OtherPart
from pipeline.runs.long_refinement import LongRefinement
from pipeline.runs.long_video import LongVideo, prompts_for
from ui.form.read import SIDE_BY_SIDE, form_long, form_request, is_long, prompt_lines, windows_of
from ui.jobs.job import VideoJob
from ui.site import Site
from ui.tasks.chain_job import ChainJob
from ui.tasks.long_job import LongJob
from ui.tasks.windows_job import WindowsJob

GONE = "the segments to go on after are gone; clear that choice to make all of them"
NOT_ALL = "of the {kept} segments to keep, {found} are there; go on after an earlier one, or make all of them"
OTHER_ARMS = "the segments to keep are {kept} ones alone; make {kept} ones now, too, or make all segments"
OTHER_SETTING = "segment {number}, which is to be kept, has another {what}; put that back, or make all segments"
OTHER_START = "the segments to keep begin with another picture or clip; put that back, or make all of them"
NO_SOURCE = "the long video to refine is gone; choose it again"
NOT_WHOLE = "the long video has {found} of its {count} segments; make the rest before it is refined"
OTHER_CHECKPOINT = "the long video was made with another checkpoint than {name}; load that one to refine it"
OTHER_WINDOW = "window {number}, which is to be kept, has another {what}; put that back, or refine all windows"
NO_WINDOWS = "of the {kept} windows to keep, {found} are there; refine the whole again"
OTHER_WHOLE = "the windows to keep are of another long video; name that one, or refine all windows"
OTHER_WINDOW_ARMS = "the windows to keep are {kept} ones alone; refine {kept} ones now, too, or all windows again"
FEWER = "{kept} segments are to be kept and {count} are asked for; ask for more, or keep fewer"


def job_of_form(site: Site, form: Mapping[str, Any], owner: str) -> VideoJob:
    """The job that the form describes, not yet submitted. owner: whose earlier runs it may go on after.

    Raises ValueError with one sentence for what cannot be made.
    """
    request = form_request(site.checkpoint, form, site.estimates.choose)
    both = form["mode"] == SIDE_BY_SIDE
    if (windows := windows_of(form)) is not None:
        source = site.worker.find(windows.job, owner)
        if not isinstance(source, ChainJob):
            raise ValueError(NO_SOURCE)
        prompts = prompts_for(prompt_lines(form) or [""], windows.count)
        prompts = tuple(map(site.checkpoint.in_english, prompts))
        before = (source, windows.kept) if windows.kept and isinstance(source, WindowsJob) else None
        return windows_job(site, source, request, prompts, both, before)
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
    _check_kept(job, before.folder, OTHER_SETTING, NOT_ALL)
    return job


def windows_job(
    site: Site,
    source: ChainJob,
    request: VideoRequest,
    prompts: tuple[str, ...],
    side_by_side: bool,
    after: tuple[WindowsJob, int] | None = None,
) -> WindowsJob:
    """A job that refines a long video in windows.

    source: the run that made it, or an earlier refinement of it. request: of the first window. prompts: one for each,
    or none for those of the segments. after: an earlier refinement, and the number of its windows that are kept.

    Raises ValueError for a video that cannot be refined so, and for windows that cannot be kept.
    """
    name = site.checkpoint.name
    video, folder = segments_of(source)
    try:
        segments = ChainStore(folder, video, name)
    except OtherPart:
        raise ValueError(OTHER_CHECKPOINT.format(name=name)) from None
    if len(segments.parts) < len(video):
        raise ValueError(NOT_WHOLE.format(found=len(segments.parts), count=len(video)))
    plan = LongRefinement(video, segments, request, prompts)
    if after is None:
        return WindowsJob.of(plan, side_by_side, checkpoint=name)
    before, kept = after
    video, folder = segments_of(before)
    if ChainStore(folder, video, name).parts != segments.parts:
        raise ValueError(OTHER_WHOLE)
    job = WindowsJob.of(plan, side_by_side, checkpoint=name, source=before.folder, kept=kept)
    if not set(job.arms) <= set(before.arms):
        raise ValueError(OTHER_WINDOW_ARMS.format(kept=" and ".join(before.arms)))
    _check_kept(job, before.folder, OTHER_WINDOW, NO_WINDOWS)
    return job


def segments_of(job: ChainJob) -> tuple[LongVideo, Path]:
    """The plan of the long video that a run made, or refined, and the folder of its segments; of a pair the dense
    ones."""
    if isinstance(job, WindowsJob):
        return job.refinement.video, job.refinement.segments.folder
    assert isinstance(job, LongJob)
    arm = job.arms[0]
    return job.video.dense if arm == "dense" else job.video, job.folder / arm


def whole_of(job: ChainJob) -> Path:
    """The file of the long video that a run made, or refined; of a pair the dense one. ValueError where it is none."""
    if isinstance(job, WindowsJob):
        return job.refinement.start.clip
    if job.arms[0] not in job.results:
        raise ValueError(NOT_WHOLE.format(found=len(job.segments), count=len(job.plan)))
    return job.results[job.arms[0]].video


def _check_kept(job: ChainJob, folder: Path, other: str, missing: str) -> None:
    """Raise ValueError unless the job can keep the parts in another one's folder. other, missing: sentences for parts
    made otherwise, and for fewer than are to be kept."""
    for arm in job.arms:
        try:
            found = len(ChainStore(folder / arm, job.chain(arm), job.checkpoint, most=job.kept).parts)
        except OtherPart as error:
            raise ValueError(other.format(number=error.number, what=error.what)) from None
        if found < job.kept:
            raise ValueError(missing.format(kept=job.kept, found=found))


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

