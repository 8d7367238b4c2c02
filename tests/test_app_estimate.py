"""Time, memory and advice on the page and in the worker, before anything runs."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from app_server import running_page, until
from browser import button, chromium, expect_playing, fill_number, needs_chromium, notice, open_group, open_page
from fake_pipeline import FakePipeline
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import expect
from test_pipeline_estimate import CPU, calibration, request, result

from bsa import BSAConfig
from pipeline import EMBEDDED_CHECKPOINT, inspect_checkpoint, read_settings
from pipeline.estimate import advice
from pipeline.estimate.advice import advise, crossover
from pipeline.estimate.estimator import FILE_NAME, Estimator
from ui import Worker
from ui.form.inputs import EXAMPLES
from ui.form.plan_panel import plan_panel
from ui.jobs.estimates import Estimates
from ui.jobs.eta import duration_text
from ui.jobs.job import VideoJob

INFO = inspect_checkpoint(EMBEDDED_CHECKPOINT)
FORM = {
    "mode": "both",
    "sparsity": 0.75,
    "keep_by": "top-k",
    "selection": "mean",
    "dense_steps": 0,
    "dense_layers": 0,
    "select_every": 1,
    "cdf_threshold": 0.9,
    **{f"chunk_{kind}_{axis}": 4 for kind in "qk" for axis in "thw"},
    "width": 256,
    "height": 256,
    "num_frames": 61,
    "steps": 10,
    "guidance_scale": 1.0,
    "seed": 7,
}


@pytest.fixture
def worker(tmp_path):
    """Never started: what is submitted waits."""
    return Worker(lambda say: FakePipeline(), tmp_path, INFO.name)


@pytest.fixture
def estimates(worker):
    return Estimates(INFO, worker, "cpu")


@pytest.fixture
def measured(worker, tmp_path):
    Estimator(INFO, CPU, tmp_path / FILE_NAME).calibrate(calibration())
    return Estimates(INFO, worker, "cpu")


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


class TestPlan:
    def test_without_a_measurement_it_says_so(self, estimates):
        text = words(plan_panel(INFO, FORM, estimates))
        assert "Time not known yet: the first video on this machine will tell" in text
        assert re.search(r"Memory about [\d.]+ GiB of [\d.]+ GiB fits", text)
        assert "At 480p and below BSA usually gains little." in text
        assert "Estimated from" not in text

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            pytest.param("both", r"Time dense \S+ (s|min), sparse \S+ (s|min) denoising \d\.\d× faster", id="both"),
            pytest.param("sparse", r"Time sparse \S+ (s|min) \(dense would take \S+ (s|min)\)", id="sparse"),
            pytest.param("dense", r"Time dense \S+ (s|min) \(sparse would take \S+ (s|min)\)", id="dense"),
        ],
    )
    def test_times_of_what_will_be_made(self, measured, mode, expected):
        text = words(plan_panel(INFO, FORM | {"mode": mode}, measured))
        assert re.search(expected, text)
        assert "Estimated from a short calibration on this machine" in text
        assert "BSA pays at this size on this machine." in text and "480p" not in text

    def test_a_time_of_all_steps_says_so(self, measured):
        said = "The time is that of all steps: TeaCache skips some of them."
        assert said not in words(plan_panel(INFO, FORM, measured))
        assert said in words(plan_panel(INFO, FORM | {"teacache_thresh": 0.1}, measured))
        assert "TeaCache threshold 2.0 is outside 0 to 1" in plan_panel(INFO, FORM | {"teacache_thresh": 2}, measured)

    def test_the_numbers_are_the_estimates(self, measured):
        text = words(plan_panel(INFO, FORM, measured))
        times = [
            duration_text(measured.of(request(bsa=bsa)).seconds["total"]) for bsa in (None, BSAConfig(sparsity=0.75))
        ]
        assert f"dense {times[0]}, sparse {times[1]}" in text

    @pytest.mark.parametrize(
        ("frames", "verdict", "expected"),
        [
            pytest.param(61, "BSA active", r"Automatic: sparsity 0\.75 by cells at about \S+ s of den", id="sparse"),
            pytest.param(5, "BSA not active", r"Automatic: dense, because 16 key blocks are too few", id="dense"),
        ],
    )
    def test_an_automatic_choice_says_why(self, measured, frames, verdict, expected):
        text = words(plan_panel(INFO, FORM | {"mode": "auto", "sparsity": 0.5, "num_frames": frames}, measured))
        assert text.startswith(verdict)
        assert re.search(expected, text)
        assert "BSA pays" not in text  # the choice has said so
        assert f"Time {'sparse' if frames == 61 else 'dense'}" in text

    def test_a_single_frame_needs_no_advice(self, measured):
        text = words(plan_panel(INFO, FORM | {"num_frames": 1}, measured))
        assert re.search(r"Time \d+ s", text)
        assert "BSA pays" not in text

    def test_what_cannot_fit_is_told_with_a_way_out(self, measured):
        text = words(plan_panel(INFO, FORM | {"num_frames": 40001, "width": 2048, "height": 2048}, measured))
        assert re.match(r"Cannot run\. 2048x2048 with 40001 frames needs about [\d,.]+ GiB of memory", text)
        assert "what fits:" in text

    def test_a_checkpoint_that_cannot_be_read_has_no_estimates(self, worker):
        estimates = Estimates(replace(INFO, path=INFO.path / "nowhere"), worker, "cpu")
        assert "Memory" not in plan_panel(INFO, FORM, estimates)
        estimates.plan(request(frames=40001, height=2048, width=2048))


class TestWorker:
    def test_what_cannot_fit_is_refused_before_it_waits(self, worker, estimates):
        job = VideoJob(request(frames=40001, height=2048, width=2048), side_by_side=True)
        with pytest.raises(ValueError, match="2048x2048 with 40001 frames needs about"):
            worker.submit(job)
        assert job.state == "waiting" and job.submitted == 0

    def test_a_job_takes_as_long_as_its_videos(self, measured):
        both = measured.seconds(VideoJob(request(), side_by_side=True))
        parts = [measured.of(request(bsa=bsa)).seconds["total"] for bsa in (None, BSAConfig(sparsity=0.75))]
        assert both == pytest.approx(sum(parts))
        assert measured.seconds(VideoJob(request(), side_by_side=False)) == pytest.approx(parts[1])

    def test_a_pair_begins_with_the_video_that_is_expected_sooner(self, worker, measured):
        pair = worker.submit(VideoJob(request(), side_by_side=True))
        assert pair.speedup == measured.ratio(request()) and pair.sparse_first == (pair.speedup > 1)

    def test_nothing_is_promised_without_a_measurement(self, estimates):
        assert estimates.seconds(VideoJob(request(), side_by_side=True)) is None

    def test_every_finished_video_is_learnt_from(self, worker, estimates):
        job = VideoJob(request(), side_by_side=True)
        job.results = {"dense": result(request(bsa=None)), "sparse": result(request())}
        for listener in worker.listeners:
            listener(job)
        assert estimates.of(request()).basis == "2 runs on this machine"
        assert estimates.ratio(request()) == pytest.approx(
            result(request(bsa=None)).seconds["denoise"] / result(request()).seconds["denoise"]
        )

    def test_an_idle_machine_is_calibrated_once(self, tmp_path):
        worker = Worker(lambda say: FakePipeline(), tmp_path, INFO.name).start()
        worker.calibrate = calibration
        estimates = Estimates(INFO, worker, "cpu")
        until(lambda: not estimates.pending, "the calibration")
        assert estimates.of(request()).basis == "a short calibration on this machine"
        worker.calibrate = lambda: pytest.fail("this machine was measured before")
        again = Estimates(INFO, worker, "cpu")
        until(lambda: not again.pending, "nothing")
        assert again.of(request()).seconds is not None


class TestAdvice:
    @pytest.mark.parametrize(
        ("size", "kind", "sentence"),
        [
            pytest.param((93, 720, 1280), "good", advice.RECOMMENDED_SIZE, id="720p"),
            pytest.param((93, 704, 1280), "good", advice.RECOMMENDED_SIZE, id="704p"),
            pytest.param((189, 480, 832), "good", advice.RECOMMENDED_LENGTH, id="long"),
            pytest.param((93, 480, 832), "poor", advice.NOT_RECOMMENDED, id="480p"),
            pytest.param((93, 592, 1024), "neutral", advice.BETWEEN, id="between"),
        ],
    )
    def test_rules_where_nothing_was_measured(self, size, kind, sentence):
        found = advise(request(*size), lambda request: None)
        assert (found.kind, found.sentences) == (kind, (sentence,))

    def test_a_single_frame_skips_bsa(self):
        assert advise(request(frames=1), lambda request: 2.0) is None

    def test_measurements_have_the_last_word(self):
        found = advise(request(93, 720, 1280), lambda request: 0.7)
        assert (found.kind, found.sentences[0]) == ("poor", advice.LOSES)

    def test_the_crossover_is_named(self):
        def ratio(request):  # pays from 41 latent frames on, that is 161 frames
            return 1.0 + 0.15 * (request.latent_shape[0] / 41)

        found = advise(request(61), ratio)
        assert found.sentences == (advice.EVEN, advice.FROM_FRAMES.format(frames=161))
        assert crossover(request(61), lambda request: 1.0) is None

    def test_tight_memory_is_no_reason_for_bsa(self):
        found = advise(request(93, 720, 1280), lambda request: None, memory=9 * 2**30, available=10 * 2**30)
        assert found.sentences == (advice.RECOMMENDED_SIZE, advice.MEMORY)
        assert "time, not memory" in advice.MEMORY


def test_the_api_refuses_what_cannot_fit(tmp_path):
    with running_page(FakePipeline(), tmp_path, INFO) as address:
        client = Client(address, verbose=False)
        with pytest.raises(AppError, match="2048x2048 with 40001 frames needs about .* what fits: "):
            client.predict("x", width=2048, height=2048, num_frames=40001, api_name="/generate")


@needs_chromium
def test_the_plan_follows_the_form_and_refuses_in_time(tmp_path):
    Estimator(INFO, CPU, tmp_path / FILE_NAME).calibrate(calibration())
    with running_page(FakePipeline(), tmp_path, INFO) as address, chromium() as browser:
        page = open_page(browser, address)
        outlook = page.locator("#plan .outlook")
        expect(outlook).to_contain_text("sparse")
        before = outlook.locator("dd").first.inner_text()
        open_group(page, "Size, frames, steps, guidance, seed")
        fill_number(page, "Frames", 241)
        expect(outlook.locator("dd").first).not_to_have_text(before)
        expect(outlook.locator(".fits")).to_have_text("fits")

        fill_number(page, "Frames", 400001)
        expect(page.locator("#plan")).to_contain_text("Cannot run. 256x256 with 400001 frames needs about")
        button(page, "Generate").click()
        expect(notice(page)).to_contain_text("256x256 with 400001 frames needs about")
        assert not list(tmp_path.glob("*/*.mp4"))

        fill_number(page, "Frames", 5)
        page.get_by_label("Prompt", exact=True).fill(next(iter(EXAMPLES.values())))
        button(page, "Generate").click()
        expect_playing(page, "sparse")
        expect(page.locator("#plan .basis")).to_contain_text("2 runs on this machine")


@needs_chromium
def test_an_automatic_choice_is_explained_before_and_after(tmp_path):
    with running_page(FakePipeline(), tmp_path) as address, chromium() as browser:
        page = open_page(browser, address)
        page.get_by_label("Automatic", exact=True).check()
        why = "Automatic: dense, because 4 key blocks are too few to leave some out."
        expect(page.locator("#plan .why")).to_have_text(why)
        button(page, "Generate").click()
        expect_playing(page, "dense")
        expect(page.locator("#report")).to_contain_text(why)
        [video] = tmp_path.glob("*/*.mp4")
        made = read_settings(video).request
        assert (made.bsa, made.auto) == (None, "automatic: dense, because 4 key blocks are too few to leave some out")
