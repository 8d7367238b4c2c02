"""Shows the attention: the blocks of the video that a block attended to, and how much of its full attention they hold.

The page gets a key when a finished job is shown. It uses the key to ask for the record's overview and for single blocks
only when somebody looks at them. So nothing is read for a panel that is never opened.
"""

from __future__ import annotations

import base64
import logging
import secrets
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from pipeline.media.attention_record import AttentionRecord, record_path
from pipeline.request.start import LATENT_FRAMES
from pipeline.request.values import whole_number
from ui.jobs.job import VideoJob
from ui.look.parts import QUIET, Drawn
from ui.site import Site
from ui.storage.files import picture

log = logging.getLogger("ui")

TAB = "Inside the attention"
DENSE_ONLY = "This run has no sparse video. In dense attention every block reads every block."
SINGLE_FRAME = "BSA was not active in this run, so every block read every block."
NO_RECORD = "What this run selected was not recorded, or its file is gone."
TOO_MANY = "The blocks of this run are too many for their selections to be kept. The maps below are complete."
GONE = "This run is no longer at hand. Reload the page."
SCRIPTS = ("blocks.js", "maps.js", "inspector.js")
MOST_KEYS = 4096
MOST_WIDTH = 480  # of a picture in the strip, in pixels


class Keys:
    """Issues keys to attention records, each for one owner and one run, and finds the run of a key."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._keys: OrderedDict[str, tuple[str, str]] = OrderedDict()  # key -> id and owner of a job
        self._lock = threading.Lock()

    def invite(self, job_id: str, request: gr.Request) -> dict[str, str]:
        """The panel's value for a run on the stage: a new key if the visitor may see it and it has a record."""
        job = self._site.worker.find(job_id, self._site.owner(request))
        return self.issue(job) if isinstance(job, VideoJob) else {"key": "", "why": GONE}

    def issue(self, job: VideoJob) -> dict[str, str]:
        """A new key for a run, as {"key"}, or {"key": "", "why"} without a record. For those who may see the run."""
        if "sparse" not in job.results:
            return {"key": "", "why": DENSE_ONLY}
        if not job.results["sparse"].bsa_active:
            return {"key": "", "why": SINGLE_FRAME}
        if not record_path(job.results["sparse"].video).is_file():
            return {"key": "", "why": NO_RECORD}
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._keys[key] = job.id, job.owner
            while len(self._keys) > MOST_KEYS:
                self._keys.popitem(last=False)
        return {"key": key}

    def job(self, key: Any) -> VideoJob:
        """The run of a key. Raises ValueError if the key was not issued here, or if its run is gone."""
        with self._lock:
            found = self._keys.get(key) if isinstance(key, str) else None
        job = found and self._site.worker.find(*found)
        if not isinstance(job, VideoJob) or "sparse" not in job.results:
            raise ValueError(GONE)
        return job


class Inspector(Drawn):
    """The panel. Its value is {"key"} of a run, or {"key": "", "why"} with a sentence why there is none."""

    def __init__(self, keys: Keys, **kwargs: Any) -> None:
        super().__init__("inspector", SCRIPTS, {}, server_functions(keys), **kwargs)


def server_functions(keys: Keys, pictures: bool = True) -> list[Any]:
    """The functions with which a page asks about the run of a key: `overview(key)`, `look({"key", "step", "layer",
    "block"})`, and `record(key)` for the whole file as {"npz": base64}. Where there is nothing to tell, they answer
    {"why"}. pictures: with frames of the video in the overview.
    """

    def overview(key: Any) -> dict[str, Any]:
        try:
            job = keys.job(key)
            return run_overview(job, read_record(job), pictures)
        except ValueError as error:
            return {"why": str(error)}

    def look(ask: Any) -> dict[str, Any]:
        try:
            ask = ask if isinstance(ask, dict) else {}
            place = (ask.get(name) for name in ("step", "layer", "block"))
            return block_view(read_record(keys.job(ask.get("key"))), *place)
        except ValueError as error:
            return {"why": str(error)}

    def record(key: Any) -> dict[str, str]:
        try:
            job = keys.job(key)
            read_record(job)  # a damaged one is not handed out
            return {"npz": base64.b64encode(record_path(job.results["sparse"].video).read_bytes()).decode()}
        except ValueError as error:
            return {"why": str(error)}

    return [overview, look, record]


def inspector_panel(keys: Keys, shown: gr.State) -> None:
    """Add a tab for the run whose id is in `shown`. Call it inside `gr.Tabs`."""
    with gr.Tab(TAB, id="inspector"):
        view = Inspector(keys)
    shown.change(keys.invite, shown, view, **QUIET)


def read_record(job: VideoJob) -> AttentionRecord:
    """Read the record of a job. Raises ValueError if it is missing or damaged."""
    path = record_path(job.results["sparse"].video)
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        log.warning("attention record: %s", error)
        raise ValueError(NO_RECORD) from None


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> AttentionRecord:
    return AttentionRecord.load(path)


def run_overview(job: VideoJob, record: AttentionRecord, pictures: bool = True) -> dict[str, Any]:
    """Grid, chunks, pictures and maps of one run, ready for JSON. Steps, layers and heads count from 0.

    recall, density: [layers][steps], means over heads; null if recall was not sampled.
    lead: latent frames that the video begins with, whose blocks are cut apart from the rest.
    segments: {"t": latent frame, "first", "last": frames}, one per picture. Time is cut at the start of every query
        block and every key block, so that each picture belongs to exactly one of each.
    """
    frames, lead, chunks = record.grid.t, record.conditioning, (record.chunk_q.t, record.chunk_k.t)
    starts = sorted({start for step in chunks for start in (*range(0, lead, step), *range(lead, frames, step))})
    segments = [
        {"t": start, "first": first_frame(start), "last": first_frame(end) - 1}
        for start, end in zip(starts, [*starts[1:], frames], strict=True)
    ]
    request = job.results["sparse"].request
    middles = [(segment["first"] + segment["last"]) // 2 for segment in segments]
    width = min(request.width, MOST_WIDTH)
    steps, layers, heads = record.recall.shape
    return {
        "grid": record.grid,
        "chunk_q": record.chunk_q,
        "chunk_k": record.chunk_k,
        "lead": lead,
        "aspect": request.width / request.height,
        "segments": segments,
        "pictures": picture_strip(job.results["sparse"].video, middles, width) if pictures else "",
        "steps": steps,
        "layers": layers,
        "heads": heads,
        "stored": record.sampled._asdict(),
        "note": "" if record.selections.size else TOO_MANY,
        "recall": _map(record.recall),
        "density": _map(record.density),
    }


def block_view(record: AttentionRecord, step: Any, layer: Any, block: Any) -> dict[str, Any]:
    """The key blocks that one query block kept, as {"kept", "recall"}. Raises ValueError if they are not stored.

    kept: base64 of ceil(key blocks / 8) bytes per stored head; key block n is bit n % 8 of byte n // 8.
    recall: share of the block's attention inside them, per stored head; null if it was not sampled.
    """
    step, layer, block = whole_number("step", step), whole_number("layer", layer), whole_number("block", block)
    masks = record.masks(step, layer, block)
    bits = np.packbits(masks, axis=-1, bitorder="little")
    recall = record.recall_of(step, layer, block)
    return {"kept": base64.b64encode(bits.tobytes()).decode(), "recall": _numbers(recall)}


def first_frame(latent: int) -> int:
    """The first video frame of a latent frame. The first latent frame holds one video frame, each other one four."""
    return 0 if latent == 0 else LATENT_FRAMES * (latent - 1) + 1


def picture_strip(video: Path, frames: list[int], width: int) -> str:
    """Some frames of a video as one JPEG, stacked from top to bottom, in a data URL. "" if the file cannot be read."""
    chosen = "+".join(f"eq(n,{frame})" for frame in frames)
    picked = f"select='{chosen}',scale={width}:-2,tile=1x{len(frames)}"
    return picture(video, picked, quality=3)


def _map(values: np.ndarray) -> list[list[float | None]]:
    return [_numbers(row) for row in values.mean(axis=2).T]


def _numbers(row: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 7) for value in row]
