"""Settings in a video file, and the code that makes a video again."""

from __future__ import annotations

import json
import shlex
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from bsa import BSAConfig
from pipeline import (
    EMBEDDED_CHECKPOINT,
    VideoRequest,
    cli_command,
    compare,
    inspect_checkpoint,
    python_code,
    read_settings,
)
from pipeline.cli.parser import build_parser
from pipeline.cli.read import read_request
from pipeline.media.write import write_video

ROOT = Path(__file__).parents[1]
FRAMES = np.zeros((5, 32, 32, 3), np.uint8)
REQUEST = VideoRequest(
    prompt="a red ball",
    height=64,
    width=64,
    num_frames=29,
    steps=2,
    guidance_scale=1.5,
    seed=2**62 + 1,
    fps=15,
    bsa=BSAConfig(sparsity=0.3, chunk_q=(1, 2, 3)),
)
HOSTILE = [
    pytest.param("it's \"quoted\" 'twice' \\ back\\\\slash", id="quotes"),
    pytest.param("one line\nand another\r\n\ttab", id="lines"),
    pytest.param("🎈 Ball é ボ ‮right to left", id="beyond ascii"),
    pytest.param("$(touch pwned) `touch pwned` ${HOME} !! $HOME; rm -rf ~ && echo | cat > x", id="shell"),
    pytest.param("--dense", id="option"),
    pytest.param("a=b;c#d\\=e\n[CHAPTER]\n;FFMETADATA1", id="ffmpeg metadata"),
    pytest.param("%s %(prompt)s {0} {prompt} ${alert(1)} <img onerror=alert(1)>", id="templates"),
    pytest.param("word " * 500, id="500 tokens"),
    pytest.param("\x01\x07\x1b[31m", id="control characters"),
    pytest.param("𝔘" * 5000, id="longest"),
]


def written(path: Path, request: VideoRequest | dict = REQUEST, versions: dict | None = None) -> Path:
    values = request if isinstance(request, dict) else request.to_dict()
    write_video(path, FRAMES, 15, {"request": values, "versions": versions or {"torch": "2"}})
    return path


def with_comment(path: Path, text: str) -> Path:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "color=s=32x32:d=0.2"]
    subprocess.run([*command, "-metadata", f"comment={text}", str(path)], check=True, stdin=subprocess.DEVNULL)
    return path


class TestRead:
    @pytest.mark.parametrize("prompt", HOSTILE)
    def test_prompts_come_back(self, tmp_path, prompt):
        request = replace(REQUEST, prompt=prompt, negative_prompt=prompt[::-1])
        found = read_settings(written(tmp_path / "video.mp4", request))
        assert found.request == request
        assert found.versions == {"torch": "2"}

    @pytest.mark.parametrize(
        ("said", "name"),
        [
            pytest.param({"checkpoint": "longcat-tiny"}, "longcat-tiny", id="named"),
            pytest.param({}, None, id="older file"),
            pytest.param({"checkpoint": ["longcat"]}, None, id="no text"),
            pytest.param({"checkpoint": "a\ud800"}, "a?", id="half a character"),
        ],
    )
    def test_checkpoint(self, tmp_path, said, name):
        text = json.dumps({"request": REQUEST.to_dict(), "versions": {"torch": "2", "bad": "\ud800"}} | said)
        found = read_settings(with_comment(tmp_path / "video.mp4", text))
        assert (found.checkpoint, found.versions) == (name, {"torch": "2", "bad": "?"})

    def test_null_character(self, tmp_path):
        request = replace(REQUEST, prompt="a\0b")
        assert read_settings(written(tmp_path / "video.mp4", request)).request == request

    @pytest.mark.parametrize(
        "bsa",
        [
            pytest.param(None, id="dense"),
            pytest.param(BSAConfig(sparsity=None, cdf_threshold=0.1 + 0.2), id="mass"),
            pytest.param(BSAConfig(sparsity=0.0, cdf_threshold=1.0, chunk_k=(7, 1, 90)), id="both"),
        ],
    )
    def test_attention_comes_back(self, tmp_path, bsa):
        request = replace(REQUEST, bsa=bsa, use_distill=True)
        assert read_settings(written(tmp_path / "video.mp4", request)).request == request

    def test_index_at_the_end_and_a_gigabyte_of_picture(self, tmp_path):
        file = written(tmp_path / "video.mp4")
        boxes = file.read_bytes()
        moov = boxes.index(b"moov") - 4
        moov = boxes[moov : moov + int.from_bytes(boxes[moov : moov + 4], "big")]
        with (tmp_path / "big.mp4").open("wb") as big:
            big.write(boxes[: int.from_bytes(boxes[:4], "big")])
            big.write(struct.pack(">I4sQ", 1, b"mdat", 16 + 5 * 2**30))
            big.seek(5 * 2**30, 1)  # a hole, which takes no room on the disk
            big.write(moov)
        assert read_settings(tmp_path / "big.mp4").request == REQUEST

    def test_half_a_file_still_has_its_index(self, tmp_path):
        file = written(tmp_path / "video.mp4")
        file.write_bytes(file.read_bytes()[:-100])
        assert read_settings(file).request == REQUEST

    @pytest.mark.parametrize(
        ("make", "sentence"),
        [
            pytest.param(lambda file: file.touch(), "x.mp4 is not an MP4 video; use", id="empty"),
            pytest.param(lambda file: file.write_bytes(b"\x89PNG" * 99), "x.mp4 is not an MP4 video; use", id="image"),
            pytest.param(lambda file: None, "cannot read x.mp4: No such file", id="missing"),
            pytest.param(lambda file: file.mkdir(), "cannot read x.mp4: Is a directory", id="folder"),
            pytest.param(lambda file: cut(written(file), b"\xa9cmt", 40), "x.mp4 is cut off", id="cut in the comment"),
            pytest.param(lambda file: cut(written(file), b"moov", 40), "x.mp4 is cut off", id="cut in the index"),
            pytest.param(lambda file: cut(written(file), b"moov", -4), "x.mp4 does not say how", id="without index"),
            pytest.param(lambda file: with_comment(file, ""), "x.mp4 does not say how it was made", id="no comment"),
            pytest.param(lambda file: with_comment(file, "holiday"), "x.mp4 does not say how", id="text"),
            pytest.param(lambda file: with_comment(file, "[1, 2]"), "x.mp4 does not say how", id="list"),
            pytest.param(lambda file: with_comment(file, '{"request": 7}'), "x.mp4 does not say how", id="number"),
            pytest.param(lambda file: with_comment(file, "[" * 100_000), "x.mp4 does not say how", id="deep"),
            pytest.param(lambda file: written(file, request={}), "settings in x.mp4 cannot be used", id="nothing"),
            pytest.param(lambda file: changed(file, width=830), "cannot be used: width 830 is not a", id="width"),
            pytest.param(lambda file: changed(file, evil=1), "cannot be used: unknown request field", id="unknown"),
            pytest.param(lambda file: changed(file, prompt=None), "cannot be used: the prompt is a None", id="prompt"),
            pytest.param(lambda file: changed(file, bsa=[1]), "cannot be used: bsa is a list", id="bsa"),
            pytest.param(lambda file: changed(file, bsa={"sparsity": "x"}), "cannot be used: spars", id="sparsity"),
            pytest.param(lambda file: changed(file, steps=1e999), "cannot be used: steps inf", id="infinity"),
            pytest.param(lambda file: changed(file, seed=10**4000), "cannot be used: seed is far too large", id="huge"),
        ],
    )
    def test_refused_in_one_sentence(self, tmp_path, make, sentence):
        make(tmp_path / "x.mp4")
        with pytest.raises(ValueError) as caught:
            read_settings(tmp_path / "x.mp4")
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400

    def test_versions_are_text(self, tmp_path):
        file = written(tmp_path / "video.mp4", versions={"torch": "2", "evil": {"a": 1}, "n": 3})
        assert read_settings(file).versions == {"torch": "2"}

    def test_endless_boxes_end(self, tmp_path):
        (tmp_path / "x.mp4").write_bytes(b"\0\0\0\x0cftypmp42" + b"\0\0\0\x08free" * 200_000)
        with pytest.raises(ValueError, match="does not say how it was made"):
            read_settings(tmp_path / "x.mp4")


def cut(file: Path, mark: bytes, after: int) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: data.index(mark) + after])


def changed(file: Path, **values) -> None:
    written(file, request=REQUEST.to_dict() | values)


def where(**changes) -> dict:
    return {"model_path": EMBEDDED_CHECKPOINT, "device": "cpu", "compare": False, "output": "again.mp4"} | changes


@pytest.fixture(scope="module")
def info():
    return inspect_checkpoint(EMBEDDED_CHECKPOINT)


REQUESTS = [
    pytest.param(REQUEST, id="sparse"),
    pytest.param(replace(REQUEST, bsa=None), id="dense"),
    pytest.param(replace(REQUEST, bsa=BSAConfig(sparsity=None, cdf_threshold=0.1 + 0.2)), id="mass"),
    pytest.param(replace(REQUEST, bsa=BSAConfig(sparsity=0.0, cdf_threshold=0.9, chunk_k=(2, 4, 8))), id="both"),
    pytest.param(replace(REQUEST, use_distill=True, fps=24, guidance_scale=3.3000000000000003), id="distilled"),
    pytest.param(replace(REQUEST, teacache_thresh=0.1 + 0.2), id="teacache"),
]


class TestCommand:
    @pytest.mark.parametrize("request_", REQUESTS)
    def test_says_everything(self, info, request_):
        words = shlex.split(cli_command(request_, **where()))
        assert words[:4] == ["python", "-m", "pipeline", "generate"]
        # other defaults than those it was made with must not matter
        other = replace(info, bsa=BSAConfig(sparsity=0.5, cdf_threshold=0.5, chunk_q=(9, 9, 9)))
        other.defaults.update(use_distill=not request_.use_distill)
        assert read_request(build_parser().parse_args(words[3:]), other) == request_

    @pytest.mark.parametrize("prompt", HOSTILE)
    def test_a_shell_passes_prompts_on(self, info, prompt, tmp_path):
        request = replace(REQUEST, prompt=prompt, negative_prompt=prompt)
        line = cli_command(request, **where()).replace("python", shlex.quote(sys.executable), 1)
        show = "import json, sys; print(json.dumps(sys.argv[1:]))"
        line = line.replace("-m pipeline", f"-c {shlex.quote(show)}", 1)
        (tmp_path / "run.sh").write_text(line, encoding="utf-8", newline="")
        said = subprocess.run(["bash", "run.sh"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert read_request(build_parser().parse_args(json.loads(said)), info) == request
        assert [file.name for file in tmp_path.iterdir()] == ["run.sh"]

    def test_null_character_is_refused(self):
        with pytest.raises(ValueError, match="null character"):
            cli_command(replace(REQUEST, prompt="a\0b"), **where())

    def test_another_checkpoint(self):
        line = cli_command(REQUEST, **where(model_path=Path("my weights/longcat"), compare=True))
        assert "--model-path='my weights/longcat' " in line
        assert " --compare " in line


class TestProgram:
    @pytest.mark.parametrize("request_", REQUESTS)
    def test_says_everything(self, request_):
        assert executed(python_code(request_, **where())) == (request_, {"device": "cpu"}, "again.mp4")

    @pytest.mark.parametrize("prompt", [*HOSTILE, pytest.param("a\0b\ud7ff'''\"\"\"", id="null character")])
    def test_prompts(self, prompt):
        request = replace(REQUEST, prompt=prompt, negative_prompt=prompt)
        assert executed(python_code(request, **where()))[0] == request


def executed(code: str) -> tuple:
    """(request, arguments of load, output) of a program, with a stand-in for the pipeline."""
    loaded = {}

    class Stand:
        info = None
        video = "x"

        @classmethod
        def load(cls, **options):
            loaded.update(options)
            return cls()

        def generate(self, request, output):
            self.request, self.output = request, output
            return self

    names: dict = {}
    assert "from pipeline import FromNoise, LongCatPipeline, VideoRequest" in code
    code = code.replace("FromNoise, LongCatPipeline, ", "FromNoise, ")
    exec(compile(code.replace("LongCatPipeline", "Stand"), "copied", "exec"), {"Stand": Stand}, names)
    return names["result"].request, loaded, names["result"].output


@pytest.mark.slow
def test_bit_for_bit(tiny_pipeline, tiny_checkpoint, tmp_path):
    """The command, in a process of its own, and the program make the same files as the pipeline that was running."""
    request = replace(REQUEST, prompt='it\'s a "ball"\n🎈 $(x)')
    compare(tiny_pipeline, request, output_dir=tmp_path / "first")

    def made(folder: str) -> dict:
        return {"model_path": tiny_checkpoint, "device": "cpu", "compare": True, "output": str(tmp_path / folder)}

    line = cli_command(request, **made("cli")).replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(["bash", "-c", line], cwd=ROOT, check=True, capture_output=True)
    exec(compile(python_code(request, **made("program")), "copied", "exec"), {})
    for name in ("dense.mp4", "sparse.mp4"):
        first = (tmp_path / "first" / name).read_bytes()
        assert (tmp_path / "cli" / name).read_bytes() == first
        assert (tmp_path / "program" / name).read_bytes() == first
