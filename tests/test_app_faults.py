"""What ends a job must end that job only: errors of every kind, a full disk, and the death of the engine's process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from app_server import WAIT_SECONDS, free_port, until
from fake_pipeline import CHECKPOINT, draw

from pipeline import EMBEDDED_CHECKPOINT, Cancelled, inspect_checkpoint
from pipeline.engine import child
from pipeline.engine.process import EngineDied, EngineProcess
from ui.jobs.job import VideoJob
from ui.jobs.worker import Worker

ROOT = Path(__file__).parents[1]


def job_of(prompt: str = "a red ball", *, both: bool = False, **fields) -> VideoJob:
    return VideoJob(CHECKPOINT.request(prompt, **fields), side_by_side=both)


def run(worker: Worker, job: VideoJob) -> VideoJob:
    worker.submit(job)
    until(lambda: job.over, "the job")
    return job


@pytest.fixture
def worker_of(tmp_path):
    workers = []

    def make(target: str = "fake_engine:load", **arguments) -> Worker:
        workers.append(Worker(EngineProcess(target, **arguments), tmp_path / "outputs", "fake").start())
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One worker for all tests after which its engine may have been replaced, but works."""
    worker = Worker(EngineProcess("fake_engine:load"), tmp_path_factory.mktemp("outputs"), "fake").start()
    until(lambda: worker.state == "ready", "the engine")
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def engine():
    engine = EngineProcess("fake_engine:load", step_seconds=0.05)
    said = []
    engine.start(said.append)
    assert said == ["Reading shards"]
    yield engine
    engine.close()


class TestErrors:
    """The engine goes on after these."""

    @pytest.mark.parametrize(
        ("prompt", "sentence"),
        [
            pytest.param("refuse", "width 1 is odd; try 2", id="ValueError"),
            pytest.param("out of memory", "the device ran out of memory; use a smaller size", id="OutOfMemoryError"),
            pytest.param("break", "Unpicklable: kernel broke; the server's log", id="a type unknown here"),
            pytest.param("bad value", "RuntimeError: CUDA error: invalid argument; the", id="harmless CUDA error"),
            pytest.param("full", "the video could not be written ([Errno 28] No space left", id="disk full"),
        ],
    )
    def test_one_sentence_and_the_next_job_runs(self, shared, prompt, sentence):
        pid = shared.engine_pid
        job = run(shared, job_of(prompt, both=True))
        assert job.state == "failed"
        assert job.error.startswith(sentence)
        assert "\n" not in job.error
        after = run(shared, job_of("after", both=True))
        assert (after.state, after.comparison.dense.request.prompt) == ("done", "after")
        assert shared.engine_pid == pid

    def test_a_full_disk(self, shared, tmp_path):
        """A real one, of a few kilobytes: the job ends with a sentence, and the next one, elsewhere, runs."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True)
        if mounted.returncode:
            pytest.skip("may not mount a small disk here")
        before = shared.output_dir
        try:
            (disk / "filler").write_bytes(bytes(8192))
            shared.output_dir = disk
            job = run(shared, job_of())
        finally:
            shared.output_dir = before
            subprocess.run(["umount", "--lazy", disk], check=True)
        assert job.state == "failed"
        assert "could not be written" in job.error
        assert run(shared, job_of()).state == "done"


class TestDeath:
    """The engine is replaced after these."""

    @pytest.mark.parametrize(
        ("prompt", "sentence"),
        [
            pytest.param("die by kill", "the engine was killed while it worked, which is what", id="SIGKILL"),
            pytest.param("die by crash", "the engine crashed (SIGSEGV) and starts again", id="SIGSEGV"),
            pytest.param("die by exit", "the engine ended unexpectedly (exit code 3)", id="exit"),
            pytest.param(
                "illegal access",
                "the GPU reported an error that nothing but a new engine recovers from (CUDA error: an illegal memory "
                "access was encountered); the engine starts again",
                id="illegal access",
            ),
            pytest.param("launch", "the GPU reported an error that nothing but a new", id="launch failure"),
        ],
    )
    def test_one_sentence_and_the_next_job_runs_in_a_new_process(self, shared, prompt, sentence):
        until(lambda: shared.state == "ready", "the engine")
        pid = shared.engine_pid
        job, after = shared.submit(job_of(prompt)), shared.submit(job_of("after"))
        until(lambda: job.over and after.over, "both jobs")
        assert (job.state, after.state) == ("failed", "done")
        assert job.error.startswith(sentence)
        assert shared.engine_pid not in (pid, os.getpid())
        assert not psutil.pid_exists(pid)

    def test_killed_from_outside_in_the_middle_of_a_comparison(self, shared):
        job, after = shared.submit(job_of(both=True, steps=900)), shared.submit(job_of("after"))
        until(lambda: job.update is not None and job.update.step > 3, "a few steps")
        os.kill(shared.engine_pid, signal.SIGKILL)
        until(lambda: job.over and after.over, "both jobs")
        assert (job.state, job.results, after.state) == ("failed", {}, "done")
        assert after.results["sparse"].request.prompt == "after"

    def test_killed_while_idle(self, shared):
        until(lambda: shared.status()["state"] == "ready", "an idle engine")
        pid = shared.engine_pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: shared.state == "ready" and shared.engine_pid not in (pid, os.getpid()), "the new engine")
        assert run(shared, job_of()).state == "done"

    def test_stops_trying(self, worker_of, tmp_path, monkeypatch):
        monkeypatch.setattr("ui.jobs.runner.RETRY_SECONDS", 0.01)
        count = tmp_path / "count"
        worker = worker_of("fake_engine:load_flaky", count=str(count), failures=99)
        job = worker.submit(job_of())
        until(lambda: job.over, "the end of trying")
        assert (worker.state, len(count.read_text())) == ("failed", 3)
        assert "fake could not be loaded: the engine ended unexpectedly (exit code 7)" in worker.message
        assert job.error == worker.message

    def test_a_second_start_may_succeed(self, worker_of, tmp_path, monkeypatch):
        monkeypatch.setattr("ui.jobs.runner.RETRY_SECONDS", 0.01)
        worker = worker_of("fake_engine:load_flaky", count=str(tmp_path / "count"), failures=1)
        assert run(worker, job_of()).state == "done"

    @pytest.mark.parametrize(
        "text",
        [
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: device-side assert triggered",
            "CUDA error: unspecified launch failure",
            "CUDA error: misaligned address",
            "CUDA error: the launch timed out and was terminated",
            "CUDA driver error: cudaErrorECCUncorrectable",
            "Triton Error [CUDA]: an illegal instruction was encountered",
        ],
    )
    def test_texts_of_a_lost_context(self, text):
        assert child.fatal(RuntimeError(text))

    @pytest.mark.parametrize(
        "error",
        [
            pytest.param(RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"), id="memory"),
            pytest.param(RuntimeError("device-side assert is a feature of GPUs"), id="not CUDA's"),
            pytest.param(ValueError("CUDA error: misaligned address"), id="ours"),
        ],
    )
    def test_texts_of_other_errors(self, error):
        assert not child.fatal(error)


class TestProcess:
    """`EngineProcess` itself."""

    def test_frames_and_previews_cross_unchanged(self, engine, tmp_path):
        request = CHECKPOINT.request("a red ball", steps=2)
        updates = []
        result, frames = engine.generate_frames(request, updates.append, tmp_path / "video.mp4")
        assert result.request == request
        assert (tmp_path / "video.mp4").stat().st_size > 0
        np.testing.assert_array_equal(frames, draw(request))
        assert not frames.flags.writeable
        assert [(u.phase, u.step) for u in updates if u.phase == "denoise"] == [("denoise", step) for step in range(3)]
        np.testing.assert_array_equal(updates[2].preview(), draw(request)[::4, ::8, ::8])
        assert updates[0].preview is None

    def test_cancel_ends_within_a_step(self, engine, tmp_path):
        """Also when it comes from another thread in the middle of a step; nothing of it reaches the next request."""
        steps = []

        def on_step(update):
            steps.append(update.step)
            if update.step == 3:
                engine.cancel()

        with pytest.raises(Cancelled):
            engine.generate_frames(CHECKPOINT.request("first", steps=500), on_step, tmp_path / "first.mp4")
        assert steps[-1] <= 4, "the step in which it was asked, and no further one"
        result, frames = engine.generate_frames(CHECKPOINT.request("second", seed=5), None, tmp_path / "second.mp4")
        assert result.request.prompt == "second"
        assert frames[0, 0, 0, 0] == 5
        assert not (tmp_path / "first.mp4").exists()

    def test_what_on_step_raises_comes_out(self, engine, tmp_path):
        def on_step(update):
            if update.step == 2:
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            engine.generate_frames(CHECKPOINT.request("a", steps=500), on_step, tmp_path / "a.mp4")
        assert engine.call("fake_engine:describe")[0]["pid"] == engine.pid

    def test_cancel_without_a_task_is_forgotten(self, engine, tmp_path):
        engine.cancel()
        assert engine.generate_frames(CHECKPOINT.request("a", steps=1), None, tmp_path / "a.mp4")

    def test_after_close(self, tmp_path):
        engine = EngineProcess("fake_engine:load_slowly", seconds=0)
        with pytest.raises(EngineDied, match="the engine is not running"):
            engine.generate_frames(CHECKPOINT.request("a"), None, tmp_path / "a.mp4")
        engine.start(lambda text: None)
        pid = engine.pid
        engine.close()
        assert not psutil.pid_exists(pid)
        assert engine.pid is None
        with pytest.raises(EngineDied):
            engine.generate_frames(CHECKPOINT.request("a"), None, tmp_path / "a.mp4")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_the_engine_does_not_outlive_the_server(how, tmp_path):
    """However the server ends, here while the model loads. Ctrl-C and SIGTERM leave no traceback."""
    command = [sys.executable, "app.py", "--port", str(port := free_port()), "--device", "cpu"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--output-dir", str(tmp_path / "outputs")], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            until(lambda: answers(port) or server.poll() is not None, "app.py to answer")
            until(lambda: psutil.Process(server.pid).children(), "the engine's process")
            (engine,) = psutil.Process(server.pid).children()
            server.send_signal(how)
            code = server.wait(WAIT_SECONDS)
        finally:
            server.kill()
            server.wait()
    until(lambda: not engine.is_running(), "the engine's end")
    said = (tmp_path / "log").read_text()
    assert code == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 0}[how]
    assert "Traceback" not in said
    assert said.endswith("interrupted\n") == (how == signal.SIGINT)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_real_pipeline_in_its_process(tmp_path):
    """The embedded checkpoint, dense and sparse, as `app.py` runs it; and the same video as in this process."""
    info = inspect_checkpoint(EMBEDDED_CHECKPOINT)
    engine = EngineProcess("pipeline.engine.child:load_longcat", path=str(EMBEDDED_CHECKPOINT), device="cpu")
    worker = Worker(engine, tmp_path, info.name).start()
    try:
        request = info.request("a red ball", width=64, height=64, num_frames=17, steps=2)
        job = run(worker, VideoJob(request, side_by_side=True))
        assert (job.state, job.error) == ("done", "")
        assert job.comparison.sparse.density < job.comparison.dense.density == 1
        assert job.comparison.dense.versions["device"].startswith("cpu")
        assert np.isfinite(job.comparison.psnr)
        bad = run(worker, VideoJob(info.request("a red ball " * 300, width=64, height=64), side_by_side=False))
        assert bad.error.startswith("the prompt has ")
    finally:
        worker.close()
    assert not engine.alive
