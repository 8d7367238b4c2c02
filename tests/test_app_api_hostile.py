"""Values that no sensible client sends: the API answers each with one short sentence."""

from __future__ import annotations

import httpx
import pytest
from app_server import running_page
from fake_pipeline import FakePipeline
from gradio_client import Client
from gradio_client.exceptions import AppError

HUGE = 10**400
LONG_LIST = list(range(50_000))


@pytest.fixture(scope="module")
def address(outputs):
    with running_page(FakePipeline(step_seconds=0.0), outputs) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    client = Client(address, verbose=False)
    client.predict("a", job_id="known", api_name="/generate")
    return client


@pytest.mark.parametrize(
    ("path", "values", "beginning"),
    [
        pytest.param("generate", {"prompt": None}, "the prompt is a NoneType; pass text", id="no prompt"),
        pytest.param("generate", {"prompt": "🎈" * 10_000}, "the prompt has 10000 characters", id="emoji"),
        pytest.param("generate", {"width": "9" * 5000}, "width '99", id="digits as text"),
        pytest.param("generate", {"steps": HUGE}, "number of steps is far too large", id="huge number"),
        pytest.param("generate", {"seed": LONG_LIST}, "seed [0, 1, 2", id="long list"),
        pytest.param("generate", {"seed": {"a": "x " * 5000}}, "seed {'a': 'x", id="long object"),
        pytest.param("generate", {"attention": ["sparse"]}, "attention ['sparse'] is unknown", id="attention"),
        pytest.param("generate", {"job_id": "a\0b"}, "job_id 'a\\x00b' cannot be used", id="job id"),
        pytest.param("compare", {"chunk_q": HUGE}, "query chunk 1000", id="chunk"),
        pytest.param("compare", {"chunk_k": [HUGE, 4, 4]}, "key chunk T is far too large", id="chunk side"),
        pytest.param("compare", {"chunk_k": ["x" * 9999, 4, 4]}, "key chunk T 'xxx", id="chunk text"),
        pytest.param("sweep", {"rows": []}, "[] cannot be swept; choose among", id="rows list"),
        pytest.param("sweep", {"columns": {"a": 1}}, "{'a': 1} cannot be swept", id="columns object"),
        pytest.param("sweep", {"row_values": [HUGE]}, "sparsity is far too large", id="huge row"),
        pytest.param("sweep", {"row_values": ["9" * 5000], "rows": "seed"}, "seed is far too large", id="seed text"),
        pytest.param("sweep", {"row_values": LONG_LIST, "rows": "seed"}, "50000 x 1 values make", id="endless rows"),
        pytest.param("sweep", {"column_values": [1, 2]}, "column_values are given without columns", id="no columns"),
        pytest.param("estimate", {"height": HUGE}, "height is far too large", id="estimate"),
        pytest.param("inspect", {"job_id": "known", "step": HUGE}, "step is far too large", id="huge step"),
        pytest.param("inspect", {"job_id": "known", "layer": [0]}, "layer [0] is not a number", id="layer list"),
        pytest.param("inspect", {"job_id": {"a": 1}}, "job_id \"{'a': 1}\" is not a job of yours", id="inspect object"),
        pytest.param("cancel", {"job_id": None}, "job_id 'None' is not a job of yours", id="cancel none"),
        pytest.param("cancel", {"job_id": "x" * 10_000}, "job_id 'xxx", id="cancel long"),
    ],
)
def test_one_short_sentence(client, path, values, beginning):
    prompt = {"prompt": "a"} if path in ("generate", "compare", "sweep") else {}
    with pytest.raises(AppError) as caught:
        client.predict(**prompt | values, api_name=f"/{path}")
    said = str(caught.value)
    assert said.startswith(beginning)
    assert "\n" not in said and len(said) < 300


@pytest.mark.parametrize(
    ("width", "beginning"),
    [
        pytest.param("NaN", "width nan is not a whole number", id="nan"),
        pytest.param("-Infinity", "width -inf is not a whole number", id="infinity"),
        pytest.param("1e999", "width inf is not a whole number", id="beyond a float"),
        pytest.param(r'"\ud800"', r"width '\\ud800' is not a number", id="half a character"),
    ],
)
def test_json_that_the_python_client_does_not_send(address, width, beginning):
    rest = '64, 17, 2, 1.0, 1, null, 0.75, null, [4, 4, 4], [4, 4, 4], "mean", 0, 0, 1, 0, "sparse", null'
    call = f"{address}/gradio_api/call/generate"
    body = f'{{"data": ["a", "", {width}, {rest}]}}'
    asked = httpx.post(call, content=body, headers={"Content-Type": "application/json"}, timeout=60)
    answer = httpx.get(f"{call}/{asked.json()['event_id']}", timeout=60)
    assert f'"error": "{beginning}' in answer.text


@pytest.mark.parametrize(
    ("path", "values", "says"),
    [
        pytest.param("generate", ["a"], "/generate takes 20 values in this order: prompt, negative_prompt,", id="few"),
        pytest.param("cancel", ["a", "b"], "/cancel takes 1 values in this order: job_id; 2 were given", id="many"),
        pytest.param("resources", ["a"], "/resources takes 0 values in this order: none; 1 were given", id="none"),
    ],
)
def test_a_wrong_number_of_values(address, path, values, says):
    call = f"{address}/gradio_api/call/{path}"
    asked = httpx.post(call, json={"data": values}, timeout=60)
    answer = httpx.get(f"{call}/{asked.json()['event_id']}", timeout=60)
    assert f'"error": "{says}' in answer.text


@pytest.mark.parametrize(
    ("asked", "status", "size"),
    [
        pytest.param("bytes=0-3", 206, 4, id="one"),
        pytest.param("bytes=4-", 206, None, id="open"),
        pytest.param("bytes=-4", 206, 4, id="the last"),
        pytest.param("bytes=0-3,8-11", 206, None, id="several"),
        pytest.param("bytes=999999999-", 416, None, id="beyond"),
        pytest.param("bytes=999999999-9999999999", 416, None, id="beyond, closed"),
        pytest.param("bytes=a-b,c", 400, None, id="no numbers"),
    ],
)
def test_ranges_of_a_video(address, client, outputs, asked, status, size):
    path = next(outputs.glob("*-*/sparse.mp4"))
    answer = httpx.get(f"{address}/gradio_api/file={path}", headers={"Range": asked, "X-Mine": "secret"})
    assert answer.status_code == status
    assert "x-mine" not in answer.headers
    if size:
        assert len(answer.content) == size and answer.headers["content-range"].startswith("bytes ")
    if "," in asked and status == 206:
        assert answer.headers["content-type"].startswith("multipart/byteranges")
        whole = path.read_bytes()
        assert whole[:4] in answer.content and whole[8:12] in answer.content


def test_a_fault_of_the_program_is_a_sentence_too(client, monkeypatch, caplog):
    monkeypatch.setattr("ui.api.endpoints.read_resources", lambda *given: [][1])
    with pytest.raises(AppError, match="^IndexError: list index out of range; the server's log has the details$"):
        client.predict(api_name="/resources")
    assert "/resources failed" in caplog.text


@pytest.mark.parametrize("prompt", ["a\0b", "🎈👩‍👩‍👧", "\x1b[31m", "a" * 5000])
def test_odd_prompts_are_text(client, prompt):
    assert client.predict(prompt, api_name="/generate")[1]["request"]["prompt"] == prompt
