"""Turns the values of the form, or of an API call, into a validated `VideoRequest`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from bsa import BSAConfig, Grid, selectors
from pipeline import CheckpointInfo, VideoRequest
from pipeline.media.clip import check_length, inspect_clip
from pipeline.media.picture import inspect_picture
from pipeline.request.fields import FIELDS
from pipeline.request.sentences import one_line
from pipeline.request.start import FromClip, FromFrames
from pipeline.request.values import real_number, whole_number
from pipeline.runs.long_video import COND_FRAMES, LongVideo, prompts_for

SIDE_BY_SIDE, SPARSE_ONLY, DENSE_ONLY, AUTOMATIC = "both", "sparse", "dense", "auto"
TEXT, IMAGE, CLIP, LONG = "t2v", "i2v", "vc", "long"  # tasks, named as on the command line; the first three begin
TOP_K, MASS, TOP_K_AND_MASS = selectors.TOP_K, selectors.MASS, selectors.TOP_K_AND_MASS

NO_IMAGE = "there is no picture to begin with; drop one into its field, or take one of the examples"
NO_CLIP = "there is no clip to go on from; drop one into its field, or press Go on from this under a finished video"
IMAGE_GONE = "the picture is gone from the server; choose it again"
CLIP_GONE = "the clip is gone from the server; choose it again"
NO_WINDOWS = "the choice of the long video to refine is damaged; choose it again"
REFINES = "a clip is chosen under Refine a clip; clear it there, or choose Text to video to refine it"


@dataclass(frozen=True)
class Windows:
    """A long video that is chosen to be refined: its windows, as a hidden field of the form names them.

    job: id of the run that made it, or of an earlier refinement of it, of which so many windows are `kept`.
    count: of its segments. frames, carried: of a segment, and at its beginning from the one before.
    """

    job: str
    kept: int
    count: int
    frames: int
    carried: int

    def __str__(self) -> str:
        return f"{self.job} {self.kept} {self.count} {self.frames} {self.carried}"

    @classmethod
    def read(cls, text: str) -> Self:
        """What `str` wrote. Raises ValueError for anything else."""
        job, *numbers = str(text).split(" ")
        if len(numbers) != 4 or not all(number.isdecimal() and len(number) < 9 for number in numbers):
            raise ValueError(NO_WINDOWS)
        return cls(job, *map(int, numbers))

    def requests(self, first: VideoRequest) -> list[tuple[VideoRequest, int]]:
        """The request of the first window, and that of those after it, with their numbers."""
        start = first.start
        if self.count < 2 or not isinstance(start, FromClip):
            return [(first, 1)]
        later = replace(start, refined="end.mp4", cond_frames=start.factor * self.carried)
        return [(first, 1), (replace(first, start=later), self.count - 1)]


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
    Of a long video this is its first segment, see `form_long`; of one that is refined, its first window.
    Raises ValueError with one sentence for the first value that cannot be used.
    """
    begins = beginning(values)
    if values.get("refine") and (begins, is_long(values)) != (TEXT, False):
        raise ValueError(REFINES)
    windows, automatic = windows_of(values), values["mode"] == AUTOMATIC
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
        prompt=(prompt_lines(values) or [""])[0] if is_long(values) or windows else values["prompt"] or "",
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
        teacache_thresh=values.get("teacache_thresh", 0),
        refine=values.get("refine"),
        refine_frames=None if windows is None else windows.frames,
        double_frames=values.get("double_frames", True),
        t_thresh=values.get("t_thresh", 0.5),
        image=(values.get("image") or "") if begins == IMAGE else None,
        clip=(values.get("clip") or "") if begins == CLIP else None,
        cond_frames=values.get("cond_frames", COND_FRAMES),
    )
    return choose(request) if automatic and choose is not None else request


def form_long(checkpoint: CheckpointInfo, values: Mapping[str, Any], request: VideoRequest) -> LongVideo:
    """The plan of the long video that the form describes. request: of its first segment, from `form_request`.

    Raises ValueError with one sentence for what cannot be made.
    """
    prompts = prompts_for(prompt_lines(values) or [""], whole_number("number of segments", values["segments"]))
    frames = whole_number("cond_frames", values.get("cond_frames", COND_FRAMES))
    return LongVideo(request, tuple(map(checkpoint.in_english, prompts)), frames, enhance_hf=not request.use_distill)


def windows_of(values: Mapping[str, Any]) -> Windows | None:
    """The windows of the long video that the form refines; None if it makes something else."""
    text = values.get("windows")
    return Windows.read(text) if text and values.get("refine") else None


def is_long(values: Mapping[str, Any]) -> bool:
    return values.get("task") == LONG


def beginning(values: Mapping[str, Any]) -> str:
    """The beginning of the form's video: TEXT alone, an IMAGE or a CLIP."""
    chosen = values.get("begins") if is_long(values) else values.get("task")
    return chosen if chosen in (IMAGE, CLIP) else TEXT


def file_of(values: Mapping[str, Any]) -> str | None:
    """The file that has to be read for the form's request, if any."""
    name = {IMAGE: "image", CLIP: "clip"}.get(beginning(values))
    return values.get("refine") or (values.get(name) if name else None)


def prompt_lines(values: Mapping[str, Any]) -> list[str]:
    """The prompts of a long video's segments, or windows: the lines of the field that are not empty."""
    return filled_lines(values["prompt"])


def filled_lines(text: str | None) -> list[str]:
    """The lines of a field that are not empty, without the spaces around them."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


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
        sparsity=None if sparsity is None else real_number("sparsity", sparsity),
        cdf_threshold=None if cdf_threshold is None else real_number("cdf threshold", cdf_threshold),
        chunk_q=_chunk("query chunk", chunk_q),
        chunk_k=_chunk("key chunk", chunk_k),
        selection=selection,
        dense_steps=whole_number("dense steps", dense_steps),
        dense_layers=whole_number("dense layers", dense_layers),
        select_every=whole_number("select every", select_every),
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
    teacache_thresh: Any = 0,
    refine: str | None = None,
    refine_frames: int | None = None,
    double_frames: bool = True,
    t_thresh: Any = 0.5,
    image: str | None = None,
    clip: str | None = None,
    cond_frames: Any = COND_FRAMES,
) -> VideoRequest:
    """Build a request from single values. Raises ValueError for a value that cannot be used.

    refine: path of a clip; its number of frames then replaces `num_frames`. refine_frames: of a part of it, if that is
        what is refined.
    image: path of the picture that the video begins with. clip: path of the clip that it goes on from, by its last
        `cond_frames`. "" for one that is to be chosen yet, None for neither. With one of them, a width and height of
        None are LongCat's for its shape.
    use_distill: None takes the value that the adapter needs, or the checkpoint's.
    """
    numbers = {"width": width, "height": height, "steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    if image is not None or clip is not None:
        numbers = {name: value for name, value in numbers.items() if value is not None}
    given: dict[str, Any] = {name: FIELDS[name].read(value) for name, value in numbers.items()}
    given |= {"negative_prompt": negative_prompt, "bsa": bsa, "lora": lora or None}
    given["teacache_thresh"] = FIELDS["teacache_thresh"].read(teacache_thresh)
    if use_distill is not None:
        given["use_distill"] = use_distill
    if not refine:
        given["num_frames"] = FIELDS["num_frames"].read(num_frames)
        if image is not None:
            return checkpoint.image_to_video(prompt, inspect_picture(_there(image, NO_IMAGE, IMAGE_GONE)), **given)
        if clip is not None:
            return _continuation(checkpoint, prompt, _there(clip, NO_CLIP, CLIP_GONE), cond_frames, given)
        return checkpoint.request(prompt, **given)
    level, seen = real_number("noise level", t_thresh), inspect_clip(refine)
    part = seen if refine_frames is None else replace(seen, frames=refine_frames)
    return checkpoint.refinement(prompt, part, t_thresh=level, double_frames=double_frames, **given)


def _continuation(
    checkpoint: CheckpointInfo, prompt: str, path: str, cond_frames: Any, given: dict[str, Any]
) -> VideoRequest:
    clip = inspect_clip(path)
    request = checkpoint.continuation(prompt, clip, cond_frames=whole_number("cond_frames", cond_frames), **given)
    assert isinstance(request.start, FromFrames)
    check_length(request.start, clip.frames)
    return request


def _there(path: str, missing: str, gone: str) -> str:
    """The path of a file that was chosen and is still there; ValueError with one of the sentences if not."""
    if not path:
        raise ValueError(missing)
    if not Path(path).is_file():
        raise ValueError(gone)
    return path


def _chunk(name: str, sides: Sequence[Any]) -> Grid:
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 3:
        raise ValueError(f"{name} {sides!r} is not three numbers; give frames, rows and columns, such as [4, 4, 4]")
    return Grid(*(whole_number(f"{name} {axis}", side) for axis, side in zip("THW", sides, strict=True)))


# The pipeline's sentences use the names of fields; on the page, the words of its labels replace them.
_PAGE_WORDS = {
    "num_frames": "number of frames",
    "guidance_scale": "guidance",
    "teacache_thresh": "TeaCache threshold",
    "cdf_threshold": "CDF threshold",
    "chunk_q": "query chunk",
    "dense_steps": "dense steps",
    "dense_layers": "dense layers",
    "select_every": "select every",
    "chunk_k": "key chunk",
    "t_thresh": "noise level",
    "cond_frames": "conditioning frames",
}


def page_sentence(error: Exception | str) -> str:
    """Turn an error into a sentence for the page: with the words of the page, a capital letter and a full stop."""
    text = one_line(error).rstrip(".")
    for field, words in _PAGE_WORDS.items():
        text = text.replace(field, words)
    return f"{text[:1].upper()}{text[1:]}."
