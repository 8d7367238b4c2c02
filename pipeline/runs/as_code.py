"""A request as code: a command line and a program that make the same video again."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from bsa import BSAConfig
from bsa.config import SCHEDULE
from pipeline.checkpoint.info import EMBEDDED_CHECKPOINT
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.request.sentences import CONTROLS
from pipeline.request.start import FromClip, FromFrames, FromImage, Start
from pipeline.request.video import VideoRequest
from pipeline.runs.long_refinement import LongRefinement
from pipeline.runs.long_video import LongVideo


def cli_command(
    request: VideoRequest,
    *,
    model_path: Path,
    device: str,
    compare: bool,
    output: str,
    weights: LoadOptions = AS_STORED,
    lora_dir: Path | None = None,
    long: LongVideo | None = None,
) -> str:
    """A command for a POSIX shell (of 2024, as bash and zsh are) that makes `request` again, bit for bit on the same
    kind of device. It holds no control character: a terminal that it is pasted into would act on one, quoted or not.

    Every setting is named, so that the defaults of the checkpoint and of later releases do not matter.

    long: the long video whose first segment is `request`; the output is then a folder.

    Raises:
        ValueError: a text has a null character, which no command line can carry, or the command line cannot say it.
    """
    start = request.start
    prompts = (request.prompt,) if long is None else long.prompts
    options: list[tuple[str, Any]] = [("prompt", prompt) for prompt in prompts]
    if request.negative_prompt:
        options.append(("negative-prompt", request.negative_prompt))
    if model_path != EMBEDDED_CHECKPOINT:
        options.append(("model-path", model_path))
    if lora_dir is not None:
        options.append(("lora-dir", lora_dir))
    names: tuple[str, ...] = ("height", "width", "num_frames", "steps", "guidance_scale", "seed", "fps")
    words = ["python", "-m", "pipeline", "generate"]
    if isinstance(start, FromClip):  # the clip says how many frames there are, and there is no guidance
        if start.refined is not None:
            raise ValueError("a piece of a long video is refined after the pieces before it; use the Python code")
        words = [*words[:-1], "refine", _quote(start.video)]
        names = ("height", "width", "steps", "seed", "fps")
        options.append(("t-thresh", repr(start.t_thresh)))
    words += _task(start) if long is None else _long(start, long)
    options += [(name.replace("_", "-"), repr(getattr(request, name))) for name in names]
    if request.lora is not None:
        options.append(("lora", request.lora))
    if request.teacache_thresh:
        options.append(("teacache-thresh", repr(request.teacache_thresh)))
    for name, value in options:
        words.append(f"--{name}={_quote(str(value), name.replace('-', ' '))}")
    if not isinstance(start, FromClip):
        words.append("--use-distill" if request.use_distill else "--no-use-distill")
    elif not start.double_frames:
        words.append("--spatial-only")
    words += ["--dense"] if request.bsa is None else _attention(request.bsa)
    words += ["--compare"] if compare else []
    words += weights.options
    words += [f"--device={_quote(device)}", f"--output={_quote(output)}"]
    return " ".join(words)


def _task(start: Start) -> list[str]:
    if isinstance(start, FromImage):
        return ["--task=i2v", f"--image={_quote(start.image)}"]
    if not isinstance(start, FromFrames):
        return []
    return ["--task=vc", f"--video={_quote(start.video)}", f"--stride={start.stride}", *_continuing(start)]


def _long(start: Start, video: LongVideo) -> list[str]:
    if video.seeds:
        raise ValueError("segments made anew have seeds of their own, and no option says that; use the Python code")
    words = ["--task=long"]
    if isinstance(start, FromImage):
        words.append(f"--image={_quote(start.image)}")
    elif isinstance(start, FromFrames):
        if _continuing(start) != _continuing(video):
            raise ValueError("the first segment continues its clip in another way than the rest; use the Python code")
        words += [f"--video={_quote(start.video)}", f"--stride={start.stride}"]
    return words + _continuing(video)


def _continuing(how: FromFrames | LongVideo) -> list[str]:
    fine = "--enhance-hf" if how.enhance_hf else "--no-enhance-hf"
    return [f"--cond-frames={how.cond_frames}", f"--kv-cache={how.kv_cache}", fine]


def _quote(text: str, name: str = "file's name") -> str:
    """One word of the shell, of printable characters only."""
    if "\0" in text:
        raise ValueError(f"the {name} has a null character, which no command line can carry; use the Python code")
    if not CONTROLS.search(text):
        return shlex.quote(text)
    special = "\\'!"  # the last for bash's history, which does not see that \' quotes
    parts = (_octal(one) if one in special or CONTROLS.match(one) else one for one in text)
    return f"$'{''.join(parts)}'"


def _octal(character: str) -> str:
    # three digits each, so that a digit that follows is not taken for a fourth; file names may hold what is no UTF-8
    return "".join(f"\\{byte:03o}" for byte in character.encode(errors="surrogateescape"))


def _attention(bsa: BSAConfig) -> list[str]:
    chunks = [f"--chunk-{name}={'x'.join(map(str, chunk))}" for name, chunk in (("q", bsa.chunk_q), ("k", bsa.chunk_k))]
    schedule = [f"--{name.replace('_', '-')}={getattr(bsa, name)}" for name in SCHEDULE]
    return bsa.selector.options + chunks + schedule


def python_code(
    request: VideoRequest,
    *,
    model_path: Path,
    device: str,
    compare: bool,
    output: str,
    weights: LoadOptions = AS_STORED,
    lora_dir: Path | None = None,
    long: LongVideo | None = None,
) -> str:
    """A Python program that makes `request` again, bit for bit on the same kind of device. long: as in
    `cli_command`."""
    # the attention is named, so who chose it is of no account
    values = ((field.name, getattr(request, field.name)) for field in fields(request) if field.name != "auto")
    settings = "".join(f"    {name}={_literal(value)},\n" for name, value in values)
    more = ""
    if long is not None:
        more = "from pipeline.runs.chain import ChainStore, run_chain\nfrom pipeline.runs.long_video import LongVideo\n"
        run, name = _long_run(long, output), ""
    elif compare:
        run, name = (
            f"pair = compare(pipeline, request, output_dir={output!r})\nprint(pair.speedup, pair.psnr)",
            "compare",
        )
    else:
        run, name = f"result = pipeline.generate(request, output={output!r})\nprint(result.video)", ""
    names = ", ".join(filter(None, (type(request.start).__name__, "LongCatPipeline", "VideoRequest", name)))
    return (
        ("from pathlib import Path\n\n" if long is not None else "")
        + ("from bsa import BSAConfig\n" if request.bsa is not None else "")
        + f"from pipeline import {names}\n{more}\n"
        + _loading(model_path, device, weights, lora_dir)
        + f"request = VideoRequest(\n{settings})\n{run}\n"
    )


def refinement_code(
    plan: LongRefinement,
    *,
    model_path: Path,
    device: str,
    output: str,
    weights: LoadOptions = AS_STORED,
    lora_dir: Path | None = None,
) -> str:
    """A Python program that refines a long video again, whose segments are still where they are. Else as
    `python_code`."""
    values = "".join(f"    {name!r}: {value!r},\n" for name, value in plan.to_dict().items())
    return (
        "from pathlib import Path\n\n"
        "from pipeline import LongCatPipeline\n"
        "from pipeline.runs.chain import ChainStore, run_chain\n"
        "from pipeline.runs.long_refinement import LongRefinement\n\n"
        + _loading(model_path, device, weights, lora_dir)
        + f"values = {{\n{values}}}\nsegments = Path({str(plan.segments.folder)!r})\n"
        "plan = LongRefinement.from_dict(values, segments, pipeline.info.name)\n"
        f"folder = Path({output!r})  # which keeps finished windows\n"
        "store = ChainStore(folder, plan, pipeline.info.name)\n"
        'print(run_chain(pipeline, plan, store, folder / "video.mp4").video)\n'
    )


def _loading(model_path: Path, device: str, weights: LoadOptions, lora_dir: Path | None) -> str:
    path = "" if model_path == EMBEDDED_CHECKPOINT else f"{str(model_path)!r}, "
    options = weights.arguments | ({} if lora_dir is None else {"lora_dir": str(lora_dir)})
    kept = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"pipeline = LongCatPipeline.load({path}device={device!r}{kept})\n"


def _long_run(video: LongVideo, output: str) -> str:
    names = ("prompts", "cond_frames", "kv_cache", "enhance_hf", *(("seeds",) if video.seeds else ()))
    values = "".join(f"    {name}={getattr(video, name)!r},\n" for name in names)
    return (
        f"video = LongVideo(\n    request,\n{values})\nfolder = Path({output!r})  # which keeps finished segments\n"
        "store = ChainStore(folder, video, pipeline.info.name)\n"
        'print(run_chain(pipeline, video, store, folder / "video.mp4").video)'
    )


def _literal(value: Any) -> str:
    if not isinstance(value, BSAConfig):
        return repr(value)
    values = value.arguments
    values |= {name: tuple(values[name]) for name in ("chunk_q", "chunk_k")}
    return "BSAConfig(" + ", ".join(f"{name}={entry!r}" for name, entry in values.items()) + ")"
