"""Readings of the host, the sampler, and what it remembers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import psutil
import pynvml
import pytest

from pipeline import GpuReading, read_resources
from pipeline.machine.resources import ResourceSampler, _torch_gpu
from pipeline.machine.samples import Samples

FIRST, SECOND = "GPU-bbbbbbbb-0000-0000-0000-000000000000", "GPU-aaaaaaaa-0000-0000-0000-000000000000"


def test_without_a_driver_the_note_says_so(monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    reading = read_resources()
    assert reading.gpus == ()
    assert reading.note == "no NVIDIA GPU can be read here, its driver is not installed"


def test_host_reading():
    reading = read_resources()
    assert 0 < reading.process_rss <= reading.host_used <= reading.host_total
    assert reading.host_total == psutil.virtual_memory().total


class TestTorchGpu:
    def gpus(self, count=2):
        return tuple(GpuReading(i, "H200", 0, 1, 0, uuid=uuid) for i, uuid in enumerate((FIRST, SECOND)))[:count]

    def test_by_uuid_whatever_the_order(self):
        used = {"allocated": 1, "reserved": 1, "uuid": SECOND.removeprefix("GPU-").upper()}
        assert _torch_gpu(used, self.gpus()).index == 1

    def test_without_a_uuid_only_where_there_is_no_choice(self):
        used = {"allocated": 1, "reserved": 1}
        assert _torch_gpu(used, self.gpus()) is None
        assert _torch_gpu(used, self.gpus(1)).index == 0
        assert _torch_gpu({}, self.gpus(1)) is None
        first, second = self.gpus()
        assert _torch_gpu(used, (first, replace(second, process_memory=1))).index == 1


class TestSampler:
    def test_a_peak_is_seen_by_the_thread_alone(self):
        size = 300 * 2**20
        sampler = ResourceSampler(interval=0.01, more=lambda: {"mine": 1.0}).start()
        before = sampler.latest
        block = np.ones(size, np.uint8)
        held = sampler.latest.time
        deadline = threading.Event()
        while sampler.latest.time < held + 0.05:  # some samples later
            deadline.wait(0.01)
        del block
        sampler.stop()
        peak = sampler.peak(before.time, sampler.latest.time)
        # other tests' garbage may be freed meanwhile, which lowers the base
        assert peak["process.rss"].value > before.process_rss + size // 2
        assert peak["mine"].value == 1.0
        assert sampler.history(since=before.time).times[0] > before.time

    def test_a_process_that_ends(self):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        pids = [child.pid]
        sampler = ResourceSampler(pid=lambda: pids[0], interval=0.01).start()
        assert sampler.latest.process_rss > 0
        child.communicate(b"\n")
        after = sampler.latest.time
        wait_for(lambda: sampler.latest.time > after + 0.02)
        assert sampler.latest.process_rss is None
        pids[0] = os.getpid()  # started again
        wait_for(lambda: sampler.latest.process_rss is not None)
        sampler.stop()

    def test_a_fault_of_a_callback_is_got_over(self):
        broken = [True]

        def torch_memory():
            if broken[0]:
                raise RuntimeError("the engine is being started again")
            return {"allocated": 5, "reserved": 7}

        sampler = ResourceSampler(torch_memory=torch_memory, interval=0.01).start()
        wait_for(lambda: sampler._fault)
        broken[0] = False
        wait_for(lambda: sampler.latest is not None)
        assert (sampler.latest.torch_allocated, sampler.latest.torch_reserved) == (5, 7)
        sampler.stop()


def wait_for(condition) -> None:
    pause = threading.Event()
    for _ in range(6000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("waited 60 s")


class TestSamples:
    """Tiers of 10 samples, 10 buckets of 1 s and 20 of 10 s stand for the real ones."""

    TIERS = ((0.0, 10), (1.0, 10), (10.0, 20))

    def filled(self, seconds, value=float):
        samples = Samples(self.TIERS)
        for i in range(int(seconds * 10)):
            samples.add(1000 + i / 10, {"a": value(i)})
        return samples

    def test_full_rate_at_the_end_and_a_curve_back_to_the_start(self):
        history = self.filled(60).history()
        times = np.array(history.times)
        assert (np.diff(times) > 0).all()
        assert times[0] <= 1010 and times[-1] == 1059.9
        assert np.allclose(np.diff(times[-10:]), 0.1)
        assert len(times) <= 10 + 10 + 20
        # a bucket holds its maximum, which is its last value here
        assert history.series["a"] == pytest.approx((times - 1000) * 10)

    def test_since_gives_what_is_new_and_nothing_twice(self):
        samples = self.filled(1)
        last = samples.history().times[-1]
        assert samples.history(since=last).times == []
        samples.add(1001, {"a": 1.0, "b": 2.0})
        new = samples.history(since=last)
        assert (new.times, new.series) == ([1001], {"a": [1.0], "b": [2.0]})

    @pytest.mark.parametrize(
        "at", [pytest.param(3, id="coarse"), pytest.param(520, id="1 s"), pytest.param(597, id="fine")]
    )
    def test_a_spike_survives_thinning(self, at):
        samples = self.filled(60, lambda i: 100.0 if i == at else 1.0)
        peak = samples.peak(1000, 1060)["a"]
        assert peak == (100.0, pytest.approx(1000 + at / 10))
        assert max(samples.history(points=7).series["a"]) == 100

    def test_a_spike_next_to_an_interval_is_not_in_it(self):
        samples = self.filled(60, lambda i: 100.0 if i == 205 else 1.0)  # 20.5 s, in a bucket of 10 s by now
        assert samples.peak(1020.6, 1040)["a"].value == 1
        assert samples.peak(1020.4, 1040)["a"].value == 100

    def test_gaps(self):
        samples = Samples(self.TIERS)
        samples.add(1, {"a": 1.0, "b": None})
        samples.add(2, {"b": 5.0})
        assert samples.history().series == {"a": [1.0, None], "b": [None, 5.0]}
        assert samples.peak(0, 1.5).keys() == {"a"}

    def test_the_clock_is_set_back(self):
        samples = self.filled(2)
        samples.add(500, {"a": 1.0})
        assert samples.history().times == [500]
        assert samples.oldest == 500

    def test_points(self):
        history = self.filled(1).history(points=3)
        assert len(history.times) == 3
        assert history.times[-1] == 1000.9

    def test_nothing_yet(self):
        assert Samples(self.TIERS).history() == Samples(self.TIERS).history(points=5)
        assert Samples(self.TIERS).peak(0, 10) == {}
