"""The worker: order, progress, stopping, limits, waiting times, listeners, errands and what it forgets."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace

import pytest
from app_server import WAIT_SECONDS, until
from fake_engine import NOWHERE
from fake_pipeline import CHECKPOINT, FakePipeline

from pipeline import FromFrames, StepUpdate
from pipeline.engine.process import EngineProcess
from ui.jobs.eta import duration_text
from ui.jobs.job import Mark, VideoJob
from ui.jobs.worker import Worker


def job_of(prompt: str = "a red ball", *, both: bool = False, owner: str = "", **fields) -> VideoJob:
    return VideoJob(CHECKPOINT.request(prompt, **fields), side_by_side=both, owner=owner)


@pytest.fixture
def worker_of(tmp_path):
    workers = []

    def make(pipeline, **limits) -> Worker:
        load = pipeline if callable(pipeline) or isinstance(pipeline, EngineProcess) else lambda say: pipeline
        workers.append(Worker(load, tmp_path / "outputs", "fake", **limits).start())
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def run(worker: Worker, job: VideoJob) -> VideoJob:
    worker.submit(job)
    until(lambda: job.over, "the job")
    return job


class TestJobs:
    def test_side_by_side(self, worker_of):
        job = run(worker_of(FakePipeline()), job_of(both=True))
        assert (job.state, job.error, list(job.results)) == ("done", "", ["dense", "sparse"])
        assert [job.results[arm].request.bsa is None for arm in job.results] == [True, False]
        assert {"dense.mp4", "report.json", "sparse.mp4"} <= {path.name for path in job.folder.iterdir()}
        written = json.loads((job.folder / "report.json").read_text())
        assert written == job.report()
        assert written["sparse"]["video"] == "sparse.mp4", "a reader elsewhere has no use for a path on the server"

    def test_one_at_a_time(self, worker_of):
        pipeline = FakePipeline()
        worker = worker_of(pipeline)
        jobs = [worker.submit(job_of(seed=seed)) for seed in range(4)]
        until(lambda: all(job.over for job in jobs), "four jobs")
        assert pipeline.most_running == 1
        assert [request.seed for request in pipeline.requests] == [0, 1, 2, 3]

    def test_stop_ends_within_a_step(self, worker_of):
        pipeline = FakePipeline(step_seconds=0.05)
        worker = worker_of(pipeline)
        job = worker.submit(job_of(steps=500, both=True))
        until(lambda: pipeline.steps_done >= 2, "two steps")
        worker.stop(job)
        done = pipeline.steps_done
        until(lambda: job.over, "the stop")
        assert job.state == "stopped"
        assert pipeline.steps_done <= done + 1
        assert run(worker, job_of()).state == "done"

    def test_stop_takes_a_waiting_job_out(self, worker_of):
        pipeline = FakePipeline(step_seconds=0.05)
        worker = worker_of(pipeline)
        first, second = worker.submit(job_of(steps=500)), worker.submit(job_of(seed=99))
        until(lambda: first.state == "running", "the first job")
        assert worker.waiting_text(second).startswith("Waiting for 1 other job")
        worker.stop(second)
        assert second.state == "stopped", "a job that has not begun stops at once"
        worker.stop(first)
        until(lambda: first.over, "the first job's end")
        assert 99 not in [request.seed for request in pipeline.requests]

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            pytest.param(ValueError("width 1 is odd; try 2"), "width 1 is odd; try 2", id="ours"),
            pytest.param(RuntimeError("kernel\nbroke"), "RuntimeError: kernel broke; the", id="unexpected"),
            pytest.param(OSError(28, "No space left on device"), "the video could not be written", id="disk full"),
            pytest.param(MemoryError(), "the device ran out of memory; use a smaller size", id="memory"),
        ],
    )
    def test_failure_ends_the_job_only(self, worker_of, error, sentence):
        worker = worker_of(FakePipeline(fail_with=error))
        job = run(worker, job_of("fail", both=True))
        assert job.state == "failed"
        assert job.error.startswith(sentence)
        assert run(worker, job_of(both=True)).state == "done"

    def test_failed_load_fails_waiting_and_later_jobs(self, worker_of):
        go = threading.Event()

        def load(say):
            say("Reading shards")
            go.wait(WAIT_SECONDS)
            raise ValueError("device 'cuda' was asked for, but there is none; use cpu")

        worker = worker_of(load)
        job = worker.submit(job_of())
        until(lambda: worker.message == "Reading shards", "the loader's message")
        assert worker.status() == {"state": "loading", "message": "Reading shards"}
        go.set()
        until(lambda: job.over, "the failure")
        assert "there is none; use cpu" in job.error
        with pytest.raises(ValueError, match="there is none; use cpu"):
            worker.submit(job_of())

    def test_nothing_to_compare(self):
        with pytest.raises(ValueError, match="nothing to compare: num_frames 1 is a single latent frame"):
            job_of(num_frames=1, both=True)


class TestOrder:
    @pytest.mark.parametrize(
        ("speedup", "order"),
        [
            pytest.param(None, ["dense", "sparse"], id="not known"),
            pytest.param(0.9, ["dense", "sparse"], id="slower"),
            pytest.param(2.0, ["sparse", "dense"], id="faster"),
        ],
    )
    def test_the_faster_video_is_made_first_and_shown_in_the_same_place(self, worker_of, speedup, order):
        fake = FakePipeline(step_seconds=0)
        worker = worker_of(fake)
        worker.on_submit.append(lambda job: setattr(job, "speedup", speedup))
        job = run(worker, job_of(both=True, steps=2))
        assert ["dense" if made.bsa is None else "sparse" for made in fake.requests] == order
        assert list(job.results) == list(job.arms) == ["dense", "sparse"]
        assert list(job.report())[:2] == ["dense", "sparse"]
        assert job.marks[0].arm == order[0]

    def test_what_keeps_keys_and_values_begins_with_the_dense_one(self):
        """No sparse pass can be timed beside it otherwise."""
        job = job_of(both=True)
        job.speedup = 2.0
        assert job.sparse_first
        job.request = replace(job.request, start=FromFrames(video="clip.mp4"))
        assert not job.sparse_first


class TestQueue:
    def test_limits(self, worker_of):
        worker = worker_of(FakePipeline(step_seconds=0.05), max_waiting=3, max_waiting_of_one=2)
        first = worker.submit(job_of(steps=900, owner="a"))
        until(lambda: first.state == "running", "the first job")
        for _ in range(2):
            worker.submit(job_of(owner="a"))
        with pytest.raises(ValueError, match="^2 jobs of yours are waiting and the limit is 2; stop one"):
            worker.submit(job_of(owner="a"))
        last = worker.submit(job_of(owner="b"))
        with pytest.raises(ValueError, match="^3 jobs are waiting and the limit is 3; try again"):
            worker.submit(job_of(owner="c"))
        worker.stop(last)
        assert worker.submit(job_of(owner="c")).state == "waiting"
        assert [job.owner for job in worker.live("a")] == ["a"] * 3

    def test_a_check_may_refuse(self, worker_of):
        def check(job):
            raise ValueError("too large; try less")

        worker = worker_of(FakePipeline())
        worker.admit.append(check)
        told = []
        worker.on_submit.append(told.append)
        with pytest.raises(ValueError, match="too large; try less"):
            worker.submit(job_of())
        assert told == []

    def test_only_the_owner_finds_a_job(self, worker_of):
        worker = worker_of(FakePipeline())
        job = run(worker, job_of(owner="a"))
        assert worker.find(job.id, "a") is job
        assert worker.find(job.id, "b") is None

    def test_old_jobs_are_forgotten(self, worker_of):
        worker = worker_of(FakePipeline(step_seconds=0), kept_jobs=2)
        jobs = [run(worker, job_of(steps=1)) for _ in range(4)]
        until(lambda: worker.find(jobs[1].id, "") is None, "the second job to be forgotten")
        assert [worker.find(job.id, "") for job in jobs] == [None, None, *jobs[2:]]
        worker.archive = {jobs[0].id: jobs[0]}.get
        assert worker.find(jobs[0].id, "") is jobs[0]

    def test_close_ends_everything(self, worker_of):
        worker = worker_of(FakePipeline(step_seconds=0.05))
        jobs = [worker.submit(job_of(steps=900)) for _ in range(2)]
        until(lambda: jobs[0].update is not None, "the first step")
        worker.close()
        until(lambda: all(job.over for job in jobs), "the end")
        assert [job.state for job in jobs] == ["stopped", "stopped"]
        with pytest.raises(ValueError, match="shutting down"):
            worker.submit(job_of())


class TestListeners:
    def test_each_hears_of_every_end(self, worker_of):
        worker = worker_of(FakePipeline(step_seconds=0.05))
        heard = []

        def broken(job):
            raise RuntimeError("a listener's own fault")

        worker.listeners += [broken, lambda job: heard.append((job.request.seed, job.state, job.over))]
        run(worker, job_of(seed=1, steps=1))
        running, waiting = worker.submit(job_of(seed=2, steps=900)), worker.submit(job_of(seed=3))
        until(lambda: running.update is not None, "the first step")
        worker.stop(waiting)
        worker.stop(running)
        until(lambda: running.over, "the stop")
        # not yet over: whoever waits for that finds everything written that the listeners write
        assert heard == [(1, "done", False), (3, "stopped", False), (2, "stopped", False)]


class TestWaitingTime:
    def test_from_the_running_jobs_steps(self):
        job = job_of(both=True, steps=10)
        job.started = time.time()
        job.begin_video("dense")
        assert job.remaining() is None
        job.note(StepUpdate("denoise", 4, 10, 8.0))
        assert job.remaining() == pytest.approx(6 * 2 + 10 * 2), "the rest of this video, and another like it"

    def test_from_the_videos_made(self, worker_of):
        job = run(worker_of(FakePipeline()), job_of(steps=4))
        both = job_of(both=True, steps=4)
        both.results = {"dense": replace(job.results["sparse"], seconds={"total": 30.0})}
        both.begin_video("sparse")
        both.note(StepUpdate("denoise", 1, 4, 5.0))
        assert both.remaining() == pytest.approx(15)

    def test_the_other_video_takes_as_much_longer_as_expected(self):
        for arm, other in (("sparse", 10 * 2 * 3), ("dense", 10 * 2 / 3)):
            job = job_of(both=True, steps=10)
            job.speedup = 3.0
            job.begin_video(arm)
            job.note(StepUpdate("denoise", 4, 10, 8.0))
            assert job.remaining() == pytest.approx(6 * 2 + other)

    def test_decoding_counts_as_long_as_it_takes(self, worker_of):
        """Of small videos it is most of the time."""
        made = run(worker_of(FakePipeline()), job_of(steps=4)).results["sparse"]
        job = job_of(both=True, steps=10)
        job.speedup = 3.0
        job.begin_video("sparse")
        job.marks = [Mark(100.0, "sparse", "denoise"), Mark(120.0, "sparse", "decode")]
        job.update = StepUpdate("decode", 2, 8, 5.0)
        assert job.remaining() == pytest.approx(15 + 20 * 3 + 20)
        job.results = {"sparse": replace(made, seconds={"decode": 20.0})}
        job.begin_video("dense")
        job.note(StepUpdate("denoise", 4, 10, 24.0))
        assert job.remaining() == pytest.approx(36 + 20)
        job.note(StepUpdate("decode", 0, 8, 0.0))
        assert job.remaining() is None
        job.note(StepUpdate("decode", 6, 8, 15.0))
        assert job.remaining() == pytest.approx(5)

    def test_jobs_before_this_one(self, worker_of):
        worker = worker_of(FakePipeline(step_seconds=0.05))
        run(worker, job_of(steps=4))
        first, second, third = (worker.submit(job_of(steps=4 if seed else 900, seed=seed)) for seed in range(3))
        until(lambda: first.update is not None and first.update.step >= 2, "two steps")
        assert worker.ahead(third) == 2
        between = worker.queue.wait_seconds(third) - worker.queue.wait_seconds(second)
        # four steps of 0.05 s, an encoder's start and what a loaded machine adds
        assert 0.2 <= between < 20
        assert worker.waiting_text(third).startswith("Waiting for 2 other jobs, about ")
        worker.queue.predict = lambda job: 3600.0
        worker.queue.predict_anew()
        assert worker.queue.wait_seconds(third) >= 3600
        assert worker.queue.seconds_left(third) >= 7200

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            pytest.param(0.2, "1 s", id="least"),
            pytest.param(9.4, "9 s", id="seconds"),
            pytest.param(9.6, "10 s", id="fives"),
            pytest.param(43, "45 s", id="more fives"),
            pytest.param(59, "1 min", id="a minute"),
            pytest.param(200, "3 min", id="minutes"),
            pytest.param(4800, "1 h 20 min", id="hours"),
        ],
    )
    def test_text(self, seconds, text):
        assert duration_text(seconds) == text


class TestErrands:
    def test_this_process_has_no_engine_of_its_own(self, worker_of):
        worker = worker_of(FakePipeline())
        assert worker.engine_pid == os.getpid()
        assert worker.torch_memory() is None
        assert worker.calibrate() == []
        with pytest.raises(ValueError, match="one checkpoint only; start another one with --model-path elsewhere"):
            worker.load("elsewhere")

    def test_calibration_waits_for_its_turn_and_leaves_no_trace(self, worker_of, tmp_path, monkeypatch):
        monkeypatch.setattr(EngineProcess, "calibrate", lambda engine: engine.call("fake_engine:describe"))
        worker = worker_of(EngineProcess("fake_engine:load"))
        heard = []
        worker.listeners.append(heard.append)
        job = worker.submit(job_of())
        assert [point["requests"] for point in worker.calibrate()] == [1]
        assert heard == [job]
        assert [path.name for path in (tmp_path / "outputs").iterdir()] == [job.folder.name]

    def test_another_checkpoint(self, worker_of, tiny_checkpoint, tmp_path):
        """Switched when its turn has come; one that cannot be loaded leaves the former in place."""
        worker = worker_of(EngineProcess("fake_engine:load", path="first"))
        before = worker.submit(job_of())
        switch = worker.load(tiny_checkpoint)
        until(lambda: switch.over, "the switch")
        assert (before.state, switch.state, worker.name) == ("done", "done", tiny_checkpoint.name)
        nowhere = tmp_path / NOWHERE
        nowhere.symlink_to(tiny_checkpoint)
        switch, meant_for_it = worker.load(nowhere), worker.submit(job_of())
        until(lambda: switch.over and meant_for_it.over, "the failed switch")
        assert (switch.state, meant_for_it.state) == ("failed", "failed")
        assert "nothing can be loaded from nowhere" in switch.error
        assert (worker.name, worker.state) == (tiny_checkpoint.name, "ready")
        assert run(worker, job_of()).state == "done"
        with pytest.raises(ValueError, match="there is no checkpoint at"):
            worker.load(tmp_path / "missing")
