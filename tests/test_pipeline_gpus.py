"""Which of NVML's GPUs a CUDA device is: by the variables that CUDA goes by, and by UUID."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from programs import ROOT
from stub_driver import GIB, StubDriver, needs_compiler

from pipeline import GpuReading
from pipeline.machine import gpus
from pipeline.machine.device import DeviceName, choose_device, expected_device
from pipeline.machine.nvml import with_uuid

SMALL = GpuReading(0, "NVIDIA T400", 0, 4 * GIB, 0, uuid="GPU-bbbb-0000")
LARGE = GpuReading(1, "NVIDIA H200", 0, 140 * GIB, 0, uuid="GPU-aaaa-0000")
TWIN = GpuReading(2, "NVIDIA H200", 0, 140 * GIB, 0, uuid="GPU-aabb-0000")
ALL = (SMALL, LARGE, TWIN)
# GPU 1 divided
SLICES = tuple(
    GpuReading(1, "NVIDIA H200 MIG 3g", 0, size * GIB, 0, uuid=f"MIG-{size}", slice=number, parent="GPU-aaaa-0000")
    for number, size in enumerate((70, 35))
)


@pytest.fixture
def machine(monkeypatch):
    """Sets what NVML shows, and the variables of CUDA."""

    def show(shown, visible=None, order="PCI_BUS_ID"):
        monkeypatch.setattr(gpus, "read_resources", lambda: SimpleNamespace(gpus=tuple(shown)))
        for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return show


@pytest.mark.parametrize(
    ("shown", "visible", "expected"),
    [
        pytest.param(ALL, None, ALL, id="all"),
        pytest.param(ALL, "2,0", (TWIN, SMALL), id="numbers"),
        pytest.param(ALL, " 1 , 2 ", (LARGE, TWIN), id="spaces"),
        pytest.param(ALL, "GPU-aabb-0000,GPU-bb", (TWIN, SMALL), id="uuids"),
        pytest.param(ALL, "GPU-aa", (), id="which-uuid"),
        pytest.param(ALL, "1,-1,0", (LARGE,), id="nothing-behind-a-wrong-one"),
        pytest.param(ALL, "-1", (), id="none"),
        pytest.param(ALL, "", (), id="empty"),
        pytest.param(ALL, "0,GPU-bbbb", (), id="twice"),
        pytest.param((SMALL, *SLICES, TWIN), None, SLICES[:1], id="a-slice-and-no-other-gpu"),
        pytest.param((SMALL, *SLICES, TWIN), "0,2", (SMALL, TWIN), id="whole-ones-beside-slices"),
        pytest.param((SMALL, *SLICES), "MIG-35", SLICES[1:], id="slice"),
        pytest.param((SMALL, *SLICES), "MIG-35,MIG-70", SLICES[1:], id="first-of-two-slices"),
        pytest.param((SMALL, *SLICES), "1", SLICES[:1], id="number-of-a-divided-gpu"),
        pytest.param((SMALL, *SLICES), "GPU-aaaa", SLICES[:1], id="uuid-of-a-divided-gpu"),
    ],
)
def test_what_cuda_counts(machine, shown, visible, expected):
    machine(shown, visible)
    assert gpus.visible_gpus(shown) == list(expected)
    for index, gpu in enumerate(expected):
        assert gpus.gpu_of(DeviceName("cuda", index)) == gpu
    assert gpus.gpu_of(DeviceName("cuda", len(expected))) is None


@pytest.mark.parametrize(
    ("shown", "visible", "expected"),
    [
        pytest.param(ALL, None, None, id="unlike"),
        pytest.param(ALL, "2", None, id="number-among-unlike"),
        pytest.param(ALL, "GPU-aabb", TWIN, id="uuid"),
        pytest.param(ALL[1:], None, LARGE, id="alike"),
    ],
)
def test_the_fastest_first(machine, shown, visible, expected):
    """NVML does not tell which that is."""
    machine(shown, visible, order="FASTEST_FIRST")
    assert gpus.gpu_of(DeviceName("cuda", 0)) == expected


def test_by_uuid_where_cuda_runs(machine, monkeypatch):
    """Whatever the variables say now: CUDA read them when it started."""
    machine(ALL, "0")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = (SimpleNamespace(uuid=uuid) for uuid in ("aabb-0000", "unknown"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: next(properties))
    assert [gpus.gpu_of(DeviceName("cuda", index)) for index in range(3)] == [TWIN, None, None]


@pytest.mark.parametrize(
    ("uuid", "held", "expected"),
    [
        pytest.param("35", (None, None), 1, id="of-the-slice"),
        pytest.param("AAAA-0000", (GIB, 0), 0, id="of-the-whole"),
        pytest.param("AAAA-0000", (None, None), None, id="of-the-whole-in-doubt"),
    ],
)
def test_the_uuid_of_a_slice(uuid, held, expected):
    shown = tuple(replace(gpu, process_memory=size) for gpu, size in zip(SLICES, held))
    found = with_uuid(uuid, (SMALL, *shown))
    assert found == (None if expected is None else shown[expected])


def test_auto_is_the_gpu_with_the_most_memory(machine, monkeypatch):
    machine(ALL)
    monkeypatch.setattr("pipeline.machine.device.read_resources", gpus.read_resources)
    monkeypatch.setattr("pipeline.machine.device.metadata.version", lambda package: "2.12.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert str(expected_device("auto")) == str(choose_device("auto")) == "cuda:1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # fewer than NVML has
    assert str(choose_device("auto")) == "cuda:0"


PROGRAM = """
import json, os
import pipeline
from pipeline.estimate.estimator import device_name
from pipeline.machine.device import DeviceName
from pipeline.machine.memory import available_memory, total_memory
for visible in (None, "0", "MIG-2"):
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    gpu = DeviceName("cuda", 0)
    print(json.dumps([device_name(gpu), total_memory(gpu), available_memory(gpu)]))
"""


@needs_compiler
def test_readings_of_unlike_gpus(tmp_path):
    """The real pynvml; on this machine CUDA would begin with the H200, and NVML does with the T400."""
    driver = StubDriver(tmp_path)
    driver.set(gpu0_name="NVIDIA T400", gpu0_total=4 * GIB, gpu1_mig=2, gpu0_reserved=0)
    for number, size in enumerate((70, 35)):
        part = {"name": f"H200 MIG {size}", "uuid": f"MIG-{number + 1}", "total": size * GIB, "used": GIB}
        driver.set(**{f"gpu1s{number}_{what}": value for what, value in part.items()})
    env = {name: value for name, value in driver.env().items() if not name.startswith("CUDA_")}
    told = subprocess.check_output([sys.executable, "-c", PROGRAM], cwd=ROOT, env=env, text=True)
    first, number, slice_ = map(json.loads, told.splitlines())
    assert first == ["cuda H200 MIG 70", 70 * GIB, 69 * GIB]  # a slice hides whole GPUs
    assert number == ["cuda NVIDIA T400", 4 * GIB, 3 * GIB]
    assert slice_ == ["cuda H200 MIG 35", 35 * GIB, 34 * GIB]
