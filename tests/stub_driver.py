"""A libnvidia-ml.so.1 built from C, for the real pynvml to load: GPUs that a test moves, breaks and mends.

It must be on the library path before the process starts, so programs that use it run in one of their own:
`subprocess.Popen(..., env=driver.env())`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "nvml_stub" / "nvml_stub.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler on the PATH to build the NVML stub with")
GIB = 2**30


class StubDriver:
    """Two GPUs of 140 GiB; `set` changes what NVML says of them from now on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._control = folder / "control"
        self.values: dict[str, object] = {"count": 2}
        for index, uuid in enumerate(
            ("GPU-bbbbbbbb-0000-0000-0000-000000000000", "GPU-aaaaaaaa-0000-0000-0000-000000000000")
        ):
            self.values |= {
                f"{index}.name": "NVIDIA H200",
                f"{index}.uuid": uuid,
                f"{index}.total": 140 * GIB,
                f"{index}.used": (index + 1) * GIB,
                f"{index}.reserved": GIB // 2,
                f"{index}.utilization": 10 * (index + 1),
                f"{index}.power": 100_500,
                f"{index}.limit": 700_000,
                f"{index}.temperature": 30 + index,
                f"{index}.processes": "",
            }
        flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-fvisibility=hidden", "-Wl,-soname,libnvidia-ml.so.1"]
        subprocess.run([COMPILER, *flags, "-o", folder / "libnvidia-ml.so.1", SOURCE], check=True)
        self.set()

    def set(self, **values: object) -> None:
        """Values by name, "gpu0_used" for 0.used; None removes one."""
        for name, value in values.items():
            device, _, what = name.partition("_")
            key = f"{device.removeprefix('gpu').replace('s', '/')}.{what}" if device.startswith("gpu") else name
            self.values[key] = value
        lines = [f"{key} {value}\n" for key, value in self.values.items() if value is not None]
        new = self._control.with_suffix(".new")
        new.write_text("".join(lines))
        os.replace(new, self._control)  # a reader sees the old or the new file, never half of one

    def env(self) -> dict[str, str]:
        return os.environ | {"LD_LIBRARY_PATH": str(self.folder), "NVML_STUB": str(self._control)}
