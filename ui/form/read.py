"""Turns the values of the form, or of an API call, into a validated `VideoRequest`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bsa import BSAConfig, Grid, selectors
from pipeline import CheckpointInfo, VideoRequest
from pipeline.media.clip import inspect_clip
from pipeline.request.fields import FIELDS
from pipeline.request.sentences import one_line
from pipeline.request.values import real, whole

SIDE_BY_SIDE, SPARSE_ONLY, DENSE_ONLY, AUTOMATIC = "both", "sparse", "dense", "auto"
TOP_K, MASS, TOP_K_AND_MASS = selectors.TOP_K, selectors.MASS, selectors.TOP_K_AND_MASS


def new_seed() -> int:
    """Draw a seed that is short enough to read aloud and to type."""
    return random.randrange(2**31)


def form_request(
    checkpoint: CheckpointInfo,
    values: Mapping[str, Any],
    choose: Callable[[VideoRequest], VideoRequest] | None = None,
) -> VideoRequest:
    """The request that the form describes, without drawing a seed.

    values: the form's values by field name, as `ui.form.inputs` names them.
    choose: returns a request with the attention that suits it, for the mode `AUTOMATIC`; without it that mode takes the
        checkpoint's sparse attention.
    Raises ValueError with one sentence for the first value that cannot be used.
    """
    automatic = values["mode"] == AUTOMATIC
    bsa = checkpoint.sparse if automatic else None
    if values["mode"] in (SIDE_BY_SIDE, SPARSE_ONLY):
        bsa = bsa_config(
            sparsity=values["sparsity"] if values["keep_by"] != MASS else None,
            cdf_threshold=values["cdf_threshold"] if values["keep_by"] != TOP_K else None,
            chunk_q=[values[f"chunk_q_{axis}"] for axis in "thw"],
            chunk_k=[values[f"chunk_k_{axis}"] for axis in "thw"],
            selection=values["selection"],
            dense_steps=values["dense_steps"],
            dense_layers=values["dense_layers"],
            select_every=values["select_every"],
        )
    request = video_request(
        checkpoint,
        prompt=values["prompt"] or "",
        negative_prompt=values["negative_prompt"] or "",
        width=values["width"],
        height=values["height"],
        num_frames=values["num_frames"],
        steps=values["steps"],
        guidance_scale=values["guidance_scale"],
        seed=values["seed"],
        bsa=bsa,
        use_distill=values.get("use_distill"),
        lora=values.get("lora"),
        refine=values.get("refine"),
        double_frames=values.get("double_frames", True),
        t_thresh=values.get("t_thresh", 0.5),
    )
    return choose(request) if automatic and choose is not None else request


def keep_by(bsa: BSAConfig) -> str:
    """The form's name for the rule by which this configuration keeps blocks."""
    return bsa.selector.rule


def bsa_config(
    *,
    sparsity: Any,
    cdf_threshold: Any,
    chunk_q: Sequence[Any],
    chunk_k: Sequence[Any],
    selection: str,
    dense_steps: Any,
    dense_layers: Any,
    select_every: Any,
) -> BSAConfig:
    return BSAConfig(
        sparsity=None if sparsity is None else real("sparsity", sparsity),
        cdf_threshold=None if cdf_threshold is None else real("cdf threshold", cdf_threshold),
        chunk_q=_chunk("query chunk", chunk_q),
        chunk_k=_chunk("key chunk", chunk_k),
        selection=selection,
        dense_steps=whole("dense steps", dense_steps),
        dense_layers=whole("dense layers", dense_layers),
        select_every=whole("select every", select_every),
    )


def video_request(
    checkpoint: CheckpointInfo,
    *,
    prompt: str,
    negative_prompt: str,
    width: Any,
    height: Any,
    num_frames: Any,
    steps: Any,
    guidance_scale: Any,
    seed: Any,
    bsa: BSAConfig | None,
    use_distill: bool | None = None,
    lora: str | None = None,
    refine: str | None = None,
    double_frames: bool = True,
    t_thresh: Any = 0.5,
) -> VideoRequest:
    """Build a request from single values. Raises ValueError for a value that cannot be used.

    refine: path of a clip; its number of frames then replaces `num_frames`.
    use_distill: None takes the value that the adapter needs, or the checkpoint's.
    """
    numbers = {"width": width, "height": height, "steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    given: dict[str, Any] = {name: FIELDS[name].read(value) for name, value in numbers.items()}
    given |= {"negative_prompt": negative_prompt, "bsa": bsa, "lora": lora or None}
    if use_distill is not None:
        given["use_distill"] = use_distill
    if not refine:
        return checkpoint.request(prompt, num_frames=FIELDS["num_frames"].read(num_frames), **given)
    level = real("noise level", t_thresh)
    return checkpoint.refinement(prompt, inspect_clip(refine), t_thresh=level, double_frames=double_frames, **given)


def _chunk(name: str, sides: Sequence[Any]) -> Grid:
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 3:
        raise ValueError(f"{name} {sides!r} is not three numbers; give frames, rows and columns, such as [4, 4, 4]")
    return Grid(*(whole(f"{name} {axis}", side) for axis, side in zip("THW", sides, strict=True)))


# The pipeline's sentences use the names of fields; on the page, the words of its labels replace them.
_PAGE_WORDS = {
    "num_frames": "number of frames",
    "guidance_scale": "guidance",
    "cdf_threshold": "CDF threshold",
    "chunk_q": "query chunk",
    "dense_steps": "dense steps",
    "dense_layers": "dense layers",
    "select_every": "select every",
    "chunk_k": "key chunk",
    "t_thresh": "noise level",
}


def page_sentence(error: Exception | str) -> str:
    """Turn an error into a sentence for the page: with the words of the page, a capital letter and a full stop."""
    text = one_line(error).rstrip(".")
    for field, words in _PAGE_WORDS.items():
        text = text.replace(field, words)
    return f"{text[:1].upper()}{text[1:]}."
