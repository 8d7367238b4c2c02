"""Values that a person never enters, in a video's settings and in the model field: each is one sentence."""

from __future__ import annotations

import json
import subprocess
import uuid

import httpx
import imageio_ffmpeg
import numpy as np
import pytest
from app_server import running_page
from fake_pipeline import FakePipeline

from pipeline.media.comment import read_settings
from pipeline.media.write import write_video

REQUEST = {
    "prompt": "a",
    "height": 64,
    "width": 64,
    "num_frames": 5,
    "steps": 2,
    "guidance_scale": 1.0,
    "seed": 1,
    "fps": 15,
    "bsa": None,
}
REFINE = {"refine": {"video": "/\ud800.mp4"}, "lora": "refine", "num_frames": 10}
NAN = float("nan")


def chunk(side):
    return {"sparsity": 0.5, "chunk_3d_shape_q": [side, 1, 1], "chunk_3d_shape_k": [4, 4, 4]}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    page = running_page(FakePipeline(step_seconds=0.0), tmp_path_factory.mktemp("outputs"), model_switch=True)
    with page as address:
        yield address


@pytest.fixture(scope="module")
def events(address):
    """Events by the id of the element that is their only input."""
    config = httpx.get(f"{address}/config").json()
    names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
    return {names[event["inputs"][0]]: event["id"] for event in config["dependencies"] if len(event["inputs"]) == 1}


def video(path, comment):
    """A clip that carries a comment, written as it is."""
    write_video(path.with_name("plain.mp4"), np.zeros((5, 32, 32, 3), np.uint8), 15, {})
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path.with_name("plain.mp4")), "-c", "copy"]
    subprocess.run([*command, "-metadata", f"comment={comment}", str(path)], check=True, stdin=subprocess.DEVNULL)
    return path


@pytest.mark.parametrize(
    ("comment", "says"),
    [
        pytest.param({"request": REQUEST | {"width": 16e30}}, "width is far too large", id="width"),
        pytest.param({"request": REQUEST | {"height": 16 * 10**400}}, "height is far too large", id="height"),
        pytest.param({"request": REQUEST | {"seed": 1e300}}, "seed is far too large", id="seed"),
        pytest.param({"request": REQUEST | {"bsa": chunk(10**30)}}, "is far too large", id="chunk"),
        pytest.param({"request": REQUEST | {"guidance_scale": NAN}}, "guidance nan is outside", id="nan"),
        pytest.param({"request": REQUEST | {"prompt": "\ud800"}}, "the prompt has an invalid character", id="prompt"),
        pytest.param({"request": REQUEST | {"lora": "\ud800"}}, "is not the name of an adapter", id="lora"),
        pytest.param({"request": REQUEST | {"\ud800": 1}}, "unknown request field", id="name"),
        pytest.param({"request": REQUEST | {"bsa": {"\ud800": 1}}}, "unknown bsa_params", id="name-in-bsa"),
        pytest.param({"request": REQUEST | {"bsa": [1]}}, "The settings in a.mp4 cannot be used", id="bsa-list"),
        pytest.param('{"request":' + "[" * 9999 + "]" * 9999 + "}", "does not say how it was made", id="nested"),
        pytest.param({"request": REQUEST | REFINE}, "It was refined from ?.mp4", id="clip"),
        pytest.param({"request": REQUEST, "checkpoint": "\ud800"}, "with the checkpoint ?", id="checkpoint"),
        pytest.param({"request": REQUEST, "versions": {"torch": "\ud800"}}, "with torch ?", id="versions"),
    ],
)
def test_a_dropped_video(address, events, tmp_path, comment, says):
    comment = comment if isinstance(comment, str) else json.dumps(comment)
    file = video(tmp_path / "a.mp4", comment)
    path = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.mp4", file.read_bytes())}).json()[0]
    dropped = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.mp4"}
    body = {"data": [dropped], "fn_index": events["drop"], "session_hash": uuid.uuid4().hex}
    answer = httpx.post(f"{address}/gradio_api/run/predict", json=body, timeout=60)
    assert answer.status_code == 200
    assert says.lower() in answer.text.lower().replace("&#x27;", "'")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("/" + "a" * 5000, id="5000-characters"),
        pytest.param("a" * 5000, id="5000-characters-relative"),
        pytest.param("a/" + "b" * 5000, id="5000-characters-like-a-hub-id"),
        pytest.param("/\ud800", id="half-a-character"),
        pytest.param("\ud800/\ud800", id="half-a-character-like-a-hub-id"),
        pytest.param("a\0b", id="null"),
        pytest.param("/a\x1b[2J", id="control"),
        pytest.param("~nobody-of-this-name/x", id="no-home"),
        pytest.param(None, id="nothing"),
        pytest.param(5, id="number"),
        pytest.param(["x"], id="list"),
        pytest.param({"a": 1}, id="object"),
    ],
)
def test_a_model(address, events, name):
    """Refused in a sentence, after which the button can be pressed again."""
    session = uuid.uuid4().hex
    body = {"data": [name], "fn_index": events["model"], "session_hash": session}
    asked = httpx.post(
        f"{address}/gradio_api/queue/join", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert asked.status_code == 200
    with httpx.stream("GET", f"{address}/gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        messages = (json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:"))
        ended = next(message for message in messages if message["msg"] == "process_completed")
    assert ended["success"]
    status, load, cancel, *_ = ended["output"]["data"]
    assert 'role="alert"' in status and len(status) < 1000
    assert (load["interactive"], cancel["interactive"]) == (True, False)


@pytest.mark.parametrize("side", [10**30, 2**64])
def test_chunks_beyond_any_number_are_refused(tmp_path, side):
    file = video(tmp_path / "a.mp4", json.dumps({"request": REQUEST | {"bsa": chunk(side)}}))
    with pytest.raises(ValueError, match="chunk_q is far too large; enter a smaller number"):
        read_settings(file)
