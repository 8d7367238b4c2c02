"""What the GPU benchmarks share: the machine's description, timing, tables, and results that are saved row by row."""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

RESULTS = Path(__file__).parent / "results"


def arguments(doc: str, name: str) -> argparse.ArgumentParser:
    """A parser with the options that every GPU benchmark has."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.json")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, to test this program")
    parser.add_argument("--budget", type=float, default=540, metavar="S", help="start no row after so many seconds")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that the output file already holds")
    return parser


def device_for(parser: argparse.ArgumentParser, smoke: bool) -> torch.device:
    if smoke:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        parser.error("no CUDA device here; --smoke tests this program on the CPU")
    return torch.device("cuda")


def machine(device: torch.device) -> dict:
    cuda = device.type == "cuda"
    versions = {}
    for package in ("triton", "fastvideo"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "memory_gib": torch.cuda.get_device_properties(device).total_memory / 2**30 if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "python": platform.python_version(),
        **versions,
    }


class Rows:
    """Rows of a JSON file, saved after each: a run that was cut off goes on where it stopped."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self._path, self._end = args.output, time.monotonic() + args.budget
        about = machine(device)
        old = json.loads(self._path.read_text()) if self._path.exists() and not args.fresh else {}
        same = old.get("device") == about["device"] and old.get("torch") == about["torch"]
        self.rows: list[dict] = old["rows"] if same else []
        self._about = about
        print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)

    def measure(self, key: dict, run: Callable[[], dict]) -> dict | None:
        """Add the row ``key | run()`` unless it is there; what fails becomes a row with the reason."""
        for row in self.rows:
            if row.items() >= key.items() and "failed" not in row:
                return row
        if time.monotonic() > self._end:
            print("out of time before", key, flush=True)
            return None
        try:
            row = key | run()
        except Exception as error:  # a peer that is missing or too large must not end the run
            row = key | {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        self.rows = [old for old in self.rows if not old.items() >= key.items()] + [row]
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
        print("  ".join(f"{name} {value}" for name, value in shown.items()), flush=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps({**self._about, "rows": self.rows}, indent=1) + "\n")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return row


def milliseconds(run: Callable[[], object], device: torch.device, repeats: int = 10, limit: float = 10) -> dict:
    """Median of several runs after one that warms up, and the seconds of that first one (compilation included)."""
    began = time.perf_counter()
    run()
    _wait(device)
    first = time.perf_counter() - began
    times = []
    began = time.perf_counter()
    while len(times) < repeats and (len(times) < 2 or time.perf_counter() - began < limit):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
    return {"ms": statistics.median(times), "runs": len(times), "first_s": first}


def peak_gib(run: Callable[[], object], device: torch.device) -> float | None:
    """Largest allocation while it runs, or None on the CPU."""
    if device.type != "cuda":
        run()
        return None
    _wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    _wait(device)
    return torch.cuda.max_memory_allocated(device) / 2**30


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
