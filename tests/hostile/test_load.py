"""Many who wait, and one who pretends to be many."""

from __future__ import annotations

import errno
import sqlite3
import threading
from contextlib import closing

import pytest
from app_server import until
from fake_pipeline import FakePipeline
from test_pipeline_estimate import CPU, INFO, calibration, request, result

from pipeline.estimate.estimator import FILE_NAME, Estimator
from pipeline.estimate.ledger import MOST_RUNS
from ui.jobs import store as stores
from ui.jobs.estimates import Estimates
from ui.jobs.job import VideoJob
from ui.jobs.store import Record, Store
from ui.jobs.worker import MAX_WAITING, Worker


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
        counted, turns = [], worker.queue._turns
        monkeypatch.setattr(worker.queue, "_turns", lambda: counted.append(0) or turns())
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


class TestRecords:
    """Another program keeps the record of jobs locked."""

    OWNER = "visitor:a"

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch):
        monkeypatch.setattr(stores, "WRITE_SECONDS", 0.01)
        monkeypatch.setattr(stores, "READ_SECONDS", 0.01)
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
        monkeypatch.setattr("ui.jobs.worker.RETRY_SECONDS", 0.01)

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
