"""What a request will do, before it runs: token grid, blocks, blocks kept, and whether BSA will be active."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from bsa import Grid
from pipeline import CheckpointInfo, VideoRequest
from ui.form import form_request, page_sentence

MOST_CELLS = 256


def plan_panel(checkpoint: CheckpointInfo, values: Mapping[str, Any]) -> str:
    """HTML of the plan for the form's values; a value that cannot be used becomes one sentence."""
    try:
        # A prompt is not needed to count blocks, and an empty one is no reason to hide the plan.
        request = form_request(checkpoint, {**values, "prompt": "-", "negative_prompt": ""})
    except ValueError as error:
        return f'<div class="plan plan-error" role="alert"><b>Cannot run.</b> {escape(page_sentence(error))}</div>'
    return _describe(request)


def _describe(request: VideoRequest) -> str:
    grid = request.grid
    active, reason = request.bsa_status()
    verdict = "BSA active" if active else "BSA not active"
    rows = [("Token grid", f"{_sides(grid)} = {_count(grid.volume)} tokens")]
    picture = ""
    if active:
        plan = request.bsa.blocks(grid)
        rows += [
            ("Query blocks", _blocks(plan.q_blocks, request.bsa.chunk_q)),
            ("Key blocks", _blocks(plan.k_blocks, request.bsa.chunk_k)),
            ("Ragged blocks", _ragged(plan.ragged_q, plan.ragged_k)),
        ]
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
    table = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows)
    # The kept count is in the table already, so the reason is only needed where BSA stays off.
    why = "" if active else f'<p class="why">{escape(page_sentence(reason))}</p>'
    return (
        f'<div class="plan" data-active="{str(active).lower()}">'
        f'<p class="verdict"><span class="dot"></span>{verdict}</p>{why}<dl>{table}</dl>{picture}</div>'
    )


def _blocks(blocks: Grid, chunk: Grid) -> str:
    return f"{_sides(blocks)} = {_count(blocks.volume)} blocks of {_count(chunk.volume)} tokens"


def _ragged(query: int, key: int) -> str:
    if not query and not key:
        return "none, the chunks divide the grid"
    return f"{_count(query)} query and {_count(key)} key blocks, cut short by the grid's edge"


def _cells(kept: int, total: int) -> str:
    """The share of key blocks that each query block reads, drawn as cells (as one bar when there are too many)."""
    label = f'role="img" aria-label="{kept} of {total} key blocks are read"'
    if total > MOST_CELLS:
        return f'<div class="share" {label}><i style="width:{100 * kept / total:.2f}%"></i></div>'
    return f'<div class="cells" {label}>{"<i class=on></i>" * kept}{"<i></i>" * (total - kept)}</div>'


def _sides(grid: Grid) -> str:
    return " × ".join(str(side) for side in grid)


def _count(number: int) -> str:
    return f"{number:,}"
