"""The page's server on a GPU, with the shipped checkpoint, as a client sees it: see gpu_app.py, which is the server."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest
import torch
from app_server import running_program, until
from gradio_client import Client
from gradio_client.exceptions import AppError
from programs import HERE

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SIZE = {"height": 480, "width": 832, "num_frames": 93, "steps": 40, "sparsity": 0.75}  # for seconds, not less
SMALL = SIZE | {"height": 128, "width": 192, "num_frames": 29, "steps": 6}
WHAT = {"prompt": "a red ball bounces over green hills", "seed": 3}
LIMIT = 300  # seconds, far above what any of this takes, only against hanging


class Server:
    """A running server: its process, its client, and how to give its engine orders."""

    def __init__(self, process, address: str, folder: Path) -> None:
        self.process, self.address, self.folder = process, address, folder
        self.client = Client(address, verbose=False)

    def ask(self, endpoint: str, **values):
        return self.client.submit(api_name=endpoint, **values).result(timeout=LIMIT)

    def generate(self, order: str = "", **values) -> SimpleNamespace:
        """file: the video's bytes; report: /generate's; seconds, pid: as the engine noted them."""
        (self.folder / "order").write_text(order)
        video, report = self.ask("/generate", **{**WHAT, **SIZE, **values})
        noted = self.noted()[-1]
        assert noted["order"] == order
        return SimpleNamespace(file=Path(video).read_bytes(), report=report, seconds=noted["seconds"], pid=noted["pid"])

    def noted(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "engine.jsonl").read_text().splitlines()]

    def trace(self, job_id: str) -> dict:
        (file,) = self.folder.glob(f"outputs/*-{job_id}/resources.json")
        return json.loads(file.read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    try:
        with running_program(folder, HERE / "gpu_app.py", folder, "--device", "cuda") as (process, address):
            yield Server(process, address, folder)
    finally:
        print((folder / "log").read_text()[-8000:])  # shown with a failure


@pytest.fixture(scope="module")
def first(server):
    """The first videos of this machine, a pair, with what was said before, meanwhile and after."""
    until(lambda: server.ask("/resources")["worker"]["state"] != "loading", "the engine")
    assert server.ask("/resources")["worker"]["state"] != "failed", "see the log below"
    until(lambda: server.ask("/estimate", **SIZE)["dense"]["basis"].startswith("a short"), "the calibration")
    time.sleep(2)  # NVML's load is of the last second
    before, guess = server.ask("/resources"), server.ask("/estimate", **SIZE)
    watcher = Client(server.address, verbose=False)
    job = server.client.submit(api_name="/compare", **WHAT, **SIZE)
    meanwhile = watch(watcher, job)
    dense, sparse, report = job.result(timeout=LIMIT)
    return SimpleNamespace(
        files={"dense": Path(dense).read_bytes(), "sparse": Path(sparse).read_bytes()},
        report=report,
        before=before,
        meanwhile=meanwhile,
        guess=guess,
        estimate=server.ask("/estimate", **SIZE),
        trace=server.trace(report["job_id"]),
        pid=server.noted()[-1]["pid"],
    )


@pytest.fixture(scope="module")
def later(server, first):
    """The same videos again, one by one."""
    return {
        "dense": server.generate(attention="dense"),
        "sparse": server.generate(),
        "unrecorded": server.generate("do not record"),
        "small": server.generate(**SMALL),
    }


def watch(client: Client, job: Future) -> list[dict]:
    readings = []
    while not job.done():
        readings.append(client.predict(api_name="/resources"))
        time.sleep(0.1)
    return readings


def gpu(reading: dict) -> dict:
    """The row of the GPU that the engine uses."""
    keys = [row["uuid"] for row in reading["gpus"]]
    return reading["gpus"][keys.index(reading["torch_gpu"])]


def during(trace: dict, series: str, arm: str, phase: str) -> list[float]:
    spans = [(start, end) for *what, start, end in trace["spans"] if what == [arm, phase]]
    samples = zip(trace["times"], trace["series"][series])
    return [value for at, value in samples if value is not None and any(a <= at <= b for a, b in spans)]


@pytest.mark.parametrize("arm", ["dense", "sparse"])
def test_compare_makes_both_videos_on_the_gpu(first, arm):
    report = first.report[arm]
    assert report["versions"]["device"] == f"cuda: {torch.cuda.get_device_name()}"
    assert report["peak_memory_label"] == "CUDA allocated" and report["peak_memory"] > 0
    assert report["bsa_active"] == (arm == "sparse")
    assert first.files[arm][4:8] == b"ftyp"


def test_resources_have_the_gpu_and_the_engines_share_of_it(first):
    row, reading = gpu(first.before), first.before  # nothing moves between the two sources
    assert row["name"] == torch.cuda.get_device_name()
    assert reading["torch_allocated"] <= reading["torch_reserved"] < row["used"] < row["total"]
    assert row["total"] == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.05)
    if row["process_memory"] is None:  # a container may hide the processes
        assert reading["note"]
    else:
        assert reading["torch_reserved"] < row["process_memory"] <= row["used"]


def test_load_and_memory_change_while_a_job_runs(first):
    rows = [gpu(first.before), *map(gpu, first.meanwhile)]
    for value in ("utilization", "used", "power"):
        print(value, [row[value] for row in rows])
    assert max(row["utilization"] for row in rows) > rows[0]["utilization"]
    assert max(row["used"] for row in rows) > rows[0]["used"]
    assert any(reading["worker"]["state"] == "busy" for reading in first.meanwhile)


def test_the_server_does_not_use_the_gpu_itself(server, first):
    pynvml.nvmlInit()
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        users = {user.pid for handle in handles for user in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    finally:
        pynvml.nvmlShutdown()
    assert server.process.pid not in users
    loaded = {Path(region.path).name for region in psutil.Process(server.process.pid).memory_maps()}
    assert not any("torch" in name for name in loaded)


def test_the_second_video_has_nothing_of_the_first_ones_memory(first, later):
    """The cache was emptied: while it was denoised less was reserved than the decoder of the first one had taken. And
    peaks begin anew: a small video after large ones has a small one."""
    one, other = dict.fromkeys(arm for arm, *_ in first.trace["spans"])  # the one that was expected sooner came first
    decoding = during(first.trace, "torch.reserved", one, "decode")
    denoising = during(first.trace, "torch.reserved", other, "denoise")
    print("reserved, MiB:", *([round(value / 2**20) for value in values] for values in (decoding, denoising)))
    assert min(denoising) < max(decoding)
    assert set(first.trace["peaks"]) == {"dense", "sparse"}
    large = [first.report[arm]["peak_memory"] for arm in ("dense", "sparse")]
    assert later["small"].report["peak_memory"] < min(large) / 2


@pytest.mark.parametrize("arm", ["dense", "sparse"])
def test_the_estimate_after_the_first_run_is_within_a_factor_of_two(first, later, arm, capsys):
    expected, runs = first.estimate[arm], (first.report[arm], later[arm].report)
    assert expected["basis"] == "2 runs on this machine"
    with capsys.disabled():
        seconds, memory = ([run[what] for run in runs] for what in ("seconds", "peak_memory"))
        print(f"\n{arm}: calibrated {first.guess[arm]['seconds']}, {first.guess[arm]['memory'] >> 20} MiB")
        print(f"{arm}: after a run {expected['seconds']}, {expected['memory'] >> 20} MiB")
        print(f"{arm}: measured {seconds}, {[size >> 20 for size in memory]} MiB")
    for run in runs:
        assert 0.5 < expected["seconds"]["total"] / run["seconds"]["total"] < 2
        assert 0.5 < expected["memory"] / run["peak_memory"] < 2


def test_recording_changes_no_bit_and_costs_this(server, first, later, capsys):
    recorded, plain = later["sparse"], later["unrecorded"]
    assert recorded.file == plain.file == first.files["sparse"]
    assert later["dense"].file == first.files["dense"]
    with capsys.disabled():
        print(f"\nrecorded {recorded.seconds:.2f} s, not recorded {plain.seconds:.2f} s:", end=" ")
        print(f"{recorded.seconds / plain.seconds:.3f} times as long")
        print("without recording's own share:", recorded.report["seconds"], plain.report["seconds"])
    attention = server.ask("/inspect", job_id=recorded.report["job_id"])
    assert 0 < attention["recall"] <= 1
    assert attention["density"] == pytest.approx(recorded.report["density"], abs=1e-3)
    with pytest.raises(AppError):
        server.ask("/inspect", job_id=plain.report["job_id"])


@pytest.mark.parametrize("order", ["illegal access", "device assert"])
def test_a_fault_of_the_gpu_costs_one_job_and_the_engine(server, later, order):
    before = server.noted()[-1]["pid"]
    with pytest.raises(AppError, match="^the GPU reported an error that nothing but a new engine recovers from") as end:
        server.generate(order)
    print(end.value)
    assert "\n" not in str(end.value) and order.split()[-1] in str(end.value)
    after = server.generate()
    assert after.pid != before and not psutil.pid_exists(before)
    assert after.file == later["sparse"].file
    reading = server.ask("/resources")
    assert gpu(reading)["used"] and gpu(reading)["utilization"] is not None


def test_a_full_gpu_costs_one_job(server, later):
    before = server.noted()[-1]["pid"]
    with pytest.raises(AppError, match="^the device ran out of memory; use a smaller size"):
        server.generate("fill")
    after = server.generate()
    assert after.pid == before
    assert after.file == later["sparse"].file
