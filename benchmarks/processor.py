"""Names the processor of a report. Imports nothing heavy: the page's benchmarks have no PyTorch in their process."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """As Linux describes it, or what Python knows of it elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
