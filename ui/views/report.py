"""Shows the measurements of a run: how alike its two videos are, and a table."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from pipeline import Comparison, FromClip, VideoResult
from ui.form.read import page_sentence
from ui.look.figures import gibibytes, seconds
from ui.views.likeness import likeness_html

TITLES = {"dense": "Dense", "sparse": "Sparse (BSA)"}

REFINED = "{clip}, from noise level {level:g} of a schedule of {steps} steps"
NOTHING_YET = '<p class="report-empty">Times, memory and kept blocks appear here.</p>'


def report_panel(results: Mapping[str, VideoResult], comparison: Comparison | None = None) -> str:
    """HTML of the likeness of two compared videos, and a table with one column per finished video."""
    if not results:
        return NOTHING_YET
    head = "".join(f'<th scope="col" data-arm="{arm}"><span class="dot"></span>{TITLES[arm]}</th>' for arm in results)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, cells in table_rows(results)
    )
    head = f'<tr><th scope="col"><span class="sr">Measure</span></th>{head}</tr>'
    likeness = "" if comparison is None else likeness_html(comparison)
    return f'<div class="report">{likeness}<table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def table_rows(results: Mapping[str, VideoResult]) -> list[tuple[str, list[str]]]:
    """The rows (measure, one text per video) for all measurements of single videos."""
    videos = list(results.values())
    labels = {video.peak_memory_label for video in videos}
    memory = f"Peak memory ({labels.pop()})" if len(labels) == 1 else "Peak memory"
    encoded = [video.seconds["encode"] for video in videos if "encode" in video.seconds]
    adapters = [video.request.lora for video in videos if video.request.lora]
    refined = [text for text in map(_refined, videos) if text]
    begun = [text for text in map(_begun, videos) if text]
    ran = [_passes(video) for video in videos] if any(video.skipped for video in videos) else []
    chosen = [page_sentence(video.request.auto) for video in videos if video.request.auto]
    return [
        ("Text encoding", [seconds(video.seconds["text"]) for video in videos]),
        *([("Clip encoding", list(map(seconds, encoded)))] if encoded else []),
        ("Denoising", [seconds(video.seconds["denoise"]) for video in videos]),
        ("Decoding", [seconds(video.seconds["decode"]) for video in videos]),
        ("Total", [seconds(video.seconds["total"]) for video in videos]),
        (memory, [gibibytes(video.peak_memory) for video in videos]),
        ("Key blocks kept per query block", [_kept(video) for video in videos]),
        ("Share of query-key pairs computed", [f"{video.density:.1%}" for video in videos]),
        ("BSA active", [f"{'yes' if video.bsa_active else 'no'}: {video.bsa_reason}" for video in videos]),
        *([("Attention chosen", chosen)] if chosen else []),
        *([("Steps run, the others by TeaCache", ran)] if ran else []),
        ("Video", [_clip(video) for video in videos]),
        ("Seed", [str(video.request.seed) for video in videos]),
        *([("Adapter (LoRA)", adapters)] if adapters else []),
        *([("Refined from", refined)] if refined else []),
        *([("Begins with", begun)] if begun else []),
    ]


def _kept(video: VideoResult) -> str:
    if not video.bsa_active or video.blocks_total is None:
        return "all"
    return f"{video.blocks_kept:,.4g} of {video.blocks_total:,}"


def _passes(video: VideoResult) -> str:
    return "" if video.passes is None or video.skipped is None else f"{video.passes} of {video.passes + video.skipped}"


def _clip(video: VideoResult) -> str:
    request = video.request
    text = f"{request.width} × {request.height}, {request.num_frames} frames"
    if request.start.clip is not None:  # only a part of its steps runs
        return text
    return f"{text}, {request.steps} steps, guidance {request.guidance_scale:g}"


def _begun(video: VideoResult) -> str:
    start = video.request.start
    return start.source.name if start.source is not None and start.clip is None else ""


def _refined(video: VideoResult) -> str:
    start = video.request.start
    if not isinstance(start, FromClip):
        return ""
    return REFINED.format(clip=start.clip.name, level=start.t_thresh, steps=video.request.steps)
