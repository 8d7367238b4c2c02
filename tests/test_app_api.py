"""The named API through a real gradio_client against a live server over the fake pipeline."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import pytest
from app_server import running_page, until
from fake_pipeline import FakePipeline
from gradio_client import Client
from gradio_client.exceptions import AppError


@pytest.fixture(scope="module")
def fake():
    return FakePipeline(fail_with=RuntimeError("broken"))


@pytest.fixture(scope="module")
def client(fake, tmp_path_factory):
    with running_page(fake, tmp_path_factory.mktemp("outputs")) as address:
        yield Client(address, verbose=False)


def frames_of(path: str) -> tuple[int, dict]:
    reader = imageio_ffmpeg.read_frames(path)
    details = next(reader)
    return sum(1 for _ in reader), details


class TestApi:
    def test_only_the_named_endpoints_show(self, client):
        named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
        jobs = ["compare", "continue", "find", "generate", "image_to_video", "long", "refine", "refine_long", "sweep"]
        others = ["cancel", "estimate", "inspect", "resources", "result"]
        assert sorted(named) == sorted(f"/{path}" for path in jobs + others)

    def test_parameters_are_typed_and_described(self, client):
        named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
        parameters = {entry["parameter_name"]: entry for entry in named["/compare"]["parameters"]}
        assert [name for name, entry in parameters.items() if not entry["parameter_has_default"]] == ["prompt"]
        assert parameters["width"]["parameter_default"] == 96
        assert parameters["width"]["python_type"]["type"] == "int"
        assert parameters["width"]["label"] == "Pixels, a multiple of 16"
        assert parameters["chunk_q"]["python_type"]["type"] == "list[int]"
        assert parameters["chunk_q"]["parameter_default"] == [4, 4, 4]
        assert [entry["label"] for entry in named["/compare"]["returns"]] == ["dense video", "sparse video", "report"]
        assert "speed-up, PSNR and SSIM" in named["/compare"]["description"]

    def test_generate(self, client):
        video, report = client.predict("a red ball", seed=5, num_frames=9, api_name="/generate")
        count, details = frames_of(video)
        assert (count, details["codec"], details["size"]) == (9, "h264", (96, 64))
        assert report["request"]["seed"] == 5
        assert report["bsa_active"] is True
        assert report["seconds"].keys() == {"text", "denoise", "decode", "total"}

    def test_generate_dense(self, client, fake):
        _, report = client.predict("a red ball", attention="dense", api_name="/generate")
        assert report["request"]["bsa"] is None
        assert fake.requests[-1].bsa is None

    def test_compare(self, client):
        dense, sparse, report = client.predict(
            "a red ball", sparsity=None, cdf_threshold=0.8, chunk_k=[2, 2, 2], api_name="/compare"
        )
        assert frames_of(dense)[0] == frames_of(sparse)[0] == 17
        assert Path(dense).read_bytes() != Path(sparse).read_bytes()
        assert report["sparse"]["request"]["bsa"]["cdf_threshold"] == 0.8
        assert report["sparse"]["request"]["seed"] == report["dense"]["request"]["seed"]
        assert {"speedup", "psnr", "ssim"} <= report.keys()

    def test_a_seed_is_drawn_and_reported(self, client):
        seeds = [client.predict("a", attention="dense", api_name="/generate")[1]["request"]["seed"] for _ in range(2)]
        assert seeds[0] != seeds[1]

    def test_equal_videos_have_no_finite_psnr(self, client, monkeypatch):
        monkeypatch.setattr("fake_pipeline.COLOURS", {"dense": (9, 9, 9), "sparse": (9, 9, 9)})
        _, _, report = client.predict("a", api_name="/compare")
        assert report["psnr"] is None
        assert report["ssim"] == pytest.approx(1)

    def test_progress_counts_steps(self, client, fake):
        def told():
            return [(unit.desc, unit.length) for unit in job.status().progress_data or []]

        with fake.held():
            job = client.submit("a red ball", steps=40, api_name="/compare")
            until(lambda: ("dense: denoising", 40) in told(), "the dense video's steps")
            with fake.held():  # the next one, then
                until(lambda: ("sparse: denoising", 40) in told(), "the sparse video's steps")
        job.result()

    def test_cancel_stops_the_pipeline(self, client, fake):
        before = fake.steps_done
        with fake.held():
            job = client.submit("a red ball", api_name="/generate")
            until(lambda: fake.steps_done > before, "the first step")
            job.cancel()
            until(lambda: fake.running == 0, "the end of the job")
        assert fake.steps_done == before + 1

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            pytest.param({"prompt": " "}, "the prompt is empty; describe the video", id="prompt"),
            pytest.param({"prompt": "x" * 10_000}, "the prompt has 10000 characters", id="endless prompt"),
            pytest.param({"width": 830}, "width 830 is not a multiple of 16; try 816 or 832", id="width"),
            pytest.param({"num_frames": 18}, "num_frames 18 is not of the form 4n + 1; try 17 or 21", id="frames"),
            pytest.param({"num_frames": 1}, "nothing to compare: num_frames 1 is a single", id="one frame"),
            pytest.param({"sparsity": 1.0}, "sparsity must be at least 0 and below 1, got 1.0", id="sparsity"),
            pytest.param({"sparsity": None}, "sparsity and cdf_threshold are both unset", id="no rule"),
            pytest.param({"chunk_q": [4, 4]}, "query chunk [4, 4] is not three numbers", id="chunk"),
            pytest.param({"chunk_k": [0, 4, 4]}, "chunk_k must be three positive integers", id="chunk 0"),
            pytest.param({"steps": "many"}, "number of steps 'many' is not a number", id="text for a number"),
        ],
    )
    def test_bad_input_arrives_as_a_sentence(self, client, values, sentence):
        with pytest.raises(AppError) as caught:
            client.predict(**{"prompt": "a red ball"} | values, api_name="/compare")
        assert str(caught.value).startswith(sentence)

    def test_automatic_attention_runs_what_it_says(self, client):
        _, report = client.predict("a red ball", attention="auto", api_name="/generate")
        assert report["request"]["auto"].startswith("automatic: dense, because 4 key blocks are too few")
        assert report["request"]["bsa"] is None and report["bsa_reason"] == report["request"]["auto"]

    def test_unknown_attention(self, client):
        with pytest.raises(AppError, match="attention 'linear' is unknown; use 'sparse', 'dense' or 'auto'"):
            client.predict("a red ball", attention="linear", api_name="/generate")

    def test_failure_arrives_and_the_next_call_works(self, client):
        with pytest.raises(AppError, match="^RuntimeError: broken"):
            client.predict("fail", api_name="/generate")
        assert client.predict("a 🎈 balloon", api_name="/generate")[1]["request"]["prompt"] == "a 🎈 balloon"

    def test_emoji_only(self, client):
        assert client.predict("🎈🎈", api_name="/generate")[1]["request"]["prompt"] == "🎈🎈"
