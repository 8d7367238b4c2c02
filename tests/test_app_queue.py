"""The queue: who comes when, also beside a job of several parts and with several engines, and how long that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
from app_server import until
from fake_pipeline import CHECKPOINT, FakePipeline

from pipeline import Axis, Sweep
from ui.jobs.job import Job, VideoJob
from ui.jobs.queue import JobQueue
from ui.jobs.sweep_job import SweepJob
from ui.jobs.worker import Worker

SECONDS = 10.0  # of each part


@dataclass(eq=False)
class Parts(Job):
    """Only counts its turns."""

    name: str = ""
    count: float = 1

    @property
    def unfinished(self) -> bool:
        return self.count > 0

    @property
    def parts(self) -> float:
        return float(self.count)

    def remaining(self) -> float:
        return self.count * SECONDS


@dataclass(eq=False)
class Wall(Parts):
    barrier: ClassVar[bool] = True
    errand: ClassVar[bool] = True


def job_of(word: str) -> Parts:
    """ "A1" is a job of A in one part, "A1*3" one in three parts, "-1" one of nobody, "|" what nobody may overtake."""
    name, _, count = word.partition("*")
    kind = Wall if name == "|" else Parts
    return kind(name, int(count or 1), owner="" if name[0] in "-|" else name[0])


def queue_of(words: str) -> tuple[JobQueue, list[Parts]]:
    queue, jobs = JobQueue(100, 100, 100), [job_of(word) for word in words.split()]
    queue.predict = lambda job: job.count * SECONDS
    for job in jobs:
        queue.put(job)
    return queue, jobs


def played(queue: JobQueue) -> list[str]:
    """The turns as a worker takes them."""
    turns = []
    while len(queue):
        job = queue.take()
        while True:
            turns.append(job.name)
            job.count -= 1
            if not job.unfinished or queue.give_way(job):
                break
    return turns


ORDERS = [
    pytest.param("A1 B1 A2", "A1 B1 A2", id="first-come"),
    pytest.param("A1*3", "A1 A1 A1", id="alone"),
    pytest.param("A1*3 B1", "A1 B1 A1 A1", id="one-other"),
    pytest.param("A1*3 B1 B2 B3 B4", "A1 B1 A1 B2 A1 B3 B4", id="many-jobs-of-one-other"),
    pytest.param("A1*3 B1 B2 C1", "A1 B1 B2 A1 C1 A1", id="two-others"),
    pytest.param("A1*2 A2", "A1 A1 A2", id="own-jobs-wait"),
    pytest.param("A1*2 A2 B1", "A1 A2 B1 A1", id="own-job-before-another's"),
    pytest.param("A1*2 B1*2", "A1 B1 A1 B1", id="two-of-several-parts"),
    pytest.param("A1*2 B1*3 C1", "A1 B1 C1 A1 B1 B1", id="three-people"),
    pytest.param("-1*2 -2 -3", "-1 -2 -3 -1", id="nobody-is-not-one-person"),
    pytest.param("A1*2 | B1", "A1 A1 | B1", id="nothing-overtakes-a-change-of-model"),
    pytest.param("A1*3 B1 | B2", "A1 B1 A1 A1 | B2", id="before-a-change-of-model"),
]


@pytest.mark.parametrize(("words", "order"), ORDERS)
def test_order(words, order):
    queue, _ = queue_of(words)
    assert played(queue) == order.split()


@pytest.mark.parametrize(("words", "order"), ORDERS)
@pytest.mark.parametrize("begun", [pytest.param(False, id="waiting"), pytest.param(True, id="first-runs")])
def test_places_and_times_come_true(words, order, begun):
    """What the queue says beforehand is what then happens."""
    queue, jobs = queue_of(words)
    if begun:
        queue.take()
    turns = order.split()
    for job in jobs:
        first, last = turns.index(job.name), len(turns) - 1 - turns[::-1].index(job.name)
        assert [other.name for other in queue.before(job)] == list(dict.fromkeys(turns[:first]))
        assert queue.wait_seconds(job) == pytest.approx(first * SECONDS)
        assert queue.seconds_left(job) == pytest.approx((last + 1) * SECONDS)


def test_the_part_under_way_counts_for_what_is_left_of_it():
    queue, (long, other) = queue_of("A1*3 B1")
    queue.take().started = 1.0
    long.count -= 0.75
    assert queue.wait_seconds(other) == pytest.approx(0.25 * SECONDS)
    assert queue.seconds_left(long) == pytest.approx((0.25 + 1 + 2) * SECONDS)


def play_on(queue: JobQueue, engines: int) -> dict[str, tuple[float, float]]:
    """When each job begins and ends, with engines that take a part for SECONDS each, in steps of that."""
    times: dict[str, tuple[float, float]] = {}
    at: list[Parts] = list(queue.running)
    for job in at:
        times[job.name] = (0.0, math.nan)
    now = 0.0
    while at or len(queue):
        while len(at) < engines and queue.ready:
            at.append(job := queue.take())
            times.setdefault(job.name, (now, math.nan))
        now += SECONDS
        for job in list(at):
            job.count -= 1
            if job.count <= 0:
                times[job.name] = times[job.name][0], now
                queue.end(job)
            if job.count <= 0 or queue.give_way(job):
                at.remove(job)
    return times


@pytest.mark.parametrize(
    ("words", "begin"),
    [
        pytest.param("A1 A2 A3 A4 A5", "0 0 0 1 1", id="first-come"),
        pytest.param("A1*3 B1 B2 B3 B4 C1", "0 0 0 1 1 2", id="a-sweep-lets-others-pass"),
        pytest.param("A1*4 B1*2 C1 D1", "0 0 0 1", id="two-sweeps"),
        pytest.param("A1*2 B1 | C1 D1", "0 0 2 3 3", id="a-change-of-model-runs-alone"),
        pytest.param("A1", "0", id="fewer-jobs-than-engines"),
    ],
)
@pytest.mark.parametrize("begun", [pytest.param(0, id="waiting"), pytest.param(2, id="two-run")])
def test_three_engines_begin_and_end_as_the_queue_says(words, begin, begun):
    queue, jobs = queue_of(words)
    queue.engines = lambda: 3
    for _ in range(min(begun, len(jobs))):
        queue.take()
    said = {job.name: (queue.wait_seconds(job), queue.seconds_left(job)) for job in jobs}
    played = play_on(queue, 3)
    assert {name: pytest.approx(times) for name, times in played.items()} == said
    assert [played[job.name][0] / SECONDS for job in jobs] == [float(turn) for turn in begin.split()]


def test_a_job_waits_for_as_many_as_must_end():
    queue, jobs = queue_of("A1 A2 A3 A4 A5 A6")
    queue.engines = lambda: 3
    assert [queue.waiting_text(job).partition(",")[0] for job in jobs] == [
        *["Starting…"] * 3,
        "Waiting for 1 other job",
        "Waiting for 2 other jobs",
        "Waiting for 3 other jobs",
    ]
    for _ in range(3):
        queue.take()
    assert [queue.place(job) for job in jobs] == [1, 1, 1, 1, 2, 3]


def test_behind_what_nobody_knows_the_others_are_still_told():
    """One engine at a job of unknown length leaves two that get free at known times."""
    queue, jobs = queue_of("A1 A2 A3 A4")
    queue.engines = lambda: 3
    queue.predict = lambda job: None if job is jobs[0] else SECONDS
    queue.predict_anew()
    assert [queue.wait_seconds(job) for job in jobs] == [0.0, 0.0, 0.0, SECONDS]
    queue.engines = lambda: 1
    queue.predict_anew()
    assert [queue.wait_seconds(job) for job in jobs] == [0.0, None, None, None]


def test_one_that_lost_its_engine_is_the_next():
    queue, (first, second, third) = queue_of("A1 B1 C1")
    queue.take().started = 1.0
    queue.put_back(first)
    assert (first.state, first.started, queue.running) == ("waiting", 0.0, [])
    assert [queue.take(), queue.take(), queue.take()] == [first, second, third]


def test_one_that_is_to_stop_does_not_wait_first():
    queue, (long, _) = queue_of("A1*3 B1")
    queue.take()
    long.stop()
    assert not queue.give_way(long)


class TestSweeps:
    """The same with a real sweep, a worker and the fake pipeline."""

    @pytest.fixture
    def fake(self):
        return FakePipeline(step_seconds=0.0)

    @pytest.fixture
    def worker(self, fake, tmp_path):
        worker = Worker(lambda say: fake, tmp_path / "outputs", "fake").start()
        yield worker
        worker.close()

    def sweep(self, owner: str = "A") -> SweepJob:
        request = CHECKPOINT.request("a red ball", width=32, height=32, num_frames=5, steps=2, seed=1)
        return SweepJob(Sweep(request, Axis.of("sparsity", "0.25, 0.5, 0.75")), owner=owner)

    def video(self, owner: str) -> VideoJob:
        return VideoJob(
            CHECKPOINT.request("other", width=32, height=32, num_frames=5, steps=2, seed=7), False, owner=owner
        )

    def test_somebody_else_comes_after_one_video(self, worker, fake):
        with fake.held():
            sweep = worker.submit(self.sweep())
            until(lambda: sweep.current is not None, "the first video")
            own, other = worker.submit(self.video("A")), worker.submit(self.video("B"))
            assert [job for job in worker.queue.before(other)] == [sweep, own]
        until(lambda: all(job.over for job in (sweep, own, other)), "all")
        assert [request.seed for request in fake.requests] == [1, 7, 7, 1, 1, 1]
        assert [job.state for job in (sweep, own, other)] == ["done"] * 3
        assert (len(sweep.result.dense), len(sweep.result.cells)) == (1, 3)
        assert all(cell.psnr is not None for cell in sweep.result.cells), "measured against the dense video of before"
        assert 0 < sweep.away < sweep.ended - sweep.started

    def test_a_sweep_that_gave_way_says_so_and_can_be_stopped(self, worker, fake):
        with fake.held():
            sweep = worker.submit(self.sweep())
            until(lambda: fake.running, "the first video")
            other = worker.submit(self.video("B"))  # while that is made: without somebody who waits a sweep goes on
            with fake.held():  # the next one, then
                until(lambda: other.state == "running", "the other's turn")
                assert (sweep.state, sweep.over, sweep.tried) == ("waiting", False, 1)
                assert worker.waiting_text(sweep).startswith("Waiting for 1 other job")
                worker.stop(sweep)
                assert (sweep.state, len(sweep.results)) == ("stopped", 1)
        until(lambda: other.over, "the other's video")
        assert (other.state, len(fake.requests)) == ("done", 2)

    def test_alone_it_never_waits(self, worker, fake):
        seen = []
        worker.on_part.append(lambda job: seen.append(job.state))
        sweep = worker.submit(self.sweep())
        until(lambda: sweep.over, "the sweep")
        assert (sweep.state, sweep.away, seen) == ("done", 0.0, ["running"] * 3)
