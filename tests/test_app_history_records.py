"""What is kept of a job and made again from it; who a visitor is."""

from __future__ import annotations

import json
import shutil

import pytest
from app_server import until
from fake_pipeline import CHECKPOINT, FakePipeline

from pipeline import VideoRequest
from ui.access.visitor import Visitors
from ui.jobs.job import VideoJob
from ui.jobs.records import keep_record_of, record_of, restored
from ui.jobs.worker import Worker
from ui.storage.files import poster
from ui.storage.store import Record, Store

OWNER, OTHER = "visitor:a", "visitor:b"


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "outputs")
    yield store
    store.close()


@pytest.fixture
def made(store):
    """Run a job over the fake pipeline, with its record kept; gives the ended job."""

    def make(request: VideoRequest, side_by_side: bool, pipeline=None) -> VideoJob:
        pipeline = pipeline or FakePipeline(step_seconds=0.0)
        worker = Worker(lambda say: pipeline, store.output_dir, "fake")
        keep_record_of(store, worker)
        job = worker.start().submit(VideoJob(request, side_by_side, owner=OWNER))
        until(lambda: job.over and store.read(job.id).state not in ("waiting", "running"), "the job")
        return job

    return make


class TestRecords:
    def test_a_comparison_comes_back_whole(self, made, store):
        job = made(CHECKPOINT.request("a red ball", seed=3), side_by_side=True)
        back = restored(store, job.id)
        assert back.request == job.request
        assert back.results == job.results
        assert back.comparison == job.comparison
        assert (back.id, back.owner, back.state, back.folder) == (job.id, OWNER, "done", job.folder)
        assert (back.submitted, back.started, back.ended) == (job.submitted, job.started, job.ended)
        assert sorted(store.read(job.id).posters) == ["dense", "sparse"]

    def test_equal_videos_keep_their_infinite_psnr(self, made, store):
        job = made(CHECKPOINT.request("a red ball"), side_by_side=True)
        object.__setattr__(job.comparison, "psnr", float("inf"))
        store.write(record_of(job))
        json.dumps(store.read(job.id).report, allow_nan=False)
        assert restored(store, job.id).comparison.psnr == float("inf")

    def test_the_finished_half_of_a_failed_comparison(self, made, store):
        class Half(FakePipeline):
            def generate_frames(self, request, on_step, output):
                if request.bsa is not None:
                    raise RuntimeError("broken")
                return super().generate_frames(request, on_step, output)

        job = made(CHECKPOINT.request("a red ball"), side_by_side=True, pipeline=Half(step_seconds=0.0))
        back = restored(store, job.id)
        assert list(back.results) == ["dense"]
        assert back.comparison is None
        assert "broken" in back.error

    def test_another_server_finds_it_for_its_owner_only(self, made, store, tmp_path):
        job = made(CHECKPOINT.request("a red ball", bsa=None), side_by_side=False)
        worker = Worker(lambda say: None, store.output_dir, "fake")
        keep_record_of(store, worker)
        assert worker.find(job.id, OWNER).results == job.results
        assert worker.find(job.id, OTHER) is None
        assert worker.find("nothing", OWNER) is None

    def test_without_its_files(self, made, store):
        job = made(CHECKPOINT.request("a red ball"), side_by_side=True)
        (job.folder / "sparse.mp4").unlink()
        assert list(restored(store, job.id).results) == ["dense"]
        assert restored(store, job.id).comparison is None
        shutil.rmtree(job.folder)
        assert restored(store, job.id).results == {}
        assert restored(store, job.id).request == job.request

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"request": {"prompt": "x"}}, id="request"),
            pytest.param({"report": {"dense": {"video": 5}}}, id="report"),
            pytest.param({"kind": "unheard of"}, id="kind"),
        ],
    )
    def test_a_damaged_row_is_no_job(self, made, store, change):
        job = made(CHECKPOINT.request("a red ball"), side_by_side=True)
        store.write(Record(**{**store.read(job.id).__dict__, **change}))
        assert restored(store, job.id) is None

    def test_an_interrupted_one_says_so(self, made, store):
        job = made(CHECKPOINT.request("a red ball"), side_by_side=True)
        store.write(Record(**{**store.read(job.id).__dict__, "state": "interrupted"}))
        assert "the server ended" in restored(store, job.id).error

    def test_poster_of_no_video(self, tmp_path):
        (tmp_path / "empty.mp4").touch()
        assert poster(tmp_path / "empty.mp4", 0.5) == ""


class TestVisitors:
    def test_tickets_survive_a_restart_and_cannot_be_made_up(self, tmp_path):
        visitors = Visitors(tmp_path)
        ticket = visitors.new_ticket()
        owner = visitors.owner_of(ticket)
        assert owner.startswith("visitor:")
        assert Visitors(tmp_path).owner_of(ticket) == owner
        assert (tmp_path / ".app" / "key").stat().st_mode & 0o777 == 0o600
        for forged in ("", "visitor:1", f"visitor:1.{ticket.rpartition('.')[2]}", owner, ticket[:-1], None, 7, "é.ü"):
            assert visitors.owner_of(forged) == ""
        assert Visitors(None).owner_of(ticket) == ""

    def test_a_damaged_key_is_replaced(self, tmp_path):
        (tmp_path / ".app").mkdir()
        (tmp_path / ".app" / "key").write_bytes(b"short")
        ticket = Visitors(tmp_path).new_ticket()
        assert Visitors(tmp_path).owner_of(ticket)

    def test_a_login_decides(self, tmp_path):
        class Request:
            def __init__(self, session_hash, username=None):
                self.session_hash, self.username = session_hash, username

        visitors = Visitors(tmp_path)
        ticket = visitors.greet(Request("s1"), None)
        assert visitors.owner(Request("s1")) == visitors.owner_of(ticket)
        assert visitors.owner(Request("s2")) == "session:s2", "a session that has not said who it is"
        theirs = visitors.greet(Request("s3", "anna"), ticket)
        assert visitors.owner(Request("s3", "anna")) == visitors.owner_of(theirs) == "login:anna"
