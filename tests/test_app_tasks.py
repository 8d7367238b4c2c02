"""Every task on the page and in the API: its fields, its jobs, long videos segment by segment, and bad files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from app_server import running_page, until
from browser import button, chromium, expect_playing, fill_number, generate, needs_chromium, notice, open_page, open_tab
from fake_pipeline import CHECKPOINT, FakePipeline
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import expect

from pipeline import EMBEDDED_CHECKPOINT, FromFrames, FromImage, inspect_checkpoint, read_settings
from pipeline.media.clip import read_clip
from pipeline.media.write import write_video
from pipeline.runs.long_video import LongVideo
from ui.form.plan_panel import plan_panel
from ui.form.read import CLIP, IMAGE, LONG, TEXT, form_long, form_request
from ui.form.restore import form_values, job_values, long_values
from ui.jobs.records import made_by, record_of, restored
from ui.storage.store import Store
from ui.tasks.long_job import LongJob
from ui.tasks.pictures import examples
from ui.tasks.timeline import timeline

FORM = {"cdf_threshold": 0.9, "keep_by": "top-k", "cond_frames": 5, "segments": 2}
UNTRAINED = replace(CHECKPOINT, trained_tasks=("t2v",))


@pytest.fixture
def image(tmp_path) -> Path:
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def clip(tmp_path) -> Path:
    write_video(tmp_path / "holiday.mp4", np.zeros((9, 64, 96, 3), np.uint8), 15, {})
    return tmp_path / "holiday.mp4"


def long(*prompts: str, **changes) -> LongVideo:
    request = CHECKPOINT.request("-", num_frames=9, steps=2, seed=3, **changes)
    return LongVideo(request, prompts, cond_frames=5)


def run(job: LongJob, folder: Path, pipeline: FakePipeline | None = None, parts: int = 99) -> LongJob:
    job.folder = folder
    folder.mkdir(exist_ok=True)
    for _ in range(parts):
        job.run(pipeline or FakePipeline(0), lambda update: job.note(update))
        if not job.unfinished:
            job.state = "done"
            break
    return job


class TestForm:
    """What the form asks for, and back."""

    def test_a_picture(self, image):
        values = form_values(CHECKPOINT.request("a")) | FORM | {"task": IMAGE, "image": str(image)}
        request = form_request(CHECKPOINT, values)
        assert request.start == FromImage(image=str(image))
        assert form_request(CHECKPOINT, FORM | form_values(request)) == request

    def test_a_clip(self, clip):
        values = form_values(CHECKPOINT.request("a")) | FORM | {"task": CLIP, "clip": str(clip)}
        request = form_request(CHECKPOINT, values)
        assert request.start == FromFrames(video=str(clip), cond_frames=5)
        assert form_request(CHECKPOINT, FORM | form_values(request)) == request

    @pytest.mark.parametrize("begins", [TEXT, IMAGE, CLIP])
    def test_a_long_video(self, begins, image, clip):
        values = form_values(CHECKPOINT.request("-", num_frames=9)) | FORM
        values |= {"task": LONG, "begins": begins, "image": str(image), "clip": str(clip), "prompt": "a\n\n b \n"}
        video = form_long(CHECKPOINT, values | {"segments": 3}, form_request(CHECKPOINT, values))
        assert video.prompts == ("a", "b", "b") and video.cond_frames == 5
        again = FORM | long_values(video)
        assert form_long(CHECKPOINT, again, form_request(CHECKPOINT, again)) == video

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            pytest.param({"task": IMAGE}, "there is no picture to begin with", id="no-picture"),
            pytest.param({"task": CLIP}, "there is no clip to go on from", id="no-clip"),
            pytest.param({"task": LONG, "begins": IMAGE}, "there is no picture", id="long-no-picture"),
            pytest.param({"task": IMAGE, "image": "/gone.png"}, "the picture is gone from the server", id="gone"),
            pytest.param({"task": IMAGE, "refine": "x.mp4"}, "is chosen under Refine a clip; clear it", id="refining"),
        ],
    )
    def test_what_is_missing(self, values, says):
        with pytest.raises(ValueError, match=says):
            form_request(CHECKPOINT, form_values(CHECKPOINT.request("a")) | FORM | values)

    def test_a_clip_that_is_too_short(self, clip):
        values = form_values(CHECKPOINT.request("a")) | FORM | {"task": CLIP, "clip": str(clip), "cond_frames": 13}
        with pytest.raises(ValueError, match="has 9 frames, and to continue it takes its last 13; use a longer clip"):
            form_request(CHECKPOINT, values)

    def test_the_plan_says_how_long_it_is_and_what_the_model_was_not_trained_for(self, image):
        values = form_values(CHECKPOINT.request("a", num_frames=9)) | FORM
        story = values | {"task": LONG, "segments": 3}
        assert "3, together 17 frames, 1.1 s" in plan_panel(CHECKPOINT, story)
        for task in (story, values | {"task": IMAGE, "image": str(image)}):
            assert "was trained to begin from text alone" in plan_panel(UNTRAINED, task)
            assert "was trained to begin" not in plan_panel(CHECKPOINT, task)
        assert "was trained to begin" not in plan_panel(UNTRAINED, values)


def test_the_included_checkpoint_says_what_it_was_trained_for(image):
    info = inspect_checkpoint(EMBEDDED_CHECKPOINT)
    assert info.trained_tasks == ("t2v", "i2v", "vc")
    assert info.trained_for(FromImage(image=str(image)))
    earlier = replace(info, trained_tasks=("t2v",))
    assert earlier.trained_for(info.request("a").start) and not earlier.trained_for(FromImage(image=str(image)))


def test_the_example_pictures_are_small_and_have_prompts_that_the_model_knows():
    known = inspect_checkpoint(EMBEDDED_CHECKPOINT).vocabulary
    assert len(examples()) == 6
    for one in examples().values():
        assert one.path.stat().st_size < 50_000 and known.unknown(one.prompt) == []


class TestLongJob:
    def test_side_by_side(self, tmp_path):
        """Each segment dense, then sparse; the wholes are compared frame by frame, and what they say is read back."""
        pipeline = FakePipeline(0)
        job = run(LongJob.of(long("a", "b"), True, checkpoint="fake"), tmp_path / "job", pipeline)
        assert [(one.prompt, one.bsa is None) for one in pipeline.requests] == [
            ("a", True), ("a", False), ("b", True), ("b", False),
        ]  # fmt: skip
        assert [one.seed for one in pipeline.requests] == [3, 3, 4, 4]
        assert {arm: len(read_clip(made.video)) for arm, made in job.results.items()} == {"dense": 13, "sparse": 13}
        assert len(job.comparison.frames) == job.request.num_frames == 13
        assert [list(one["arms"]) for one in timeline(job)["segments"]] == [["dense", "sparse"]] * 2
        found = read_settings(job.results["sparse"].video)
        assert LongVideo.from_dict(found.long) == job.video
        assert len(job.report()["segments"]) == 2

    def test_is_made_in_parts(self, tmp_path):
        job = run(LongJob.of(long("a", "b", "c"), False), tmp_path / "job", parts=1)
        assert (job.unfinished, job.parts, job.place) == (True, 2, "Segment 1 of 3")
        assert [one["state"] for one in timeline(job)["segments"]] == ["", "Waiting", "Waiting"]

    def test_goes_on_after_segments_of_another(self, tmp_path):
        first = run(LongJob.of(long("a", "b"), False, checkpoint="fake"), tmp_path / "first")
        pipeline = FakePipeline(0)
        more = replace(long("a", "c", "d"), seeds=(3, 70, 71))
        job = LongJob.of(more, False, checkpoint="fake", source=first.folder, kept=1)
        run(job, tmp_path / "more", pipeline)
        assert [(one.prompt, one.seed) for one in pipeline.requests] == [("c", 70), ("d", 71)]
        assert len(job.made) == 2 and len(job.segments) == 3
        part = "sparse/segment-001.mp4"
        assert (job.folder / part).read_bytes() == (first.folder / part).read_bytes()
        assert [one["kept"] for one in timeline(job)["segments"]] == [True, False, False]

    def test_shorter_ones_are_joined_from_what_is_there(self, tmp_path):
        first = run(LongJob.of(long("a", "b"), False, checkpoint="fake"), tmp_path / "first")
        pipeline = FakePipeline(0)
        job = LongJob.of(long("a"), False, checkpoint="fake", source=first.folder, kept=1)
        run(job, tmp_path / "less", pipeline)
        assert not pipeline.requests and len(read_clip(job.results["sparse"].video)) == 9

    def test_comes_back_from_the_record(self, tmp_path, image):
        """Also one that was stopped: its finished segments stay."""
        folder = tmp_path / "20261128-000000-0123456789ab"
        job = LongJob.of(long("a", "b", start=FromImage(image=str(image))), True, checkpoint="fake")
        job.id, job.owner = "0123456789ab", "ann"
        run(job, folder, parts=1)
        job.end("stopped", "", [])
        store = Store(tmp_path)
        store.write(record_of(job))
        back = restored(store, job.id)
        assert isinstance(back, LongJob) and (back.state, back.playable) == ("stopped", True)
        assert back.video == job.video and timeline(back)["segments"][0] == timeline(job)["segments"][0]
        assert job_values(back)["image"] == str(folder / "image.png")

    def test_a_file_leads_its_owner_to_the_run_that_made_it(self, tmp_path, image):
        """And so to the picture that it begins with, of which the file has only the name."""
        folder = tmp_path / "20261128-000000-0123456789ab"
        job = LongJob.of(long("a", start=FromImage(image=str(image))), False, checkpoint="fake")
        job.id, job.owner = "0123456789ab", "ann"
        run(job, folder)
        store, file = Store(tmp_path), tmp_path / "downloaded.mp4"
        store.write(record_of(job))
        file.write_bytes(job.results["sparse"].video.read_bytes())
        assert made_by(store, "ann", file).request.start == FromImage(image=str(folder / "image.png"))
        assert made_by(store, "bob", file) is None
        file.write_bytes(file.read_bytes() + b"x")
        assert made_by(store, "ann", file) is None


@pytest.fixture(scope="module")
def fake():
    return FakePipeline(step_seconds=0)


@pytest.fixture(scope="module")
def address(fake, tmp_path_factory):
    with running_page(fake, tmp_path_factory.mktemp("outputs"), UNTRAINED) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


class TestApi:
    def test_from_a_picture_on_and_on(self, client, image):
        """Its own size, then the end of what was made, by its file and by its job_id."""
        made, report = client.predict(handle_file(image), "a", num_frames=9, steps=1, api_name="/image_to_video")
        assert report["request"]["from_image"] == {"image": "image.png"}
        assert (report["request"]["width"], report["request"]["height"]) == (96, 64)
        assert "was trained to begin from text alone" in report["note"]
        for source in (handle_file(made), report["job_id"]):
            _, more = client.predict(source, "b", num_frames=9, steps=1, cond_frames=5, api_name="/continue")
            assert more["request"]["from_frames"]["cond_frames"] == 5

    def test_long(self, client, fake):
        """Progress tells segment and step; a later call goes on after its first segment."""
        with fake.held(after=1):
            options = {"num_frames": 9, "steps": 2, "cond_frames": 5, "api_name": "/long"}
            job = client.submit(["a", "b"], seed=5, job_id="tale", **options)
            until(lambda: "segment 2 of 2, sparse: denoising" in str(job.status().progress_data), "segment and step")
            kept = client.predict("tale", api_name="/result")
            assert (kept["state"], [one["prompt"] for one in kept["segments"]]) == ("running", ["a"])
        made, report = job.result()
        assert len(read_clip(made)) == report["request"]["num_frames"] == 13
        _, more = client.predict(["a", "c"], seed=9, after="tale", keep=1, **options)
        said = [(one["prompt"], one["seed"], one["kept"]) for one in more["segments"]]
        assert said == [("a", 5, True), ("c", 10, False)]
        for keep in (0, 3):
            with pytest.raises(AppError, match=f"keep {keep} is outside 1 to 2, the finished segments of job_id 'ta"):
                client.predict(["a", "c"], after="tale", keep=keep, **options)
        with pytest.raises(AppError, match="^What this run selected was not recorded, or its file is gone"):
            client.predict("tale", api_name="/inspect")  # and not the path where it would be

    def test_a_stopped_one_keeps_what_is_finished(self, client, fake):
        options = {"num_frames": 9, "steps": 2, "cond_frames": 5, "api_name": "/long"}
        with fake.held(after=1):
            job = client.submit(["a", "b"], seed=5, job_id="cut", **options)
            until(lambda: "segment 2 of 2" in str(job.status().progress_data), "a segment")
            client.predict("cut", api_name="/cancel")
            with pytest.raises(AppError, match="the job was stopped"):
                job.result()
        assert client.predict("cut", api_name="/result")["state"] == "stopped"
        made = len(fake.requests)
        _, report = client.predict(["a", "b"], seed=5, after="cut", **options)
        assert [one["kept"] for one in report["segments"]] == [True, False]
        assert [request.prompt for request in fake.requests[made:]] == ["b"]

    @pytest.mark.parametrize(
        ("write", "says"),
        [
            pytest.param(lambda file: file.write_text("no picture"), "is not a PNG, JPEG", id="text"),
            pytest.param(
                lambda file: Image.new("RGBA", (32, 32), (9, 9, 9, 9)).save(file), "has transparent parts", id="alpha"
            ),
            pytest.param(
                lambda file: Image.new("L", (32, 32)).save(
                    file, "GIF", save_all=True, append_images=[Image.new("L", (32, 32), 9)]
                ),
                "is an animation of 2 pictures",
                id="animated",
            ),
            pytest.param(
                lambda file: Image.new("1", (20_000, 20_000)).save(file), "use one of at most 134 megapixels", id="huge"
            ),
        ],
    )
    def test_pictures_that_are_none(self, client, tmp_path, write, says):
        write(tmp_path / "a.png")
        with pytest.raises(AppError) as caught:
            client.predict(handle_file(tmp_path / "a.png"), "a", api_name="/image_to_video")
        assert says in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300

    @pytest.mark.parametrize(
        ("values", "name", "says"),
        [
            pytest.param({"clip": None, "prompt": "a"}, "continue", "clip is no uploaded file; pass", id="no-file"),
            pytest.param({"clip": {"path": __file__}, "prompt": "a"}, "continue", "clip is no uploaded", id="server's"),
            pytest.param({"clip": "nobody's", "prompt": "a"}, "continue", "is not a job of yours", id="other's"),
            pytest.param({"prompts": "a"}, "long", "prompts 'a' is no list of texts", id="text"),
            pytest.param({"prompts": ["a"]}, "long", "needs the number of segments", id="one-prompt"),
            pytest.param({"prompts": ["a", 3]}, "long", "segment 2 of 2 cannot be made: the prompt is a int", id="3"),
            pytest.param({"prompts": ["a"], "segments": 2, "num_frames": 9}, "long", "segment 2 of 2", id="short"),
        ],
    )
    def test_bad_values(self, client, values, name, says):
        with pytest.raises(AppError) as caught:
            client.predict(**values, api_name=f"/{name}")
        assert says in str(caught.value)

    def test_a_clip_that_is_too_short(self, client, clip):
        with pytest.raises(AppError, match="has 9 frames, and to continue it takes its last 13"):
            client.predict(handle_file(clip), "a", api_name="/continue")


@needs_chromium
def test_the_page_goes_from_a_picture_to_a_long_video(tmp_path, fake):
    """Choose, make, go on from it, tell a story in segments, and make its end again."""
    with running_page(fake, tmp_path, UNTRAINED) as address, chromium() as browser:
        page = open_page(browser, address)
        task = page.locator("#task")
        for hidden in ("#task-image", "#task-clip", "#task-long"):
            expect(page.locator(hidden)).to_be_hidden()
        task.get_by_label("Image to video").click()
        expect(page.locator("#plan")).to_contain_text("There is no picture to begin with")
        page.locator(".pictures button").first.click()
        expect(notice(page)).to_contain_text("The video begins with this picture of 256 × 256 and is made in 80 × 80.")
        expect(notice(page)).to_contain_text("was trained to begin from text alone")
        expect(page.locator("#start-preview img")).to_be_visible()
        expect(page.locator("#prompt textarea")).to_have_value("a red ball bounces over green hills at sunset")
        generate(page)
        expect_playing(page, "sparse")
        assert [type(request.start) for request in fake.requests[-2:]] == [FromImage, FromImage]

        task.get_by_label("Text to video").click()
        page.locator("#drop input[type=file]").set_input_files(next(tmp_path.glob("*/sparse.mp4")))
        expect(notice(page)).to_have_text(re.compile("^The settings of sparse.mp4 .* to make it again.$"))
        expect(page.locator("#start-image")).to_contain_text(re.compile(r"image\s*\.png"))  # its run has kept it
        page.get_by_label("Dense and sparse side by side").check()

        page.locator('.tile[data-arm="dense"] .go-on').click()
        expect(task.get_by_label("Go on from a clip")).to_be_checked()
        expect(notice(page)).to_contain_text("The video goes on from the last 13 of 17 frames")
        generate(page)
        start = fake.requests[-1].start
        assert isinstance(start, FromFrames) and start.cond_frames == 13

        page.locator('.tile[data-arm="dense"] .go-on').click()
        expect(notice(page)).to_contain_text("The video goes on from the last 13")
        task.get_by_label("Long video").click()
        expect(notice(page)).to_have_count(0)  # it goes on from that clip no longer
        page.locator("#prompt textarea").fill("a red ball rises\na red ball falls")
        fill_number(page, "Segments", 2)
        expect(page.locator("#plan")).to_contain_text("2, together 21 frames")
        with fake.held(after=3):
            button(page, "Generate").click()
            expect(page.locator('.timeline li[data-state="Being made"]')).to_contain_text("a red ball falls")
            expect(page.locator('.tile[data-arm="sparse"] .label')).to_contain_text("Segment 2 of 2 · Denoising, step")
            page.reload(wait_until="domcontentloaded")
            expect(page.locator("#prompt textarea")).to_have_value("a red ball rises\na red ball falls")
            expect(page.locator(".timeline li").first.locator("img")).to_have_count(2)
        expect(notice(page)).to_contain_text("Done with seed")
        expect(page.locator(".timeline li")).to_have_count(2)

        made = len(fake.requests)
        page.locator(".timeline").get_by_role("button", name="Redo from segment 2").click()
        expect(page.locator("#after")).to_contain_text("Segments kept: 1. To be made: 1.")
        generate(page)
        assert [request.prompt for request in fake.requests[made:]] == ["a red ball falls"] * 2
        expect(page.locator(".timeline li").first).to_contain_text("kept")
        open_tab(page, "History")
        card = page.locator(".history-run").first
        expect(card).to_contain_text("Long video: Dense and sparse")
        card.get_by_role("button", name="Go on from the sparse one").click()
        expect(task.get_by_label("Go on from a clip")).to_be_checked()
        drop = page.locator("#drop input[type=file]")
        drop.set_input_files(next(tmp_path.glob("*/sparse/../sparse.mp4")))
        expect(notice(page)).to_contain_text("are in the form")
        expect(task.get_by_label("Long video")).to_be_checked()
        page.context.close()
