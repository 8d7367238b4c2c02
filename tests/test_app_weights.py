"""The page's model with 8-bit and offloaded weights: the options of the server, its presets, code and remarks."""

import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_pipeline import FakePipeline

import app
from bsa import BSAConfig
from pipeline import EMBEDDED_CHECKPOINT, VideoRequest, inspect_checkpoint
from pipeline.engine.process import EngineProcess
from pipeline.request.load_options import AS_STORED, LoadOptions
from ui import Worker
from ui.form.restore import code_of, remarks
from ui.site import Site

INFO = inspect_checkpoint(EMBEDDED_CHECKPOINT)
BOTH = LoadOptions("fp8", True)
REQUEST = VideoRequest(prompt="x", width=96, height=80, num_frames=13, steps=2, guidance_scale=1.0, fps=15, bsa=None)


@pytest.fixture
def engine():
    path = str(EMBEDDED_CHECKPOINT)
    engine = EngineProcess("pipeline.engine.child:load_longcat", path=path, device="cpu", **BOTH.arguments)
    yield engine
    engine.close()


@pytest.fixture
def site(engine, tmp_path):
    return Site(INFO, Worker(engine, tmp_path, INFO.name), device="cpu")


@pytest.mark.parametrize(
    ("options", "expected"), [([], AS_STORED), (["--quantization", "fp8", "--offload"], BOTH)], ids=["none", "both"]
)
def test_the_server_hands_its_options_to_the_engine(options, expected, tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(app, "build_page", lambda checkpoint, worker, *_, **__: built.append(worker.weights))
    monkeypatch.setattr(app, "serve", lambda *_, **__: None)
    monkeypatch.setattr(Worker, "start", lambda self: self)
    before = signal.getsignal(signal.SIGTERM)
    assert app.main([*options, "--device", "cpu", "--output-dir", str(tmp_path)]) == 0
    assert built == [expected]
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_engine_makes_videos_with_them(engine, tmp_path):
    said = []
    engine.start(said.append)
    assert said[-1].endswith("to cpu with --quantization fp8 --offload")
    result, _ = engine.generate_frames(REQUEST, None, tmp_path / "video.mp4")
    # as a CPU computes 8-bit weights
    assert LoadOptions.from_versions(result.versions) == engine.weights == replace(BOTH, precision="fp32")
    engine.switch(EMBEDDED_CHECKPOINT)
    assert engine.weights == BOTH  # another model is kept in the same way


def test_estimates_are_of_them(site):
    small, usual = (
        site.estimates.of(REQUEST),
        Site(INFO, Worker(lambda say: FakePipeline(), site.worker.output_dir, "")),
    )
    assert small.memory < usual.estimates.of(REQUEST).memory


def test_what_they_cannot_run_is_not_queued(site):
    mixed = replace(REQUEST, bsa=BSAConfig(0.5, None, (2, 4, 4), (2, 3, 8)))
    with pytest.raises(ValueError, match="--quantization fp8 --offload needs the fast forward"):
        site.estimates.plan(mixed)


def test_code_and_remarks_say_how_a_video_was_made(site):
    made = SimpleNamespace(versions={"device": "cpu: x", **BOTH.versions})
    job = SimpleNamespace(request=REQUEST, results={"dense": made}, side_by_side=False, long=None, id="7")
    code = code_of(site, job)
    assert code["cli"].count("--quantization fp8 --offload") == 1
    assert "device='cpu', quantization='fp8', offload=True)" in code["python"]
    assert remarks(site, {}, REQUEST, BOTH.versions) == remarks(site, {}, REQUEST, LoadOptions("fp8").versions)
    said = remarks(site, {}, REQUEST, {})
    assert any("with the quantization none, and this server runs with fp8" in text for text in said)


@pytest.mark.parametrize(
    ("made", "here", "remark"),
    [
        pytest.param({"precision": "bf16"}, "fp32", "in bf16, and this server computes in fp32", id="another"),
        pytest.param({"precision": "bf16"}, "bf16", None, id="the-same"),
        pytest.param({"precision": "bf16"}, "auto", None, id="a-gpu"),
        pytest.param({}, "fp32", None, id="an-old-video"),
    ],
)
def test_another_precision_is_remarked(made, here, remark):
    worker = SimpleNamespace(weights=LoadOptions(precision=here))
    site = SimpleNamespace(worker=worker, checkpoint=INFO)
    said = [text for text in remarks(site, {}, REQUEST, made) if "computes in" in text]
    assert (remark in said[0]) if remark else not said
