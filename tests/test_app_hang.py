"""An engine that hangs: whoever stops, closes or waits is answered, and it ends with all that it started."""

from __future__ import annotations

import os
import signal
import threading

import psutil
import pytest
from app_server import WAIT_SECONDS, until
from fake_pipeline import CHECKPOINT

from pipeline.engine import patience
from pipeline.engine.patience import Patience
from pipeline.engine.process import EngineDied, EngineProcess
from ui.jobs.job import VideoJob
from ui.jobs.worker import Worker

FILLS_A_PIPE = 30_000  # messages that somebody has to take


def beats(count: int, tries: Patience, **state: bool) -> list[str]:
    return [tries.beat(**{"heard": False, "loading": False, "stopping": False} | state) for _ in range(count)]


class TestPatience:
    def test_silence(self):
        tries = Patience()
        assert beats(1000, tries) == [""] * 1000, "it has not begun"
        assert beats(1, tries, heard=True) == [""]
        *before, last = beats(patience.SILENT_SECONDS, tries)
        assert not any(before) and last.startswith("the engine gave no sign of life for 60 seconds and was ended")

    def test_a_sign_of_life_counts_anew(self):
        tries = Patience()
        beats(1, tries, heard=True)
        assert not any(beats(59, tries) + beats(1, tries, heard=True) + beats(59, tries))

    def test_loading_takes_longer(self):
        tries = Patience()
        beats(1, tries, heard=True)
        assert [bool(why) for why in beats(300, tries, loading=True)] == [False] * 299 + [True]

    def test_a_stop_is_waited_for_as_long_as_there_is_life(self):
        tries = Patience()
        *before, last = beats(60, tries, heard=True, stopping=True)
        assert not any(before) and last.startswith("the engine did not stop within 60 seconds and was ended")

    def test_a_stop_without_a_sign_of_life(self):
        tries = Patience()
        beats(30, tries, heard=True)
        assert [bool(why) for why in beats(5, tries, stopping=True)] == [False] * 4 + [True]


@pytest.fixture
def worker(tmp_path):
    worker = Worker(EngineProcess("endless_engine:load"), tmp_path / "outputs", "fake").start()
    yield worker
    worker.close()


@pytest.fixture
def hung(worker):
    """A job whose engine hangs in the middle of it."""
    job = worker.submit(VideoJob(CHECKPOINT.request("a", steps=900), side_by_side=False))
    until(lambda: job.update is not None and job.update.step > 1, "a few steps")
    os.kill(worker.engine_pid, signal.SIGSTOP)
    return job


def returns(function) -> bool:
    """Whether it does, instead of waiting for somebody."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(WAIT_SECONDS / 4)
    return not thread.is_alive()


def test_stop_ends_the_job_and_the_next_one_runs(worker, hung):
    pid = worker.engine_pid
    assert returns(lambda: [worker.stop(hung) for _ in range(FILLS_A_PIPE)])
    after = worker.submit(VideoJob(CHECKPOINT.request("after"), side_by_side=False))
    until(lambda: after.update is not None, "a step of the next job")
    assert (hung.state, hung.error) == ("stopped", "")
    assert not psutil.pid_exists(pid)


def test_it_is_noticed_without_a_stop(worker, hung, monkeypatch):
    monkeypatch.setattr(patience, "SILENT_SECONDS", 2)
    until(lambda: hung.over, "the end of the job")
    assert hung.state == "failed"
    assert hung.error.startswith("the engine gave no sign of life for 2 seconds and was ended; it starts again")


def test_the_server_closes(worker, hung):
    pid = worker.engine_pid
    stopping = threading.Thread(target=lambda: [worker.stop(hung) for _ in range(FILLS_A_PIPE)], daemon=True)
    stopping.start()
    assert returns(worker.close)
    assert hung.over and not psutil.pid_exists(pid)


def test_one_that_hangs_before_it_reads_anything(tmp_path):
    engine = EngineProcess("endless_engine:load")
    engine.start(lambda text: None)
    os.kill(engine.pid, signal.SIGSTOP)
    ended = []

    def ask():
        try:
            engine.generate_frames(CHECKPOINT.request("long " * 1000), None, tmp_path / "a.mp4")
        except EngineDied as error:
            ended.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    assert returns(lambda: [engine.cancel() for _ in range(FILLS_A_PIPE)])
    engine.close()
    asking.join(WAIT_SECONDS)
    assert ended


def test_killed_while_it_writes(tmp_path):
    """Nothing goes on writing, and nothing is left."""
    engine = EngineProcess("endless_engine:load")
    engine.start(lambda text: None)
    writing = []

    def on_step(update):
        if update.step == 50:
            assert any(".partial" in file.name for file in tmp_path.iterdir())
            writing.extend(psutil.Process(engine.pid).children())
            os.kill(engine.pid, signal.SIGKILL)

    with pytest.raises(EngineDied, match="the engine was killed while it worked"):
        engine.generate_frames(CHECKPOINT.request("write"), on_step, tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []
    assert [program.name()[:6] for program in writing] == ["ffmpeg"]
    assert not psutil.wait_procs(writing, timeout=WAIT_SECONDS)[1]
    engine.close()
