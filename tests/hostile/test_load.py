"""Many who wait, and one who pretends to be many."""

from __future__ import annotations

import errno
import logging
import resource
import socket
import sqlite3
import threading
from contextlib import closing

import httpx
import pytest
from app_server import free_port, served, until
from fake_pipeline import CHECKPOINT, FakePipeline
from gradio_client import Client
from test_pipeline_estimate import CPU, INFO, calibration, request, result

import app
from pipeline.estimate.estimator import FILE_NAME, Estimator
from pipeline.estimate.ledger import MOST_RUNS
from ui import build_page
from ui.access import connections, guard
from ui.access.bodies import LARGEST
from ui.access.connections import Sparing, raise_handle_limit
from ui.jobs import queue
from ui.jobs.estimates import Estimates
from ui.jobs.eta import Outlook
from ui.jobs.job import VideoJob
from ui.jobs.worker import MAX_WAITING, Worker
from ui.storage import database
from ui.storage import store as stores
from ui.storage.store import Record, Store


class TestWaiting:
    @pytest.fixture
    def worker(self, tmp_path):
        """Never started: what is submitted waits."""
        return Worker(lambda say: FakePipeline(), tmp_path, INFO.name)

    @pytest.fixture
    def asked(self, monkeypatch):
        """Every estimate that is made."""
        made, estimate = [], Estimator.estimate
        monkeypatch.setattr(Estimator, "estimate", lambda self, wanted: made.append(wanted) or estimate(self, wanted))
        return made

    def test_a_job_is_estimated_once_however_many_wait(self, worker, tmp_path, asked):
        learnt = Estimator(INFO, CPU, tmp_path / FILE_NAME)
        learnt.calibrate(calibration())
        for number in range(MOST_RUNS):
            learnt.observe(result(request(steps=5 + number % 10)))
        estimates = Estimates(INFO, worker, "cpu")
        jobs = [worker.submit(VideoJob(request(seed=n), False, owner=f"visitor:{n}")) for n in range(MAX_WAITING)]
        assert len(asked) <= 2 * MAX_WAITING, "to see whether it fits, and how long it takes"
        asked.clear()
        for _ in range(10):
            texts = [worker.queue.waiting_text(job) for job in jobs]
        assert texts[-1].startswith("Waiting for 199 other jobs, about ")
        assert not asked, "what the queue knows is not estimated again for each who asks"

        made = VideoJob(request(), False)
        made.results = {"sparse": result(request(), slower=3)}
        before = worker.queue.wait_seconds(jobs[-1])
        for _ in range(MOST_RUNS):
            estimates._estimator.observe(made.results["sparse"])
        for listener in worker.listeners:
            listener(made)
        assert len(asked) == MAX_WAITING, "once more, because this machine has shown how fast it is"
        assert worker.queue.wait_seconds(jobs[-1]) > before
        assert worker.queue.wait_seconds(jobs[-1]) == pytest.approx(199 * estimates.of(request()).seconds["total"])

    def test_turns_are_counted_once_for_each_change(self, worker, monkeypatch):
        counted = []
        monkeypatch.setattr(queue, "Outlook", lambda *given: counted.append(0) or Outlook(*given))
        jobs = [worker.submit(VideoJob(request(seed=n), False)) for n in range(50)]
        assert [worker.ahead(job) for job in jobs] == list(range(50))
        worker.stop(jobs[10])
        assert [worker.ahead(job) for job in jobs[11:]] == list(range(10, 49))
        assert len(counted) == 2

    def test_one_address_gets_half_of_the_queue_whoever_it_says_it_is(self, worker):
        def submit(number: int, address: str) -> None:
            worker.submit(VideoJob(request(), False, owner=f"session:{number}", address=address))

        for number in range(MAX_WAITING // 2):
            submit(number, "192.0.2.1")
        with pytest.raises(ValueError, match="^100 jobs from your network address are waiting and the limit is 100"):
            submit(MAX_WAITING, "192.0.2.1")
        submit(MAX_WAITING + 1, "192.0.2.2")


def test_calls_are_heard_while_more_wait_than_gradio_has_threads(tmp_path):
    pipeline = FakePipeline(step_seconds=0)
    small = {"width": 32, "height": 32, "num_frames": 5, "steps": 1}
    with served(tmp_path, pipeline) as address, pipeline.held():
        clients = [Client(address, verbose=False) for _ in range(3)]
        for client in clients:
            for number in range(15):
                client.submit(f"clip {number}", **small, api_name="/generate")

        def told() -> str:
            return clients[0].submit(api_name="/resources").result(timeout=60)["worker"]["message"]

        until(lambda: told().endswith("44 waiting"), "all of them")


class TestRecords:
    """Another program keeps the record of jobs locked."""

    OWNER = "visitor:a"

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch):
        monkeypatch.setattr(database, "WRITE_SECONDS", 0.01)
        monkeypatch.setattr(database, "READ_SECONDS", 0.01)
        monkeypatch.setattr(stores, "RETRY_SECONDS", 0.01)

    @pytest.fixture
    def file(self, tmp_path):
        Store(tmp_path).close()
        return tmp_path / ".app" / "jobs.sqlite"

    def record(self, name: str, **changes) -> Record:
        return Record(name, self.OWNER, "video", **{"state": "done", "submitted": float(ord(name))} | changes)

    def kept(self, file) -> list[str]:
        with closing(sqlite3.connect(file)) as db:
            return [row[0] for row in db.execute("SELECT id FROM jobs ORDER BY id")]

    def test_nothing_is_lost_and_all_is_seen_meanwhile(self, file, tmp_path):
        with closing(Store(tmp_path)) as store:
            store.write(self.record("a"))
            store.flush()
            with closing(sqlite3.connect(file)) as other:
                other.execute("BEGIN EXCLUSIVE")
                store.write(self.record("b"))
                store.write(self.record("c", state="running"))
                store.flush()
                assert [record.id for record in store.runs(self.OWNER)] == ["b", "a"]
                assert store.read("c").state == "running"
                assert store.newest(self.OWNER, "video") == "c"
                store.write(self.record("c"))
                assert [record.id for record in store.runs(self.OWNER, 2)] == ["c", "b"]
            store.flush()
            assert self.kept(file) == ["a", "b", "c"]
            assert [record.id for record in store.runs(self.OWNER)] == ["c", "b", "a"]

    def test_closing_writes_the_rest(self, file, tmp_path):
        store = Store(tmp_path)
        with closing(sqlite3.connect(file)) as other:
            other.execute("BEGIN EXCLUSIVE")
            store.write(self.record("a"))
            store.flush()
        store.close()
        assert self.kept(file) == ["a"]

    def test_locked_at_the_start(self, file, tmp_path):
        with closing(sqlite3.connect(file)) as other:
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            store = Store(tmp_path)
            store.write(self.record("a"))
            store.flush()
            assert [record.id for record in store.runs(self.OWNER)] == ["a"]
        store.close()
        assert self.kept(file) == ["a"]

    def test_one_that_cannot_be_written_keeps_nobody_up(self, tmp_path, file, caplog):
        with closing(Store(tmp_path)) as store:
            store.write(self.record("a", error="\ud800"))
            store.write(self.record("b"))
            store.flush()
        assert self.kept(file) == ["b"]
        assert "job a cannot be recorded" in caplog.text

    def test_whoever_writes_waits_for_no_disk(self, tmp_path, monkeypatch):
        threads, write = [], Store._write
        monkeypatch.setattr(
            Store, "_write", lambda self, record: threads.append(threading.current_thread()) or write(self, record)
        )
        with closing(Store(tmp_path)) as store:
            store.write(self.record("a"))
        assert threads and threading.current_thread() not in threads


class TestStarts:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch):
        monkeypatch.setattr("ui.jobs.runner.RETRY_SECONDS", 0.01)

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            pytest.param(OSError(errno.EMFILE, "Too many open files"), "the server has too many files", id="handles"),
            pytest.param(OSError(errno.EAGAIN, "Try again"), "a file of it could not be read, or its", id="processes"),
            pytest.param(RuntimeError("CUDA is busy"), "RuntimeError: CUDA is busy; the server's log", id="anything"),
        ],
    )
    def test_the_next_job_has_the_engine_started_again(self, tmp_path, error, sentence):
        failures = [error] * 2

        def load(say):
            if failures:
                raise failures.pop()
            return FakePipeline(step_seconds=0)

        with closing(Worker(load, tmp_path, "fake").start()) as worker:
            until(lambda: worker.state == "failed", "the first start")
            jobs = [VideoJob(INFO.request("x", width=32, height=32, num_frames=5, steps=1), False) for _ in range(3)]
            for job in jobs:
                worker.submit(job)
                until(lambda job=job: job.over, "the job")
        assert [job.state for job in jobs] == ["failed", "done", "done"]
        assert jobs[0].error.startswith(f"fake could not be loaded: {sentence}")


class TestConnections:
    def connect(self, address: str) -> socket.socket:
        host, port = address.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)))
        connection.settimeout(60)  # only against hanging
        return connection

    def closed(self, connection: socket.socket) -> bool:
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True

    def test_those_beyond_the_bound_are_closed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(connections, "MOST", 8)
        with served(tmp_path) as address:
            idle = [self.connect(address) for _ in range(12)]
            assert all(self.closed(connection) for connection in idle[8:])
            for connection in idle:
                connection.close()
            until(lambda: self.answers(address), "the page, when there is room again")

    def answers(self, address: str) -> bool:
        try:
            return httpx.get(address).status_code == 200
        except httpx.TransportError:
            return False

    def test_those_without_a_request_are_closed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(connections, "IDLE_SECONDS", 0.1)
        with served(tmp_path) as address:
            silent, slow = self.connect(address), self.connect(address)
            slow.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
            assert self.closed(silent) and self.closed(slow)
            assert self.answers(address)

    def test_the_limit_of_handles_is_raised(self):
        soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
            given = raise_handle_limit()
            assert given == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            assert given == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    def test_a_line_that_comes_again_and_again_is_written_now_and_then(self, caplog):
        clock = [0.0]
        log = logging.getLogger("test of sparing")
        log.addFilter(Sparing(lambda: clock[0]))
        for clock[0] in (0.0, 1.0, 2.0, 10.0):
            for _ in range(1000):
                log.error("no handles for %s", "this")
        log.error("another")
        assert [record.getMessage() for record in caplog.records] == [
            "no handles for this",
            "no handles for this (and 2999 more like it)",
            "another",
        ]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with served(tmp_path_factory.mktemp("outputs")) as address:
        yield address


class TestMemory:
    def test_sessions_are_bounded(self, tmp_path, monkeypatch):
        monkeypatch.setattr(app, "MOST_SESSIONS", 5)
        worker = Worker(lambda say: FakePipeline(), tmp_path, "fake").start()
        page = build_page(CHECKPOINT, worker)
        port = free_port()
        app.serve(page, tmp_path, host="127.0.0.1", port=port, block=False)
        try:
            call = f"http://127.0.0.1:{port}/gradio_api/call/resources"
            for _ in range(12):
                asked = httpx.post(call, json={"data": []}).json()["event_id"]
                assert "event: complete" in httpx.get(f"{call}/{asked}", timeout=60).text
            assert len(page.app.state_holder.session_data) <= 5
        finally:
            page.close(verbose=False)
            worker.close()

    @pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "text/plain"])
    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_only_uploads_are_large(self, address, method, kind):
        def body():  # without a length, so that it has to be read
            for _ in range(LARGEST // 2**20 + 1):
                yield bytes(2**20)

        answer = httpx.request(
            method, f"{address}/gradio_api/queue/join", content=body(), headers={"Content-Type": kind}
        )
        assert (answer.status_code, "upload files instead" in answer.text) == (413, True)

    def test_what_says_that_it_is_large_is_not_read(self, address):
        with socket.create_connection((address[7:].split(":")[0], int(address.rpartition(":")[2]))) as connection:
            connection.settimeout(60)
            head = f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: {30 * 2**20}\r\n\r\n"
            connection.sendall(head.encode())
            assert b" 413 " in connection.recv(100)

    def test_many_at_once_are_bounded(self, address, monkeypatch):
        monkeypatch.setattr(guard, "MOST_AT_ONCE", 1000)
        large = httpx.post(f"{address}/gradio_api/queue/join", content=b"1" * 2000)
        assert (large.status_code, "try again in a moment" in large.text) == (503, True)
        assert httpx.post(f"{address}/gradio_api/queue/join", content=b"1" * 500).status_code == 422
