"""Measures whether a checkpoint follows its prompt: a classifier judges videos of held-out prompts, dense and sparse.

    python -m training.judge --output run/judge.safetensors --minutes 35
    python -m training.evaluate --judge run/judge.safetensors --clips run/clips --output run/evaluation.json

The pipeline makes the videos, just as it does for a user. They are kept in --clips, so an interrupted evaluation
resumes. Renders of held-out scenes, as they are and through the VAE, show the classifier's best possible score.

Videos that begin with a picture or go on from a clip are scored too: the frames that were given must come back, and the
first that is made must follow them as smoothly as any other.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from bsa import BSAConfig
from pipeline import EMBEDDED_CHECKPOINT, FromFrames, FromImage, FromNoise, LongCatPipeline
from pipeline.media.similarity import psnr
from pipeline.media.write import write_video
from pipeline.model.content import VIEW, Judge
from pipeline.request.start import Start
from training.data import held_out_scenes
from training.judge import NAMES
from training.render import pack, render
from training.scenes import Scene
from training.tasks import TASKS, seam
from training.vae import load_vae

GIVEN_FRAMES = 13  # of a clip that is continued
RENDERS = 256  # held-out scenes on which the classifier itself is tested


def read_frames(file: Path) -> np.ndarray:
    """A video as uint8 [T, H, W, 3]."""
    reader = imageio_ffmpeg.read_frames(str(file))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def tensor(frames: np.ndarray) -> Tensor:
    """uint8 [T, H, W, 3] as [1, 3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def starts_of(number: int, scene: Scene, size: tuple[int, int, int], fps: int, folder: Path) -> dict[str, Start]:
    """The start of each task, with the scene's first frame as a picture and its first 13 frames as a clip."""
    picture, clip = folder / f"{number:03}-picture.png", folder / f"{number:03}-clip.mp4"
    if not clip.exists():
        frames = pixels(render(pack([scene]), GIVEN_FRAMES, *size[1:], length=(GIVEN_FRAMES - 1) / (size[0] - 1))[0])
        Image.fromarray(frames[0]).save(picture)
        write_video(clip, frames, fps, {"render": scene.caption})
    return {
        "text": FromNoise(),
        "picture": FromImage(image=str(picture)),
        "continuation": FromFrames(video=str(clip), cond_frames=GIVEN_FRAMES, enhance_hf=False),
    }


def make_videos(
    pipeline: LongCatPipeline,
    scenes: list[Scene],
    settings: dict[str, BSAConfig | None],
    tasks: list[str],
    folder: Path,
) -> None:
    """Make the videos missing from `folder`, prompt by prompt. A prompt's number is its seed."""
    asked = pipeline.info.request("-")
    size = (asked.num_frames, asked.height, asked.width)
    for number, scene in enumerate(scenes):
        starts = starts_of(number, scene, size, asked.fps, folder)
        for task in tasks:
            for name, bsa in settings.items():
                file = folder / f"{number:03}-{label(task, name)}.mp4"
                if not file.exists():
                    request = pipeline.info.request(scene.caption, seed=number, bsa=bsa, start=starts[task])
                    result = pipeline.generate(request, output=file)
                    print(f"{file.name}: {result.seconds['total']:.1f} s", flush=True)


def label(task: str, name: str) -> str:
    """The name of a task's videos made with the settings of that name."""
    return name if task == "text" else f"{task}-{name}"


def pixels(video: Tensor) -> np.ndarray:
    """[3, T, H, W] in [-1, 1] as uint8 [T, H, W, 3]."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()


def score_task(net: Judge, folder: Path, scenes: list[Scene], task: str, name: str, device: str) -> dict[str, float]:
    """Scores of the videos of a task that begins with given frames.

    Beside what the classifier recognised: the PSNR of the given frames to what was given, and the seam after them.
    """
    guesses, nearness, seams = defaultdict(list), [], []
    for number in range(len(scenes)):
        frames = read_frames(folder / f"{number:03}-{label(task, name)}.mp4")
        for attribute, index in net.judge(tensor(frames).to(device)).items():
            guesses[attribute].append(NAMES[attribute][int(index)])
        if task == "picture":
            given = np.asarray(Image.open(folder / f"{number:03}-picture.png"))[None]
        else:
            given = read_frames(folder / f"{number:03}-clip.mp4")
        nearness.append(psnr(frames[: len(given)], given))
        seams.append(seam(tensor(frames)[0], len(given)))
    return shares(guesses, scenes) | {
        "given psnr": round(float(np.mean(nearness)), 2),
        "given psnr, worst": round(min(nearness), 2),
        "seam": round(float(np.mean(seams)), 3),
        "seam, worst": round(max(seams), 3),
    }


@torch.no_grad()
def through_vae(
    checkpoint: Path, scenes: list[Scene], size: tuple[int, int, int], fps: int, folder: Path, device: str
) -> None:
    """Render each missing scene at `size` (frames, height, width), then encode, decode and write it."""
    missing = [n for n in range(len(scenes)) if not (folder / f"{n:03}-render.mp4").exists()]
    vae, _ = load_vae(checkpoint, device)
    for number in missing:
        video = vae.decode(vae.encode(render(pack([scenes[number]], device), *size))[0])[0]
        write_video(folder / f"{number:03}-render.mp4", pixels(video), fps, {"render": scenes[number].caption})


def shares(guesses: dict[str, list[str]], scenes: list[Scene]) -> dict[str, float]:
    """Share of the clips in which the colour, the shape, the motion, and all three, were recognised."""
    right = {
        name: np.array(
            [said == scene.attributes[f"{name}0"] for said, scene in zip(guesses[name], scenes, strict=True)]
        )
        for name in NAMES
    }
    right["all three"] = np.logical_and.reduce(list(right.values()))
    return {name: round(float(values.mean()), 4) for name, values in right.items()}


@torch.no_grad()
def score_judge(net: Judge, device: str, size: int) -> dict[str, Any]:
    """The classifier's score and error counts on renders of held-out scenes, which it never saw."""
    scenes = held_out_scenes(RENDERS)
    guesses: dict[str, list[str]] = defaultdict(list)
    for i in range(0, len(scenes), 8):
        told = net.judge(render(pack(scenes[i : i + 8], device), VIEW[0], size, size))
        for name, index in told.items():
            guesses[name] += [NAMES[name][j] for j in index.tolist()]
    errors = Counter(
        f"{truth} taken for {said}"
        for name in NAMES
        for scene, said in zip(scenes, guesses[name], strict=True)
        if (truth := scene.attributes[f"{name}0"]) != said
    )
    return shares(guesses, scenes) | {"clips": len(scenes), "errors": dict(errors.most_common())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True, help="weights of training.judge")
    parser.add_argument("--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT)
    parser.add_argument("--clips", type=Path, required=True, help="folder of the videos, which may hold some already")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--sparsities", type=float, nargs="*", default=(0.75, 0.875, 0.9375))
    parser.add_argument("--tasks", nargs="*", choices=tuple(TASKS), default=list(TASKS), help="text, always, and these")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    args.clips.mkdir(parents=True, exist_ok=True)
    tasks = list(dict.fromkeys(["text", *args.tasks]))
    pipeline = LongCatPipeline.load(args.checkpoint, args.device)
    device, scenes = str(pipeline.device), held_out_scenes(args.prompts)
    net = Judge(NAMES).to(device).eval()
    net.load_state_dict(load_file(args.judge))

    settings = {"dense": None} | {f"bsa-{sparsity}": BSAConfig(sparsity=sparsity) for sparsity in args.sparsities}
    make_videos(pipeline, scenes, settings, tasks, args.clips)
    request = pipeline.info.request("-")
    size = (request.num_frames, request.height, request.width)
    through_vae(pipeline.info.path, scenes, size, request.fps, args.clips, device)

    truth = {name: [scene.attributes[f"{name}0"] for scene in scenes] for name in NAMES}
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if pipeline.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "checkpoint": pipeline.info.name,
        "settings": f"{request.width}x{request.height}, {request.num_frames} frames, {request.steps} steps, "
        f"guidance {request.guidance_scale:g}",
        "prompts": len(scenes),
        "chance": {name: round(1 / len(values), 4) for name, values in NAMES.items()},
        "held-out renders": score_judge(net, device, request.height),
        "scores": {},
        "captions": [scene.caption for scene in scenes],
        "truth": truth,
        "guesses": {},
    }
    dense = [read_frames(args.clips / f"{number:03}-dense.mp4") for number in range(len(scenes))]
    for name in ("render", *settings):
        guesses, distances = defaultdict(list), []
        for number in range(len(scenes)):
            frames = read_frames(args.clips / f"{number:03}-{name}.mp4")
            for attribute, index in net.judge(tensor(frames).to(device)).items():
                guesses[attribute].append(NAMES[attribute][int(index)])
            distances.append(psnr(frames, dense[number]))
        report["guesses"][name] = guesses
        report["scores"][name] = shares(guesses, scenes)
        if name.startswith("bsa"):
            report["scores"][name]["psnr to dense"] = round(float(np.mean(distances)), 2)
        print(name, report["scores"][name], flush=True)
    report["tasks"] = {
        f"{task} {name}": score_task(net, args.clips, scenes, task, name, device)
        for task in tasks
        for name in settings
        if TASKS[task]
    }
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
