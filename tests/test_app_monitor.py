"""What the server remembers of the machine while jobs run, and what it tells a page of it."""

from __future__ import annotations

import json

import pytest
from app_server import until
from fake_pipeline import CHECKPOINT, SampledPipeline

from bsa import BSAConfig
from pipeline import VideoRequest
from ui import Worker
from ui.jobs.job import Job, Mark, VideoJob
from ui.jobs.monitor import TRACE, Span, job_peaks, spans
from ui.site import Site
from ui.views.live import answer

REQUEST = VideoRequest(
    prompt="a ball",
    height=64,
    width=96,
    num_frames=17,
    steps=4,
    guidance_scale=1.0,
    fps=15,
    bsa=BSAConfig(sparsity=0.75),
)


@pytest.fixture
def site(tmp_path):
    pipeline = SampledPipeline(lambda: site.monitor.sampler().latest.time, step_seconds=0.05)
    worker = Worker(lambda say: pipeline, tmp_path, "fake").start()
    site = Site(CHECKPOINT, worker)
    assert site.monitor.sampler().latest is not None
    yield site
    site.monitor.sampler().stop()
    worker.close()


@pytest.fixture
def ticket(site):
    return site.visitors.new_ticket()


@pytest.fixture
def done(site, ticket):
    """A finished job of the visitor with that ticket."""
    job = site.worker.submit(VideoJob(REQUEST, side_by_side=True, owner=site.visitors.owner_of(ticket)))
    until(lambda: job.over, "the job")
    assert job.state == "done"
    return job


class TestSpans:
    def job(self, *marks, ended=20.0):
        job = Job()
        job.marks = [Mark(*mark) for mark in marks]
        job.ended = ended
        return job

    def test_phases_follow_each_other(self):
        job = self.job((1, "dense", "text"), (2, "dense", "denoise"), (8, "dense", "decode"), (10, "sparse", "text"))
        assert list(spans(job, 99)) == [
            Span("dense", "text", 1, 2),
            Span("dense", "denoise", 2, 8),
            Span("dense", "decode", 8, 10),
            Span("sparse", "text", 10, 20),
        ]

    def test_a_running_phase_ends_now(self):
        assert list(spans(self.job((1, "dense", "text"), ended=0.0), 5)) == [Span("dense", "text", 1, 5)]

    def test_what_comes_after_a_video_is_no_part_of_it(self, done):
        found = list(spans(done, 0))
        assert [span[:2] for span in found] == [
            (arm, p) for arm in ("dense", "sparse") for p in ("text", "denoise", "decode")
        ]
        for arm in ("dense", "sparse"):
            mine = [span for span in found if span.arm == arm]
            assert mine[-1].end - mine[0].start <= done.results[arm].seconds["total"] + 1e-6
        assert found[-1].end <= done.ended


class TestMonitor:
    def test_a_job_leaves_its_trace(self, site, done):
        trace = json.loads((done.folder / TRACE).read_text())
        assert trace["started"] == done.started and trace["ended"] == done.ended
        assert all(done.started - 0.2 <= time <= done.ended for time in trace["times"])
        assert trace["series"].keys() >= {"host.used", "process.rss"}
        assert "busy" not in trace["series"]
        peaks = job_peaks(done)
        assert peaks.keys() == {"dense", "sparse"}
        inside = [
            rss
            for time, rss in zip(trace["times"], trace["series"]["process.rss"], strict=True)
            if any(arm == "dense" and start <= time <= end for arm, _, start, end in trace["spans"])
        ]
        assert peaks["dense"]["process.rss"] == max(inside)

    def test_no_trace(self):
        assert job_peaks(Job()) == {}

    def test_a_damaged_trace(self, done):
        (done.folder / TRACE).write_text("{")
        assert job_peaks(done) == {}

    def test_the_newest_run_unless_another_was_chosen_later(self, site, ticket, done):
        owner = site.visitors.owner_of(ticket)
        newer = site.worker.submit(VideoJob(REQUEST, side_by_side=False, owner=owner))
        until(lambda: newer.over, "the job")
        current = site.monitor.current
        assert current(owner) is newer
        assert current(owner, done.id, since=newer.ended - 0.001) is newer
        assert current(owner, done.id, since=newer.ended + 1) is done
        assert current("visitor:somebody", done.id, since=newer.ended + 1) is None


class TestAnswer:
    def test_own_run_with_bands_and_peaks(self, site, ticket, done):
        told = answer(site, site.monitor, {"ticket": ticket, "from": 0})
        assert told["job"]["id"] == done.id
        assert told["span"] == [done.started, done.ended]
        assert told["fresh"] and told["times"]
        assert {arm for arm, *_ in told["job"]["spans"]} == {"dense", "sparse"}
        json.dumps(told)

    def test_only_what_is_new(self, site, ticket):
        ask = {"ticket": ticket, "from": 120}
        first = answer(site, site.monitor, ask)
        last = first["times"][-1]
        until(lambda: site.monitor.sampler().latest.time > last, "another sample")
        more = answer(site, site.monitor, ask | {"last": last, "shows": first["shows"]})
        assert not more["fresh"]
        assert more["times"] and min(more["times"]) > last
        assert answer(site, site.monitor, ask | {"from": 900, "last": last, "shows": first["shows"]})["fresh"]

    def test_somebody_elses_run_is_only_busy(self, site, ticket):
        owner = site.visitors.owner_of(site.visitors.new_ticket())
        before = site.monitor.sampler().latest.time
        job = site.worker.submit(VideoJob(REQUEST, side_by_side=True, owner=owner))
        until(lambda: job.over, "the job")
        told = answer(site, site.monitor, {"ticket": ticket, "from": 120, "job": job.id, "picked": before})
        assert told["job"] is None
        assert job.id not in json.dumps(told)
        assert max(told["series"]["busy"]) == 1

    @pytest.mark.parametrize(
        "ask",
        [
            pytest.param({}, id="nothing"),
            pytest.param(
                {"ticket": 5, "job": [], "from": "x", "last": None, "picked": {}, "shows": 1}, id="other types"
            ),
            pytest.param({"from": -1.0, "last": 1e300}, id="out of range"),
            pytest.param({"from": float("nan"), "last": float("inf")}, id="no numbers"),
        ],
    )
    def test_whatever_is_asked(self, site, ask):
        told = answer(site, site.monitor, ask)
        assert told["job"] is None and told["fresh"]
