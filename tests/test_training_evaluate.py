"""The scores of videos that the pipeline makes from a picture or goes on with from a clip, and their table."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from bsa import BSAConfig
from pipeline.media.similarity import psnr
from pipeline.model.content import Judge
from training import evaluate, scores
from training.data import held_out_scenes
from training.evaluate import GIVEN_FRAMES, label, make_videos, read_frames, score_task
from training.judge import NAMES
from training.render import pack, render
from training.tasks import TASKS

SETTINGS = {"dense": None, "bsa-0.5": BSAConfig(0.5, None, (2, 2, 2), (2, 2, 2))}


@pytest.fixture(scope="module")
def folder(tiny_pipeline, tmp_path_factory):
    """Every task's videos of two prompts, dense and sparse, by a random model."""
    folder = tmp_path_factory.mktemp("clips")
    make_videos(tiny_pipeline, held_out_scenes(2), SETTINGS, list(TASKS), folder)
    return folder


def test_every_task_begins_with_its_scene(tiny_pipeline, folder):
    asked = tiny_pipeline.info.request("-")
    for number, scene in enumerate(held_out_scenes(2)):
        whole = evaluate.pixels(render(pack([scene]), asked.num_frames, asked.height, asked.width)[0])
        picture = np.asarray(Image.open(folder / f"{number:03}-picture.png"))
        clip = read_frames(folder / f"{number:03}-clip.mp4")
        assert psnr(picture[None], whole[:1]) > 60  # the same but for rounding
        assert (
            clip.shape[0] == GIVEN_FRAMES and psnr(clip, whole[:GIVEN_FRAMES]) > 25
        )  # lossy, and it moves at its speed
        assert psnr(clip[-1:], whole[GIVEN_FRAMES - 1 : GIVEN_FRAMES]) > 25
    names = {label(task, name) for task in TASKS for name in SETTINGS}
    assert {path.stem for path in folder.glob("*.mp4")} == {
        f"{number:03}-{name}" for number in range(2) for name in names | {"clip"}
    }


def test_videos_that_are_there_are_not_made_again(tiny_pipeline, folder, monkeypatch):
    monkeypatch.setattr(type(tiny_pipeline), "generate", None)
    make_videos(tiny_pipeline, held_out_scenes(2), SETTINGS, list(TASKS), folder)


@pytest.mark.parametrize("task", [task for task, given in TASKS.items() if given])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_task_is_scored_by_what_was_given(folder, task, name):
    torch.manual_seed(0)
    told = score_task(Judge(NAMES).eval(), folder, held_out_scenes(2), task, name, "cpu")
    assert set(NAMES) < set(told) and told["given psnr, worst"] <= told["given psnr"]
    assert told["seam, worst"] >= told["seam"] > 0


def test_frames_that_come_back_as_they_were_given_score_high(folder, monkeypatch):
    clip = read_frames(folder / "000-clip.mp4")
    still = np.concatenate([clip, np.repeat(clip[-1:], 4, axis=0)])
    read = evaluate.read_frames
    monkeypatch.setattr(evaluate, "read_frames", lambda file: read(file) if file.stem.endswith("clip") else still)
    told = score_task(Judge(NAMES).eval(), folder, held_out_scenes(1), "continuation", "dense", "cpu")
    assert told["given psnr"] == float("inf") and told["seam"] == 0  # nothing moves after the seam


def test_the_table_of_scores_gets_a_second_one_for_tasks():
    report = json.loads(scores.RESULTS.read_text())
    told = dict.fromkeys(scores.NAMES, 0.5) | {"given psnr": 36.04, "given psnr, worst": 31.0}
    told |= {"seam": 0.98, "seam, worst": 1.31}
    alone = scores.table({name: part for name, part in report.items() if name != "tasks"})
    both = scores.table(report | {"tasks": {"picture dense": told, "continuation bsa-0.75": told}})
    assert both.startswith(alone)
    assert both.splitlines()[-2:] == [
        "| from a picture, dense | 30 | 50% | 50% | 50% | 50% | 36.0 dB (31.0) | 0.98 (1.31) |",
        "| on from 13 frames, sparsity 0.75 | 30 | 50% | 50% | 50% | 50% | 36.0 dB (31.0) | 0.98 (1.31) |",
    ]
