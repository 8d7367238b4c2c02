"""Puts many clients and then a full queue on the page: counts lost jobs and times the answers.

    python benchmarks/soak.py              # some minutes, on a machine that does nothing else
    python benchmarks/soak.py --engines 4  # the same with four engines, 40 clients and 200 jobs

The server is the real one, with the real estimator, which has learned 60 runs, and the real record of jobs. Its engine
is a real process too, but draws squares in place of videos (tests/soak_server.py). So everything but the model is
tested. Each client has an address of its own, as behind a reverse proxy.

First CLIENTS clients have JOBS short videos made, as many clients as CANCELS cancel one, a page is reloaded RELOADS
times while its video is made, and the engine is killed KILLS times. A job that was under way then fails and says so;
every other one must be made once; with several engines that one too, because it is put back. Then WAITING jobs wait
behind a long one on every engine while pages are fetched one after another, and after that all of them must be made.
Writes benchmarks/results/soak.json, or soak_engines.json.
"""

import argparse
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import httpx
import psutil
from gradio_client import Client

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app_server import until
from browser import button, chromium, expect, notice, open_page
from page import END_MS
from processor import cpu_name

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CLIENTS, JOBS, CANCELS, RELOADS, KILLS, WAITING = 20, 100, 5, 3, 2, 200
OF_SEVERAL = {"clients": 40, "jobs": 200}  # where there are several engines
STEP_SECONDS = 0.1
SMALL = {"width": 32, "height": 32, "num_frames": 5, "steps": 1, "guidance_scale": 1.0}
LONG_STEPS = 1000
PAGES = ("/", "/config", "/gradio_api/info")
FETCHES = 100  # of each page


class Server:
    """tests/soak_server.py, and what it has of the machine."""

    def __init__(self, folder: Path, engines: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "soak_server.py", folder, str(STEP_SECONDS), str(engines)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[:2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self.process.stdout.readline().strip()
        self._lock = threading.Lock()

    def tell(self, command: str) -> dict:
        with self._lock:
            print(command, file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())

    def look(self) -> dict:
        """Read the server's resources, and the delay of its event loop since the last reading."""
        process, told = psutil.Process(self.process.pid), self.tell("look")
        return {
            "memory": process.memory_info().rss,
            "handles": process.num_fds(),
            "threads": told["threads"],
            "sessions": told["sessions"],
            "waiting": told["waiting"],
            "estimates": told["estimates"],
            "event_loop_late_ms": percentiles([1000 * late for late in self.tell("late")["late"]]),
        }

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


class Clients:
    def __init__(self, address: str, count: int) -> None:
        patient = {"timeout": END_MS / 1000}
        with ThreadPoolExecutor(4) as pool:
            self.all = list(
                pool.map(
                    lambda number: Client(
                        address,
                        verbose=False,
                        httpx_kwargs=patient,
                        headers={"X-Forwarded-For": f"198.51.100.{number + 1}"},
                    ),
                    range(count),
                )
            )

    def make(self, number: int) -> str:
        """The end of a short job: "done", or its error."""
        client = self.all[number % len(self.all)]
        try:
            _, report = client.predict(f"clip {number}", seed=number, **SMALL, api_name="/generate")
        except Exception as error:
            return str(error)
        return "done" if report["request"]["prompt"] == f"clip {number}" else f"got {report['request']['prompt']}"


def busy(server: Server, options: argparse.Namespace, stack: ExitStack) -> tuple[dict, list[str]]:
    clients = Clients(server.address, options.clients)
    doomed_by = Clients(server.address, options.cancels)
    page = None
    if options.reloads:
        page = open_page(stack.enter_context(chromium()), server.address)
        button(page, "Generate").click()
    began = time.perf_counter()
    server.tell("late")
    with ThreadPoolExecutor(options.clients) as pool:
        made = [pool.submit(clients.make, number) for number in range(options.jobs)]
        doomed = [
            client.submit("too long", **SMALL | {"steps": LONG_STEPS}, api_name="/generate") for client in doomed_by.all
        ]
        for _ in range(options.reloads):
            page.reload(wait_until="domcontentloaded")
        until(lambda: sum(map(done, made)) > 0, "the first job")
        for job in doomed:
            job.cancel()
        for number in range(options.kills):
            until(lambda share=number + 1: sum(map(done, made)) >= share * options.jobs // (options.kills + 2), "jobs")
            server.tell("kill")
            until(lambda: server.tell("look")["ready"] == options.engines, "the engine")
        ends = [future.result() for future in made]
    if page is not None:
        expect(button(page, "Generate")).to_be_enabled(timeout=END_MS)
        button(page, "Generate").click()
        expect(notice(page)).to_contain_text("Done with seed", timeout=END_MS)
    until(lambda: server.tell("look")["waiting"] == 0, "the rest")
    return {"seconds": time.perf_counter() - began} | server.look(), ends


def done(future) -> bool:
    return future.done()


def full(server: Server, options: argparse.Namespace) -> tuple[dict, dict, list[str]]:
    """The queue is filled behind long jobs; pages are fetched; the long jobs are cancelled and all others are made."""
    clients, first = Clients(server.address, options.clients), Clients(server.address, 1).all[0]
    long = [
        first.submit("long", **SMALL | {"steps": LONG_STEPS}, api_name="/generate") for _ in range(options.engines)
    ]
    until(lambda: server.tell("look")["running"] == options.engines or any(map(done, long)), "the long jobs")
    assert not any(map(done, long)), [job.exception() for job in long if job.done()]
    numbers = range(options.jobs, options.jobs + options.waiting)
    with ThreadPoolExecutor(options.waiting) as pool:
        made = [pool.submit(clients.make, number) for number in numbers]
        until(lambda: server.tell("look")["waiting"] >= options.waiting, "a full queue")
        server.tell("late")
        before = psutil.Process(server.process.pid).cpu_times()
        began, took = time.perf_counter(), {page: [] for page in PAGES}
        with httpx.Client(timeout=END_MS / 1000) as browser:
            for _ in range(options.fetches):
                for page in PAGES:
                    start = time.perf_counter()
                    browser.get(server.address + page).raise_for_status()
                    took[page].append(1000 * (time.perf_counter() - start))
        seconds = time.perf_counter() - began
        after = psutil.Process(server.process.pid).cpu_times()
        waiting = server.look() | {
            "seconds": seconds,
            "processor": (after.user + after.system - before.user - before.system) / seconds,
            "page_ms": percentiles([value for values in took.values() for value in values]),
            "page_ms_each": {page: percentiles(values) for page, values in took.items()},
        }
        for job in long:
            job.cancel()
        ends = [future.result() for future in made]
        drained = {"seconds": time.perf_counter() - began - seconds} | server.look()
    return waiting, drained, ends


def recorded(folder: Path) -> tuple[dict[str, int], int]:
    """Jobs by how they ended, and how many short ones were made more than once."""
    with closing(sqlite3.connect(folder / ".app" / "jobs.sqlite")) as db:
        rows = db.execute("SELECT state, json_extract(request, '$.prompt') FROM jobs").fetchall()
    made = Counter(prompt for state, prompt in rows if state == "done" and str(prompt).startswith("clip "))
    return dict(Counter(state for state, _ in rows)), sum(count - 1 for count in made.values())


def percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"count": len(values), "p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(values)}


def soak(options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        server = Server(Path(name), options.engines)
        try:
            until(lambda: server.tell("look")["state"] == "ready", "the engine")
            time.sleep(0.5)
            start = server.look()
            clients, ends = busy(server, options, stack)
            waiting, drained, more = full(server, options)
        finally:
            server.close()
        states, doubled = recorded(Path(name))
    counted = Counter("done" if end == "done" else "killed" if "killed" in end else "lost" for end in ends + more)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[1],
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in ("gradio", "uvicorn", "torch")},
        "engine": "a process that draws squares; estimator, server and record of jobs are the real ones",
        "engines": options.engines,
        "clients": options.clients,
        "jobs": options.jobs,
        "cancels": options.cancels,
        "reloads": options.reloads,
        "kills": options.kills,
        "ends": {"done": counted["done"], "failed_by_a_kill": counted["killed"], "lost": counted["lost"]},
        "doubled": doubled,
        "recorded": states,
        "start": start,
        "busy": clients,
        "waiting": waiting,
        "drained": drained,
        "other_errors": sorted({end for end in ends + more if end != "done" and "killed" not in end}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [
        ("clients", CLIENTS),
        ("jobs", JOBS),
        ("cancels", CANCELS),
        ("reloads", RELOADS),
        ("kills", KILLS),
        ("waiting", WAITING),
        ("fetches", FETCHES),
    ]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--output", type=Path)
    if (several := parser.parse_known_args()[0].engines > 1):
        parser.set_defaults(**OF_SEVERAL)
    options = parser.parse_args()
    options.output = options.output or RESULTS / ("soak_engines.json" if several else "soak.json")
    results = soak(options)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
