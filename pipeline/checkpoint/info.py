"""Describes a LongCat checkpoint folder from its small files, without loading weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bsa import BSAConfig
from bsa.config import KNOWN_PARAMS
from pipeline.checkpoint.adapter import adapters_in, is_file_name, read_adapter
from pipeline.checkpoint.expected import linear_layers
from pipeline.checkpoint.layout import CONFIGS, FASTVIDEO, Layout, layout_of
from pipeline.checkpoint.safetensors_files import component_parameters, incomplete, open_file, read_json
from pipeline.checkpoint.trust import check_files, check_index, check_names, check_plain
from pipeline.checkpoint.vocabulary import Vocabulary, read_vocabulary
from pipeline.machine.paths import expand_user, is_there
from pipeline.request.refinement import STEPS, Clip, refined_size
from pipeline.request.sentences import one_line
from pipeline.request.sizes import video_size
from pipeline.request.start import FromClip, FromFrames, FromImage, FromNoise, Picture, Start, stride_for
from pipeline.request.values import read_adapters
from pipeline.request.video import TOKEN_PIXELS, VideoRequest

logger = logging.getLogger("pipeline")

UNKNOWN_PARAMS = "bsa_params has unknown keys, which change nothing: {names}; known are {known}"

# A small checkpoint trained for this project. It has the same parts as the one with 13.6 B parameters.
EMBEDDED_CHECKPOINT = Path(__file__).resolve().parents[2] / "assets" / "longcat-tiny"

# LongCat-Video's own text-to-video settings, for folders without a generation_config.json.
LONGCAT_DEFAULTS = {
    "height": 480,
    "width": 832,
    "num_frames": 93,
    "num_inference_steps": 50,
    "guidance_scale": 4.0,
    "fps": 15,
    "use_distill": False,
}

# Adapter names: from LongCat's file names, and from the folder names of FastVideo's converter.
_ADAPTERS = {"cfg_step_lora": "distill", "distilled": "distill", "refinement_lora": "refine", "refinement": "refine"}
ADAPTER_FILES = {"distill": "cfg_step_lora.safetensors", "refine": "refinement_lora.safetensors"}
# Names in `trained_tasks`. A refinement is the business of its adapter.
_TASKS: dict[type, str] = {FromNoise: "t2v", FromImage: "i2v", FromFrames: "vc"}
# The settings that LongCat uses with its few-step adapter.
_WITH_ADAPTER = {"distill": {"steps": 16, "guidance_scale": 1.0, "use_distill": True}}


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint folder.

    Attributes:
        parameters: number of parameters of the transformer.
        bsa: block sparse attention from `enable_bsa` and `bsa_params` in the transformer's config.json, or None.
        defaults: generation settings: height, width, num_frames, num_inference_steps, guidance_scale, fps, use_distill
            and any others in generation_config.json.
        sparse: block sparse attention from `bsa_params`, even if `enable_bsa` is not set.
        shift: timestep shift of the scheduler.
        loras: adapter name -> file in the folder lora/, or in `lora_dir`. LongCat's own are "distill" and "refine".
        lora_dir: a folder of further adapters; None for none.
        linear: layer name -> outputs and inputs of the transformer's linear layers, which adapters must fit.
        vocabulary: the words that a small checkpoint knows; None for one that understands language in general.
        layout: where the transformer lies, and under which names.
        trained_tasks: the ways to begin a video that it was trained for, as the command line names them: "t2v" from
            text, "i2v" from a picture, "vc" from the end of a clip. None for a checkpoint that does not say.
    """

    path: Path
    name: str
    parameters: int
    bsa: BSAConfig | None
    defaults: dict[str, Any]
    sparse: BSAConfig = BSAConfig()
    shift: float = 12.0
    loras: Mapping[str, Path] = field(default_factory=dict)
    lora_dir: Path | None = None
    linear: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    layout: Layout = FASTVIDEO
    trained_tasks: tuple[str, ...] | None = None

    def request(self, prompt: str, **overrides: Any) -> VideoRequest:
        """A request with this checkpoint's settings, or with the settings of its adapter `lora`.

        prompt: in Chinese also for a model that knows English words alone, if its vocabulary has a table: the request
            then has the English that `Vocabulary.read` makes of it.
        overrides: fields of `VideoRequest`.
        Raises ValueError for a value that cannot be used, or for an adapter that the checkpoint does not have.
        """
        values = {
            "height": self.defaults["height"],
            "width": self.defaults["width"],
            "num_frames": self.defaults["num_frames"],
            "steps": self.defaults["num_inference_steps"],
            "guidance_scale": self.defaults["guidance_scale"],
            "fps": self.defaults["fps"],
            "use_distill": self.defaults["use_distill"],
            "bsa": self.bsa,
        }
        unknown = sorted(set(overrides) - {field.name for field in fields(VideoRequest)})
        if unknown:
            raise ValueError(f"unknown request field {unknown[0]!r}; see VideoRequest for the fields")
        asked = self._asked(overrides)
        usual = next((usual for name, usual in _WITH_ADAPTER.items() if name in asked), {})
        request = VideoRequest(prompt=self.in_english(prompt), **(values | usual | overrides))
        self.check_lora(request.lora)
        return request

    def in_english(self, prompt: str) -> str:
        """What the model reads of a prompt: of a Chinese one the English that `Vocabulary.read` makes of it, if there
        is a table; else the prompt itself."""
        read = self.vocabulary.read(prompt) if self.vocabulary is not None and isinstance(prompt, str) else None
        return prompt if read is None or not read.english else read.english

    def refinement(
        self, prompt: str, clip: Clip, *, t_thresh: float = 0.5, double_frames: bool = True, **overrides: Any
    ) -> VideoRequest:
        """A request that refines a clip with LongCat's size, schedule, sparse attention and adapter.

        t_thresh, double_frames: as in `FromClip`. overrides: fields of `VideoRequest`.
        Raises ValueError as `request` does.
        """
        start = FromClip(video=str(clip.path), t_thresh=t_thresh, double_frames=double_frames)
        native = self.defaults["width"] * self.defaults["height"]
        height, width = refined_size(clip.height, clip.width, native)
        values = {
            "height": height,
            "width": width,
            "num_frames": start.factor * clip.frames,
            "fps": min(120, start.factor * clip.fps),
            "steps": STEPS,
            "guidance_scale": 1.0,
            "use_distill": False,
            "bsa": self.sparse,
            "lora": "refine",
            "start": start,
        }
        return self.request(prompt, **(values | overrides))

    @property
    def depth(self) -> int:
        """Number of transformer blocks, which the guide calls layers; 0 if the layers are not known."""
        return sum(name.endswith(".self_attn.to_q") for name in self.linear)

    def image_to_video(self, prompt: str, picture: Picture, **overrides: Any) -> VideoRequest:
        """A request for a video that begins with a picture, in LongCat's size for its shape.

        overrides: fields of `VideoRequest`. Raises ValueError as `request` does.
        """
        return self._from(FromImage(image=str(picture.path)), prompt, picture, overrides)

    def continuation(
        self,
        prompt: str,
        clip: Clip,
        *,
        cond_frames: int = 13,
        stride: int | None = None,
        kv_cache: str = "device",
        enhance_hf: bool | None = None,
        **overrides: Any,
    ) -> VideoRequest:
        """A request for a video that continues a clip, in LongCat's size for its shape.

        cond_frames, kv_cache: as in `FromFrames`.
        stride: the same; by default, what leaves about 15 of the clip's frames per second. The video then plays as fast
            as the clip, unless `fps` says otherwise.
        enhance_hf: the same; by default on, but not with the few-step schedule.
        overrides: fields of `VideoRequest`.

        Raises ValueError as `request` does.
        """
        few = overrides.get("use_distill", self.defaults["use_distill"] or "distill" in self._asked(overrides))
        step = stride_for(clip.fps) if stride is None else stride
        fine = not few if enhance_hf is None else enhance_hf
        start = FromFrames(
            video=str(clip.path), cond_frames=cond_frames, stride=step, kv_cache=kv_cache, enhance_hf=fine
        )
        return self._from(start, prompt, clip, {"fps": max(1, round(clip.fps / start.stride))} | overrides)

    def _from(self, start: Start, prompt: str, seen: Picture | Clip, overrides: dict[str, Any]) -> VideoRequest:
        native = self.defaults["width"] * self.defaults["height"]
        if "height" not in overrides and "width" not in overrides:
            overrides = dict(zip(("height", "width"), video_size(seen.height, seen.width, native))) | overrides
        elif not {"height", "width"} <= overrides.keys():
            given, other = ("height", "width") if "height" in overrides else ("width", "height")
            ratio = getattr(seen, other) / getattr(seen, given)
            overrides = overrides | {other: max(1, round(overrides[given] * ratio / TOKEN_PIXELS)) * TOKEN_PIXELS}
        return self.request(prompt, **({"start": start} | overrides))

    def _asked(self, overrides: Mapping[str, Any]) -> set[str]:
        """Names of the adapters that a request will run with."""
        lora = overrides.get("lora")
        return {adapter.name for adapter in read_adapters(lora, self.loras)} if isinstance(lora, str) else set()

    def trained_for(self, start: Start) -> bool:
        """Whether it was trained for videos that begin so; it may make others, but how well is another matter."""
        task = _TASKS.get(type(start))
        return task is None or self.trained_tasks is None or task in self.trained_tasks

    def steps_run(self, request: VideoRequest) -> int:
        """Number of denoising steps that a request runs with this checkpoint's schedule."""
        return request.start.steps_run(request.steps, self.shift)

    def check_lora(self, lora: str | None) -> None:
        """Raise ValueError if the checkpoint lacks an adapter that a request asks for, or if one does not fit it."""
        for adapter in read_adapters(lora, self.loras):
            name = adapter.name
            if name in self.loras:
                read_adapter(self.loras[name], self.linear)
                continue
            found = f"there are {', '.join(sorted(self.loras))}" if self.loras else "there is none"
            missing = f"{self.name} has no LoRA adapter {name!r} ({found})"
            if not is_file_name(name):
                one = f"such as {min(self.loras)}" if self.loras else "such as style for lora/style.safetensors"
                raise ValueError(f"{missing}; an adapter is called as its file is, without folder and ending, {one}")
            file = ADAPTER_FILES.get(name, f"{name}.safetensors")
            raise ValueError(f"{missing}; put {file} into its folder lora")

    def lora_dir_for(self, lora: str | None) -> Path | None:
        """`lora_dir` if an adapter that a request runs with is from there."""
        used = [self.loras.get(adapter.name) for adapter in read_adapters(lora, self.loras)]
        return self.lora_dir if any(file is not None and file.parent == self.lora_dir for file in used) else None


def inspect_checkpoint(path: str | Path, lora_dir: str | Path | None = None) -> CheckpointInfo:
    """Check that a folder is a complete LongCat checkpoint, as released or in FastVideo's layout, and describe it.

    Only the configurations and the headers of the weight files are read.

    lora_dir: a folder with further LoRA files, NAME.safetensors. Where both have a name, the checkpoint's counts.

    Raises:
        ValueError: a folder, a component, a shard or a configuration is missing or damaged.
    """
    path = expand_user(path)
    if path == EMBEDDED_CHECKPOINT and not is_there(path):
        raise ValueError(f"the embedded checkpoint {path} is missing; clone the repository again or pass another path")
    if not is_there(path):
        raise ValueError(f"there is no checkpoint at {path}; check the path, or leave it out for the embedded one")
    if not path.is_dir():
        raise ValueError(f"{path} is a file; pass the checkpoint's folder, the one that holds model_index.json or dit")
    layout = layout_of(path)
    index = read_json(path / layout.first, path)
    if index.get("_class_name") != layout.first_class:
        raise ValueError(
            f"{path}/{layout.first} describes {index.get('_class_name')!r}, not {layout.first_class!r}; "
            "use LongCat-Video as released, or in FastVideo's layout"
        )
    check_files(path)
    configs = {component: read_json(path / name, path) for component, name in layout.configs.items()}
    _check_tokenizer(path)
    for component, wanted in layout.classes.items():
        if (found := configs[component].get("_class_name")) != wanted:
            raise ValueError(
                f"{path}/{layout.configs[component]} is a {found!r}, not a {wanted!r}; "
                "use LongCat-Video as released, or in FastVideo's layout"
            )
    if not configs["text_encoder"].get("architectures"):
        raise ValueError(incomplete(path, "text_encoder/config.json names no architectures"))
    if layout is FASTVIDEO:
        check_index(index, path)
    check_names(path)
    parameters = {
        part: component_parameters(path / folder, configs[part], path) for part, folder in layout.weights.items()
    }
    further = None if lora_dir is None else expand_user(lora_dir).absolute()
    generation = path / "generation_config.json"
    transformer = configs["transformer"]
    sparse = _bsa_config(transformer, path / layout.configs["transformer"])
    defaults = LONGCAT_DEFAULTS | (read_json(generation, path) if generation.exists() else {})
    info = CheckpointInfo(
        path=path,
        name=_name(path.resolve()),
        parameters=parameters["transformer"],
        bsa=sparse if transformer.get("enable_bsa") else None,
        sparse=sparse,
        shift=_shift(configs["scheduler"], path),
        loras=({} if further is None else adapters_in(further)) | _adapters(path / "lora"),
        lora_dir=further,
        linear=linear_layers(transformer),
        vocabulary=read_vocabulary(path),
        defaults=defaults,
        layout=layout,
        trained_tasks=_trained_tasks(defaults.get("trained_tasks")),
    )
    try:
        info.request("x")
    except ValueError as error:
        raise ValueError(f"{generation} has unusable settings: {error}") from None
    return info


def _trained_tasks(value: object) -> tuple[str, ...] | None:
    """The list in generation_config.json; None where there is none of known names."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return tuple(name for name in _TASKS.values() if name in value) or None


def _shift(scheduler: dict[str, Any], checkpoint: Path) -> float:
    shift = scheduler.get("shift") or 1.0
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift < 1e6:
        file = checkpoint / "scheduler" / CONFIGS["scheduler"]
        raise ValueError(f"{file} has the shift {str(shift)[:80]}, not a number above 0; LongCat's is 12")
    return float(shift)


def _name(path: Path) -> str:
    # a folder of the Hub's cache: models--org--name/snapshots/COMMIT
    cache = path.parents[1].name if path.parent.name == "snapshots" else ""
    return cache.rpartition("--")[2] if cache.startswith("models--") else path.name


def _adapters(folder: Path) -> dict[str, Path]:
    """Adapter files in LongCat's layout, lora/NAME.safetensors, and in FastVideo's, lora/NAME/*.safetensors."""
    found: dict[str, Path] = {}
    for file in sorted((*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors"))):
        name = file.stem if file.parent == folder else file.parent.name
        found.setdefault(_ADAPTERS.get(name, name), file)
    return found


def _bsa_config(transformer: dict[str, Any], file: Path) -> BSAConfig:
    params = transformer.get("bsa_params") or {}
    try:
        if not isinstance(params, dict):
            raise ValueError(f"{params!r} is not an object")
        if unknown := sorted(set(params) - set(KNOWN_PARAMS)):
            names = ", ".join(one_line(name)[:80] for name in unknown[:5])
            said = UNKNOWN_PARAMS.format(names=names, known=", ".join(KNOWN_PARAMS))
            logger.warning("%s: %s", file, said)
            params = {name: value for name, value in params.items() if name in KNOWN_PARAMS}
        return BSAConfig.from_bsa_params(params)
    except ValueError as error:
        if not transformer.get("enable_bsa"):
            return BSAConfig()
        raise ValueError(f"{file} has unusable bsa_params: {error}") from None


def _check_tokenizer(checkpoint: Path) -> None:
    """Raise ValueError if the tokenizer is missing or cut short. Reads only both ends of its file of megabytes."""
    folder = checkpoint / "tokenizer"
    file = folder / "tokenizer.json"
    check_plain(file)
    if not file.is_file():
        raise ValueError(incomplete(checkpoint, "tokenizer/tokenizer.json is missing"))
    with open_file(file) as stream:
        begin = stream.read(16).lstrip()
        stream.seek(max(0, file.stat().st_size - 16))
        end = stream.read().rstrip()
    if not (begin.startswith(b"{") and end.endswith(b"}")):
        raise ValueError(incomplete(checkpoint, "tokenizer/tokenizer.json is cut off or damaged"))
