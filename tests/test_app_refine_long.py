"""Refining a long video on the page and in the API: the job, its windows, a stop, the rest, and what is refused."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from app_server import running_page, until
from browser import button, expect_playing, fill_number, generate, notice, open_page, open_tab
from fake_pipeline import CHECKPOINT, FakePipeline
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import expect
from test_app_refine import ADAPTED
from test_app_tasks import long, run

from pipeline import FromClip
from pipeline.media.clip import Clip, read_clip
from pipeline.runs.as_code import refinement_code
from pipeline.runs.chain import ChainStore
from pipeline.runs.long_refinement import LongRefinement
from ui.form.plan_panel import plan_panel
from ui.form.read import Windows, form_request
from ui.form.restore import job_values
from ui.jobs.records import record_of, restored
from ui.storage.store import Store
from ui.tasks.long_job import LongJob
from ui.tasks.timeline import timeline
from ui.tasks.windows_job import SEGMENTS, WindowsJob


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> LongJob:
    """A long video of two segments of 9 frames, of which the second begins with 5 of the first: 13 frames."""
    return run(LongJob.of(long("a", "b"), False, checkpoint="fake"), tmp_path_factory.mktemp("long") / "made")


def plan_for(made: LongJob, prompts: tuple[str, ...] = (), **changes) -> LongRefinement:
    segment = Clip(made.results["sparse"].video, 9, 64, 96, 15)
    first = ADAPTED.refinement("-", segment, steps=2, seed=7, **changes)
    return LongRefinement(made.video, ChainStore(made.folder / "sparse", made.video, "fake"), first, prompts)


class TestJob:
    def test_side_by_side(self, made, tmp_path):
        """Each window dense, then sparse, in two chains; each chain goes on from its own."""
        pipeline = FakePipeline(0)
        job = run(WindowsJob.of(plan_for(made), True, checkpoint="fake"), tmp_path / "job", pipeline)
        asked = [(one.prompt, one.bsa is None, one.seed, one.start.cond_frames) for one in pipeline.requests]
        assert asked == [("a", True, 7, 0), ("a", False, 7, 0), ("b", True, 8, 10), ("b", False, 8, 10)]
        assert [Path(one.start.refined).parent.name for one in pipeline.requests[2:]] == ["dense", "sparse"]
        assert {arm: len(read_clip(one.video)) for arm, one in job.results.items()} == {"dense": 26, "sparse": 26}
        assert job.request.num_frames == len(job.comparison.frames) == 26
        assert len(job.report()["windows"]) == 2
        times = [one["time"] for one in timeline(job)["segments"]]
        assert (timeline(job)["part"], times) == ("window", ["0.0 to 0.6 s", "0.6 to 0.9 s"])

    def test_has_its_own_copy_of_the_video(self, made, tmp_path):
        """What made it may be deleted."""
        source = run(LongJob.of(long("a", "b"), False, checkpoint="fake"), tmp_path / "source")
        job = run(WindowsJob.of(plan_for(source), False, checkpoint="fake"), tmp_path / "job", parts=1)
        for file in source.folder.rglob("*.mp4"):
            file.unlink()
        run(job, job.folder)
        assert len(read_clip(job.results["sparse"].video)) == 26
        assert job.request.start == FromClip(video=str(job.folder / "clip.mp4"))
        assert not list(job.folder.rglob("*.source.mp4"))

    def test_keeps_windows_of_another(self, made, tmp_path):
        first = run(WindowsJob.of(plan_for(made), False, checkpoint="fake"), tmp_path / "first", parts=1)
        assert (first.unfinished, first.place) == (True, "Window 1 of 2")
        pipeline, options = FakePipeline(0), {"checkpoint": "fake", "source": first.folder, "kept": 1}
        job = run(WindowsJob.of(plan_for(made, ("a", "c")), False, **options), tmp_path / "more", pipeline)
        assert [request.prompt for request in pipeline.requests] == ["c"]
        assert [one["kept"] for one in timeline(job)["segments"]] == [True, False]

    def test_comes_back_from_the_record(self, made, tmp_path):
        """Also one that was stopped: its finished windows stay, and it can be done again from its own copy."""
        job = WindowsJob.of(plan_for(made), True, checkpoint="fake")
        job.id, job.owner = "0123456789ab", "ann"
        run(job, tmp_path / "20261128-000000-0123456789ab", parts=1)
        job.end("stopped", "", [])
        store = Store(tmp_path)
        store.write(record_of(job))
        back = restored(store, job.id)
        assert isinstance(back, WindowsJob) and (back.state, back.playable) == ("stopped", True)
        assert back.refinement.to_dict() == job.refinement.to_dict()
        assert len(back.refinement.segments.parts) == 2 and back.refinement.segments.folder == job.folder / SEGMENTS
        assert timeline(back)["segments"][0] == timeline(job)["segments"][0]
        values = job_values(back)
        assert (values["prompt"], values["windows"]) == ("a\nb", "0123456789ab 0 2 9 5")
        assert values["refine"] == str(job.folder / "clip.mp4")

    def test_code_names_the_plan_and_its_segments(self, made):
        plan = plan_for(made)
        code = refinement_code(plan, model_path=Path("weights"), device="cpu", output="again")
        values = {
            ast.unparse(line.targets[0]): line.value for line in ast.parse(code).body if isinstance(line, ast.Assign)
        }
        folder = Path(values["segments"].args[0].value)
        again = LongRefinement.from_dict(ast.literal_eval(values["values"]), folder, "fake")
        assert again.to_dict() == plan.to_dict() and len(again.segments.parts) == 2


class TestForm:
    def form(self, made: LongJob, tmp_path: Path) -> dict:
        job = run(WindowsJob.of(plan_for(made), False, checkpoint="fake"), tmp_path / "job", parts=1)
        return {"cdf_threshold": 0.9, "keep_by": "top-k", "task": "t2v", **job_values(job)}

    def test_the_request_is_that_of_the_first_window(self, made, tmp_path):
        request = form_request(ADAPTED, self.form(made, tmp_path))
        start = FromClip(video=str(tmp_path / "job" / "clip.mp4"))
        assert request == replace(plan_for(made).request, prompt="a", start=start) and request.num_frames == 18

    def test_the_plan_says_how_many_windows(self, made, tmp_path):
        assert "2, together 26 frames, 0.9 s" in plan_panel(ADAPTED, self.form(made, tmp_path))

    @pytest.mark.parametrize("text", ["x", "a 1 2 3", "a 1 2 3 -4", "a b c d e", f"a 1 2 3 {'9' * 99}"])
    def test_damaged(self, text):
        with pytest.raises(ValueError, match="the choice of the long video to refine is damaged"):
            Windows.read(text)

    def test_requests(self):
        """One of the first window and one of those after it, which the estimates count."""
        first = ADAPTED.refinement("-", Clip(Path("x.mp4"), 93, 64, 96, 15))
        [(one, once), (later, often)] = Windows("a", 0, 12, 93, 13).requests(first)
        assert (one, once, often, later.start.cond_frames) == (first, 1, 11, 26)


@pytest.fixture(scope="module")
def fake():
    return FakePipeline(step_seconds=0)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def address(fake, outputs):
    with running_page(fake, outputs, ADAPTED) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    """It has a long video already."""
    client = Client(address, verbose=False)
    client.predict(["a", "b"], num_frames=9, steps=2, cond_frames=5, job_id="tale", api_name="/long")
    return client


class TestApi:
    def test_a_stop_keeps_windows_and_a_later_call_goes_on(self, client, fake):
        with fake.held(after=1):
            job = client.submit("tale", seed=5, sparsity=0.5, job_id="cut", api_name="/refine_long")
            until(lambda: "window 2 of 2, sparse: denoising" in str(job.status().progress_data), "window and step")
            kept = client.predict("cut", api_name="/result")
            assert (kept["state"], [one["prompt"] for one in kept["windows"]]) == ("running", ["a"])
            client.predict("cut", api_name="/cancel")
            with pytest.raises(AppError, match="the job was stopped"):
                job.result()
        made = len(fake.requests)
        video, report = client.predict("tale", after="cut", sparsity=0.5, api_name="/refine_long")
        assert [(one.prompt, one.seed) for one in fake.requests[made:]] == [("b", 6)]
        assert [(one["seed"], one["kept"]) for one in report["windows"]] == [(5, True), (6, False)]
        asked = report["request"]
        assert len(read_clip(video)) == asked["num_frames"] == 26
        assert (asked["height"], asked["fps"], asked["lora"]) == (96, 30, "refine")
        assert client.predict(report["job_id"], api_name="/result")["report"]["windows"] == report["windows"]
        with pytest.raises(AppError, match="window 1, which is to be kept, has another bsa; put that back, or refine"):
            client.predict("tale", after="cut", sparsity=0.25, api_name="/refine_long")

    def test_again_from_a_refinement_with_prompts_of_its_own(self, client, fake):
        _, first = client.predict("tale", double_frames=False, attention="dense", api_name="/refine_long")
        options = {"t_thresh": 0.3, "attention": "dense", "api_name": "/refine_long"}
        _, report = client.predict(first["job_id"], ["c"], **options)
        assert [one["prompt"] for one in report["windows"]] == ["c", "c"]
        assert report["request"]["refine"] == {"video": "clip.mp4", "t_thresh": 0.3, "double_frames": True}
        assert fake.requests[-1].bsa is None

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            pytest.param({"video": "nobody's"}, "is not a job of yours", id="other's"),
            pytest.param({"video": "clip"}, "job_id 'clip' is no long video; use that of a call to /long", id="clip"),
            pytest.param({"after": "tale"}, "job_id 'tale' is no refinement with finished windows", id="after"),
            pytest.param({"prompts": list("abc")}, "there are 3 prompts for 2 segments", id="prompts"),
            pytest.param({"prompts": "a"}, "prompts 'a' is no list of texts", id="text"),
            pytest.param({"t_thresh": 3.0}, "t_thresh 3.0 is not a noise level", id="level"),
        ],
    )
    def test_bad_values(self, client, values, sentence):
        if values.get("video") == "clip":
            client.predict("x", num_frames=5, steps=1, job_id="clip", api_name="/generate")
        with pytest.raises(AppError) as caught:
            client.predict(**{"video": "tale"} | values, api_name="/refine_long")
        assert sentence in str(caught.value)

    def test_windows_of_another_video(self, client):
        options = {"num_frames": 9, "steps": 2, "cond_frames": 5, "api_name": "/long"}
        _, other = client.predict(["a", "b"], **options)
        _, report = client.predict(other["job_id"], api_name="/refine_long")
        with pytest.raises(AppError, match="the windows to keep are of another long video"):
            client.predict("tale", after=report["job_id"], api_name="/refine_long")

    def test_example(self, address):
        example = Path(__file__).parents[1] / "examples" / "api_refine_long.py"
        done = subprocess.run([sys.executable, example, address], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert "42 frames of 144 x 96 in 2 windows" in done.stdout


def test_the_page_refines_a_long_video_and_goes_on_after_a_stop(browser, address, outputs, fake, tmp_path):
    page = open_page(browser, address)
    page.locator("#task").get_by_label("Long video").click()
    page.locator("#prompt textarea").fill("a red ball rises\na red ball falls")
    fill_number(page, "Segments", 2)
    generate(page)
    line = page.locator(".timeline")
    line.get_by_role("button", name="Refine the whole").click()
    expect(notice(page)).to_contain_text(
        "21 frames of 96 × 64 in 2 segments will become 42 of 144 × 96, each window in 5 of 50 steps."
    )
    expect(page.locator("#refine-windows")).to_contain_text("Windows: 2. Kept: 0.")
    expect(page.locator("#refine-clip")).to_contain_text("dense")
    expect(page.locator("#prompt textarea")).to_have_value("a red ball rises\na red ball falls")
    expect(page.locator("#plan")).to_contain_text("2, together 42 frames, 1.4 s")

    with fake.held(after=2):  # the first window of both chains
        button(page, "Generate").click()
        expect(line.locator('li[data-state="Being made"]')).to_contain_text("a red ball falls")
        expect(page.locator('.tile[data-arm="dense"] .label')).to_contain_text("Window 2 of 2 · Denoising, step")
        expect(line.locator("li").first.locator("img")).to_have_count(2)
        button(page, "Stop").click()
        expect(notice(page)).to_contain_text("Stopped. Finished videos are kept.")
    expect(line.get_by_role("button", name="Refine the whole")).to_be_hidden()
    line.get_by_role("button", name="Make the rest").click()
    expect(notice(page)).to_contain_text("its finished windows are kept")
    expect(page.locator("#refine-windows")).to_contain_text("Windows: 2. Kept: 1.")
    made = len(fake.requests)
    generate(page)
    assert [(one.prompt, one.start.cond_frames) for one in fake.requests[made:]] == [("a red ball falls", 26)] * 2
    for arm in ("dense", "sparse"):
        expect_playing(page, arm)
        name = page.locator(f'.tile[data-arm="{arm}"] .save').get_attribute("download")
        assert name.startswith("a-red-ball-rises-seed")
    expect(line.locator("li").first).to_contain_text("kept")
    expect(line.locator(".timeline-end")).to_be_hidden()  # there is no more to do with it

    open_tab(page, "History")
    card = page.locator(".history-run").first
    expect(card).to_contain_text("Refined long video: Dense and sparse")
    page.locator("#refine-clip").get_by_role("button", name="Clear").click()
    expect(page.locator("#refine-windows")).to_have_text("")
    card.get_by_role("button", name="Use the settings of").click()
    expect(page.locator("#refine-windows")).to_contain_text("Windows: 2. Kept: 0.")
    page.locator("#refine-clip").get_by_role("button", name="Clear").click()
    refined = max(outputs.glob("*/sparse.mp4"), key=lambda file: file.stat().st_mtime)
    page.locator("#drop input[type=file]").set_input_files(refined)
    expect(page.locator("#refine-windows")).to_contain_text("Windows: 2. Kept: 0.")
    stranger = tmp_path / "stranger.mp4"  # no run of theirs made it, and it does not hold the long video
    stranger.write_bytes(refined.read_bytes() + b"x")
    page.locator("#drop input[type=file]").set_input_files(stranger)
    expect(notice(page)).to_contain_text("It was refined in 2 windows from a long video that is not here")
    expect(page.locator("#refine-windows")).to_have_text("")
    page.context.close()


def test_without_the_adapter_the_button_says_why(browser, tmp_path, fake):
    with running_page(fake, tmp_path, CHECKPOINT) as address:
        client = Client(address, verbose=False)
        client.predict(["a", "b"], num_frames=9, steps=1, cond_frames=5, job_id="tale", api_name="/long")
        with pytest.raises(AppError, match="fake-longcat has no LoRA adapter 'refine'"):
            client.predict("tale", api_name="/refine_long")
        page = open_page(browser, address)
        page.locator("#task").get_by_label("Long video").click()
        page.locator("#prompt textarea").fill("a red ball rises")
        fill_number(page, "Segments", 1)
        generate(page)
        expect(page.get_by_role("button", name="Refine the whole")).to_be_disabled()
        expect(page.locator(".timeline-lacks")).to_have_text(
            "Refining needs the adapter lora/refinement_lora.safetensors, which is missing here."
        )
        page.context.close()
