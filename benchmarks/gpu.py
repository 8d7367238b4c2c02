"""Shared by the GPU benchmarks: the machine's description, timing, tables, and results saved row by row."""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

RESULTS = Path(__file__).parent / "results"
ROW_SECONDS = 150  # a row that takes longer counts as hung
CONTEXT_LOST = 3  # exit status after an error that no later row would survive; a new start keeps finished rows


def arguments(doc: str, name: str) -> argparse.ArgumentParser:
    """A parser with the options of every GPU benchmark."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.json")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, to test this program")
    parser.add_argument("--budget", type=float, default=540, metavar="S", help="start no row after so many seconds")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that the output file already holds")
    parser.add_argument("--retry", action="store_true", help="measure rows again that failed")
    return parser


def result_path(args: argparse.Namespace) -> Path:
    """Where results go: to --output, but those of a trial not over measured ones."""
    if args.smoke and args.output.parent == RESULTS:
        return Path(tempfile.mkdtemp()) / args.output.name
    return args.output


def device_for(parser: argparse.ArgumentParser, smoke: bool) -> torch.device:
    if smoke:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        parser.error("no CUDA device here; --smoke tests this program on the CPU")
    return torch.device("cuda", torch.cuda.current_device())


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
    """Rows of a JSON file, saved one by one. An interrupted run continues where it stopped."""

    def __init__(self, args: argparse.Namespace, device: torch.device, more: dict | None = None) -> None:
        """more: added to the machine's description."""
        self._path, self._end, self._retry = result_path(args), time.monotonic() + args.budget, args.retry
        self._began, self._left_out = time.monotonic(), 0
        about = machine(device) | (more or {})
        old = json.loads(self._path.read_text()) if self._path.exists() and not args.fresh else {}
        same = old.get("device") == about["device"] and old.get("torch") == about["torch"]
        self.rows: list[dict] = old["rows"] if same else []
        self._about = about
        print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)

    def missing(self, key: dict) -> bool:
        """Whether `measure` would run this key."""
        row = self._find(key)
        return row is None or self._retry and "failed" in row

    def measure(self, key: dict, run: Callable[[], dict]) -> dict | None:
        """Add the row ``key | run()`` unless it exists. An error becomes a row with the reason."""
        if not self.missing(key):
            return self._find(key)
        if time.monotonic() > self._end:
            print("out of time before", key, flush=True)
            self._left_out += 1
            return None
        # if it hangs and is killed, the next run continues after it
        self._put(key, key | {"failed": "it did not return"})
        watch = threading.Timer(ROW_SECONDS, _give_up, (key,))
        watch.daemon = True
        watch.start()
        try:
            row = key | run()
        except Exception as error:  # a peer that is missing or too large must not end the run
            row = key | {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        finally:
            watch.cancel()
        self._put(key, row)
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
        print("  ".join(f"{name} {value}" for name, value in shown.items()), flush=True)
        gc.collect()
        if torch.cuda.is_available():
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError as error:
                print("the CUDA context is lost:", error, flush=True)
                sys.exit(CONTEXT_LOST)
        return row

    def finish(self) -> None:
        failed = sum("failed" in row for row in self.rows)
        seconds = time.monotonic() - self._began
        print(f"{self._path.name}: {len(self.rows)} rows, {failed} failed, {self._left_out} left out, {seconds:.0f} s")

    def _find(self, key: dict) -> dict | None:
        return next((row for row in self.rows if row.items() >= key.items()), None)

    def _put(self, key: dict, row: dict) -> None:
        self.rows = [old for old in self.rows if not old.items() >= key.items()] + [row]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps({**self._about, "rows": self.rows}, indent=1) + "\n")


def _give_up(key: dict) -> None:
    print(f"no end after {ROW_SECONDS} s:", key, flush=True)
    os._exit(CONTEXT_LOST)  # a thread waiting for the GPU cannot be interrupted


def milliseconds(
    run: Callable[[], object],
    device: torch.device,
    repeats: int = 10,
    limit: float = 10,
    check: Callable[[object], dict] | None = None,
    once_above: float | None = None,
) -> dict:
    """Median milliseconds of several runs, and the seconds of a first run before them, which includes compilation.

    check: returns values to add, from the first result. once_above: if the first run takes more seconds, it is the only
    one.
    """
    began = time.perf_counter()
    out = run()
    wait(device)
    first = time.perf_counter() - began
    found = check(out) if check is not None else {}
    del out
    if once_above is not None and first > once_above:
        return {"ms": 1e3 * first, "runs": 1, "first_s": first, **found}
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
    return {"ms": statistics.median(times), "runs": len(times), "first_s": first, **found}


def profiled(run: Callable[[], object], device: torch.device, **options) -> dict:
    """Like `milliseconds`, with the memory that PyTorch held before, and its peak (in GiB; None on the CPU)."""
    if device.type != "cuda":
        return milliseconds(run, device, **options) | {"held_gib": None, "peak_gib": None}
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device) / 2**30
    row = milliseconds(run, device, **options)
    return row | {"held_gib": held, "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30}


@contextmanager
def limited(gib: float | None, device: torch.device) -> Iterator[None]:
    """Limit PyTorch to this much of the GPU's memory within the block. None sets no limit."""
    if gib is None or device.type != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        gib * 2**30 / torch.cuda.get_device_properties(device).total_memory, device
    )
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
