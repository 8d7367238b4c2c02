"""Shows the plan of a request before it runs: token grid, blocks, blocks kept, whether BSA will be active, and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bsa import BlockPlan, BSAConfig, Grid
from pipeline import CheckpointInfo, VideoRequest
from pipeline.estimate.estimator import Estimate
from pipeline.request.start import FromFrames, Start
from pipeline.runs.long_video import LongVideo
from ui.form.read import (
    AUTOMATIC,
    DENSE_ONLY,
    SIDE_BY_SIDE,
    SPARSE_ONLY,
    Windows,
    form_long,
    form_request,
    is_long,
    page_sentence,
    windows_of,
)
from ui.jobs.estimates import Estimates
from ui.jobs.eta import duration_text

MOST_CELLS = 256
SEGMENTS, WHOLE, GIVEN = "Segments", "All segments", "Given"
WINDOWS, ALL_WINDOWS = "Windows", "All windows"
LENGTH = "{count}, together {frames} frames, {seconds} s"
GIVEN_FRAMES = "{count} of {of} latent frames, which are read and not made"
UNTRAINED = (
    "{name} was trained to begin from text alone. It keeps the frames that are given, but soon after them outlines "
    "jump and colours shift, and it goes on with a scene of its own as the prompt describes it."
)
_CONTINUED = FromFrames(video="end.mp4")
SMALLER = "Smaller blocks"
TERMS = {
    SMALLER: "In the papers these are ragged blocks: the grid's edge cuts them short, and they count with their true "
    "size."
}


def plan_panel(checkpoint: CheckpointInfo, values: Mapping[str, Any], estimates: Estimates | None = None) -> str:
    """HTML of the plan for the form's values, with time and memory if there are estimates.

    A value that cannot be used, or a video that cannot fit, gives one sentence instead.
    """
    # blocks can be counted without a prompt, so an empty prompt does not hide the plan
    values = {**values, "prompt": "-", "negative_prompt": ""}
    try:
        request = form_request(checkpoint, values, None if estimates is None else estimates.choose)
        video = form_long(checkpoint, values, request) if is_long(values) else None
        expected = "" if estimates is None else _expected(checkpoint, values, request, estimates)
        rows = [] if video is None else long_rows(video, long_seconds(estimates, long_requests(video), values["mode"]))
        if (windows := windows_of(values)) is not None:
            seconds = long_seconds(estimates, windows.requests(request), values["mode"])
            rows = windows_rows(windows, request, seconds)
    except ValueError as error:
        return plan_error(error)
    if said := untrained(checkpoint, request.start, long=video is not None):
        expected = f'<p class="advice" data-kind="untrained">{escape(said)}</p>{expected}'
    return _describe(request, expected, rows)


def plan_error(error: ValueError) -> str:
    return f'<div class="plan plan-error" role="alert"><b>Cannot run.</b> {escape(page_sentence(error))}</div>'


def _expected(
    checkpoint: CheckpointInfo, values: Mapping[str, Any], request: VideoRequest, estimates: Estimates
) -> str:
    estimates.plan(request)
    sparse = request
    if request.bsa is None:
        sparse = form_request(checkpoint, {**values, "mode": SPARSE_ONLY, "sparsity": values["sparsity"] or 0})
    mode = values["mode"]
    if mode == AUTOMATIC:
        mode = DENSE_ONLY if request.bsa is None else SPARSE_ONLY
    time = FIRST if is_long(values) else FIRST_WINDOW if windows_of(values) else TIME
    return outlook(estimates, request, sparse, mode, time)


def untrained(checkpoint: CheckpointInfo, start: Start, *, long: bool = False) -> str:
    """What to expect of a video that begins so from a checkpoint that was not trained for it; "" if it was. long:
    whether further segments continue it."""
    trained = all(map(checkpoint.trained_for, (start, _CONTINUED) if long else (start,)))
    return "" if trained else UNTRAINED.format(name=checkpoint.name)


def long_rows(video: LongVideo, seconds: float | None) -> list[tuple[str, str]]:
    """Rows of the table for a long video. seconds: that it takes, if known."""
    text = LENGTH.format(count=len(video), frames=video.frames, seconds=f"{video.frames / video.request.fps:.1f}")
    return [(SEGMENTS, text), *([] if seconds is None else [(WHOLE, duration_text(seconds))])]


def windows_rows(windows: Windows, first: VideoRequest, seconds: float | None) -> list[tuple[str, str]]:
    """The same for the refinement of a long video. first: the request of its first window."""
    later = first.num_frames * (windows.frames - windows.carried) // windows.frames
    frames = first.num_frames + (windows.count - 1) * later
    text = LENGTH.format(count=windows.count, frames=frames, seconds=f"{frames / first.fps:.1f}")
    return [(WINDOWS, text), *([] if seconds is None else [(ALL_WINDOWS, duration_text(seconds))])]


def long_requests(video: LongVideo) -> list[tuple[VideoRequest, int]]:
    """The request of the first segment, and that of those after it, with their numbers."""
    kinds = [(video.segment(0, Path("end.mp4")), 1)]
    return kinds if len(video) < 2 else [*kinds, (video.segment(1, Path("end.mp4")), len(video) - 1)]


def long_seconds(
    estimates: Estimates | None, kinds: Sequence[tuple[VideoRequest, int]], mode: str
) -> float | None:
    """Expected seconds for requests of which there are so many, and for both videos of a pair; None if unknown."""
    if estimates is None:
        return None
    total = 0.0
    for request, count in kinds:
        estimates.plan(request)
        for one in (request, request.dense) if mode == SIDE_BY_SIDE else (request,):
            estimate = estimates.of(one)
            if estimate is None or estimate.seconds is None:
                return None
            total += count * estimate.seconds["total"]
    return total


def _describe(request: VideoRequest, expected: str, first: Sequence[tuple[str, str]] = ()) -> str:
    work = request.workload
    grid, active = work.grid, work.sparse
    verdict = "BSA active" if active else "BSA not active"
    rows = [*first, ("Token grid", f"{_sides(grid)} = {_count(grid.volume)} tokens")]
    if work.conditioning:
        rows.append((GIVEN, GIVEN_FRAMES.format(count=work.conditioning, of=grid.t)))
    picture = ""
    if work.bsa is not None and work.blocks is not None:
        plan = work.blocks
        rows += _block_rows(work.bsa, plan)
        rows.append((SMALLER, _ragged(plan.ragged_q, plan.ragged_k)))
        total = plan.k_blocks.volume
        if plan.kept is None:
            more = ", more where the threshold asks for it"
            kept = f"at least {_count(plan.min_kept)} of {_count(total)} per query block{more}"
        else:
            kept = f"{_count(plan.kept)} of {_count(total)} per query block ({plan.density:.1%})"
        rows.append(("Kept", kept))
        picture = _cells(plan.min_kept, total)
    elif request.bsa is None:
        rows.append(("Kept", "every token attends to every token (100%)"))
    table = "".join(f"<dt>{escape(name)}{_term(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows)
    # the table already has the kept count, so the reason is needed only if BSA stays off, or if nobody asked for it
    reason = request.auto or ("" if active else work.reason)
    why = f'<p class="why">{escape(page_sentence(reason))}</p>' if reason else ""
    return (
        f'<div class="plan" data-active="{str(active).lower()}">'
        f'<p class="verdict"><span class="dot"></span>{verdict}</p>{why}<dl>{table}</dl>{picture}{expected}</div>'
    )


def _term(name: str) -> str:
    """The term of the field for a row, behind a question mark; "" if its name is that term."""
    if name not in TERMS:
        return ""
    return f' <details class="term"><summary aria-label="{escape(name)}">?</summary>{escape(TERMS[name])}</details>'


def _block_rows(bsa: BSAConfig, plan: BlockPlan) -> list[tuple[str, str]]:
    if bsa.chunk_q == bsa.chunk_k:
        return [("Blocks", _blocks(plan.q_blocks, bsa.chunk_q))]
    return [("Query blocks", _blocks(plan.q_blocks, bsa.chunk_q)), ("Key blocks", _blocks(plan.k_blocks, bsa.chunk_k))]


def _blocks(blocks: Grid, chunk: Grid) -> str:
    return f"{_sides(blocks)} = {_count(blocks.volume)} blocks of {_count(chunk.volume)} tokens"


def _ragged(query: int, key: int) -> str:
    if not query and not key:
        return "none, the chunks divide the grid"
    return f"{_count(query)} query and {_count(key)} key blocks, cut short by the grid's edge"


def _cells(kept: int, total: int) -> str:
    """Draw the share of key blocks that each query block reads as cells, or as one bar if there are too many."""
    label = f'role="img" aria-label="{kept} of {total} key blocks are read"'
    if total > MOST_CELLS:
        return f'<div class="share" {label}><i style="width:{100 * kept / total:.2f}%"></i></div>'
    return f'<div class="cells" {label}>{"<i class=on></i>" * kept}{"<i></i>" * (total - kept)}</div>'


def _sides(grid: Grid) -> str:
    return " × ".join(str(side) for side in grid)


def _count(number: int) -> str:
    return f"{number:,}"


TIME, FIRST, FIRST_WINDOW, MEMORY = "Time", "First segment", "First window", "Memory"
TIME_BOTH = "dense {dense}, sparse {sparse}"
TIME_SPARSE = "sparse {sparse} (dense would take {dense})"
TIME_DENSE = "dense {dense} (sparse would take {sparse})"
TIME_ONE = "{dense}"
TIME_UNKNOWN = "not known yet: the first video on this machine will tell"
FASTER = "denoising {ratio:.1f}× faster"
MEMORY_OF = "about {needed} of {available}"
FITS, TIGHT, TOO_LARGE = "fits", "may not fit", "does not fit"
BASIS = "Estimated from {basis}; a busy machine takes longer."
AT_MOST = "The time is that of all steps: TeaCache skips some of them."


def outlook(
    estimates: Estimates, request: VideoRequest, sparse: VideoRequest, mode: str, time: str = TIME
) -> str:
    """HTML of time, memory and advice; "" for a checkpoint without estimates.

    request: the request of the form. sparse: the same request with BSA, even if the form has it off.
    mode: the form's choice of attention. time: name of the row of seconds.
    """
    estimate, available = estimates.of(request), estimates.available()
    if estimate is None or available is None:
        return ""
    both = {"dense": estimates.of(sparse.dense), "sparse": estimates.of(sparse)}
    arms = {name: arm for name, arm in both.items() if arm is not None}  # all or none
    made = [arm for name, arm in arms.items() if mode in (name, SIDE_BY_SIDE)]
    rows = [(time, _time(arms, sparse, mode)), (MEMORY, _memory(max(made, key=_peak), available))]
    table = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    advice = None if request.auto else estimates.advice(sparse)  # an automatic choice has its own reason
    said = ""
    if advice is not None:
        said = f'<p class="advice" data-kind="{advice.kind}">{escape(" ".join(advice.sentences))}</p>'
    bases = [BASIS.format(basis=estimate.basis), *([AT_MOST] if estimate.at_most else [])] if estimate.seconds else []
    basis = "".join(f'<p class="basis">{escape(text)}</p>' for text in bases)
    return f'<div class="outlook"><dl>{table}</dl>{said}{basis}</div>'


def _time(arms: dict[str, Estimate], sparse: VideoRequest, mode: str) -> str:
    seconds = {name: estimate.seconds for name, estimate in arms.items() if estimate.seconds is not None}
    if "dense" not in seconds:
        return escape(TIME_UNKNOWN)
    words = {name: duration_text(phases["total"]) for name, phases in seconds.items()}
    if not sparse.workload.sparse:
        return escape(TIME_ONE.format(**words))
    ratio = arms["sparse"].speedup(arms["dense"]) or 1.0
    text = {"sparse": TIME_SPARSE, "dense": TIME_DENSE}.get(mode, TIME_BOTH).format(**words)
    return f"{escape(text)}<br><small>{escape(FASTER.format(ratio=ratio))}</small>" if ratio > 1.05 else escape(text)


def _peak(estimate: Estimate) -> int:
    return estimate.memory


def _memory(estimate: Estimate, available: int) -> str:
    verdict, state = FITS, "fits"
    if estimate.memory_least > available:
        verdict, state = TOO_LARGE, "too-large"
    elif estimate.memory > available:
        verdict, state = TIGHT, "tight"
    text = MEMORY_OF.format(needed=gib(estimate.memory), available=gib(available))
    return f'{escape(text)} <b class="fits" data-fits="{state}">{escape(verdict)}</b>'


def gib(size: int) -> str:
    if size < 2**30 / 10:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / 2**30:.1f} GiB" if size < 100 * 2**30 else f"{size / 2**30:.0f} GiB"
