"""The command line, in processes of its own where the process is the point."""

import json
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import pytest

from bsa import BSAConfig, Grid
from pipeline import EMBEDDED_CHECKPOINT, inspect_checkpoint
from pipeline.cli.main import main
from pipeline.cli.parser import build_parser
from pipeline.cli.read import read_request

ROOT = Path(__file__).parents[1]


def command(*args):
    return [sys.executable, "-m", "pipeline", *map(str, args)]


def run(*args, **kwargs):
    return subprocess.run(command(*args), cwd=ROOT, capture_output=True, text=True, timeout=300, **kwargs)


def frames_in(video):
    return imageio_ffmpeg.count_frames_and_secs(str(video))[0]


def test_generate(tiny_checkpoint, tmp_path):
    video = tmp_path / "video.mp4"
    done = run(
        *(
            "generate",
            "--model-path",
            tiny_checkpoint,
            "--task",
            "t2v",
            "--height",
            64,
            "--width",
            64,
            "--num-frames",
            29,
        ),
        *("--prompt", "Your prompt here 🙂", "--output", video),
    )
    assert done.returncode == 0, done.stderr
    assert frames_in(video) == 29
    lines = [line for line in done.stderr.splitlines() if "bsa" in line.lower()]
    assert lines[:2] == [
        "Enabling Block Sparse Attention (BSA) for LongCat transformer",
        "BSA parameters: {'sparsity': 0.75, 'cdf_threshold': None, "
        "'chunk_3d_shape_q': [4, 4, 4], 'chunk_3d_shape_k': [4, 4, 4]}",
    ]
    assert "3/3" in done.stderr and "8/8" in done.stderr  # both progress bars reach their true totals
    assert str(video) in done.stdout and "1 of 2 key blocks" in done.stdout
    assert "Traceback" not in done.stderr and "fastvideo" not in done.stderr.lower().replace("importing fastvideo", "")


def test_compare_with_json(tiny_checkpoint, tmp_path, capfd):
    words = f"generate --model-path {tiny_checkpoint} --prompt x --compare --sparsity 0.5 --chunk-q 2x2x2"
    words += f" --chunk-k 2,2,2 --steps 2 --output {tmp_path / 'both'} --json - --device cpu"
    assert main(words.split()) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["dense"]["request"]["bsa"] is None
    assert report["sparse"]["request"]["bsa"]["chunk_3d_shape_k"] == [2, 2, 2]
    timing = report["sparse"]["timing"]
    assert report["speedup"] == pytest.approx(
        statistics.median(timing["reference"]) / statistics.median(timing["steps"])
    )
    assert 0 < report["ssim"] <= 1
    for name in ("dense", "sparse"):
        assert frames_in(report[name]["video"]) == 29


def test_interrupt(tiny_checkpoint, tmp_path):
    """Ctrl-C in the middle of denoising: exit code 130, one line, no half-written video."""
    process = subprocess.Popen(
        command(
            "generate",
            "--model-path",
            tiny_checkpoint,
            "--prompt",
            "x",
            "--steps",
            1000,
            "--output",
            tmp_path / "video.mp4",
        ),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    seen = b""
    while b"Denoise:" not in seen:
        byte = process.stderr.read(1)
        assert byte, seen.decode()
        seen += byte
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read().decode()
    assert process.wait(timeout=60) == 130
    assert rest.endswith("interrupted\n") and "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_fastvideo_cannot_load_kills_nobody(tiny_checkpoint, tmp_path):
    """FastVideo's own worker would end this with SIGQUIT (return code -3 or 131)."""
    import shutil

    broken = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    (broken / "tokenizer" / "tokenizer.json").write_text("{}")  # what is checked before the load does not look inside
    done = run("generate", "--model-path", broken, "--prompt", "x", "--output", tmp_path / "video.mp4")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: FastVideo cannot load the checkpoint")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        pytest.param([], BSAConfig(sparsity=0.75), id="checkpoint"),
        pytest.param(["--dense"], None, id="dense"),
        pytest.param(["--sparsity", "0.5"], BSAConfig(sparsity=0.5), id="sparsity"),
        pytest.param(
            ["--sparsity", "none", "--cdf-threshold", "0.9"],
            BSAConfig(sparsity=None, cdf_threshold=0.9),
            id="cdf-alone",
        ),
        pytest.param(["--cdf-threshold", "0.9"], BSAConfig(sparsity=0.75, cdf_threshold=0.9), id="cdf-added"),
        pytest.param(["--chunk-q", "1", "2", "3"], BSAConfig(sparsity=0.75, chunk_q=Grid(1, 2, 3)), id="chunk-words"),
        pytest.param(["--chunk-k", "1,2,3"], BSAConfig(sparsity=0.75, chunk_k=Grid(1, 2, 3)), id="chunk-commas"),
        pytest.param(
            ["--chunk-k", "1x2x3", "--compare"], BSAConfig(sparsity=0.75, chunk_k=Grid(1, 2, 3)), id="chunk-crosses"
        ),
    ],
)
def test_attention_options(tiny_checkpoint, args, expected):
    parsed = build_parser().parse_args(["generate", "--prompt", "x", *args])
    assert read_request(parsed, inspect_checkpoint(tiny_checkpoint)).bsa == expected


def test_info(tiny_checkpoint, capsys):
    assert main(["info", "--model-path", str(tiny_checkpoint), "--height", "96", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["token_grid"], report["tokens"]) == ("8x6x4", 192)
    assert (report["query_blocks"], report["key_blocks"], report["key_blocks_kept"]) == (4, 4, 1)
    assert report["bsa_active"] is True
    assert main(["info", "--model-path", str(tiny_checkpoint), "--num-frames", "1"]) == 0
    out = capsys.readouterr().out
    assert "single latent frame" in out and "212672" in out


@pytest.mark.parametrize(
    "args", [pytest.param(["--help"], id="top"), pytest.param(["generate", "--help"], id="generate")]
)
def test_help(args, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(args)
    assert leaving.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out and "exit codes:" in out


def test_shipped_checkpoint_end_to_end(tmp_path):
    """The first command of the README, no options but the prompt, with fewer steps."""
    video = tmp_path / "video.mp4"
    report = tmp_path / "report.json"
    done = run(
        "generate",
        "--prompt",
        "a red circle bounces on a blue background",
        "--steps",
        2,
        "--output",
        video,
        "--json",
        report,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(report.read_text())
    request = result["request"]
    assert frames_in(video) == request["num_frames"]
    assert result["bsa_active"] == (inspect_checkpoint(EMBEDDED_CHECKPOINT).bsa is not None)
    frames = imageio_ffmpeg.read_frames(str(video))
    assert next(frames)["size"] == (request["width"], request["height"])
    assert len(set(next(frames))) > 10  # not a blank picture
