"""The command line with adapters and refinements."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import write_lora

from pipeline import VideoRequest, cli_command, inspect_checkpoint, python_code
from pipeline.cli.main import main
from pipeline.cli.parser import build_parser
from pipeline.cli.read import read_request
from pipeline.media.clip import inspect_clip
from pipeline.media.comment import describe
from pipeline.media.write import write_video


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("adapters") / "longcat-random")
    for name in ("cfg_step_lora", "refinement_lora"):
        write_lora(folder, name)
    return folder


@pytest.fixture
def clip(checkpoint, tmp_path):
    """A clip that says how it was made: 9 frames of 64 x 64."""
    request = inspect_checkpoint(checkpoint).request("a red ball", num_frames=9, bsa=None)
    path = tmp_path / "clip.mp4"
    write_video(
        path, np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), np.uint8), 15, describe(request, {}, "x")
    )
    return path


def run(capsys, *words) -> dict:
    assert main([*map(str, words), "--json", "-", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def test_refine_with_the_prompt_of_the_clip(capsys, checkpoint, clip, tmp_path):
    report = run(capsys, "refine", clip, "--model-path", checkpoint, "--output", tmp_path / "fine.mp4")
    request = VideoRequest.from_dict(report["request"])
    assert (request.prompt, request.lora, request.steps, request.num_frames) == ("a red ball", "refine", 50, 18)
    assert report["bsa_active"]
    made = inspect_clip(tmp_path / "fine.mp4")
    assert (made.frames, made.height, made.width, made.fps) == (18, 96, 96, 30)


def test_compare_refinements(capsys, checkpoint, clip, tmp_path):
    words = "refine", clip, "--model-path", checkpoint, "--compare", "--spatial-only", "--t-thresh", "0.3"
    report = run(capsys, *words, "--sparsity", "0.9", "--output", tmp_path / "both")
    assert report["dense"]["request"]["refine"] == report["sparse"]["request"]["refine"]
    assert [inspect_clip(tmp_path / "both" / f"{arm}.mp4").frames for arm in ("dense", "sparse")] == [9, 9]


def test_generate_with_an_adapter(capsys, checkpoint, tmp_path):
    words = "generate", "--model-path", checkpoint, "--prompt", "x", "--lora", "distill", "--num-frames", 5
    report = run(capsys, *words, "--steps", 2, "--output", tmp_path / "fast.mp4")
    request = VideoRequest.from_dict(report["request"])
    assert (request.lora, request.steps, request.guidance_scale, request.use_distill) == ("distill", 2, 1.0, True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        pytest.param(["nowhere.mp4"], "cannot read the clip nowhere.mp4", id="no-clip"),
        pytest.param([__file__], "test_cli_refine.py is not an MP4 video", id="no-video"),
        pytest.param(["CLIP", "--lora", "mine"], "no LoRA adapter 'mine' (there are distill, refine)", id="no-adapter"),
        pytest.param(["CLIP", "--t-thresh", "2"], "t_thresh 2.0 is not a noise level", id="level"),
        pytest.param(["CLIP", "--height", "100"], "height 100 is not a multiple of 16", id="size"),
        pytest.param(["SILENT"], "silent.mp4 does not say what it shows; add --prompt", id="no-prompt"),
    ],
)
def test_bad_input(capsys, checkpoint, clip, words, sentence):
    silent = clip.with_name("silent.mp4")
    write_video(silent, np.zeros((5, 32, 32, 3), np.uint8), 15, {})
    places = {"CLIP": str(clip), "SILENT": str(silent)}
    assert main(["refine", *(places.get(word, word) for word in words), "--model-path", str(checkpoint)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and sentence in said


def test_without_the_adapter_nothing_is_loaded(capsys, clip, tiny_checkpoint):
    assert main(["refine", str(clip), "--model-path", str(tiny_checkpoint)]) == 2
    assert "longcat-random has no LoRA adapter 'refine'" in capsys.readouterr().err


def test_the_embedded_checkpoint_refines(capsys, clip, tmp_path):
    size = ("--spatial-only", "--height", "96", "--width", "96", "--steps", "5")
    report = run(capsys, "refine", clip, *size, "--output", tmp_path / "fine.mp4")
    assert report["request"]["lora"] == "refine" and inspect_clip(tmp_path / "fine.mp4").width == 96


@pytest.mark.parametrize("changes", [{}, {"double_frames": False, "t_thresh": 0.3, "seed": 7, "bsa": None}])
def test_commands_and_programs_say_everything(checkpoint, clip, changes):
    info = inspect_checkpoint(checkpoint)
    request = info.refinement('it\'s a "ball"', inspect_clip(clip), **changes)
    where = {"model_path": checkpoint, "device": "cpu", "compare": False, "output": "again.mp4"}
    words = shlex.split(cli_command(request, **where))
    assert words[:4] == ["python", "-m", "pipeline", "refine"]
    assert read_request(build_parser().parse_args(words[3:]), info) == request
    code, names = python_code(request, **where), {}
    exec(compile(code.partition("request = ")[0].replace("pipeline = ", "#"), "imports", "exec"), names)
    exec(compile("request = " + code.partition("request = ")[2].partition("result = ")[0], "request", "exec"), names)
    assert names["request"] == request


def test_an_adapter_is_part_of_the_command(checkpoint):
    request = inspect_checkpoint(checkpoint).request("x", lora="distill")
    line = cli_command(request, model_path=Path("w"), device="cpu", compare=False, output="x.mp4")
    assert " --lora=distill " in line and " --use-distill " in line
