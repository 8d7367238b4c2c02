"""The whole pipeline on two ranks: the same videos, records and progress, and what a lost rank does to a job."""

import json
import os
import subprocess
import sys

import pytest
from programs import HERE, ROOT, run_program

from pipeline import read_settings


@pytest.fixture(scope="module")
def found(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    run_program("parallel_team.py", tiny_checkpoint, folder)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", ["guided", "threshold", "dense", "continued"])
def test_the_video_of_one_process(found, name):
    video = found[name]
    # A pixel may round to the other side; a wrong strip or step would be tens of levels off.
    assert video["largest"] <= 1 and video["same_steps"]
    for name in ("density", "kept"):
        assert video[name][0] == pytest.approx(video[name][1])


@pytest.mark.parametrize("name", ["guided", "threshold"])
@pytest.mark.parametrize("part", ["selections", "density", "recall", "block_recall"])
def test_the_record_of_one_process(found, name, part):
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
    assert found["next"]["largest"] <= 1


def test_under_torchrun(tiny_checkpoint, tmp_path):
    """The command line, of which every process runs the same; rank 0 alone writes and reports."""
    video = tmp_path / "out.mp4"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipeline"]
    options = ["--num-frames", "9", "--height", "48", "--width", "64", "--steps", "2", "--device", "cpu", "--json", "-"]
    command += ["generate", "--model-path", tiny_checkpoint, "--prompt", "a ball", "--output", video, *options]
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, cwd=HERE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["versions"]["gpus"] == "2"
    assert read_settings(video).versions["gpus"] == "2"
