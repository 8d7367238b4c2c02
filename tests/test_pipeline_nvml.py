"""Readings of GPUs: the real pynvml on a stub driver built from C."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stub_driver import GIB, StubDriver, needs_compiler

from pipeline.machine.nvml import RETRY_SECONDS, SLOW_SECONDS

FIRST, SECOND = "GPU-bbbbbbbb-0000-0000-0000-000000000000", "GPU-aaaaaaaa-0000-0000-0000-000000000000"
PID = 4711

# Reads once per line that comes in, after moving the clock by that many seconds; one JSON line per reading.
READER = """
import json, sys
from dataclasses import asdict
from pipeline.machine.nvml import Nvml
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
            "parent": "",
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
