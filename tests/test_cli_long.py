"""``python -m pipeline generate --task long`` on the random checkpoint."""

import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import write_lora

from pipeline import FromFrames, FromImage, FromNoise, cli_command, inspect_checkpoint
from pipeline.cli.long_command import read_long
from pipeline.cli.main import main
from pipeline.cli.parser import build_parser
from pipeline.cli.tasks import chosen_task
from pipeline.media.clip import read_clip
from pipeline.media.write import write_video
from pipeline.runs.long_video import LongVideo

SMALL = ["--height=32", "--width=48", "--num-frames=17", "--steps=2", "--device=cpu"]


def arguments(checkpoint, *words):
    return ["generate", "--task=long", f"--model-path={checkpoint}", *SMALL, *words]


def test_stopped_and_gone_on_with(tiny_checkpoint, tmp_path, capfd, monkeypatch):
    """Segment and step are told; the second run makes the second segment only, from the first one's end."""
    from pipeline.runs.longcat import LongCatPipeline

    def stop(pipeline, request, *rest):
        if request.prompt == "then a blue one":
            raise KeyboardInterrupt
        return generate(pipeline, request, *rest)

    generate = LongCatPipeline.generate_frames
    words = arguments(
        tiny_checkpoint, "--prompt=a red ball", "--prompt=then a blue one", f"--output={tmp_path / 'story'}", "--json=-"
    )
    monkeypatch.setattr(LongCatPipeline, "generate_frames", stop)
    assert main(words) == 130
    shown = capfd.readouterr().err
    assert "segment 1 of 2: a red ball" in shown and "1/2 Denoise: 2/2 steps" in shown
    assert "segment 2 of 2: then a blue one" in shown and "1 of 2 segments are kept in" in shown
    monkeypatch.setattr(LongCatPipeline, "generate_frames", generate)
    first = (tmp_path / "story/segment-001.mp4").read_bytes()
    assert main(words) == 0
    shown = capfd.readouterr()
    report = json.loads(shown.out)
    assert "1 of 2 segments are in" in shown.err and "segment 1 of 2:" not in shown.err
    assert "2/2 Denoise: " in shown.err
    assert "length    21 frames, 1.4 s, 2 segments" in shown.err
    assert (tmp_path / "story/segment-001.mp4").read_bytes() == first
    start = report["parts"][1]["request"]["from_frames"]
    assert (start["video"], start["cond_frames"], start["enhance_hf"]) == ("segment-001.end.mp4", 13, True)
    whole = read_clip(report["video"])
    parts = [read_clip(tmp_path / "story" / part["video"]) for part in report["parts"]]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_prompts_of_a_file_after_a_picture(tiny_checkpoint, tmp_path, capfd):
    Image.new("RGB", (48, 32), (200, 30, 30)).save(tmp_path / "red.png")
    (tmp_path / "story.txt").write_text("a red wall\n\n  it turns 🙂  \n", encoding="utf-8")
    words = [f"--prompts={tmp_path / 'story.txt'}", f"--image={tmp_path / 'red.png'}", "--segments=3"]
    assert main(arguments(tiny_checkpoint, *words, f"--output={tmp_path / 'out'}", "--json=-")) == 0
    parts = json.loads(capfd.readouterr().out)["parts"]
    assert [part["request"]["prompt"] for part in parts] == ["a red wall", "it turns 🙂", "it turns 🙂"]
    assert parts[0]["request"]["from_image"] == {"image": "red.png"}
    assert [part["frames"] for part in parts] == [17, 4, 4]


def test_refined_afterwards(tiny_checkpoint, tmp_path, capfd):
    """Both long videos, the second twice as large and with twice as many frames, in windows of the same number."""
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    (checkpoint / "generation_config.json").write_text('{"height": 32, "width": 48}')
    write_lora(checkpoint, "refinement_lora")
    words = ["--prompt=a", "--prompt=b", "--refine", f"--output={tmp_path / 'out'}", "--json=-"]
    assert main(arguments(checkpoint, *words)) == 0
    shown = capfd.readouterr()
    report = json.loads(shown.out)
    assert "window 2 of 2: b" in shown.err and "length    42 frames, 1.4 s, 2 windows" in shown.err
    assert (report["frames"], report["fps"]) == (21, 15)
    assert (report["refined"]["frames"], report["refined"]["fps"]) == (42, 30)
    second = report["refined"]["parts"][1]["request"]
    assert (second["num_frames"], second["refine"]["cond_frames"], second["lora"]) == (34, 26, "refine")
    assert len(read_clip(report["refined"]["video"])) == 42


@pytest.mark.parametrize("begins", ["text", "image", "clip"])
def test_the_command_of_a_long_video_makes_it_again(tiny_checkpoint, tmp_path, begins):
    info = inspect_checkpoint(tiny_checkpoint)
    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")
    write_video(tmp_path / "b.mp4", np.zeros((13, 32, 48, 3), np.uint8), 15, {})
    start = {
        "text": FromNoise(),
        "image": FromImage(image=str(tmp_path / "a.png")),
        "clip": FromFrames(video=str(tmp_path / "b.mp4"), cond_frames=9, enhance_hf=False),
    }[begins]
    request = info.request("it's red", height=32, width=48, num_frames=17, start=start)
    video = LongVideo(request, ("it's red", "then blue"), cond_frames=9, enhance_hf=False)
    where = {"model_path": tiny_checkpoint, "device": "cpu", "compare": False, "output": "out"}
    words = shlex.split(cli_command(video.request, long=video, **where))
    assert read_long(build_parser().parse_args(words[3:]), info) == video
    with pytest.raises(ValueError, match="seeds of their own"):
        cli_command(video.request, long=replace(video, seeds=(1, 9)), **where)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["--prompt=a"], "one prompt needs the number of segments; add --segments", id="no-number"),
        pytest.param(["--prompt=a", "--prompt=b", "--segments=1"], "there are 2 prompts for 1 segments", id="too-many"),
        pytest.param(["--prompt=a", "--segments=0"], "1 prompts for 0 segments", id="none"),
        pytest.param(["--prompt=a", "--segments=2", "--compare"], "leave one out", id="compare"),
        pytest.param(["--prompt=a", "--segments=2", "--output=x.mp4"], "x.mp4 names one file; name a", id="file"),
        pytest.param(["--prompt=a", "--segments=2", "--cond-frames=0"], "cond_frames 0 is not of the", id="cond-0"),
        pytest.param(["--prompt=a", "--segments=2", "--num-frames=13"], "segment 2 of 2 cannot be made", id="short"),
        pytest.param(["--prompt=a", "--segments=2", "--image=a", "--video=b"], "two ways to begin", id="beginnings"),
        pytest.param(["--prompt=a", "--segments=2", "--stride=2"], "add --video", id="stride"),
        pytest.param(["--prompt=a", "--segments=2", "--spatial-only"], "add --refine, or", id="spatial"),
        pytest.param(["--prompt=a", "--segments=2", "--refine"], "has no LoRA adapter 'refine'", id="no-adapter"),
        pytest.param(["--prompt=a", "--segments=2", "--bsa=auto"], "use --bsa on, or off", id="bsa-auto"),
        pytest.param(["--prompts=nowhere.txt"], "cannot read the prompts in nowhere.txt: No such file", id="no-file"),
        pytest.param(["--prompts=/dev/null"], "is not a list of prompts; write one on each line", id="empty-file"),
    ],
)
def test_refused(tiny_checkpoint, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    assert main(arguments(tiny_checkpoint, *words)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["generate", "--prompt=a", "--prompt=b"], "given 2 times; only --task long", id="two-prompts"),
        pytest.param(["generate", "--prompt=a", "--segments=2"], "--segments belongs to --task long, not", id="t2v"),
        pytest.param(["generate", "--prompts=a"], "--prompts belongs to --task long, not t2v", id="file"),
        pytest.param(["info", "--task=long"], "belongs to the generate command, not info", id="info"),
        pytest.param(["sweep", "--task=long", "--prompt=a", "--rows=seed=1"], "not sweep; describe", id="sweep"),
    ],
)
def test_where_it_does_not_belong(words, says):
    with pytest.raises(ValueError, match=says):
        chosen_task(build_parser().parse_args(words))


def test_a_prompt_of_a_late_segment_that_is_too_long_is_found_before_the_first(tiny_checkpoint, tmp_path, capsys):
    words = ["--prompt=a", "--prompt=b", f"--prompt={'c' * 600}", f"--output={tmp_path / 'out'}"]
    assert main(arguments(tiny_checkpoint, *words)) == 2
    assert "the prompt has 601 tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
