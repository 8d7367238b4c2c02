"""Which numbers a model computes with: who decides, where it is recorded, and how far bf16 is from fp32 on a CPU."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from random_dit import random_dit, random_inputs

from bsa import BSAConfig
from pipeline import EMBEDDED_CHECKPOINT, LongCatPipeline, inspect_checkpoint
from pipeline.checkpoint.shape import ModelShape
from pipeline.cli.parser import build_parser
from pipeline.cli.read import read_weights
from pipeline.estimate import footprint
from pipeline.estimate.estimator import Estimator
from pipeline.estimate.refusal import smaller_weights
from pipeline.machine.device import DeviceName
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.transformer.fast_forward import fast_forward
from pipeline.transformer.fused import operations
from pipeline.weights import precision
from pipeline.weights.precision import Precision, choose_precision, measured, processor_flags, settled

CPU, CUDA = DeviceName("cpu"), DeviceName("cuda", 0)
BF16, FP32 = LoadOptions(precision="bf16"), LoadOptions(precision="fp32")
INFO = inspect_checkpoint(EMBEDDED_CHECKPOINT)


@pytest.fixture
def processor(monkeypatch):
    """Sets the features of the processor."""

    def has(*flags):
        monkeypatch.setattr(precision, "processor_flags", lambda: frozenset(flags))

    return has


@pytest.mark.parametrize(
    ("asked", "device", "width", "flags", "name", "reason"),
    [
        pytest.param(AS_STORED, CUDA, 4096, (), "bf16", "the device is a GPU", id="gpu"),
        pytest.param(AS_STORED, CPU, 256, ("avx2", "avx512_bf16"), "bf16", "processor has avx512_bf16", id="avx512"),
        pytest.param(AS_STORED, CPU, 256, ("amx_bf16", "avx512_bf16"), "bf16", "processor has amx_bf16", id="amx"),
        pytest.param(AS_STORED, CPU, 256, ("avx512f",), "fp32", "neither of amx_bf16 and avx512_bf16", id="neither"),
        pytest.param(AS_STORED, CPU, 64, ("avx512_bf16",), "fp32", "256 on, and this transformer has 64", id="narrow"),
        pytest.param(BF16, CPU, 64, (), "bf16", "it was asked for", id="asked-bf16"),
        pytest.param(FP32, CPU, 256, ("avx512_bf16",), "fp32", "it was asked for", id="asked-fp32"),
        pytest.param(LoadOptions("fp8"), CPU, 256, ("avx512_bf16",), "fp32", "computes fp8 weights so", id="fp8"),
    ],
)
def test_the_choice_and_its_reason(processor, asked, device, width, flags, name, reason):
    processor(*flags)
    choice = choose_precision(asked, device, width)
    assert choice.name == name and reason in choice.reason


def test_what_was_asked_for_is_never_replaced(processor):
    processor()
    with pytest.raises(ValueError, match="a GPU computes in bf16, as the original does; leave --precision fp32 out"):
        choose_precision(FP32, CUDA, 4096)
    with pytest.raises(ValueError, match="a CPU computes fp8 weights in fp32; leave --precision bf16 out"):
        choose_precision(LoadOptions("fp8", precision="bf16"), CPU, 256)
    with pytest.raises(ValueError, match="unknown precision 'fp16'; use one of auto, bf16, fp32"):
        LoadOptions(precision="fp16")


@pytest.mark.parametrize(
    ("seconds", "name", "reason"),
    [
        pytest.param((4.0, 1.0), "bf16", "the processor has it, and a product in bf16 takes 0.25 times", id="faster"),
        pytest.param((1.0, 5.0), "fp32", "takes 5.00 times as long as in fp32, though the processor has", id="slower"),
    ],
)
def test_instructions_that_gain_nothing_are_not_used(monkeypatch, seconds, name, reason):
    monkeypatch.setattr(precision, "_product_seconds", lambda: seconds)
    found = measured(Precision("bf16", "the processor has it"))
    assert found.name == name and reason in found.reason


def test_products_are_timed_in_both():
    assert all(0 < seconds < 10 for seconds in precision._product_seconds())


def test_flags_of_the_processor_are_read(monkeypatch, tmp_path):
    for name, text, flags in (
        ("amd", "processor\t: 0\nflags\t\t: fpu avx512_bf16\nbugs\t\t: x\nflags\t: other\n", {"fpu", "avx512_bf16"}),
        ("arm", "processor\t: 0\nFeatures\t: fp bf16\n", set()),  # no measurement of these
        ("none", None, set()),
    ):
        monkeypatch.setattr("bsa.native.processor.CPUINFO", tmp_path / name)
        if text is not None:
            (tmp_path / name).write_text(text)
        assert processor_flags.__wrapped__() == flags


class TestOptions:
    def test_a_precision_alone_leaves_the_weights_as_stored(self):
        assert not BF16 and str(BF16) == "" and BF16.options == ("--precision bf16",)
        BF16.check_forward("plain")
        assert LoadOptions("fp8", precision="bf16").options == ("--quantization fp8", "--precision bf16")

    def test_round_trip_through_videos_and_command_lines(self):
        assert LoadOptions.from_versions(BF16.versions) == BF16 and BF16.versions == {"precision": "bf16"}
        assert LoadOptions.from_versions({"precision": "fp4"}) == AS_STORED and AS_STORED.versions == {}
        args = build_parser().parse_args(["generate", "--prompt", "x", "--precision", "bf16"])
        assert read_weights(args) == BF16

    def test_remedies_for_want_of_memory_leave_it_open(self):
        """What was settled for the weights as they are must not stand in the way of 8-bit ones."""
        assert [options.precision for options in FP32.smaller()] == ["auto"] * 3
        shape = ModelShape.read(INFO)
        assert smaller_weights(shape, CPU, BF16, lambda options: True) == LoadOptions("fp8")


class TestEstimates:
    def test_each_precision_has_measurements_of_its_own(self, tmp_path, processor):
        processor("avx512_bf16")
        store, point = tmp_path / "estimates.json", {"part": "decode", "size": [5, 96, 96], "seconds": 1.0}
        Estimator(INFO, CPU, store, BF16).calibrate([point])
        assert Estimator(INFO, CPU, store, AS_STORED).calibrated  # expected to be bf16 too
        assert not Estimator(INFO, CPU, store, FP32).calibrated
        processor()
        assert not Estimator(INFO, CPU, store, AS_STORED).calibrated

    def test_bf16_takes_half_the_memory_but_for_the_text_encoder(self):
        shape = ModelShape.read(INFO)
        whole, half = (footprint.weight_bytes(shape, CPU, weights) for weights in (FP32, BF16))
        assert whole - 4 * shape.text_encoder == 2 * (half - 4 * shape.text_encoder) > 0

    def test_settled_is_what_a_cpu_gets_and_nothing_for_a_gpu(self, processor):
        processor("avx512_bf16")
        assert settled(AS_STORED, CPU, 256) == BF16 and settled(AS_STORED, CUDA, 256) == AS_STORED


class TestForward:
    @pytest.mark.parametrize("grid", [pytest.param((4, 8, 8), id="whole"), pytest.param((5, 7, 6), id="ragged")])
    def test_bf16_is_near_fp32(self, grid):
        """Weights are the same numbers in both. Four blocks of products that round to 2^-9, residuals in fp32."""
        half = random_dit(depth=4, dtype=torch.bfloat16)
        inputs = random_inputs(half, grid)
        out = fast_forward(half, *inputs, None)
        exact = fast_forward(random_dit(depth=4, dtype=torch.bfloat16).float(), *inputs, None)
        assert 1e-4 < float((out - exact).norm() / exact.norm()) < 1e-2

    def test_conditioning_frames_have_a_timestep_of_their_own(self):
        """A part of the tokens may hold both kinds of frames."""
        ops = operations(torch.device("cpu"), 16, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        x, branch = (torch.randn(2, 50, 32, generator=generator) for _ in range(2))
        gate, gain, shift = (torch.randn(2, 2, 32, generator=generator) for _ in range(3))
        frames = (torch.arange(50) >= 20).int()
        theirs = operations(torch.device("cpu"), 16, "torch")
        ours_x, theirs_x = x.clone(), x.clone()
        ours = ops.residual_norm_(ours_x, branch, gate, gain, shift, frames)
        expected = theirs.residual_norm_(theirs_x, branch, gate, gain, shift, frames)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours_x, theirs_x, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return {name: LongCatPipeline.load(tiny_checkpoint, device="cpu", precision=name) for name in ("bf16", "fp32")}


class TestPipeline:
    def test_the_video_says_it(self, loaded, tmp_path):
        pipeline = loaded["bf16"]
        request = replace(pipeline.info.request("x", height=64, width=64, num_frames=5, steps=2), bsa=BSAConfig(0.5))
        result = pipeline.generate(request, output=tmp_path / "video.mp4")
        assert result.versions["precision"] == "bf16" and pipeline.weights == BF16
        assert pipeline._model.dtype == torch.bfloat16

    def test_a_narrow_model_computes_in_fp32(self, tiny_pipeline):
        """Everywhere, so that tests of exact numbers do not depend on the machine."""
        assert tiny_pipeline.weights == FP32 and tiny_pipeline._model.dtype == torch.float32

    def test_the_log_says_why(self, tiny_checkpoint, caplog):
        with caplog.at_level(logging.INFO, "pipeline"):
            LongCatPipeline.load(tiny_checkpoint, device="cpu", precision="fp32")
        assert "The model computes in fp32 because it was asked for" in caplog.text

    def test_decoding_is_the_same_up_to_rounding(self, loaded):
        latents = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        half, whole = (loaded[name]._model.decode_frame(latents) for name in ("bf16", "fp32"))
        assert half.dtype == whole.dtype == torch.float32
        # twenty convolutions whose inputs are rounded to 2^-9
        assert 0 < float((half - whole).square().mean().sqrt()) < 0.02


def test_the_engine_tells_what_was_settled(monkeypatch):
    from pipeline.engine.process import EngineProcess

    engine = EngineProcess("module:name", path="x", quantization=None)
    assert engine.weights == AS_STORED
    monkeypatch.setattr("pipeline.engine.process.Child", lambda *_: SimpleNamespace(forget=lambda task: None))
    monkeypatch.setattr("pipeline.engine.process._follow", lambda *_: ("cpu", "bf16"))
    assert engine.start(print).weights == BF16
