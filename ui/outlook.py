"""What a request is expected to take, and whether BSA is worth it: the lines below the plan."""

from __future__ import annotations

from dataclasses import replace
from html import escape

from pipeline import VideoRequest
from pipeline.estimate import Estimate
from ui.estimates import Estimates
from ui.eta import duration_text
from ui.form import SIDE_BY_SIDE

TIME, MEMORY = "Time", "Memory"
TIME_BOTH = "dense {dense}, sparse {sparse}"
TIME_SPARSE = "sparse {sparse} (dense would take {dense})"
TIME_DENSE = "dense {dense} (sparse would take {sparse})"
TIME_ONE = "{dense}"
TIME_UNKNOWN = "not known yet: the first video on this machine will tell"
FASTER = "denoising {ratio:.1f}× faster"
MEMORY_OF = "about {needed} of {available}"
FITS, TIGHT, TOO_LARGE = "fits", "may not fit", "does not fit"
BASIS = "Estimated from {basis}; a busy machine takes longer."


def outlook(estimates: Estimates, request: VideoRequest, sparse: VideoRequest, mode: str) -> str:
    """HTML of time, memory and advice; "" for a checkpoint without estimates.

    request: what the form asks for; sparse: the same with BSA, whatever the form says; mode: the form's.
    """
    estimate = estimates.of(request)
    if estimate is None:
        return ""
    arms = {"dense": estimates.of(replace(sparse, bsa=None)), "sparse": estimates.of(sparse)}
    made = [arms[name] for name in arms if mode in (name, SIDE_BY_SIDE)]
    rows = [(TIME, _time(arms, sparse, mode)), (MEMORY, _memory(max(made, key=_peak), estimates.available()))]
    table = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    advice = estimates.advice(sparse)
    said = ""
    if advice is not None:
        said = f'<p class="advice" data-kind="{advice.kind}">{escape(" ".join(advice.sentences))}</p>'
    basis = f'<p class="basis">{escape(BASIS.format(basis=estimate.basis))}</p>' if estimate.seconds else ""
    return f'<div class="outlook"><dl>{table}</dl>{said}{basis}</div>'


def _time(arms: dict[str, Estimate], sparse: VideoRequest, mode: str) -> str:
    if arms["dense"].seconds is None:
        return escape(TIME_UNKNOWN)
    active, _ = sparse.bsa_status()
    if not active:
        return escape(TIME_ONE.format(dense=duration_text(arms["dense"].seconds["total"])))
    words = {name: duration_text(estimate.seconds["total"]) for name, estimate in arms.items()}
    ratio = arms["dense"].seconds["denoise"] / arms["sparse"].seconds["denoise"]
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
