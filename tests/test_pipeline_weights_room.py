"""What 8-bit and offloaded weights need: counted against the module tree, checked before loading, named as remedy."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bsa import BSAConfig
from pipeline import EMBEDDED_CHECKPOINT, VideoRequest, cli_command, inspect_checkpoint, python_code
from pipeline.checkpoint.shape import ModelShape
from pipeline.estimate import footprint, refusal
from pipeline.estimate.estimator import Estimator
from pipeline.estimate.refusal import check_weights_fit, smaller_weights
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.weights.fp8 import to_fp8, weight_bytes
from pipeline.weights.offload import Offload
from ui.form.preset_rules import LONGCAT_SHAPE, Situation, presets

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
CPU, GPU = SimpleNamespace(type="cpu", index=None), torch.device("cuda", 0)
FP8, OFFLOAD, BOTH = LoadOptions("fp8"), LoadOptions(None, True), LoadOptions("fp8", True)
FP32 = LoadOptions(precision="fp32")  # as on a CPU without bfloat16
INFO = inspect_checkpoint(EMBEDDED_CHECKPOINT)
LONGCAT = replace(INFO, path=ROOT, name="LongCat-Video", parameters=13_580_000_000, bsa=None)
LONGCAT = replace(
    LONGCAT, defaults={**INFO.defaults, "use_distill": False, "width": 832, "height": 480, "num_frames": 93}
)
HD = VideoRequest(prompt="x", width=1280, height=704, num_frames=93, steps=50, guidance_scale=4.0, fps=15, bsa=None)


@pytest.fixture
def memory(monkeypatch):
    """Sets what is available of the GPU and the host, in GiB."""

    def available(gpu, host=64):
        monkeypatch.setattr(refusal, "available_memory", lambda device: (gpu if device.type == "cuda" else host) * GIB)

    return available


class TestCounting:
    @pytest.mark.parametrize(
        ("weights", "published"), [pytest.param(AS_STORED, 25.3, id="bf16"), pytest.param(FP8, 13.3, id="fp8")]
    )
    def test_of_the_transformer_as_in_its_module_tree(self, weights, published):
        spec = importlib.util.spec_from_file_location("dit", ROOT / "benchmarks" / "dit.py")
        dit = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(dit)
        with torch.device("meta"):
            model = dit.LongCatDiT(dit.DiTConfig(**dit.REAL)).to(torch.bfloat16)
        model = to_fp8(model) if weights.quantization else model
        others = 2 * (LONGCAT_SHAPE.text_encoder + LONGCAT_SHAPE.vae)
        counted = footprint.weight_bytes(LONGCAT_SHAPE, GPU, weights) - others
        assert counted == pytest.approx(weight_bytes(model), rel=0.002)
        assert counted / GIB == pytest.approx(published, abs=0.06)
        block = footprint.block_bytes(LONGCAT_SHAPE, GPU, weights)
        assert block == pytest.approx(weight_bytes(model.blocks[0]), rel=0.002)

    def test_of_offloaded_ones(self):
        """Two blocks, what is beside the blocks, the VAE; the text encoder's embedding and one layer while it runs."""
        for weights, host in ((OFFLOAD, 35.8), (BOTH, 23.8)):
            assert footprint.host_bytes(LONGCAT_SHAPE, GPU, weights) / GIB == pytest.approx(host, abs=0.1)
            block = footprint.block_bytes(LONGCAT_SHAPE, GPU, weights)
            beside = footprint.weight_bytes(LONGCAT_SHAPE, GPU, weights) - 2 * block - 2 * LONGCAT_SHAPE.vae
            assert 2 * LONGCAT_SHAPE.text_visit < beside < 2.2 * LONGCAT_SHAPE.text_visit
        assert footprint.host_bytes(LONGCAT_SHAPE, CPU, BOTH) == 0

    def test_as_offloaded_in_the_embedded_checkpoint(self, tiny_pipeline):
        from pipeline import LongCatPipeline

        shape = ModelShape.read(INFO)
        with LongCatPipeline.load(device="cpu", offload=True).exclusive() as model:
            assert isinstance(model.offload, Offload)
            in_blocks = shape.depth * footprint.block_bytes(shape, CPU, OFFLOAD)
            assert model.offload.host_bytes == pytest.approx(in_blocks, rel=0.02)
            layers = model._pipeline.modules["text_encoder"].encoder.block
            together = shape.text_encoder - (len(layers) - 1) * sum(p.numel() for p in layers[0].parameters())
        assert shape.text_visit == pytest.approx(together, rel=0.02)

    @pytest.mark.parametrize("weights", [FP8, OFFLOAD, BOTH])
    def test_less_is_needed_with_them(self, weights):
        for needed in (footprint.least_bytes, footprint.activation_bytes):
            assert needed(LONGCAT_SHAPE, HD, GPU, weights) < needed(LONGCAT_SHAPE, HD, GPU)


    def test_attention_in_8_bits_takes_copies_of_queries_keys_and_values(self):
        both = LoadOptions("fp8+attention")
        long = replace(HD, num_frames=189)  # so many that the transformer takes more than the decoder
        tokens = long.workload.rows * long.workload.grid.volume
        for bsa, tensors in ((BSAConfig(), 2), (None, 0)):
            request = replace(long, bsa=bsa)
            fp8, more = (footprint.activation_bytes(LONGCAT_SHAPE, request, GPU, weights) for weights in (FP8, both))
            assert more - fp8 == tensors * 2 * tokens * LONGCAT_SHAPE.hidden
        assert footprint.weight_bytes(LONGCAT_SHAPE, GPU, both) == footprint.weight_bytes(LONGCAT_SHAPE, GPU, FP8)


class TestRemedies:
    @pytest.mark.parametrize(
        ("gpu", "host", "weights", "sentence"),
        [
            pytest.param(
                30, 64, AS_STORED, r"take 36\.1 GiB in bfloat16 and 30\.0 GiB.*; try --quantization fp8$", id="32-GB"
            ),
            pytest.param(23, 64, AS_STORED, "; try --offload$", id="24-GB-card"),
            pytest.param(23, 30, AS_STORED, "; try --quantization fp8 --offload$", id="24-GB-card-less-host"),
            pytest.param(
                23, 64, FP8, r"24\.\d GiB in bfloat16 with --quantization fp8 .*; try --quantization fp8 --offload$",
                id="fp8-does-not-do",
            ),
            pytest.param(23, 12, AS_STORED, "; use a larger device, or a smaller checkpoint$", id="no-host-memory"),
            pytest.param(2, 64, BOTH, "; use a larger device, or a smaller checkpoint$", id="nothing-left-to-try"),
            pytest.param(
                23, 30, OFFLOAD,
                r"with --offload, 35\.8 GiB of the weights of X stay in the host's memory, where 30\.0 GiB are .*; "
                "try --quantization fp8 --offload$",
                id="host",
            ),
        ],
    )  # fmt: skip
    def test_weights_that_do_not_fit(self, memory, gpu, host, weights, sentence):
        memory(gpu, host)
        with pytest.raises(ValueError, match=sentence):
            check_weights_fit(LONGCAT_SHAPE, "X", GPU, weights)

    @pytest.mark.parametrize(
        ("gpu", "host", "weights"),
        [(40, 64, AS_STORED), (30, 4, FP8), (7, 40, OFFLOAD), (7, 30, BOTH), (4, 30, BOTH)],
    )
    def test_weights_that_fit(self, memory, gpu, host, weights):
        memory(gpu, host)
        check_weights_fit(LONGCAT_SHAPE, "X", GPU, weights)

    def test_on_a_cpu_offloading_is_none(self, memory):
        memory(0, 50)
        with pytest.raises(ValueError, match="; try --quantization fp8$"):
            check_weights_fit(LONGCAT_SHAPE, "X", CPU, FP32)

    def test_a_gpu_without_8_bit_products_is_not_told_to_use_them(self, memory, monkeypatch):
        memory(30)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for capability, expected in (((8, 0), OFFLOAD), ((8, 9), FP8)):
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
            assert smaller_weights(LONGCAT_SHAPE, GPU, AS_STORED, lambda way: True) == expected

    def test_a_video_that_does_not_fit(self, monkeypatch):
        estimator = Estimator(INFO, CPU)
        estimator._shape, estimator.device = LONGCAT_SHAPE, GPU
        monkeypatch.setattr(refusal, "available_memory", lambda device: 64 * GIB)
        with pytest.raises(ValueError, match=r"what fits: .*; it fits as it is with --quantization fp8$"):
            estimator.check(HD, 40 * GIB)
        with pytest.raises(ValueError, match=r"no size fits; .*; it fits as it is with --offload$"):
            estimator.check(HD, 23 * GIB)
        with pytest.raises(ValueError, match="or use a smaller checkpoint$"):
            estimator.check(HD, 2 * GIB)

    def test_before_anything_is_loaded(self, memory):
        memory(0, 0.05)
        with pytest.raises(ValueError, match=r"of longcat-tiny take .* in fp32 .*; try --quantization fp8$"):
            Estimator(INFO, CPU, weights=FP32).check_load()
        Estimator(INFO, CPU, weights=FP8).check_load()


def test_the_forwards_hold_as_many_tensors_as_were_measured():
    """At 704x1280 with 93 frames the plain forward took 11.45 GiB over the weights on an H200, the fast one 4.1 GiB on
    an H100 (docs/hopper.md). Twice as many frames with guidance take four times that, and more than the decoder."""
    request = VideoRequest(
        prompt="x", height=704, width=1280, num_frames=93, steps=50, guidance_scale=1, fps=15, bsa=None
    )
    plain = footprint.activation_bytes(LONGCAT_SHAPE, request, GPU, AS_STORED)
    assert plain == pytest.approx(11.45 * 2**30, rel=0.03)
    long = replace(request, num_frames=189, guidance_scale=4)
    assert long.grid.volume == 2 * request.grid.volume
    fast = footprint.activation_bytes(LONGCAT_SHAPE, long, GPU, FP8)
    assert fast == pytest.approx(4 * 4.1 * 2**30, rel=0.08)  # small tensors of a block are not counted


def test_measurements_are_not_shared_between_ways(tmp_path):
    point = [{"part": "process", "bytes": 123 * 2**20}]
    Estimator(INFO, CPU, tmp_path / "e.json").calibrate(point)
    assert Estimator(INFO, CPU, tmp_path / "e.json").calibrated
    assert not Estimator(INFO, CPU, tmp_path / "e.json", FP8).calibrated


class TestPresets:
    def low_memory(self, total, weights, info=LONGCAT, device=GPU):
        here = Situation(info, device, total * GIB, weights=weights)
        preset = next(preset for preset in presets() if preset.name == "Low memory")
        return preset.needs(here), preset.missing(here)

    @pytest.mark.parametrize(
        ("total", "weights", "missing"),
        [
            pytest.param(60, AS_STORED, (), id="large"),
            pytest.param(32, AS_STORED, ("a start with --quantization fp8",), id="32-GiB"),
            pytest.param(24, AS_STORED, ("a start with --offload",), id="24-GiB"),
            pytest.param(24, FP8, ("a start with --quantization fp8 --offload",), id="24-GiB-fp8"),
            pytest.param(24, OFFLOAD, (), id="24-GiB-offload"),
            pytest.param(24, BOTH, (), id="24-GiB-both"),
            pytest.param(3, BOTH, ("GPU memory (3 GiB are here)",), id="3-GiB"),
        ],
    )
    def test_low_memory_is_enabled_where_its_options_are_on(self, total, weights, missing):
        needs, found = self.low_memory(total, weights)
        assert found == missing
        assert needs.endswith(" GiB with --quantization fp8 --offload")

    def test_the_small_model_needs_nothing(self):
        assert self.low_memory(1, AS_STORED, INFO, CPU) == ("nothing more", ())
        assert self.low_memory(1, AS_STORED, INFO, GPU) == ("nothing more", ())

    def test_others_say_what_they_need_with_the_options_that_are_on(self):
        preset = next(preset for preset in presets() if preset.name == "720p with BSA")
        for weights, total in ((AS_STORED, 66), (BOTH, 13)):
            here = Situation(LONGCAT, GPU, total * GIB + GIB, weights=weights)
            assert preset.needs(here) == f"LongCat-Video and {total} GiB of GPU memory"
            assert preset.missing(here) == ()


class TestReproduction:
    where = {"model_path": Path("w"), "device": "cpu", "compare": False, "output": "again.mp4"}

    @pytest.mark.parametrize("weights", [AS_STORED, FP8, OFFLOAD, BOTH])
    def test_code_has_the_options(self, weights):
        from pipeline.cli.parser import build_parser
        from pipeline.cli.read import read_weights

        words = cli_command(HD, **self.where, weights=weights).split()
        assert words[:3] == ["python", "-m", "pipeline"]
        assert read_weights(build_parser().parse_args(words[3:])) == weights
        given = {}
        program = python_code(HD, **self.where, weights=weights)
        loader = SimpleNamespace(load=lambda path, device, **arguments: given.update(arguments))
        code = program.partition("\npipeline = ")[2].partition("\nrequest")[0]
        eval(code, {"LongCatPipeline": loader})
        assert LoadOptions(**given) == weights

    @pytest.mark.parametrize("said", [{"quantization": "int2"}, {"offload": "maybe"}, {}])
    def test_what_a_file_says_is_not_trusted(self, said):
        assert LoadOptions.from_versions(said) == AS_STORED
