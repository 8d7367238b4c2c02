"""Several engines behind one queue: each works alone, one that dies loses its job only, and that is made once more."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from app_server import until
from fake_pipeline import CHECKPOINT, FakePipeline

import app
from pipeline import EMBEDDED_CHECKPOINT
from pipeline.engine import share
from pipeline.engine.parent import EngineDied
from pipeline.engine.process import EngineProcess, InProcess
from pipeline.engine.share import shares
from pipeline.machine.device import DeviceName
from pipeline.machine.nvml import GpuReading
from ui.jobs.job import VideoJob
from ui.jobs.monitor import Monitor
from ui.jobs.worker import Worker

SMALL = {"width": 32, "height": 32, "num_frames": 5, "steps": 2, "guidance_scale": 1.0}


def job_of(prompt: str = "a red ball", *, owner: str = "", both: bool = False, **fields) -> VideoJob:
    return VideoJob(CHECKPOINT.request(prompt, **SMALL | fields), both, owner=owner)


class Mortal(InProcess):
    """An engine in this process that dies under a job with the prompt "die", as a child process does."""

    tries = 2
    path = Path()

    def __init__(self, fake: FakePipeline | None = None, fails: int = 0) -> None:
        super().__init__(lambda say: self)
        self.fake = fake or FakePipeline(step_seconds=0)
        self.device = self.fake.device
        self.alive, self.fails, self.starts = False, fails, 0

    def start(self, say):
        self.starts += 1
        if self.fails:
            self.fails -= 1
            raise EngineDied("the engine was killed")
        self.alive = True
        return self

    def check_switch(self, path):
        """Any will do."""

    def switch(self, path):
        self.path = path

    def generate_frames(self, request, on_step, output):
        if request.prompt == "die":
            self.alive = False
            raise EngineDied("the engine was killed")
        return self.fake.generate_frames(request, on_step, output)


@pytest.fixture
def worker_of(tmp_path, monkeypatch):
    monkeypatch.setattr("ui.jobs.runner.RETRY_SECONDS", 0.01)
    workers = []

    def make(*engines, **limits) -> Worker:
        workers.append(Worker(engines, tmp_path / "outputs", "fake", **limits).start())
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def wait(*jobs: VideoJob) -> None:
    until(lambda: all(job.over for job in jobs), "the jobs")


class TestShares:
    """Who gets what of a machine of four GPUs, or of eight threads."""

    @pytest.fixture
    def gpus(self, monkeypatch):
        found = [GpuReading(n, "H100", 0, 2**36, 0, uuid=f"GPU-{n}") for n in range(4)]
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(share, "visible_gpus", lambda gpus: found)
        monkeypatch.setattr(share, "expected_device", lambda device, count: DeviceName("cuda", int(device[-1])))

    @pytest.mark.parametrize(
        ("device", "of_each", "engines", "expected"),
        [
            pytest.param("cuda:0", 1, 4, ["0", "1", "2", "3"], id="four-of-one"),
            pytest.param("cuda:0", 2, 2, ["0,1", "2,3"], id="two-of-two"),
            pytest.param("cuda:1", 1, 2, ["1", "2"], id="not-from-the-first-on"),
        ],
    )
    def test_gpus(self, gpus, device, of_each, engines, expected):
        parts = shares(device, of_each, engines)
        assert [part.environment["CUDA_VISIBLE_DEVICES"] for part in parts] == expected
        assert {part.device for part in parts} == {"cuda:0"}, "each counts its own from 0"
        here = [str(part.as_here(DeviceName("cuda", 0))) for part in parts]
        assert here == [f"cuda:{names.split(',')[0]}" for names in expected], "for readings in this process"

    def test_gpus_that_the_server_was_given(self, gpus, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b,GPU-c,GPU-d")
        parts = shares("cuda:0", 2, 2)
        assert [part.gpus for part in parts] == [("GPU-a", "GPU-b"), ("GPU-c", "GPU-d")]
        assert parts[1].text == "GPUs GPU-c, GPU-d"

    @pytest.mark.parametrize(
        ("device", "of_each", "engines", "sentence"),
        [
            pytest.param("cuda:0", 1, 5, "5 engines of one GPU take 5 .* has 4, .* use --engines 4 or fewer$", id="5"),
            pytest.param("cuda:0", 2, 3, "3 engines of 2 GPUs take 6 .* use --engines 2 or fewer, or a sm", id="3x2"),
            pytest.param("cuda:3", 1, 2, "take 2 from cuda:3 on, .* use --engines 1 or fewer$", id="too far on"),
            pytest.param("cuda:0", 1, 0, "--engines is 0; use 1 or more", id="none"),
        ],
    )
    def test_more_than_there_is(self, gpus, device, of_each, engines, sentence):
        with pytest.raises(ValueError, match=sentence):
            shares(device, of_each, engines)

    def test_threads(self, monkeypatch):
        monkeypatch.setattr(share, "processor_threads", lambda: 8)
        assert [part.environment for part in shares("cpu", 1, 3)] == [{"OMP_NUM_THREADS": "2"}] * 3
        assert shares("cpu", 2, 2)[0].text == "2 of 8 threads of the processor, in each of 2 processes"
        with pytest.raises(ValueError, match="^9 engines take 9 threads .* and 8 are there; use --engines 8 or fewer$"):
            shares("cpu", 1, 9)

    def test_one_engine_changes_nothing(self):
        (only,) = shares("cpu", 1, 1)
        assert (only.environment, only.device, only.gpus) == ({}, "", ())


class TestOptions:
    def test_the_server_has_so_many_engines(self, tmp_path, monkeypatch):
        built = []
        monkeypatch.setattr(share, "processor_threads", lambda: 8)
        monkeypatch.setattr(app, "build_page", lambda checkpoint, worker, *_, **__: built.append(worker))
        monkeypatch.setattr(app, "serve", lambda *_, **__: None)
        monkeypatch.setattr(Worker, "start", lambda self: self)
        assert app.main(["--device", "cpu", "--engines", "2", "--output-dir", str(tmp_path)]) == 0
        engines = [runner.engine for runner in built[0].runners]
        assert [engine.share.environment for engine in engines] == [{"OMP_NUM_THREADS": "4"}] * 2
        assert {engine.path for engine in engines} == {EMBEDDED_CHECKPOINT}

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            pytest.param(["--engines", "999"], "999 engines take 999 threads of the processor", id="too many"),
            pytest.param(["--ray", "auto", "--model-switch"], "leave out one of the two", id="other models on Ray"),
            pytest.param(["--ray", "auto", "--device", "cuda:1"], "use auto, cuda or cpu", id="a GPU of Ray's"),
        ],
    )
    def test_what_cannot_be_is_refused(self, tmp_path, capsys, options, sentence):
        assert app.main(["--device", "cpu", "--output-dir", str(tmp_path), *options]) == 2
        assert sentence in capsys.readouterr().err


class TestTurns:
    def test_each_engine_makes_one_at_a_time(self, worker_of):
        fakes = [FakePipeline(step_seconds=0.0) for _ in range(3)]
        worker = worker_of(*map(Mortal, fakes))
        until(lambda: worker.message == "fake is ready", "all engines")
        with ExitStack() as held:
            for fake in fakes:
                held.enter_context(fake.held())
            jobs = [worker.submit(job_of(seed=seed)) for seed in range(6)]
            until(lambda: len(worker.queue.running) == 3, "three at once")
            assert worker.status()["message"].startswith("fake is making 3 videos")
        wait(*jobs)
        made = [request.seed for fake in fakes for request in fake.requests]
        assert sorted(made) == list(range(6))
        assert [fake.most_running for fake in fakes] == [1, 1, 1]
        assert {job.engine for job in jobs} == {0, 1, 2}

    def test_stop_ends_that_job_only(self, worker_of):
        worker = worker_of(*(Mortal(FakePipeline(step_seconds=0.02)) for _ in range(2)))
        one, two = (worker.submit(job_of(steps=900)) for _ in range(2))
        until(lambda: one.update is not None and two.update is not None, "both")
        worker.stop(two)
        wait(two)
        assert (one.state, two.state) == ("running", "stopped")
        worker.stop(one)

    def test_half_of_the_queue_for_one_address(self, worker_of):
        worker = worker_of(*(Mortal(FakePipeline(step_seconds=0.02)) for _ in range(2)), max_waiting=4)
        running = [worker.submit(job_of(steps=900)) for _ in range(2)]
        until(lambda: len(worker.queue.running) == 2, "both engines")

        def submit(owner: str) -> VideoJob:
            job = job_of(owner=owner)
            job.address = "198.51.100.1"
            return worker.submit(job)

        submit("a")
        submit("b")
        with pytest.raises(ValueError, match="^2 jobs from your network address are waiting and the limit is 2"):
            submit("c")
        for job in running:
            worker.stop(job)

    def test_readings_are_those_of_the_engine_that_makes_the_job(self, worker_of):
        worker = worker_of(Mortal(), Mortal())
        monitor = Monitor(worker)
        job = job_of()
        job.engine = 1
        assert monitor.sampler(job) is monitor.samplers[1] is not monitor.sampler()
        for sampler in monitor.samplers:
            sampler.stop()


class TestDeath:
    def test_a_job_that_ends_every_engine_is_ended_after_two(self, worker_of):
        engines = [Mortal() for _ in range(3)]
        worker = worker_of(*engines)
        bad, *good = (worker.submit(job_of(prompt)) for prompt in ("die", "a", "b", "c", "d"))
        wait(bad, *good)
        assert [job.state for job in good] == ["done"] * 4
        assert (bad.state, bad.lost) == ("failed", 2)
        assert bad.error == "it was begun twice, and both times the engine ended: the engine was killed"
        until(lambda: worker.message == "fake is ready", "all engines")
        assert sum(engine.starts for engine in engines) == 3 + 2

    def test_with_one_engine_nothing_is_put_back(self, worker_of):
        worker = worker_of(Mortal())
        job = worker.submit(job_of("die"))
        wait(job)
        assert (job.state, job.error) == ("failed", "the engine was killed")

    def test_an_engine_that_cannot_be_started_leaves_the_work_to_others(self, worker_of):
        good, bad = Mortal(), Mortal(fails=99)
        worker = worker_of(good, bad)
        until(lambda: worker.runners[1].state == "failed", "the end of trying")
        jobs = [worker.submit(job_of(seed=seed)) for seed in range(3)]
        wait(*jobs)
        assert [job.state for job in jobs] == ["done"] * 3
        assert (worker.state, worker.message) == ("ready", "fake is ready on 1 of 2 engines")

    def test_jobs_fail_when_no_engine_is_left(self, worker_of):
        begin = threading.Event()

        class Slow(Mortal):
            def start(self, say):
                begin.wait()
                return super().start(say)

        engines = Slow(fails=99), Slow(fails=99)
        worker = worker_of(*engines)
        jobs = [worker.submit(job_of(seed=seed)) for seed in range(3)]
        begin.set()
        wait(*jobs)
        for engine in engines:
            engine.fails = 0
        assert {(job.state, job.error) for job in jobs} == {
            ("failed", "fake could not be loaded: the engine was killed")
        }
        later = worker.submit(job_of())
        wait(later)
        assert later.state == "done", "the next job has them started again"


class TestAnotherModel:
    def test_all_load_it_alone(self, worker_of):
        """When those that run are done, and before those that come after it begin."""
        engines = [Mortal(FakePipeline(step_seconds=0.05)) for _ in range(3)]
        worker = worker_of(*engines)
        before = [worker.submit(job_of(seed=seed)) for seed in range(4)]
        switch, after = worker.load(EMBEDDED_CHECKPOINT), [worker.submit(job_of(seed=seed)) for seed in range(4)]
        wait(*before, switch, *after)
        assert {job.state for job in (*before, switch, *after)} == {"done"}
        assert max(job.ended for job in before) <= switch.started <= switch.ended <= min(job.started for job in after)
        until(lambda: worker.message == f"{worker.name} is ready", "all engines")
        assert {engine.path for engine in engines} == {EMBEDDED_CHECKPOINT.resolve()}
        assert [engine.starts for engine in engines] == [2] * 3

    def test_one_that_cannot_be_loaded_reaches_one_engine_only(self, worker_of):
        engines = [Mortal() for _ in range(3)]
        worker = worker_of(*engines)
        until(lambda: worker.message == "fake is ready", "all engines")
        for engine in engines:
            engine.fails = 2  # as often as it is tried
        switch = worker.load(EMBEDDED_CHECKPOINT)
        wait(switch)
        assert switch.state == "failed"
        assert "the engine was killed" in switch.error
        assert (worker.message, {engine.path for engine in engines}) == ("fake is ready", {Path()})
        assert sorted(engine.starts for engine in engines) == [1, 1, 1 + 2 + 1]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Two real processes."""
    threads = share.Share({"OMP_NUM_THREADS": "1"}, "cpu")
    engines = [EngineProcess("fake_engine:load", share=threads, path="first", step_seconds=0.02) for _ in range(2)]
    worker = Worker(engines, tmp_path_factory.mktemp("outputs"), "first").start()
    until(lambda: worker.message == "first is ready", "both engines")
    yield worker
    worker.close()


class TestProcesses:
    """One of them is killed in the middle."""

    def test_a_killed_engine_loses_its_job_only_and_that_is_made_once_more(self, pool):
        long = [pool.submit(job_of(f"long {n}", steps=60, both=n == 1)) for n in range(2)]
        until(lambda: all(job.update is not None and job.update.step > 1 for job in long), "all under way")
        victim = long[1]
        runner = pool.runners[victim.engine]
        os.kill(runner.pid, signal.SIGKILL)
        until(lambda: victim.lost, "the loss")
        wait(*long)
        assert [(job.state, job.lost) for job in long] == [("done", 0), ("done", 1)]
        assert [result.request.prompt for result in victim.results.values()] == ["long 1"] * 2
        assert not list(victim.folder.glob(".*partial*")), "the killed process's unfinished files are gone"
        until(lambda: runner.state == "ready", "the engine again")

    def test_many_clients_lose_nothing_and_get_nothing_twice(self, pool):
        """A small one; `benchmarks/soak.py --engines 4` has 40 clients and 200 jobs."""
        ended = Counter()
        pool.listeners.append(lambda job: ended.update([job.id]))

        def make(number: int) -> VideoJob:
            job = pool.submit(job_of(f"clip {number}", owner=f"client {number % 8}"))
            wait(job)
            return job

        with ThreadPoolExecutor(8) as clients:
            made = clients.map(make, range(16))
            until(lambda: sum(ended.values()) >= 4, "some")
            os.kill(pool.runners[1].pid, signal.SIGKILL)
            jobs = list(made)
        assert [(job.state, job.results["sparse"].request.prompt) for job in jobs] == [
            ("done", f"clip {number}") for number in range(16)
        ]
        assert set(ended.values()) == {1}
        assert len({job.engine for job in jobs}) > 1
