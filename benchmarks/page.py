"""Times the page: its start, and its answers while other clients make videos.

    python benchmarks/page.py            # a few minutes, on an otherwise idle machine

Start: `python app.py` with the embedded checkpoint is timed from the command to the line with the address, to the first
paint in Chromium, and to a page that reacts to clicks. The memory is that of the serving process, which does not hold
the model. Load: the page uses the pipeline of the tests, which draws squares instead of videos, so that only the page
is timed. CLIENTS clients make JOBS videos, CANCELS of them cancel one, a page is reloaded RELOADS times, and another
page presses a switch whose effect comes from the server. Writes benchmarks/results/page.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import psutil
from gradio_client import Client
from playwright.sync_api import Browser, Page

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app_server import free_port
from browser import button, chromium, expect, notice, open_page
from processor import cpu_name

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "page.json"
CLIENTS, JOBS, CANCELS, RELOADS = 20, 100, 5, 3
SMALL = {"width": 32, "height": 32, "num_frames": 5, "steps": 2}
LONG_STEPS = 900
END_MS = 300_000
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def start(browser: Browser) -> dict[str, float]:
    """Measure the start: seconds since the command, and CPU seconds and bytes of the serving process, page open."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(free_port()), "--device", "cpu", "--output-dir", folder]
        began = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "app.py", *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            line = next(line for line in server.stdout if "Running on local URL" in line)
            listening = time.perf_counter() - began
            page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
            opened = time.perf_counter() - began
            page.goto(line.split()[-1], wait_until="domcontentloaded")
            paint = page.wait_for_function(PAINT).json_value() / 1000
            expect(button(page, "Generate")).to_be_enabled(timeout=END_MS)
            usable = time.perf_counter() - began
            process = psutil.Process(server.pid)
            memory, times = process.memory_info().rss, process.cpu_times()
            page.context.close()
        finally:
            server.terminate()
            server.wait()
    seconds = {"listening": listening, "paint": paint, "painted": opened + paint, "usable": usable}
    return seconds | {"processor": times.user + times.system, "memory": memory}


def switch(page: Page) -> float:
    """Milliseconds from a press of "Dense only" or "Sparse only" until the server's new plan is shown."""
    return page.evaluate(
        """() => new Promise((done) => {
            const plan = document.getElementById('plan');
            const choice = document.querySelector('#attention input[type=radio]:not(:checked)');
            const before = plan.textContent, began = performance.now();
            const watch = new MutationObserver(() => {
                if (plan.textContent !== before) { watch.disconnect(); done(performance.now() - began); }
            });
            watch.observe(plan, { childList: true, subtree: true, characterData: true });
            choice.click();
        })"""
    )


def load(browser: Browser) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "load_server.py"), folder],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[:2])},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            return _load(browser, psutil.Process(server.pid), server.stdout.readline().strip())
        finally:
            server.kill()
            server.wait()


def _load(browser: Browser, server: psutil.Process, address: str) -> dict:
    patient = {"timeout": END_MS / 1000}
    clients = [Client(address, verbose=False, httpx_kwargs=patient) for _ in range(CLIENTS)]
    makers, cancellers = clients[CANCELS:], clients[:CANCELS]

    def make(number: int) -> bool:
        client = makers[number % len(makers)]
        _, report = client.predict(f"clip {number}", seed=number, **SMALL, api_name="/generate")
        return report["request"]["seed"] == number

    page, visitor = open_page(browser, address), open_page(browser, address)
    button(visitor, "Generate").click()
    expect(notice(visitor)).to_contain_text("Done with seed", timeout=END_MS)
    make(0)
    idle, before = [switch(page) for _ in range(20)], server.memory_info().rss
    busy, over = [], threading.Event()
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        made = [pool.submit(make, number) for number in range(JOBS)]
        doomed = [client.submit("long", **SMALL | {"steps": LONG_STEPS}, api_name="/generate") for client in cancellers]
        threading.Thread(target=lambda: ([job.exception() for job in made], over.set()), daemon=True).start()
        button(visitor, "Generate").click()
        for _ in range(RELOADS):
            visitor.reload(wait_until="domcontentloaded")
            busy.append(switch(page))
        for job in doomed:
            job.cancel()
        while not over.is_set():
            busy.append(switch(page))
            page.wait_for_timeout(100)
    seconds = time.perf_counter() - began
    return {
        "clients": CLIENTS,
        "jobs": JOBS,
        "cancels": CANCELS,
        "reloads": RELOADS,
        "lost": sum(not job.result() for job in made),
        "seconds": seconds,
        "memory_before": before,
        "memory_after": server.memory_info().rss,
        "idle_ms": percentiles(idle),
        "busy_ms": percentiles(busy),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"count": len(values), "p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5, help="how often to start; the medians count")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with chromium() as browser:
        under_load = load(browser)
        starts = [start(browser) for _ in range(options.starts)]
        results = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "load_average": os.getloadavg()[1],
            "cores": len(os.sched_getaffinity(0)),
            "cpu": cpu_name(),
            "python": platform.python_version(),
            "starts": options.starts,
            "start": {name: statistics.median(run[name] for run in starts) for name in starts[0]},
            "load": under_load,
        }
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
