"""Restores settings from a job or a dropped video into the form, and shows them as code."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import gradio as gr

from bsa import BSAConfig
from bsa.config import SCHEDULE
from pipeline import FromClip, VideoRequest, cli_command, python_code, read_settings
from pipeline.request.load_options import LoadOptions
from ui.form.inputs import Fields
from ui.form.read import DENSE_ONLY, SIDE_BY_SIDE, SPARSE_ONLY, keep_by, page_sentence
from ui.jobs.job import VideoJob
from ui.look.parts import QUIET, Drawn, notice_html
from ui.site import Site

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
BEGINS_WITH = "It begins with {file}; the form has no place for that, but the command line has (--image, --video)."
PIECE_OF_LONG = (
    "{video} is a piece of a long video and begins with the refined frames of the piece before it, for which the form "
    "has no place; refine the long video again, with --task long --refine"
)
LARGE_SEED = "Its seed {seed} has more digits than the form can hold; the command line can use it."
OF_ONE_VIDEO = ("prompt", "negative_prompt", "seed", "randomise")
LARGEST_SEED = 2**53  # a browser's numbers are exact up to here
PACKAGES = ("torch", "triton", "fastvideo", "diffusers", "transformers")


def form_values(request: VideoRequest, side_by_side: bool | None = None) -> dict[str, Any]:
    """The form's values by field name, from which `ui.form.read.form_request` makes `request` again.

    side_by_side: whether to make the dense video as well; None if the request does not say.
    """
    values = {name: getattr(request, name) for name in ("prompt", "negative_prompt", "width", "height", "num_frames")}
    values |= {"steps": request.steps, "guidance_scale": request.guidance_scale, "seed": request.seed}
    values |= {"randomise": False, "use_distill": request.use_distill, "fps": request.fps, "lora": request.lora or ""}
    clip = request.start if isinstance(request.start, FromClip) else None
    # a full path is a file of this server; a bare name comes from the settings inside a video
    here = clip is not None and Path(clip.video).is_absolute() and Path(clip.video).is_file()
    values["refine"] = clip.video if clip is not None and here else None
    if clip is not None:
        values |= {"double_frames": clip.double_frames, "t_thresh": clip.t_thresh}
    if request.bsa is None:
        return values | {"mode": DENSE_ONLY}
    return values | {"mode": SIDE_BY_SIDE if side_by_side else SPARSE_ONLY} | _attention_values(request.bsa)


def general_values(request: VideoRequest, side_by_side: bool) -> dict[str, Any]:
    """`form_values` without the values that belong to a single video: its prompts and its seed."""
    values = form_values(request, side_by_side)
    return {name: value for name, value in values.items() if name not in OF_ONE_VIDEO}


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


def remarks(site: Site, fields: Fields, request: VideoRequest, versions: dict[str, str]) -> list[str]:
    """Sentences about differences that keep the form, or this machine, from making exactly the same video again."""
    defaults, said = site.checkpoint.defaults, []
    clip, source = request.start.clip, request.start.source
    if source is not None and clip is None:
        said.append(BEGINS_WITH.format(file=source.name[:80]))
    if clip is not None and form_values(request)["refine"] is None:
        said.append(OTHER_CLIP.format(clip=clip.name[:80]))
    elif clip is None and "fps" not in fields and request.fps != defaults["fps"]:
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


def settings_drop(site: Site, fields: Fields, notice: gr.HTML) -> None:
    """Add a field that takes a video made by this program and puts its settings into the form."""
    drop = gr.File(
        label="Drop a video to restore its settings", file_types=[".mp4"], height=140, elem_id="drop", type="filepath"
    )

    def restore(path: str | None) -> dict[Any, Any]:
        if path is None:
            return {}
        try:
            found = read_settings(path)
            check_whole(found.request, Path(path).name)
        except ValueError as error:
            return {notice: notice_html(page_sentence(error), "error"), drop: None}
        said = [RESTORED.format(video=Path(path).name)]
        if found.checkpoint not in (None, "", site.checkpoint.name):
            said.append(OTHER_CHECKPOINT.format(made=found.checkpoint[:80], here=site.checkpoint.name))
        said += remarks(site, fields, found.request, found.versions)
        return fill(fields, form_values(found.request)) | {notice: notice_html(" ".join(said)), drop: None}

    drop.upload(restore, drop, [*fields.values(), notice, drop], **QUIET)


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
    output = f"again-{job.id}" if job.side_by_side else f"again-{job.id}.mp4"
    options: dict[str, Any] = {"model_path": site.checkpoint.path, "device": device, "output": output}
    options |= {"compare": job.side_by_side, "weights": LoadOptions.from_versions(versions)}
    options["lora_dir"] = site.checkpoint.lora_dir_for(job.request.lora)
    code = {"python": python_code(job.request, **options)}
    try:
        return code | {"cli": cli_command(job.request, **options)}
    except ValueError as error:
        return code | {"why": page_sentence(error)}
