"""The whole pipeline on two ranks: the same videos, records and progress, and what a lost rank does to a job."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import torch
from programs import HERE, ROOT, run_program

from pipeline import read_settings
from pipeline.parallel.launch import Followers

TWO_GPUS = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices")]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=TWO_GPUS)])
def found(request, tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    run_program("parallel_team.py", tiny_checkpoint, folder, request.param)
    return json.loads((folder / "found.json").read_text()) | {"device": request.param}


def assert_same(found, video):
    """On the CPU, a pixel may round to the other side; a wrong strip or step would be tens of levels off. On a GPU,
    bfloat16 rounds more, and selects other blocks at near ties."""
    assert video["largest"] <= 1 if found["device"] == "cpu" else video["psnr"] > 25


@pytest.mark.parametrize("name", ["guided", "threshold", "dense", "teacache", "continued"])
def test_the_video_of_one_process(found, name):
    video = found[name]
    assert_same(found, video)
    assert video["same_steps"]
    assert video["passes"] == ([4, 4] if name == "teacache" else [2, 2])
    near = 1e-6 if found["device"] == "cpu" else 0.02
    for name in ("density", "kept") if video["kept"] != [None, None] else ("density",):
        assert video[name][0] == pytest.approx(video[name][1], rel=near)


@pytest.mark.parametrize("name", ["guided", "threshold", "teacache"])
@pytest.mark.parametrize("part", ["selections", "density", "recall", "block_recall"])
def test_the_record_of_one_process(found, name, part):
    if found["device"] == "cuda" and part != "density":
        pytest.skip("near ties are decided by rounding")
    assert found[name][f"record {part}"]


def test_the_video_says_how_many_made_it(found):
    assert found["versions"] == "2"


def test_stopping_and_refusing_leave_the_ranks_as_they_are(found):
    assert found["cancelled"].startswith("Cancelled")
    assert found["missing"].startswith("ValueError")
    assert found["still there"] is True


def test_a_killed_rank_ends_its_job_with_a_sentence_and_the_next_one_runs(found):
    assert found["killed"] == (
        "RankLost: GPU 1 of 2 is lost: its process was killed, which is what the system does when memory runs out; the "
        "others were stopped too, and the next video starts all of them again"
    )
    assert_same(found, found["next"])


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("out_of_memory", "it ran out of memory; use a smaller size, fewer frames or more GPUs"),
        ("left", "its process ended with exit code 7"),
    ],
)
def test_a_rank_that_is_lost_says_why(program, why):
    followers = Followers(f"parallel_faults:{program}", {}, 2)
    try:
        doors = [at.laddr for at in psutil.Process().net_connections("tcp") if at.status == "LISTEN"]
        assert [door.ip for door in doors if door.port == followers.store.port] == ["127.0.0.1"]
        assert _wait(lambda: not followers.alive)
        assert followers.lost().startswith(f"GPU 1 of 2 is lost: {why}; the others were stopped")
    finally:
        followers.close()


def _wait(until, seconds=60):
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        time.sleep(0.1)
    return until()


def test_under_torchrun(tiny_checkpoint, tmp_path):
    """The command line, of which every process runs the same; rank 0 alone writes and reports."""
    video = tmp_path / "out.mp4"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipeline"]
    options = ["--num-frames", "9", "--height", "48", "--width", "64", "--steps", "2", "--device", "cpu", "--json", "-"]
    command += ["generate", "--model-path", tiny_checkpoint, "--prompt", "a ball", "--output", video, *options]
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, cwd=HERE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["versions"]["gpus"] == "2"
    assert read_settings(video).versions["gpus"] == "2"
