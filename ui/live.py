"""Memory readings and the worker's state, polled by the page about once a second.

The page calls `LivePanel.poll` directly on the component, not through the event queue, so a reading arrives
while a video is being made and in every open tab.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import gradio as gr

from pipeline import GpuReading, Resources, read_resources
from ui.site import Site
from ui.static import asset


def live_panel(site: Site) -> gr.HTML:
    readings = _Shared()

    def poll(_: Any = None) -> dict[str, Any]:
        return {"worker": site.worker.status(), **resource_rows(readings.read())}

    return gr.HTML(
        html_template=asset("live.html"),
        js_on_load=asset("live.js"),
        server_functions=[poll],
        elem_id="live",
        elem_classes="bare",
        apply_default_css=False,
    )


class _Shared:
    """One reading for all tabs that ask within half a second, because CPU load is measured between two readings."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading: Resources | None = None
        self._time = 0.0

    def read(self) -> Resources:
        with self._lock:
            if self._reading is None or time.monotonic() - self._time > 0.5:
                self._reading, self._time = read_resources(), time.monotonic()
            return self._reading


def resource_rows(reading: Resources) -> dict[str, Any]:
    """{"title", "note", "rows": [{"name", "text", "share"}]}; share is 0 to 1 of the row's bar, or None."""
    if reading.gpus:
        rows = [row for gpu in reading.gpus for row in _gpu(gpu)]
        return {"title": "GPU memory (NVML)", "note": reading.note, "rows": rows}
    host, process, total = reading.host_used, reading.process_rss, reading.host_total
    rows = [
        _row("Host", f"{_gib(host)} of {_gib(total)} GiB used", host / total),
        _row("This process (RSS)", f"{_gib(process)} GiB", process / total),
        _row("CPU", f"{reading.cpu_percent:.0f}% busy", reading.cpu_percent / 100),
    ]
    return {"title": "Host memory (no NVIDIA driver)", "note": reading.note, "rows": rows}


def _gpu(gpu: GpuReading) -> list[dict[str, Any]]:
    share = gpu.used / gpu.total if gpu.total else None
    rows = [_row(f"GPU {gpu.index} · {gpu.name}", f"{_gib(gpu.used)} of {_gib(gpu.total)} GiB used", share)]
    if gpu.utilization is not None:
        rows.append(_row(f"GPU {gpu.index} utilisation", f"{gpu.utilization}%", gpu.utilization / 100))
    return rows


def _row(name: str, text: str, share: float | None) -> dict[str, Any]:
    return {"name": name, "text": text, "share": share}


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
