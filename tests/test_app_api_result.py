"""Calls whose client is gone: what becomes of their jobs, and how a result is had over another connection."""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from app_server import running_page, served, until
from fake_pipeline import FakePipeline
from gradio_client import Client
from gradio_client.exceptions import AppError

from ui.access.presence import Presence, session_of_stream
from ui.api.calls import Calls


def post(address: str, endpoint: str, *values) -> str:
    """Begin a REST call; the address of its stream."""
    call = f"{address}/gradio_api/call/{endpoint}"
    return f"{call}/{httpx.post(call, json={'data': values}).raise_for_status().json()['event_id']}"


def told(address: str, endpoint: str, *values) -> dict:
    """What a REST call returns."""
    answer = httpx.get(post(address, endpoint, *values), timeout=60).text
    assert "event: complete" in answer, answer
    return json.loads(answer.rpartition("data: ")[2])[0]


@contextmanager
def streaming(stream: str):
    """A client that hears of its call, until it is cut off."""
    with httpx.stream("GET", stream, timeout=60):
        yield


def generate(address: str, job_id: str | None = None) -> str:
    return post(address, "generate", *values_of(address, "/generate", prompt="a", steps=3, job_id=job_id))


def values_of(address: str, endpoint: str, **given) -> list:
    table = httpx.get(f"{address}/gradio_api/info").json()["named_endpoints"][endpoint]["parameters"]
    return [given.get(one["parameter_name"], one["parameter_default"]) for one in table]


def test_a_job_without_its_client_is_stopped(address, fake, monkeypatch):
    with fake.held():
        with streaming(generate(address)):
            until(lambda: fake.running, "the job to run")
            monkeypatch.setattr("ui.api.calls.GRACE_SECONDS", 0.0)
        until(lambda: not fake.running, "the end of a job that nobody waits for")


def test_a_client_that_never_asks_for_its_stream_is_gone_too(address, fake, monkeypatch):
    with fake.held():
        generate(address)
        until(lambda: fake.running, "the job to run")
        monkeypatch.setattr("ui.api.calls.GRACE_SECONDS", 0.0)
        until(lambda: not fake.running, "the end of the job")


def test_a_client_that_stays_keeps_its_job(address, fake, monkeypatch):
    with fake.held():
        job = Client(address, verbose=False).submit("a", api_name="/generate")
        until(lambda: fake.running and job.status().progress_data, "progress over the stream")
        monkeypatch.setattr("ui.api.calls.GRACE_SECONDS", 0.2)
        reports = fake.reports_while_held
        until(lambda: fake.reports_while_held > reports + 2, "more than the grace")
        assert fake.running
    assert Path(job.result()[0]).is_file()


def test_a_cut_stream_loses_no_video(address, fake):
    name = uuid.uuid4().hex
    with fake.held():
        with streaming(generate(address, name)):
            until(lambda: fake.running, "the job to run")
        asked = told(address, "result", name)
        assert (asked["state"], asked["videos"], asked["report"]) == ("running", {}, None)
    until(lambda: told(address, "result", name)["state"] == "done", "the end of the job")
    answer = Client(address, verbose=False).predict(name, api_name="/result")
    assert Path(answer["videos"]["sparse"]).read_bytes()[4:8] == b"ftyp"
    assert answer["report"]["job_id"] == name
    assert answer["report"]["request"]["prompt"] == "a"


def test_a_rest_call_is_cancelled_over_another(address, fake):
    name = uuid.uuid4().hex
    with fake.held(), streaming(generate(address, name)):
        until(lambda: fake.running, "the job to run")
        assert told(address, "cancel", name) == {"job_id": name, "state": "stopping"}
        until(lambda: not fake.running, "the end of the job")
    assert told(address, "result", name)["state"] == "stopped"


def test_the_jobs_own_id_is_known_to_who_has_it(address):
    report = Client(address, verbose=False).predict("a", api_name="/generate")[1]
    stranger = Client(address, verbose=False)
    assert stranger.predict(report["job_id"], api_name="/result")["state"] == "done"
    assert stranger.predict(report["job_id"], api_name="/inspect")["recall"] > 0


def test_a_failed_job_and_a_pair_and_a_sweep(tmp_path):
    with running_page(FakePipeline(0, fail_with=RuntimeError("broken")), tmp_path) as address:
        client = Client(address, verbose=False)
        with pytest.raises(AppError):
            client.predict("fail", job_id="broken", api_name="/compare")
        failed = client.predict("broken", api_name="/result")
        assert (failed["state"], failed["report"], failed["videos"]) == ("failed", None, {})
        assert failed["message"].startswith("RuntimeError: broken")
        client.predict("a", job_id="pair", api_name="/compare")
        pair = client.predict("pair", api_name="/result")
        assert pair["videos"].keys() == {"dense", "sparse"} and pair["report"]["speedup"] > 0
        client.predict("a", row_values=[0.5], job_id="grid", api_name="/sweep")
        grid = client.predict("grid", api_name="/result")
        assert len(grid["videos"]) == 2 and Path(grid["table"]).read_text().startswith("attention,row,")
        assert Path(grid["report"]["cells"][0]["video"]).is_file()


def test_with_logins_an_id_is_its_owners_only(tmp_path):
    name = uuid.uuid4().hex
    with served(tmp_path, FakePipeline(0), logins=[("ada", "a"), ("bob", "b")]) as address:
        ada, bob = (Client(address, verbose=False, auth=login) for login in (("ada", "a"), ("bob", "b")))
        own = ada.predict("a", job_id=name, api_name="/generate")[1]["job_id"]
        assert Client(address, verbose=False, auth=("ada", "a")).predict(own, api_name="/result")["state"] == "done"
        for job_id in (name, next(tmp_path.glob("*-*/sparse.mp4")).parent.name.rpartition("-")[2]):
            with pytest.raises(AppError, match="is not a job of yours"):
                bob.predict(job_id, api_name="/result")


class TestPresence:
    @pytest.mark.parametrize(
        ("path", "query", "session"),
        [
            pytest.param("/gradio_api/queue/data", b"session_hash=abc", "abc", id="queue"),
            pytest.param("/gradio_api/call/generate/abc", b"", "abc", id="REST"),
            pytest.param("/gradio_api/call/v2/generate/abc", b"", "abc", id="REST, second version"),
            pytest.param("/gradio_api/call/generate", b"session_hash=abc", "", id="a call's beginning"),
            pytest.param("/gradio_api/info", b"session_hash=abc", "", id="no stream"),
        ],
    )
    def test_sessions_of_streams(self, path, query, session):
        assert session_of_stream(path, query) == session

    def test_a_session_is_seen_as_long_as_one_of_its_streams(self):
        now = 0.0
        presence = Presence(lambda: now)
        assert presence.seen("a") == float("-inf")
        with presence.connected("a"):
            with presence.connected("a"):
                now = 5.0
            now = 9.0
            assert presence.seen("a") == 9.0
        now = 20.0
        assert presence.seen("a") == 9.0

    def test_who_asks_for_a_job_keeps_it(self, monkeypatch):
        now = 0.0
        presence = Presence(lambda: now)
        calls = Calls(None, presence)
        job = type("Job", (), {})()
        now = 100.0
        assert calls._away(job, "a", 0.0) == 100.0
        calls._asked[job] = 90.0
        assert calls._away(job, "a", 0.0) == 10.0
