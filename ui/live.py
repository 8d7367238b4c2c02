"""Memory readings and the worker's state, polled by the page about once a second.

The page calls `LivePanel.poll` directly on the component, not through the event queue, so a reading arrives
while a video is being made and in every open tab.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import gradio as gr

from pipeline import Resources, read_resources
from ui.jobs import Worker
from ui.static import asset


def live_panel(worker: Worker) -> gr.HTML:
    readings = _Shared()

    def poll(_: Any = None) -> dict[str, Any]:
        return {"worker": worker.status(), **resource_rows(readings.read())}

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
        return {"title": "GPU memory (NVML)", "note": reading.note, "rows": [row for gpu in reading.gpus for row in _gpu(gpu)]}
    host, process = reading.host_used, reading.process_rss
    rows = [
        {"name": "Host", "text": f"{_gib(host)} of {_gib(reading.host_total)} GiB used", "share": host / reading.host_total},
        {"name": "This process (RSS)", "text": f"{_gib(process)} GiB", "share": process / reading.host_total},
        {"name": "CPU", "text": f"{reading.cpu_percent:.0f}% busy", "share": reading.cpu_percent / 100},
    ]
    return {"title": "Host memory (no NVIDIA driver)", "note": reading.note, "rows": rows}


def _gpu(gpu: Any) -> list[dict[str, Any]]:
    text = f"{_gib(gpu.used)} of {_gib(gpu.total)} GiB used"
    rows = [{"name": f"GPU {gpu.index} · {gpu.name}", "text": text, "share": gpu.used / gpu.total if gpu.total else None}]
    if gpu.utilization is not None:
        rows.append({"name": f"GPU {gpu.index} utilisation", "text": f"{gpu.utilization}%", "share": gpu.utilization / 100})
    return rows


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
