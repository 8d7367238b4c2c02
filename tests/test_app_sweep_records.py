"""Sweeps as they are kept: during the sweep, when it has ended, and by another server."""

from __future__ import annotations

import pytest
from app_server import until
from fake_pipeline import CHECKPOINT, FakePipeline

from pipeline import Axis, Floor, Search, Sweep
from ui.jobs.records import GONE, keep_record_of, restored
from ui.jobs.sweep_job import SweepJob
from ui.jobs.worker import Worker
from ui.storage.store import Store

OWNER = "visitor:a"


@pytest.fixture
def stores(tmp_path):
    """Opens the record of jobs as a new server would."""
    opened = []

    def open_store() -> Store:
        opened.append(Store(tmp_path / "outputs"))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


def sweep_job(*axes: Axis) -> SweepJob:
    request = CHECKPOINT.request("a red ball", width=32, height=32, num_frames=5, steps=2, seed=2**62 + 1)
    axes = axes or (Axis.of("sparsity", "0.25, 0.5"), Axis.of("chunk", "1x2x2, 2x2x2/1x1x2"))
    return SweepJob(Sweep(request, *axes), owner=OWNER)


def run(store: Store, job: SweepJob, fake: FakePipeline) -> Worker:
    worker = Worker(lambda say: fake, store.output_dir, "fake")
    keep_record_of(store, worker)
    worker.start().submit(job)
    return worker


@pytest.mark.parametrize(
    "axes",
    [
        pytest.param((), id="sparsity-and-chunk"),
        pytest.param((Axis.of("seed", f"{2**62 + 1}, 3"), Axis.of("steps", "1, 2")), id="seed-and-steps"),
        pytest.param((Axis.of("cdf_threshold", "0.3, 0.95"),), id="one-axis"),
    ],
)
def test_a_sweep_comes_back_whole(stores, axes):
    store, job = stores(), sweep_job(*axes)
    worker = run(store, job, FakePipeline(step_seconds=0.0))
    until(lambda: job.over, "the sweep")
    worker.close()
    back = restored(stores(), job.id)
    assert back.sweep == job.sweep
    assert back.result == job.result
    assert (back.id, back.owner, back.state, back.folder) == (job.id, OWNER, "done", job.folder)
    assert back.cell(0, 0).comparison == job.cell(0, 0).comparison
    assert back.results == job.results


def test_a_search_comes_back_as_one(stores):
    store, request = stores(), CHECKPOINT.request("a red ball", num_frames=17, seed=2**62 + 1)
    job = SweepJob(Search.of(request, Floor("ssim", 0.5), most=2), owner=OWNER)
    assert (job.total, job.unfinished) == (3, True)
    worker = run(store, job, FakePipeline(step_seconds=0.0))
    until(lambda: job.over, "the search")
    worker.close()
    back = restored(stores(), job.id)
    assert (back.sweep, back.result, back.report()) == (job.sweep, job.result, job.report())
    assert (back.total, back.tried, back.unfinished) == (job.total, job.tried, False)


def test_equal_videos_keep_their_infinite_psnr(stores):
    job = sweep_job()
    store, fake = stores(), FakePipeline(step_seconds=0.0)
    fake.generate_frames, make = None, fake.generate_frames

    def same(request, on_step, output):
        result, frames = make(request, on_step, output)
        return result, frames * 0

    fake.generate_frames = same
    worker = run(store, job, fake)
    until(lambda: job.over, "the sweep")
    worker.close()
    assert [cell.psnr for cell in restored(stores(), job.id).result.cells] == [float("inf")] * 4


def test_a_failed_video_and_a_deleted_one(stores):
    class Fragile(FakePipeline):
        def generate_frames(self, request, on_step, output):
            if request.bsa is not None and request.bsa.sparsity == 0.5:
                raise MemoryError("no room")
            return super().generate_frames(request, on_step, output)

    store, job = stores(), sweep_job(Axis.of("sparsity", "0.25, 0.5"))
    worker = run(store, job, Fragile(step_seconds=0.0))
    until(lambda: job.over, "the sweep")
    worker.close()
    job.result.cells[0].result.video.unlink()
    deleted, failed = restored(stores(), job.id).result.cells
    assert (deleted.result, deleted.error) == (None, GONE)
    assert (failed.result, failed.error) == (None, "out of memory")


def test_what_a_killed_server_had_made(stores):
    """Nothing tells the store of the server's end, in the middle of the third video."""
    store, job, fake = stores(), sweep_job(), FakePipeline(step_seconds=0.0)
    with fake.held(after=2):
        worker = run(store, job, fake)
        until(lambda: len(fake.requests) == 3, "the third video")
        store.flush()  # the thread that writes needs a moment
        back = restored(stores(), job.id)
        worker.close()
    assert (back.state, back.error) == ("failed", "the server ended while this was being made")
    assert (len(back.result.dense), len(back.result.cells)) == (1, 1)
    assert back.result.cells[0].result.video.is_file()
    assert back.cell(0, 0).comparison is not None
    assert back.cell(0, 1) is None


def test_the_newest_of_a_visitor(stores):
    store, fake = stores(), FakePipeline(step_seconds=0.0)
    assert store.newest(OWNER, "sweep") == ""
    for _ in range(2):
        job = sweep_job(Axis.of("sparsity", "0.5"))
        worker = run(store, job, fake)
        until(lambda: job.over, "the sweep")  # noqa: B023
        worker.close()
    assert store.newest(OWNER, "sweep") == job.id
    assert store.newest("visitor:b", "sweep") == ""
    assert store.newest(OWNER, "video") == ""
    assert store.newest("", "sweep") == ""
