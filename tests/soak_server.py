"""A server for the soak: the real page, worker, estimator and record of jobs over an engine process that draws squares.

    python soak_server.py FOLDER STEP_SECONDS ENGINES

The event loop is asked every 20 ms how late it is. Commands come on standard input, each is answered with a line of
JSON: "kill" kills the process of an engine, of one that is at work if there is one; "late" says how late the loop was
since the last such question (seconds); "look" what there is: jobs that wait and run, the worker's state, engines that
are ready, estimates that were made, sessions and threads.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from app_server import free_port
from test_pipeline_estimate import CPU, INFO, calibration, request, result

import app
from pipeline.engine.process import EngineProcess
from pipeline.engine.share import WHOLE, Share
from pipeline.estimate.estimator import FILE_NAME, Estimator
from pipeline.estimate.ledger import MOST_RUNS
from ui import Worker, build_page
from ui.access.connections import raise_handle_limit, spare_log

LOOK_SECONDS = 0.02
LONG = replace(INFO, defaults=INFO.defaults | {"use_distill": False})  # a job may have any number of steps


class Counted:
    """Counts the estimates that are made."""

    def __init__(self) -> None:
        self.made, estimate = 0, Estimator.estimate

        def counting(estimator, wanted):
            self.made += 1
            return estimate(estimator, wanted)

        Estimator.estimate = counting


class Lateness:
    """How much later than asked for the event loop calls back."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    async def watch(self) -> None:
        while True:
            asked = time.perf_counter()
            await asyncio.sleep(LOOK_SECONDS)
            self.seen.append(time.perf_counter() - asked - LOOK_SECONDS)


def main(folder: Path, step_seconds: float, count: int) -> None:
    raise_handle_limit()
    spare_log()
    learnt = Estimator(INFO, CPU, folder / FILE_NAME)
    learnt.calibrate(calibration())
    for number in range(MOST_RUNS):
        learnt.observe(result(request(steps=5 + number % 10)))
    counted, lateness = Counted(), Lateness()
    part = Share({"OMP_NUM_THREADS": "1"}, "cpu") if count > 1 else WHOLE
    engines = [EngineProcess("fake_engine:load", share=part, step_seconds=step_seconds) for _ in range(count)]
    worker = Worker(engines, folder, INFO.name).start()
    page = build_page(LONG, worker, device="cpu")
    app.serve(page, folder, host="127.0.0.1", port=(port := free_port()), block=False)
    asyncio.run_coroutine_threadsafe(lateness.watch(), page.server.servers[0].get_loop())
    print(f"http://127.0.0.1:{port}", flush=True)
    for line in sys.stdin:
        answer = {}
        if line.strip() == "kill":
            there = [runner for runner in worker.runners if runner.engine.alive]
            os.kill(max(there, key=lambda runner: runner.job is not None).pid, signal.SIGKILL)
        if line.strip() == "look":
            answer = {
                "waiting": len(worker.queue),
                "running": len(worker.queue.running),
                "ready": sum(runner.state == "ready" for runner in worker.runners),
                "state": worker.status()["state"],
                "estimates": counted.made,
                "sessions": len(page.app.state_holder.session_data),
                "threads": threading.active_count(),
            }
        if line.strip() == "late":
            answer["late"], lateness.seen = lateness.seen, []
        print(json.dumps(answer), flush=True)
    page.close(verbose=False)
    worker.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
