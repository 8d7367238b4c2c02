"""Endpoints beyond /generate and /compare, owners of jobs, and the example programs."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from app_server import WAIT_SECONDS, running_page, until
from fake_pipeline import CHECKPOINT, FakePipeline
from gradio_client import Client
from gradio_client.exceptions import AppError

from pipeline import EMBEDDED_CHECKPOINT, inspect_checkpoint
from pipeline.engine.process import InProcess

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def fake():
    return FakePipeline(step_seconds=0.01)


@pytest.fixture(scope="module")
def address(fake, tmp_path_factory):
    with running_page(fake, tmp_path_factory.mktemp("outputs"), CHECKPOINT, model_switch=True) as address:
        yield address  # with the model field, as on everybody's own computer


@pytest.fixture
def client(address):
    return Client(address, verbose=False)


class TestSweep:
    def test_report_and_files(self, client):
        report, table = client.predict(
            "a red ball", seed=3, row_values=[0.5, 0.75], columns="steps", column_values=[2, 3], api_name="/sweep"
        )
        assert [(cell["row"], cell["column"], cell["steps"]) for cell in report["cells"]] == [
            (1, 1, 2),
            (2, 1, 2),
            (1, 2, 3),
            (2, 2, 3),
        ]
        assert [video["steps"] for video in report["dense"]] == [2, 3]
        for video in report["dense"] + report["cells"]:
            assert Path(video["video"]).read_bytes()[4:8] == b"ftyp"
        assert len(list(csv.DictReader(Path(table).open()))) == 6
        assert report["state"] == "done"

    def test_progress_names_the_video(self, client, fake):
        def told():
            return [unit.desc.partition(" ·")[0] for unit in job.status().progress_data or []]

        with fake.held(after=1):
            job = client.submit("a red ball", steps=40, row_values=[0.5], api_name="/sweep")
            until(lambda: "Video 2 of 2: sparsity 0.5" in told(), "the second video")
        job.result()

    def test_find_reports_what_it_found(self, client, fake):
        report, table = client.predict("a red ball", floor=3.0, most_videos=2, chunk_q=[1, 2, 2], api_name="/find")
        assert report["search"] == {"quality": "psnr", "floor": 3.0, "most": 2, "found": report["search"]["found"]}
        assert (len(report["dense"]), len(report["cells"]), report["state"]) == (1, 2, "done")
        assert [row["attention"] for row in csv.DictReader(Path(table).open())] == ["dense", "sparse", "sparse"]
        assert all(Path(cell["video"]).is_file() for cell in report["cells"])

    def test_a_floor_out_of_range_is_a_sentence(self, client):
        with pytest.raises(AppError, match="a floor of 30 SSIM is outside 0 to 1; 0.95 is hard to see"):
            client.predict("a red ball", quality="ssim", floor=30.0, api_name="/find")

    def test_a_cancelled_sweep_returns_what_is_done(self, client, fake):
        before = len(fake.requests)
        with fake.held(after=1):
            job = client.submit("a", row_values=[0.25, 0.5, 0.75], job_id="grid", api_name="/sweep")
            until(lambda: len(fake.requests) == before + 2, "the second video")
            client.predict("grid", api_name="/cancel")
            report, _ = job.result()
        assert report["state"] == "stopped"
        assert len(report["dense"]) == 1 and not report["cells"]

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            pytest.param({"row_values": [0.5, 1.5]}, "the cell sparsity 1.5 cannot be made: sparsity must", id="cell"),
            pytest.param({"rows": "guidance"}, "'guidance' cannot be swept; choose among", id="setting"),
            pytest.param({"row_values": []}, "no values to sweep the sparsity over", id="empty"),
            pytest.param({"columns": "seed"}, "no values to sweep the seed over", id="no column values"),
            pytest.param(
                {"row_values": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}, "sparsity", id="file"
            ),
        ],
    )
    def test_bad_grids_are_a_sentence(self, client, values, sentence):
        with pytest.raises(AppError) as caught:
            client.predict(**{"prompt": "a"} | values, api_name="/sweep")
        assert str(caught.value).startswith(sentence)


class TestJobs:
    def test_cancel_by_name(self, client, fake):
        with fake.held():
            job = client.submit("a", job_id="mine", api_name="/generate")
            until(lambda: fake.running, "the job to run")
            assert client.predict("mine", api_name="/cancel") == {"job_id": "mine", "state": "stopping"}
            with pytest.raises(AppError, match="^the job was stopped$"):
                job.result(timeout=WAIT_SECONDS)

    def test_nobody_cancels_or_inspects_anothers_job(self, client, address, fake):
        with fake.held():
            job = client.submit("a", job_id="private", api_name="/generate")
            until(lambda: fake.running, "the job to run")
            other = Client(address, verbose=False)
            for call in ("/cancel", "/inspect"):
                with pytest.raises(AppError, match="job_id 'private' is not a job of yours"):
                    other.predict("private", api_name=call)
            assert fake.running
            client.predict("private", api_name="/cancel")
            with pytest.raises(AppError):
                job.result(timeout=WAIT_SECONDS)

    def test_a_name_is_for_one_job_also_when_that_is_over(self, client, fake):
        with fake.held():
            job = client.submit("a", job_id="again", api_name="/generate")
            until(lambda: fake.running, "the job to run")
            with pytest.raises(AppError, match="job_id 'again' was given to another job of yours, which is running"):
                client.predict("a", job_id="again", api_name="/generate")
            client.predict("again", api_name="/cancel")
            with pytest.raises(AppError):
                job.result(timeout=WAIT_SECONDS)
        with pytest.raises(AppError, match="which is stopped; choose another, or null to have one drawn"):
            client.predict("a", job_id="again", api_name="/generate")

    @pytest.mark.parametrize("name", ["", "a/b", "x" * 65, "../etc"])
    def test_impossible_names(self, client, name):
        with pytest.raises(AppError, match="cannot be used; take 1 to 64 letters"):
            client.predict("a", job_id=name, api_name="/generate")


class TestReadings:
    def test_inspect(self, client):
        _, report = client.predict("a", seed=1, api_name="/generate")
        attention = client.predict(report["job_id"], step=1, layer=2, head=1, query_block=3, api_name="/inspect")
        assert 0 < attention["recall"] <= 1
        assert len(attention["recall_by_step"]) == 4
        matrix = np.array(attention["recall_by_layer_and_step"])
        assert matrix.shape == (3, 4)
        np.testing.assert_allclose(matrix.mean(axis=0), attention["recall_by_step"], rtol=1e-5)  # as many heads in each
        np.testing.assert_allclose(matrix.mean(axis=1), attention["recall_by_layer"], rtol=1e-5)
        assert attention["block"]["recall_tokens"] == 1
        blocks = attention["block"]["kept"]
        assert len(blocks) == 1  # a quarter of four
        assert all(0 <= side < 5 for block in blocks for side in block)

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            pytest.param({"layer": 99}, "layer 99", id="layer"),
            pytest.param({"query_block": 99}, "query block 99 does not exist; use 0 to 3", id="block"),
            pytest.param({"step": "x"}, "step 'x' is not a number", id="text"),
        ],
    )
    def test_inspect_refuses(self, client, values, sentence):
        client.predict("a", job_id="seen", api_name="/generate")
        with pytest.raises(AppError) as caught:
            client.predict(**{"job_id": "seen"} | values, api_name="/inspect")
        assert str(caught.value).startswith(sentence)

    def test_a_dense_video_has_nothing_to_inspect(self, client):
        client.predict("a", attention="dense", job_id="dense", api_name="/generate")
        with pytest.raises(AppError, match="job_id 'dense' has no finished sparse video"):
            client.predict("dense", api_name="/inspect")

    def test_resources(self, client):
        now = client.predict(api_name="/resources")
        assert 0 < now["process_rss"] < now["host_total"]
        assert now["worker"]["state"] in ("ready", "busy")

    def test_resources_are_those_of_the_engine(self, client, monkeypatch):
        """Not of the process that answers."""
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            monkeypatch.setattr(InProcess, "pid", other.pid)
            monkeypatch.setattr(InProcess, "torch_memory", lambda self: {"allocated": 5, "reserved": 6, "uuid": "x"})
            now = client.predict(api_name="/resources")
            other.communicate(b"\n")
        assert 0 < now["process_rss"] < psutil.Process().memory_info().rss
        assert (now["torch_allocated"], now["torch_reserved"], now["torch_memory"]["reserved"]) == (5, 6, 6)

    def test_estimate_without_a_model_says_so(self, client):
        with pytest.raises(AppError, match="does not say how large it is"):
            client.predict(api_name="/estimate")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("generate", "each block attended to", id="generate"),
        pytest.param("compare", "as fast as dense", id="compare"),
        pytest.param("sweep", "on the Pareto front", id="sweep"),
        pytest.param("find", "x as fast, PSNR", id="find"),
        pytest.param("inspect", "query block 0 of head 0 read", id="inspect"),
        pytest.param("resources", "host: ", id="resources"),
        pytest.param("cancel", "the job was stopped", id="cancel"),
        pytest.param("result", "sparse: ", id="result"),
    ],
)
def test_examples(address, name, said):
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"api_{name}.py", address], capture_output=True, text=True, timeout=WAIT_SECONDS * 2
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_example_of_estimates(tmp_path):
    """Needs a real checkpoint's configurations, not its weights."""
    with running_page(FakePipeline(), tmp_path, inspect_checkpoint(EMBEDDED_CHECKPOINT), device="cpu") as address:
        done = subprocess.run(
            [sys.executable, EXAMPLES / "api_estimate.py", address],
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS * 2,
        )
    assert done.returncode == 0, done.stderr
    assert "GiB (process RSS)" in done.stdout
