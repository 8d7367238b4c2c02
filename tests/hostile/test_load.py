"""Many who wait, and one who pretends to be many."""

from __future__ import annotations

import pytest
from fake_pipeline import FakePipeline
from test_pipeline_estimate import CPU, INFO, calibration, request, result

from pipeline.estimate.estimator import FILE_NAME, Estimator
from pipeline.estimate.ledger import MOST_RUNS
from ui.jobs.estimates import Estimates
from ui.jobs.job import VideoJob
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
