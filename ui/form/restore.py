"""Restores settings from a job or a dropped video into the form, and shows them as code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import gradio as gr

from bsa import BSAConfig
from bsa.config import SCHEDULE
from pipeline import FromClip, FromFrames, FromImage, FromNoise, VideoRequest, cli_command, python_code, read_settings
from pipeline.request.load_options import LoadOptions
from pipeline.request.start import Start
from pipeline.runs.as_code import refinement_code
from pipeline.runs.long_refinement import LongRefinement
from pipeline.runs.long_video import LongVideo
from ui.form.inputs import Fields
from ui.form.read import (
    CLIP,
    DENSE_ONLY,
    IMAGE,
    LONG,
    SIDE_BY_SIDE,
    SPARSE_ONLY,
    TEXT,
    Windows,
    keep_by,
    page_sentence,
)
from ui.jobs.job import Job, VideoJob
from ui.jobs.records import made_by
from ui.look.parts import QUIET, Drawn, notice_html
from ui.site import Site
from ui.storage.store import Store

RESTORED = "The settings of {video} are in the form. Press Generate to make it again."
RESTORED_RUN = "The settings of that run are in the form. Press Generate to make it again."
OTHER_VERSIONS = "It was made with {made}, and here is {here}: the result may differ a little."
OTHER_CHECKPOINT = "It was made with the checkpoint {made}, and here is {here}: the result will be another video."
OTHER_QUANTIZATION = (
    "It was made with the quantization {made}, and this server runs with {here}: the result will differ a little."
)
OTHER_PRECISION = "It was made in {made}, and this server computes in {here}: the result will differ by rounding."
OTHER_FPS = "It has {fps} frames a second; the form has no field for that, and this checkpoint uses {here}."
OTHER_CLIP = "It was refined from {clip}, which is not here: choose that clip under Refine a clip."
OTHER_WHOLE = (
    "It was refined in {count} windows from a long video that is not here: show that one, and press Refine the whole."
)
OTHER_IMAGE = "It begins with a picture that is not here: choose it again."
OTHER_SOURCE = "It goes on from a clip that is not here: choose it again."
OTHER_CONTINUATION = (
    "It was continued with another cache or schedule; the form has no field for that, but the command line has "
    "(--kv-cache, --enhance-hf)."
)
OWN_SEEDS = "Some of its segments were made again with seeds of their own, which the form cannot hold."
PIECE_OF_LONG = (
    "{video} is a piece of a long video and begins with the refined frames of the piece before it, for which the form "
    "has no place; refine the long video again, with --task long --refine"
)
NO_COMMAND = "No command refines a long video with settings of its own; use the Python code."
LARGE_SEED = "Its seed {seed} has more digits than the form can hold; the command line can use it."
OF_ONE_VIDEO = ("prompt", "negative_prompt", "seed", "randomise")
OF_ITS_TASK = ("task", "begins", "image", "clip", "cond_frames", "segments", "after")
LARGEST_SEED = 2**53  # a browser's numbers are exact up to here
PACKAGES = ("torch", "triton", "fastvideo", "diffusers", "transformers")


def form_values(request: VideoRequest, side_by_side: bool | None = None) -> dict[str, Any]:
    """The form's values by field name, from which `ui.form.read.form_request` makes `request` again.

    side_by_side: whether to make the dense video as well; None if the request does not say.
    """
    values = {name: getattr(request, name) for name in ("prompt", "negative_prompt", "width", "height", "num_frames")}
    values |= {"steps": request.steps, "guidance_scale": request.guidance_scale, "seed": request.seed}
    values["teacache_thresh"] = request.teacache_thresh
    values |= {"randomise": False, "use_distill": request.use_distill, "fps": request.fps, "lora": request.lora or ""}
    values |= _task_values(request.start)
    clip = request.start if isinstance(request.start, FromClip) else None
    values |= {"refine": None if clip is None else _here(clip), "windows": ""}
    if clip is not None:
        values |= {"double_frames": clip.double_frames, "t_thresh": clip.t_thresh}
    if request.bsa is None:
        return values | {"mode": DENSE_ONLY}
    return values | {"mode": SIDE_BY_SIDE if side_by_side else SPARSE_ONLY} | _attention_values(request.bsa)


def long_values(video: LongVideo, side_by_side: bool | None = None) -> dict[str, Any]:
    """The same for a long video."""
    values = form_values(video.request, side_by_side)
    task = {"task": LONG, "begins": values["task"], "segments": len(video), "cond_frames": video.cond_frames}
    return values | task | {"prompt": _lines(video.prompts)}


def windows_values(
    job_id: str, plan: LongRefinement, side_by_side: bool | None = None, kept: int = 0
) -> dict[str, Any]:
    """The same for the refinement of a long video. job_id: of the run that has its segments. kept: number of its
    windows that are kept."""
    chosen = Windows(job_id, kept, len(plan), plan.video.request.num_frames, plan.video.carried)
    values = form_values(plan.request, side_by_side)
    return values | {"prompt": _lines(plan.prompts), "windows": str(chosen) if values["refine"] else ""}


def job_values(job: VideoJob) -> dict[str, Any]:
    """The same for what a job makes."""
    if isinstance(job.long, LongRefinement):
        return windows_values(job.id, job.long, job.side_by_side)
    if job.long is not None:
        return long_values(job.long, job.side_by_side)
    return form_values(job.request, job.side_by_side)


def _lines(prompts: Sequence[str]) -> str:
    """Prompts for the form, each on a line of its own."""
    return "\n".join(" ".join(prompt.split()) for prompt in prompts)


def _task_values(start: Start) -> dict[str, Any]:
    values: dict[str, Any] = {"task": TEXT, "begins": TEXT, "image": None, "clip": None, "after": ""}
    if isinstance(start, FromImage):
        return values | {"task": IMAGE, "image": _here(start)}
    if isinstance(start, FromFrames):
        return values | {"task": CLIP, "clip": _here(start), "cond_frames": start.cond_frames}
    return values


def _here(start: Start) -> str | None:
    """The path of the file that a video begins with, if it is on this server. A bare name, from the settings inside a
    video, says nothing of this machine."""
    source = start.source
    return str(source) if source is not None and source.is_absolute() and source.is_file() else None


def general_values(request: VideoRequest, side_by_side: bool) -> dict[str, Any]:
    """`form_values` without the values that belong to a single video: its prompts and its seed; and without its task,
    if it begins from text alone, as settings for any task do."""
    values = form_values(request, side_by_side)
    leave = (*OF_ONE_VIDEO, *(OF_ITS_TASK if isinstance(request.start, FromNoise) else ()))
    return {name: value for name, value in values.items() if name not in leave}


def _attention_values(bsa: BSAConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"keep_by": keep_by(bsa)}
    for name in ("sparsity", "cdf_threshold"):
        if getattr(bsa, name) is not None:
            values[name] = getattr(bsa, name)
    values |= {name: getattr(bsa, name) for name in ("selection", *SCHEDULE)}
    for kind in ("chunk_q", "chunk_k"):
        values |= {f"{kind}_{axis}": side for axis, side in zip("thw", getattr(bsa, kind))}
    return values


def fill(fields: Fields, values: dict[str, Any]) -> dict[Any, Any]:
    """Updates of the form's components. A slider whose range is too short for its value is extended."""
    changes = {}
    for name, field in fields.items():
        if name in values:
            update = {"value": values[name]}
            if isinstance(field, gr.Slider):
                update |= {"minimum": min(field.minimum, values[name]), "maximum": max(field.maximum, values[name])}
            changes[field] = gr.update(**update)
    return changes


def remarks(
    site: Site,
    fields: Fields,
    request: VideoRequest,
    versions: dict[str, str],
    long: LongVideo | None = None,
    windows: int = 0,
) -> list[str]:
    """Sentences about differences that keep the form, or this machine, from making exactly the same video again.

    long: the long video whose first segment is `request`. windows: in so many a long video was refined, of which it is
        the first; 0 for others.
    """
    defaults, said = site.checkpoint.defaults, []
    if long is not None and long.seeds:
        said.append(OWN_SEEDS)
    start, clip = request.start, request.start.clip
    if isinstance(start, FromImage | FromFrames) and _here(start) is None:
        said.append(OTHER_IMAGE if isinstance(start, FromImage) else OTHER_SOURCE)
    if isinstance(start, FromFrames) and (start.kv_cache, start.enhance_hf) != ("device", not request.use_distill):
        said.append(OTHER_CONTINUATION)
    if clip is not None and form_values(request)["refine"] is None:
        said.append(OTHER_WHOLE.format(count=windows) if windows else OTHER_CLIP.format(clip=clip.name[:80]))
    elif isinstance(start, FromNoise | FromImage) and "fps" not in fields and request.fps != defaults["fps"]:
        said.append(OTHER_FPS.format(fps=request.fps, here=defaults["fps"]))
    if request.seed > LARGEST_SEED:
        said.append(LARGE_SEED.format(seed=request.seed))
    theirs, ours = LoadOptions.from_versions(versions), site.worker.weights
    if theirs.quantization != ours.quantization:
        said.append(OTHER_QUANTIZATION.format(made=theirs.quantization or "none", here=ours.quantization or "none"))
    if theirs.precision != ours.precision and "auto" not in (theirs.precision, ours.precision):  # known for CPUs alone
        said.append(OTHER_PRECISION.format(made=theirs.precision, here=ours.precision))
    here = {name: metadata.version(name) for name in PACKAGES}
    other = [name for name in PACKAGES if versions.get(name, here[name]) != here[name]]
    if other:
        made, now = (", ".join(f"{name} {which[name][:40]}" for name in other) for which in (versions, here))
        said.append(OTHER_VERSIONS.format(made=made, here=now))
    return said


def check_whole(request: VideoRequest, video: str) -> None:
    """ValueError for a video that the form could only restore in part, so that Generate would make another one.

    video: its name.
    """
    if isinstance(request.start, FromClip) and request.start.refined is not None:
        raise ValueError(PIECE_OF_LONG.format(video=video))


def settings_drop(site: Site, store: Store, fields: Fields, notice: gr.HTML) -> None:
    """Add a field that takes a video made by this program and puts its settings into the form.

    store: the runs, among which the picture or clip that the video begins with may be.
    """
    drop = gr.File(
        label="Drop a video to restore its settings", file_types=[".mp4"], height=140, elem_id="drop", type="filepath"
    )

    def restore(path: str | None, event: gr.Request) -> dict[Any, Any]:
        if path is None:
            return {}
        try:
            found = read_settings(path)
            check_whole(found.request, Path(path).name)
            long = None if found.long is None else LongVideo.from_dict(found.long)
        except ValueError as error:
            return {notice: notice_html(page_sentence(error), "error"), drop: None}
        request, made = found.request, None
        if not isinstance(request.start, FromNoise):
            made = made_by(store, site.owner(event), Path(path))
            request = _with_its_file(request, made)
            long = None if long is None else replace(long, request=_with_its_file(long.request, made))
        values = form_values(request) if long is None else long_values(long)
        if isinstance(made, VideoJob) and isinstance(made.long, LongRefinement):
            values = windows_values(made.id, replace(made.long, request=request))
        said = [RESTORED.format(video=Path(path).name)]
        if found.checkpoint not in (None, "", site.checkpoint.name):
            said.append(OTHER_CHECKPOINT.format(made=found.checkpoint[:80], here=site.checkpoint.name))
        said += remarks(site, fields, request, found.versions, long, found.windows)
        return fill(fields, values) | {notice: notice_html(" ".join(said)), drop: None}

    drop.upload(restore, drop, [*fields.values(), notice, drop], **QUIET)


def _with_its_file(request: VideoRequest, made: Job | None) -> VideoRequest:
    """The request with the file that it begins with where the run that made it has kept it."""
    source = made.request.start.source if isinstance(made, VideoJob) else None
    if source is None or isinstance(request.start, FromNoise):
        return request
    return replace(request, start=request.start.at(source))


def code_panel(site: Site, shown: gr.State) -> None:
    """Add a panel that shows the videos on the stage as a command line and as a program, to copy."""
    code = Drawn("code", ["code.js"], {})

    def show(job_id: str, request: gr.Request) -> dict[str, str]:
        job = site.worker.find(job_id, site.owner(request)) if job_id else None
        return code_of(site, job) if isinstance(job, VideoJob) else {}

    shown.change(show, shown, code, **QUIET)


def code_of(site: Site, job: VideoJob) -> dict[str, str]:
    """Code that makes the job's videos again: {"cli", "python"}. If no command can, "why" has a sentence for "cli"."""
    made = next(iter(job.results.values()), None)
    versions = {} if made is None else made.versions
    device = versions.get("device", "auto").partition(":")[0]
    if isinstance(job.long, LongRefinement):
        return _windows_code(site, job, job.long, device, LoadOptions.from_versions(versions))
    if job.long is not None:
        return _long_code(site, job, job.long, device, LoadOptions.from_versions(versions))
    output = f"again-{job.id}" if job.side_by_side else f"again-{job.id}.mp4"
    options: dict[str, Any] = {"model_path": site.checkpoint.path, "device": device, "output": output}
    options |= {"compare": job.side_by_side, "weights": LoadOptions.from_versions(versions)}
    options["lora_dir"] = site.checkpoint.lora_dir_for(job.request.lora)
    code = {"python": python_code(job.request, **options)}
    try:
        return code | {"cli": cli_command(job.request, **options)}
    except ValueError as error:
        return code | {"why": page_sentence(error)}


def _windows_code(
    site: Site, job: VideoJob, plan: LongRefinement, device: str, weights: LoadOptions
) -> dict[str, str]:
    """`code_of` the refinement of a long video: of a pair, the two one after the other."""
    options: dict[str, Any] = {"model_path": site.checkpoint.path, "device": device, "weights": weights}
    options["lora_dir"] = site.checkpoint.lora_dir_for(plan.request.lora)
    plans = {arm: plan.dense if arm == "dense" else plan for arm in job.arms}
    texts = [refinement_code(one, output=f"again-{job.id}-{arm}", **options) for arm, one in plans.items()]
    return {"python": "\n".join(texts), "why": NO_COMMAND}


def _long_code(site: Site, job: VideoJob, video: LongVideo, device: str, weights: LoadOptions) -> dict[str, str]:
    """`code_of` a long video: of a pair, the two one after the other."""
    plans = {arm: video.dense if arm == "dense" else video for arm in job.arms}
    options: dict[str, Any] = {"model_path": site.checkpoint.path, "device": device, "compare": False}
    options |= {"weights": weights}

    def made(write: Any) -> str:
        texts = [
            write(plan.request, output=f"again-{job.id}-{arm}", long=plan, **options) for arm, plan in plans.items()
        ]
        return "\n".join(texts)

    code = {"python": made(python_code)}
    try:
        return code | {"cli": made(cli_command)}
    except ValueError as error:
        return code | {"why": page_sentence(error)}
