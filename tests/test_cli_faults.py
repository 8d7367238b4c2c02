"""The command line when the input is unusable, the work fails, or somebody ends it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import interrupted_while_importing

from pipeline.cli.main import main

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["--model-path", "/nowhere"], "there is no checkpoint at /nowhere", id="path"),
        pytest.param(["--width", "830"], "width 830 is not a multiple of 16; try 816 or 832", id="width"),
        pytest.param(["--height", "tall"], "argument --height: the value 'tall' is not a number", id="height-text"),
        pytest.param(["--seed", "4.5"], "argument --seed: the value 4.5 is not a whole number", id="seed-part"),
        pytest.param(["--num-frames", "20"], "num_frames 20 is not of the form 4n + 1; try 17 or 21", id="frames"),
        pytest.param(["--sparsity", "1.0"], "sparsity must be at least 0 and below 1, got 1.0", id="sparsity"),
        pytest.param(["--sparsity", "much"], "'much' is not a number; enter one such as 4 or 0.5, or none", id="text"),
        pytest.param(["--sparsity", "none"], "sparsity and cdf_threshold are both unset", id="no-rule"),
        pytest.param(["--chunk-q", "0", "4", "4"], "--chunk-q '0 4 4' is not three whole numbers from 1 on", id="zero"),
        pytest.param(
            ["--chunk-k", "4", "4"],
            "--chunk-k '4 4' is not three whole numbers from 1 on; use for example --chunk-k 4 4 4",
            id="chunk-two",
        ),
        pytest.param(
            ["--dense", "--sparsity", "0.5"], "--dense and --sparsity contradict each other", id="dense-sparsity"
        ),
        pytest.param(["--dense", "--compare"], "--dense and --compare contradict each other", id="dense-compare"),
        pytest.param(["--task", "v2v"], "unknown task 'v2v'; choose one of t2v, i2v, vc, refine", id="task"),
        pytest.param(["--prompt", ""], "the prompt is empty", id="prompt-empty"),
        pytest.param(["--prompt", "x" * 10_000], "10000 characters, the limit is 5000", id="prompt-long"),
        pytest.param(["--output", "/proc/1/nowhere/video.mp4"], "cannot write into the folder", id="output"),
        pytest.param(["--json", "/proc/1/nowhere/report.json"], "cannot write into the folder", id="json"),
        pytest.param(
            ["--compare", "--num-frames", "1"],
            "nothing to compare: num_frames 1 is a single latent frame",
            id="compare-image",
        ),
        pytest.param(
            ["--compare", "--output", "a.mp4"], "makes two videos, and a.mp4 names one file", id="compare-mp4"
        ),
        pytest.param(["--output", "x" * 300 + ".mp4"], "File name too long; choose another place", id="output-long"),
        pytest.param(["--output", "~nobody-here/v.mp4"], "a home folder that does not exist", id="output-home"),
        pytest.param(["--output", "\ud800.mp4"], "the name has invalid characters", id="output-surrogate"),
        pytest.param(["--output", ".."], "the output '..' names no file; use a name such as video.mp4", id="output-up"),
        pytest.param(["--json", "/etc"], "cannot write /etc: it is a folder; add a file name", id="json-folder"),
        pytest.param(["--prompt", "-x"], "one that begins with a dash goes behind an equals sign", id="prompt-dash"),
        pytest.param(
            ["--prompt", "a\ud800"], "the prompt has an invalid character at position 1", id="prompt-surrogate"
        ),
        pytest.param(["--guidance-scale", "nan"], "guidance_scale nan is outside 1 to 100", id="guidance-nan"),
        pytest.param(["--teacache-thresh", "1.5"], "teacache_thresh 1.5 is outside 0 to 1; use 0", id="teacache"),
        pytest.param(["--sparsity", "nan"], "sparsity must be at least 0 and below 1, got nan", id="sparsity-nan"),
        pytest.param(["--cdf-threshold", "1.1"], "cdf_threshold must be above 0 and at most 1, got 1.1", id="cdf"),
        pytest.param(["--seed", f"{2**63}"], "seed 9223372036854775808 is outside 0 to 2^63 - 1", id="seed"),
        pytest.param(["--seed", "9" * 5000], "--seed: the value is far too large", id="seed-5000-digits"),
        pytest.param(["--chunk-q", "9" * 5000, "4", "4"], "is not three whole numbers", id="chunk-5000-digits"),
        pytest.param(["--height", "1000000"], "memory", id="height-huge"),
        pytest.param(["--device", "cpu:9"], "unknown device 'cpu:9'; use auto, cpu, cuda or cuda:N", id="device-cpu-9"),
        pytest.param(["--device", "tpu"], "unknown device 'tpu'", id="device"),
        pytest.param(
            ["--forward", "fast", "--chunk-q", "2", "2", "2", "--chunk-k", "2", "2", "3"],
            "2x2x2 and 2x2x3 tokens, divides the other; use the plain one, or auto",
            id="forward",
        ),
        pytest.param(["--colour", "red"], "unrecognized arguments: --colour red", id="option"),
    ],
)
def test_bad_input(tiny_checkpoint, tmp_path, monkeypatch, capsys, args, says):
    """One line on stderr and exit code 2, before anything is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.cli.main.LongCatPipeline.load", lambda *_, **__: pytest.fail("weights were loaded"))
    try:
        prompt = [] if "--prompt" in args else ["--prompt", "x"]
        code = main(["generate", "--model-path", str(tiny_checkpoint), *prompt, *args])
    except SystemExit as leaving:  # argparse
        code = leaving.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert says in captured.err and captured.out == ""
    assert len(captured.err) < 400


def test_bad_input_leaves_no_folder(tmp_path, monkeypatch, capsys, tiny_checkpoint):
    """Neither what is refused nor what fails later makes the folders that it would have written into."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.cli.main.LongCatPipeline.load", lambda *_, **__: 1 / 0)
    args = ["generate", "--model-path", str(tiny_checkpoint), "--prompt", "x", "--json", "reports/a.json"]
    assert main([*args, "--output", "new/a.mp4", "--width", "830"]) == 2
    assert main([*args, "--output", "new/a.mp4"]) == 1
    assert main([*args, "--output", "new", "--compare"]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="int"),
        pytest.param(signal.SIGTERM, 143, id="term"),
        pytest.param(signal.SIGHUP, 129, id="hup"),
    ],
)
def test_signals(tiny_checkpoint, tmp_path, monkeypatch, capsys, number, code):
    """One word and the shell's exit code; afterwards the process reacts to signals as before."""
    before = signal.getsignal(number)
    if before == signal.SIG_IGN:
        pytest.skip("started by nohup or the like, whose wish the command line respects")
    monkeypatch.setattr("pipeline.cli.main.LongCatPipeline.load", lambda *_, **__: signal.raise_signal(number))
    output = str(tmp_path / "v.mp4")
    assert main(["generate", "--model-path", str(tiny_checkpoint), "--prompt", "x", "--output", output]) == code
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    "module", [pytest.param("torch", id="package"), pytest.param("pipeline.cli.inspect", id="command line")]
)
def test_interrupted_while_importing(tmp_path, module):
    done = interrupted_while_importing(module, tmp_path, "-m", "pipeline", "info")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_nobody_reads_the_output(tiny_checkpoint):
    """As in `python -m pipeline info | head -1`: the end of a program that SIGPIPE ends, and no word."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "info", "--model-path", str(tiny_checkpoint)],
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=300,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_failure_of_the_work_is_exit_code_1(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("the disk\nis full")

    monkeypatch.setattr("pipeline.cli.main.LongCatPipeline.load", fail)
    assert (
        main(["generate", "--model-path", str(tiny_checkpoint), "--prompt", "x", "--output", str(tmp_path / "v.mp4")])
        == 1
    )
    assert capsys.readouterr().err == "error: the disk is full\n"
