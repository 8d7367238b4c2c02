"""Readings of GPUs and host: the real pynvml on a stub driver built from C, the sampler, and what it remembers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pynvml
import pytest
from stub_driver import GIB, StubDriver, needs_compiler

from pipeline import read_resources
from pipeline.nvml import RETRY_SECONDS, SLOW_SECONDS
from pipeline.resources import ResourceSampler, _torch_gpu
from pipeline.samples import Samples

FIRST, SECOND = "GPU-bbbbbbbb-0000-0000-0000-000000000000", "GPU-aaaaaaaa-0000-0000-0000-000000000000"
PID = 4711

# Reads once per line that comes in, after moving the clock by that many seconds; one JSON line per reading.
READER = """
import json, sys
from dataclasses import asdict
from pipeline.nvml import Nvml
now = 0.0
nvml = Nvml(clock=lambda: now)
for line in sys.stdin:
    now += float(line)
    gpus, note = nvml.read(4711)
    print(json.dumps({"gpus": [{**asdict(gpu), "label": gpu.label} for gpu in gpus], "note": note}), flush=True)
"""


class Reader:
    """A process in which the real pynvml has loaded the stub."""

    def __init__(self, driver: StubDriver) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER],
            cwd=Path(__file__).parents[1],
            env=driver.env(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self, after: float = SLOW_SECONDS) -> dict:
        self.process.stdin.write(f"{after}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        self.process.stdout.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return StubDriver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def shared_reader(built):
    reader = Reader(built)
    yield reader
    reader.close()


@pytest.fixture
def driver(built):
    before = dict(built.values)
    yield built
    built.values = before
    built.set()


@pytest.fixture
def reader(shared_reader, driver):
    """Nothing is wrong with the driver, and the reader has seen that."""
    assert shared_reader.read(after=1000)["note"] == ""
    return shared_reader


@needs_compiler
class TestDriver:
    def test_everything_is_read(self, reader, driver):
        driver.set(gpu0_used=3 * GIB, gpu0_processes=f"12:{GIB} {PID}:{2 * GIB}", gpu0_utilization=61)
        gpu, other = reader.read()["gpus"]
        assert gpu == {
            "index": 0,
            "label": "GPU 0",
            "name": "NVIDIA H200",
            "uuid": FIRST,
            "used": 3 * GIB,
            "total": 140 * GIB,
            "reserved": GIB // 2,
            "process_memory": 2 * GIB,
            "utilization": 61,
            "power": 100.5,
            "power_limit": 700.0,
            "temperature": 30,
            "slice": None,
        }
        assert (other["uuid"], other["used"], other["process_memory"], other["utilization"]) == (SECOND, 2 * GIB, 0, 20)

    def test_memory_at_every_reading_and_load_once_a_second(self, reader, driver):
        driver.set(gpu0_used=5 * GIB, gpu0_utilization=99)
        gpu = reader.read(after=SLOW_SECONDS / 2)["gpus"][0]
        assert (gpu["used"], gpu["utilization"]) == (5 * GIB, 10)
        assert reader.read(after=SLOW_SECONDS)["gpus"][0]["utilization"] == 99

    @pytest.mark.parametrize(
        ("fault", "lost", "note"),
        [
            pytest.param(
                {"gpu0_utilization": "!3"}, "utilization", "its utilisation (Not Supported)", id="utilisation"
            ),
            pytest.param({"gpu0_power": "!4"}, "power", "its power (Insufficient Permissions)", id="permission"),
            pytest.param(
                {"gpu0_temperature": None}, "temperature", "its temperature (Not Supported)", id="temperature"
            ),
            pytest.param({"gpu0_processes": "!4"}, "process_memory", "its processes (Insufficient", id="processes"),
        ],
    )
    def test_one_value_missing(self, reader, driver, fault, lost, note):
        driver.set(**fault)
        reading = reader.read()
        gpu, other = reading["gpus"]
        assert gpu[lost] is None
        assert gpu["used"] == GIB
        assert other[lost] is not None
        assert reading["note"].startswith(f"GPU 0 does not report {note}")

    def test_a_process_without_a_number(self, reader, driver):
        driver.set(gpu0_processes=f"{PID}:NA")
        assert reader.read()["gpus"][0]["process_memory"] is None

    def test_a_driver_without_the_newer_call(self, reader, driver):
        driver.set(memory_v2="!13")
        gpu = reader.read()["gpus"][0]
        assert (gpu["used"], gpu["reserved"]) == (GIB + GIB // 2, None)

    def test_a_gpu_lost_in_mid_run_comes_back(self, reader, driver):
        driver.set(gpu1_fault=15)
        reading = reader.read()
        assert [gpu["used"] for gpu in reading["gpus"]] == [GIB, None]
        assert reading["gpus"][1]["total"] == 140 * GIB
        assert reading["note"] == "GPU 1: no reading, NVML says: GPU is lost"
        reading = reader.read(after=RETRY_SECONDS)  # NVML was opened again, and still does not have it
        assert [gpu["used"] for gpu in reading["gpus"]] == [GIB, None]
        driver.set(gpu1_fault=None)
        reading = reader.read(after=1000)
        assert [gpu["used"] for gpu in reading["gpus"]] == [GIB, 2 * GIB]
        assert reading["note"] == ""

    def test_the_driver_goes_and_comes_back(self, reader, driver):
        driver.set(init=9, gpu0_fault=1, gpu1_fault=1)
        assert "Uninitialized" in reader.read()["note"]
        reading = reader.read(after=RETRY_SECONDS)
        assert reading["note"] == "no GPU reading, NVML says: Driver Not Loaded"
        assert [gpu["used"] for gpu in reading["gpus"]] == [None, None]
        driver.set(init=None, gpu0_fault=None, gpu1_fault=None)
        reading = reader.read(after=1000)
        assert (reading["note"], reading["gpus"][0]["used"]) == ("", GIB)

    def test_numbers_move_but_gpus_stay_themselves(self, reader, driver):
        swapped = {f"gpu{1 - index}_uuid": uuid for index, uuid in enumerate((FIRST, SECOND))}
        driver.set(**swapped, gpu0_fault=15)
        reader.read()
        driver.set(gpu0_fault=None)
        assert [gpu["uuid"] for gpu in reader.read(after=1000)["gpus"]] == [SECOND, FIRST]

    def test_slices(self, driver):
        part = {"name": "NVIDIA H200 MIG 1g.18gb", "total": 18 * GIB, "used": GIB, "processes": f"{PID}:{GIB}"}
        for number in (0, 1):
            driver.set(**{f"gpu0s{number}_{what}": value for what, value in part.items()})
            driver.set(**{f"gpu0s{number}_uuid": f"MIG-{number}"})
        driver.set(gpu0_mig=2)
        fresh = Reader(driver)
        reading = fresh.read()
        fresh.close()
        assert [gpu["label"] for gpu in reading["gpus"]] == ["GPU 0:0", "GPU 0:1", "GPU 1"]
        gpu = reading["gpus"][0]
        assert (gpu["total"], gpu["process_memory"], gpu["utilization"]) == (18 * GIB, GIB, None)
        assert "GPU 0:0 does not report its utilisation (Not Supported)" in reading["note"]


def test_without_a_driver_the_note_says_so(monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    reading = read_resources()
    assert reading.gpus == ()
    assert reading.note == "no GPU reading, NVML says: NVML Shared Library Not Found"


def test_host_reading():
    reading = read_resources()
    assert 0 < reading.process_rss <= reading.host_used <= reading.host_total
    assert reading.host_total == psutil.virtual_memory().total


class TestTorchGpu:
    def gpus(self, count=2):
        from pipeline import GpuReading

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
