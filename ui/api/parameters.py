"""The parameters that endpoints share: makes their documented signatures from them, and requests from their values."""

from __future__ import annotations

from typing import Any, Literal

from bsa import BSAConfig
from bsa.selectors import SCORES
from pipeline import CheckpointInfo, VideoRequest
from pipeline.request.fields import FIELDS
from ui.api.publish import REQUIRED
from ui.form.read import bsa_config, new_seed, video_request
from ui.site import Site

SCORED_BY = Literal[tuple(SCORES)]  # type: ignore[valid-type]  # made from the table

JOB_ID = (
    "job_id",
    str | None,
    None,
    "Your own name for the job, for /result, /cancel and /inspect; one of 32 characters or more works over any "
    "connection; null draws one",
)
ATTENTION = Literal["sparse", "dense", "auto"]
ATTENTION_HELP = (
    "Block sparse attention (BSA) or dense attention; auto chooses between them, with BSA's sparsity and scores, by "
    "what was measured on this machine, and the report's request says why"
)


def parameters(checkpoint: CheckpointInfo) -> list[tuple[str, Any, Any, str]]:
    """(name, type, default, description) for each parameter of a video. Defaults come from the checkpoint."""
    size, bsa = checkpoint.defaults, checkpoint.bsa or BSAConfig()
    return [
        _field("prompt", REQUIRED),
        _field("negative_prompt", ""),
        _field("width", size["width"]),
        _field("height", size["height"]),
        _field("num_frames", size["num_frames"]),
        _field("steps", size["num_inference_steps"]),
        _field("guidance_scale", size["guidance_scale"]),
        ("seed", int | None, None, "Seed of the initial noise; null draws one, which the report states"),
        ("lora", str | None, None, FIELDS["lora"].help),
        *attention_parameters(bsa),
        _field("teacache_thresh", 0.0),
    ]


def _field(name: str, default: Any) -> tuple[str, Any, Any, str]:
    return name, FIELDS[name].kind, default, FIELDS[name].help


def attention_parameters(bsa: BSAConfig) -> list[tuple[str, Any, Any, str]]:
    return [
        ("sparsity", float | None, bsa.sparsity, "Share of key blocks skipped, 0 to below 1, or null"),
        ("cdf_threshold", float | None, bsa.cdf_threshold, "Estimated attention mass kept, above 0 to 1, or null"),
        ("chunk_q", list[int], list(bsa.chunk_q), "Query chunk: latent frames, token rows, token columns"),
        ("chunk_k", list[int], list(bsa.chunk_k), "Key chunk: latent frames, token rows, token columns"),
        ("selection", SCORED_BY, bsa.selection, "Scores blocks by their means, or by cells inside them"),
        ("dense_steps", int, bsa.dense_steps, "So many of the first steps attend to everything"),
        ("dense_layers", int, bsa.dense_layers, "So many of the first layers attend to everything"),
        ("select_every", int, bsa.select_every, "So many steps share one selection of blocks"),
    ]


def refinement_parameters() -> list[tuple[str, Any, Any, str]]:
    return [
        ("t_thresh", float, 0.5, "Noise level to start from, above 0 to 1; more changes more"),
        ("double_frames", bool, True, "Twice as many frames as well"),
        ("seed", int | None, None, "Seed of the noise; null draws one, which the report states"),
    ]


def asked_request(site: Site, values: dict[str, Any], attention: str = "sparse") -> VideoRequest:
    values = dict(values)
    rule = {name: values.pop(name) for name, *_ in attention_parameters(site.checkpoint.sparse)}
    if values["seed"] is None:
        values["seed"] = new_seed()
    request = video_request(site.checkpoint, **values, bsa=asked_attention(site, rule, attention))
    return site.estimates.choose(request) if attention == "auto" else request


def asked_attention(site: Site, rule: dict[str, Any], attention: str) -> BSAConfig | None:
    """The attention asked for. rule: values of `attention_parameters`, which only "sparse" reads."""
    if attention not in ("sparse", "dense", "auto"):
        raise ValueError(f"attention {attention!r} is unknown; use 'sparse', 'dense' or 'auto'")
    if attention == "sparse":
        return bsa_config(**rule)
    return site.checkpoint.sparse if attention == "auto" else None
