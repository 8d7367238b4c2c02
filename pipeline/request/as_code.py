"""A request as code: a command line and a program that make the same video again."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from bsa import BSAConfig
from pipeline.request.checkpoint import EMBEDDED_CHECKPOINT
from pipeline.request.video import VideoRequest
from pipeline.request.weights import AS_STORED, Weights


def cli_command(
    request: VideoRequest,
    *,
    model_path: Path,
    device: str,
    compare: bool,
    output: str,
    weights: Weights = AS_STORED,
) -> str:
    """A command for a POSIX shell that makes `request` again, bit for bit on the same kind of device.

    Every setting is named, so that the defaults of the checkpoint and of later releases do not matter.

    Raises:
        ValueError: a prompt has a null character, which no command line can carry.
    """
    refine = request.refine
    options: list[tuple[str, Any]] = [("prompt", request.prompt)]
    if request.negative_prompt:
        options.append(("negative-prompt", request.negative_prompt))
    if model_path != EMBEDDED_CHECKPOINT:
        options.append(("model-path", model_path))
    names: tuple[str, ...] = ("height", "width", "num_frames", "steps", "guidance_scale", "seed", "fps")
    if refine is not None:  # the clip says how many frames there are, and there is no guidance
        names = ("height", "width", "steps", "seed", "fps")
        options.append(("t-thresh", repr(refine.t_thresh)))
    options += [(name.replace("_", "-"), repr(getattr(request, name))) for name in names]
    if request.lora is not None:
        options.append(("lora", request.lora))
    words = ["python", "-m", "pipeline"] + (["generate"] if refine is None else ["refine", shlex.quote(refine.video)])
    for name, value in options:
        if "\0" in str(value):
            raise ValueError("the prompt has a null character, which no command line can carry; use the Python code")
        words.append(f"--{name}={shlex.quote(str(value))}")
    if refine is None:
        words.append("--use-distill" if request.use_distill else "--no-use-distill")
    elif not refine.double_frames:
        words.append("--spatial-only")
    words += ["--dense"] if request.bsa is None else _attention(request.bsa)
    words += ["--compare"] if compare else []
    words += weights.options
    words += [f"--device={shlex.quote(device)}", f"--output={shlex.quote(output)}"]
    return " ".join(words)


def _attention(bsa: BSAConfig) -> list[str]:
    chunks = [f"--chunk-{name}={'x'.join(map(str, chunk))}" for name, chunk in (("q", bsa.chunk_q), ("k", bsa.chunk_k))]
    return bsa.selector.options + chunks


def python_code(
    request: VideoRequest,
    *,
    model_path: Path,
    device: str,
    compare: bool,
    output: str,
    weights: Weights = AS_STORED,
) -> str:
    """A Python program that makes `request` again, bit for bit on the same kind of device."""
    path = "" if model_path == EMBEDDED_CHECKPOINT else f"{str(model_path)!r}, "
    kept = "".join(f", {name}={value!r}" for name, value in weights.arguments.items())
    values = ((field.name, getattr(request, field.name)) for field in fields(request))
    settings = "".join(f"    {name}={_literal(value)},\n" for name, value in values)
    if compare:
        run, name = (
            f"pair = compare(pipeline, request, output_dir={output!r})\nprint(pair.speedup, pair.psnr)",
            "compare",
        )
    else:
        run, name = f"result = pipeline.generate(request, output={output!r})\nprint(result.video)", ""
    names = ", ".join(filter(None, ("LongCatPipeline", "VideoRequest", name)))
    return (
        ("from bsa import BSAConfig\n" if request.bsa is not None else "")
        + f"from pipeline import {names}\n"
        + ("from pipeline.request.refinement import Refinement\n\n" if request.refine is not None else "\n")
        + f"pipeline = LongCatPipeline.load({path}device={device!r}{kept})\n"
        + f"request = VideoRequest(\n{settings})\n{run}\n"
    )


def _literal(value: Any) -> str:
    if not isinstance(value, BSAConfig):
        return repr(value)
    values = value.arguments
    values |= {name: tuple(values[name]) for name in ("chunk_q", "chunk_k")}
    return "BSAConfig(" + ", ".join(f"{name}={entry!r}" for name, entry in values.items()) + ")"
