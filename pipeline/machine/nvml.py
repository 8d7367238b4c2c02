"""Reads GPUs through NVML and survives its faults: a value that NVML does not give is None, and a note says why.

NVML numbers GPUs by PCI order whatever CUDA_VISIBLE_DEVICES says; `gpus.py` finds the one that is a PyTorch device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pynvml

NO_DRIVER = "no NVIDIA GPU can be read here, its driver is not installed"
_NO_LIBRARY = "NVML Shared Library Not Found"  # what NVML's own words for that are
RETRY_SECONDS = 2.0  # wait before reopening NVML after a fault; doubles each time, because opening may take long
LONGEST_RETRY_SECONDS = 32.0
SLOW_SECONDS = 1.0  # the driver averages utilisation, power and temperature over about this time


@dataclass(frozen=True)
class GpuReading:
    """The state of one GPU, or of one MIG slice. A value that NVML does not report is None.

    index: NVML's number of the GPU; slice: number of the MIG slice.
    used, total: bytes.
    reserved: bytes that the driver keeps for itself, outside `used`; None for old drivers, which include them in it.
    process_memory: bytes that the process in question holds.
    utilization: percent of the last sample period. power, power_limit: watts. temperature: degrees Celsius.
    """

    index: int
    name: str
    used: int | None
    total: int | None
    utilization: int | None
    uuid: str = ""
    reserved: int | None = None
    process_memory: int | None = None
    power: float | None = None
    power_limit: float | None = None
    temperature: int | None = None
    slice: int | None = None
    parent: str = ""

    @property
    def label(self) -> str:
        return f"GPU {self.index}" if self.slice is None else f"GPU {self.index}:{self.slice}"

    @property
    def key(self) -> str:
        """A name that stays with this GPU. NVML's numbers do not: they shift when another GPU is lost."""
        return self.uuid or self.label


@dataclass(frozen=True)
class _Device:
    handle: Any
    blank: GpuReading  # the values that never change


def with_uuid(uuid: str, gpus: tuple[GpuReading, ...]) -> GpuReading | None:
    """The GPU or slice to which CUDA gives this UUID, without NVML's prefix. A slice may have that of its whole GPU;
    then it is the only one, or the only one on which the process that was asked about holds memory."""
    own = [gpu for gpu in gpus if gpu.uuid.lower().endswith(uuid.lower())]
    slices = [gpu for gpu in gpus if gpu.parent.lower().endswith(uuid.lower())]
    found = own or (slices if len(slices) == 1 else [gpu for gpu in slices if gpu.process_memory])
    return found[0] if len(found) == 1 else None


class Nvml:
    """Keeps NVML open between readings and reopens it after a fault. Use it from one thread at a time.

    only: the GPUs to read, by NVML's numbers or the beginnings of their UUIDs; none for all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, only: Collection[str] = ()) -> None:
        self._clock = clock
        self._only = only
        self._open = False
        self._devices: tuple[_Device, ...] = ()
        self._slow: dict[str, tuple[float, dict[str, Any], list[str]]] = {}
        self._retry_at = float("-inf")
        self._retry_after = RETRY_SECONDS
        self._fault = ""

    def read(self, pid: int) -> tuple[tuple[GpuReading, ...], str]:
        """Return a reading of every GPU seen so far, and a note on missing values ("" if there are none).

        pid: the process that `process_memory` is read for.
        Never raises. A GPU that was seen once stays in the list, without values until it comes back.
        """
        if self._fault and self._clock() >= self._retry_at:
            self.close()
        if not self._open and self._clock() >= self._retry_at:
            self._start()
        if not self._open:
            return tuple(device.blank for device in self._devices), self._fault
        notes = [self._fault] if self._fault else []
        gpus = tuple(self._read(device, pid, notes) for device in self._devices)
        if not self._fault:
            self._retry_after = RETRY_SECONDS
        return gpus, "; ".join(dict.fromkeys(notes))

    def close(self) -> None:
        if self._open:
            self._open = False
            _ask(pynvml.nvmlShutdown)

    def _start(self) -> None:
        """Open NVML and list the GPUs. GPUs that have disappeared since the last start stay in the list."""
        self._slow.clear()
        _, fault = _ask(pynvml.nvmlInit)
        if not fault:
            self._open = True
            count, fault = _ask(pynvml.nvmlDeviceGetCount)
        if fault:
            self._fail(NO_DRIVER if fault == _NO_LIBRARY else f"no GPU reading, NVML says: {fault}")
            self.close()
            return
        self._fault = ""
        there = (device for index in range(count) for device in self._find(index))
        found = {device.blank.key: device for device in there if self._wanted(device.blank)}
        lost = {d.blank.key: _Device(None, d.blank) for d in self._devices if d.blank.key not in found}
        self._devices = tuple(sorted((lost | found).values(), key=lambda d: (d.blank.index, d.blank.slice or 0)))
        if not self._devices:
            self._fail("no GPU reading, the NVIDIA driver reports no GPU")
            self.close()

    def _wanted(self, gpu: GpuReading) -> bool:
        ids = (gpu.uuid, gpu.parent)
        return not self._only or any(
            gpu.index == int(name) if name.isdecimal() else any(one.startswith(name) for one in ids)
            for name in self._only
        )

    def _fail(self, fault: str) -> None:
        self._fault = fault
        self._retry_at = self._clock() + self._retry_after
        self._retry_after = min(2 * self._retry_after, LONGEST_RETRY_SECONDS)

    def _find(self, index: int) -> list[_Device]:
        """The GPU with this number, or its slices if MIG divides it. Empty if the GPU cannot be reached."""
        handle, fault = _ask(pynvml.nvmlDeviceGetHandleByIndex, index)
        if fault:
            self._fail(f"GPU {index}: no reading, NVML says: {fault}")
            return []
        mode, _ = _ask(pynvml.nvmlDeviceGetMigMode, handle)
        if mode and mode[0]:
            count, _ = _ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle)
            slices = [_ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, n)[0] for n in range(count or 0)]
            if any(slices):
                parent = _text(_ask(pynvml.nvmlDeviceGetUUID, handle)[0])
                return [self._device(part, index, number, parent) for number, part in enumerate(slices) if part]
        return [self._device(handle, index)]

    @staticmethod
    def _device(handle: Any, index: int, number: int | None = None, parent: str = "") -> _Device:
        name, _ = _ask(pynvml.nvmlDeviceGetName, handle)
        uuid, _ = _ask(pynvml.nvmlDeviceGetUUID, handle)
        total, _ = _ask(_memory, handle)
        blank = GpuReading(
            index=index,
            name=_text(name) or "unnamed",
            used=None,
            total=total.total if total else None,
            utilization=None,
            uuid=_text(uuid),
            slice=number,
            parent=parent,
        )
        return _Device(handle, blank)

    def _read(self, device: _Device, pid: int, notes: list[str]) -> GpuReading:
        blank, handle = device.blank, device.handle
        memory, fault = (None, "GPU is lost") if handle is None else _ask(_memory, handle)
        if fault or memory is None:
            notes.append(f"{blank.label}: no reading, NVML says: {fault}")
            if not self._fault:
                self._fail(notes[-1])
            return blank
        processes, fault = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
        if fault:
            notes.append(f"{blank.label} does not report its processes ({fault})")
        return GpuReading(
            index=blank.index,
            name=blank.name,
            used=memory.used,
            total=memory.total,
            uuid=blank.uuid,
            reserved=getattr(memory, "reserved", None),
            process_memory=None if fault else _held_by(pid, processes),
            slice=blank.slice,
            parent=blank.parent,
            **self._slow_values(device, notes),
        )

    def _slow_values(self, device: _Device, notes: list[str]) -> dict[str, Any]:
        key = device.blank.key
        taken, values, faults = self._slow.get(key, (float("-inf"), {}, []))
        if self._clock() - taken >= SLOW_SECONDS:
            values, faults = {}, []
            for name, (word, ask) in _SLOW.items():
                values[name], fault = _ask(ask, device.handle)
                if fault:
                    faults.append(f"{device.blank.label} does not report {word} ({fault})")
            self._slow[key] = (self._clock(), values, faults)
        notes.extend(faults)
        return values


def _ask(call: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """Return (answer, "") or (None, NVML's reason). Any error that a half-working driver causes counts as a reason."""
    try:
        return call(*arguments), ""
    except Exception as error:
        return None, str(error) or type(error).__name__


def _memory(handle: Any) -> Any:
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as error:
        # drivers before 510 have only version 1
        if error.value not in (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
            raise
        return pynvml.nvmlDeviceGetMemoryInfo(handle)


def _held_by(pid: int, processes: list[Any]) -> int | None:
    """Bytes that the process holds, or None if NVML lists it without a number."""
    held = [process.usedGpuMemory for process in processes if process.pid == pid]
    return None if None in held else sum(held)


_SLOW: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "utilization": ("its utilisation", lambda handle: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
    "power": ("its power", lambda handle: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000),
    "power_limit": ("its power limit", lambda handle: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
    "temperature": (
        "its temperature",
        lambda handle: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
    ),
}


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
