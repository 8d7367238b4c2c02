"""Reads memory and load of GPUs (through NVML), host and process: now, over time, and the peaks of an interval."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil

from pipeline.machine.nvml import SLOW_SECONDS, GpuReading, Nvml, with_uuid
from pipeline.machine.samples import History, Peak, Samples

if TYPE_CHECKING:
    import torch


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resources:
    """One reading of the machine. Memory is in bytes, load in percent since the last reading.

    time: `time.time()` of the reading.
    cpu_percent, process_cpu: percent of all cores together.
    process_rss, process_cpu: of the process in question; None once it has ended.
    torch_allocated, torch_reserved: bytes that PyTorch's CUDA allocator uses and keeps in that process; None if it
        uses no GPU. torch_gpu: `GpuReading.key` of its GPU.
    note: names the values missing from `gpus` and the reason, or "".
    """

    gpus: tuple[GpuReading, ...]
    process_rss: int | None
    host_used: int
    host_total: int
    cpu_percent: float
    note: str
    process_cpu: float | None = None
    torch_allocated: int | None = None
    torch_reserved: int | None = None
    torch_gpu: str = ""
    time: float = 0.0

    def series(self) -> dict[str, float | None]:
        """The changing values by name: host.used, host.cpu, process.rss, process.cpu, torch.allocated, torch.reserved,
        and <GPU key>.used, .process, .utilization, .power and .temperature for every GPU."""
        values: dict[str, float | None] = {
            "host.used": self.host_used,
            "host.cpu": self.cpu_percent,
            "process.rss": self.process_rss,
            "process.cpu": self.process_cpu,
            "torch.allocated": self.torch_allocated,
            "torch.reserved": self.torch_reserved,
        }
        for gpu in self.gpus:
            values[f"{gpu.key}.used"] = gpu.used
            values[f"{gpu.key}.process"] = gpu.process_memory
            values[f"{gpu.key}.utilization"] = gpu.utilization
            values[f"{gpu.key}.power"] = gpu.power
            values[f"{gpu.key}.temperature"] = gpu.temperature
        return values


def read_resources(pid: int | None = None, used: Mapping[str, Any] | None = None) -> Resources:
    """Read GPUs, host and one process now. Never raises: `note` says what is missing and why.

    pid, used: another process, and the result of `torch_memory` in it. None for this process.
    """
    if pid is None:
        pid, used = os.getpid(), torch_memory(None)
    nvml = Nvml()
    try:
        return _Machine(nvml).read(pid, used)
    finally:
        nvml.close()


def torch_memory(device: torch.device | None) -> dict[str, Any] | None:
    """PyTorch's GPU memory in this process, as {"allocated": bytes, "reserved": bytes, "uuid": the GPU's}.

    device: None for the current GPU, if this process already uses one; the call never makes it use one.
    Returns None on the CPU.
    """
    torch = sys.modules.get("torch")  # not imported means not in use
    if (device is not None and device.type != "cuda") or torch is None or not torch.cuda.is_initialized():
        return None
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "uuid": str(torch.cuda.get_device_properties(device).uuid),
    }


class _Machine:
    """Reads everything repeatedly. Use it from one thread at a time."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._process: psutil.Process | None = None
        self._read_at = float("-inf")
        self._cpu = 0.0
        self._process_cpu: float | None = None

    def read(self, pid: int, torch_memory: Mapping[str, Any] | None) -> Resources:
        now = round(time.time(), 3)  # rounded as in `Samples`
        gpus, note = self._nvml.read(pid)
        rss = self._read_process(pid)
        used = torch_memory or {}
        gpu = _torch_gpu(used, gpus)
        if gpu is not None and gpu.process_memory is not None and gpu.process_memory < used["reserved"]:
            # NVML uses the host's process ids, which differ from the ids inside some containers
            gpus = tuple(replace(one, process_memory=None) if one is gpu else one for one in gpus)
            note = "; ".join(filter(None, (note, f"{gpu.label}: the driver does not show this process's share")))
        host = psutil.virtual_memory()
        return Resources(
            gpus=gpus,
            process_rss=rss,
            host_used=host.total - host.available,
            host_total=host.total,
            cpu_percent=self._cpu,
            note=note,
            process_cpu=self._process_cpu,
            torch_allocated=used.get("allocated"),
            torch_reserved=used.get("reserved"),
            torch_gpu=gpu.key if gpu is not None else "",
            time=now,
        )

    def _read_process(self, pid: int) -> int | None:
        """Resident bytes of the process, or None if it has ended. Updates both CPU loads once a second."""
        due = time.monotonic() - self._read_at >= SLOW_SECONDS
        if due:
            self._read_at = time.monotonic()
            self._cpu = psutil.cpu_percent()
        try:
            if self._process is None or self._process.pid != pid:
                self._process, self._process_cpu = psutil.Process(pid), None
                self._process.cpu_percent()  # the load is measured from here on
            elif due:
                self._process_cpu = self._process.cpu_percent() / (psutil.cpu_count() or 1)
            return self._process.memory_info().rss
        except psutil.Error:
            self._process, self._process_cpu = None, None
            return None


def _torch_gpu(used: Mapping[str, Any], gpus: tuple[GpuReading, ...]) -> GpuReading | None:
    """Find the GPU that PyTorch uses by its UUID.

    Without a UUID, it is the only GPU of the machine, or the only one on which the process holds memory.
    """
    if not used:
        return None
    if uuid := str(used.get("uuid", "")):
        return with_uuid(uuid, gpus)
    held = gpus if len(gpus) == 1 else [gpu for gpu in gpus if gpu.process_memory]
    return held[0] if len(held) == 1 else None


class ResourceSampler:
    """Reads the machine ten times a second in its own thread and keeps the readings.

    pid: returns the process to read; called each time, because the process may be restarted.
    torch_memory: returns the result of `torch_memory` in that process, or None.
    interval: seconds between readings. A peak shorter than this may be missed.
    more: returns further series to keep, by name.
    only: the GPUs to read, as for `Nvml`; none for all.
    elsewhere: returns the newest reading of another machine in place of this one, or None while there is none.
    """

    def __init__(
        self,
        pid: Callable[[], int] = os.getpid,
        torch_memory: Callable[[], Mapping[str, Any] | None] = lambda: None,
        interval: float = 0.1,
        more: Callable[[], Mapping[str, float | None]] = dict,
        only: Collection[str] = (),
        elsewhere: Callable[[], Resources | None] | None = None,
    ) -> None:
        self.interval = interval
        self._pid = pid
        self._torch_memory = torch_memory
        self._more = more
        self._only = only
        self._elsewhere = elsewhere
        self._samples = Samples()
        self._latest: Resources | None = None
        self._fault = ""
        self._first = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resource-sampler", daemon=True)

    def start(self) -> ResourceSampler:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    @property
    def latest(self) -> Resources | None:
        """The newest reading. Waits a short time for the first one."""
        self._first.wait(2)
        return self._latest

    @property
    def oldest(self) -> float:
        """`time.time()` of the first sample still kept, or infinity if there is none."""
        return self._samples.oldest

    def history(self, since: float = 0.0, until: float = float("inf"), points: int | None = None) -> History:
        """The series of `Resources.series` with since < time <= until; see `Samples.history`."""
        return self._samples.history(since, until, points)

    def peak(self, start: float, end: float) -> dict[str, Peak]:
        """The largest sample of every series with start <= time <= end (`time.time()`)."""
        return self._samples.peak(start, end)

    def _run(self) -> None:
        nvml = Nvml(only=self._only)
        machine = _Machine(nvml)
        while True:
            try:
                self._sample(machine)
            except Exception as error:  # if the thread died, old readings would look like new ones
                if self._fault != str(error):
                    self._fault = str(error)
                    log.exception("a resource reading failed")
            if self._done.wait(self.interval):
                nvml.close()
                return

    def _sample(self, machine: _Machine) -> None:
        if self._elsewhere is None:
            reading: Resources | None = machine.read(self._pid(), self._torch_memory())
        elif (reading := self._elsewhere()) is not None:
            reading = replace(reading, time=round(time.time(), 3))  # its clock may be another
        if reading is None:
            return
        self._samples.add(reading.time, {**reading.series(), **self._more()})
        self._latest = reading
        self._first.set()
