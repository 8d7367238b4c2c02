"""8-bit and offloaded weights as options of the pipeline: videos, what they say of themselves, what is refused."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_dit import random_dit
from tiny_checkpoint import write_lora

from bsa import BSAConfig
from pipeline import LongCatPipeline, compare, read_settings
from pipeline.cli.main import main
from pipeline.cli.read import checked_device
from pipeline.media.attention_record import AttentionRecord, record_path
from pipeline.model import fastvideo_adapter
from pipeline.request.choose_forward import choose_forward
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.sweeps.run_sweep import run_sweep
from pipeline.sweeps.sweep import Sweep
from pipeline.sweeps.sweep_axes import parse_axis
from pipeline.transformer.fast_forward import fast_forward
from pipeline.weights import fp8
from pipeline.weights.fp8 import Fp8Linear, is_fp8
from pipeline.weights.offload import LayerByLayer, place

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FP8, OFFLOAD, BOTH = LoadOptions("fp8"), LoadOptions(None, True), LoadOptions("fp8", True)
ATTENTION = LoadOptions("fp8+attention")
SAME, MIXED = BSAConfig(0.5, None, (2, 4, 4), (2, 4, 4)), BSAConfig(0.5, None, (2, 4, 4), (2, 3, 8))


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("weights") / "longcat-random")
    write_lora(folder, "cfg_step_lora")
    return folder


@pytest.fixture(scope="module")
def load(checkpoint):
    loaded = {}

    def load(weights=AS_STORED):
        if weights not in loaded:
            loaded[weights] = LongCatPipeline.load(checkpoint, device="cpu", forward="auto", **weights.arguments)
            loaded[weights].forward = "auto" if weights else "fast"
        return loaded[weights]

    return load


def request_of(pipeline, **changes):
    values = {"height": 80, "width": 96, "num_frames": 13, "steps": 2, "seed": 3, "bsa": SAME}
    return pipeline.info.request("x", **values | changes)


def relative_error(value, expected):
    return float((value - expected).norm() / expected.norm())


ALL = [pytest.param(FP8, id="fp8"), pytest.param(OFFLOAD, id="offload"), pytest.param(BOTH, id="both")]
ARMS = [
    pytest.param({"bsa": None}, id="dense"),
    pytest.param({}, id="sparse"),
    pytest.param({"guidance_scale": 3.0}, id="guided"),
    pytest.param({"lora": "distill"}, id="adapter"),
]


class TestVideos:
    @pytest.mark.parametrize("changes", ARMS)
    @pytest.mark.parametrize(
        ("weights", "same_as"), [pytest.param(OFFLOAD, AS_STORED, id="stored"), pytest.param(BOTH, FP8, id="fp8")]
    )
    def test_offload_changes_no_bit_whatever_ran_before(self, load, weights, same_as, changes):
        pipeline = load(weights)
        request = request_of(pipeline, **changes)
        _, expected = load(same_as).generate_frames(request)
        for before in (request_of(pipeline, seed=9), request_of(pipeline, lora="distill"), None):
            if before is not None:
                pipeline.generate_frames(before)
            np.testing.assert_array_equal(pipeline.generate_frames(request)[1], expected)

    @pytest.mark.parametrize("changes", ARMS)
    def test_8_bit_weights_make_nearly_the_same_flow(self, load, changes, monkeypatch):
        """The first step of both, whose inputs are the same; after it, a network of random weights drifts apart."""
        flows = []
        for weights in (AS_STORED, FP8):
            pipeline = load(weights)
            monkeypatch.setattr("pipeline.transformer.run_forward.fast_forward", self.kept(flows))
            pipeline.generate_frames(request_of(pipeline, **changes))
        exact, ours = flows[0], flows[len(flows) // 2]
        # 3.7 % in each product of two layers with strong adapters and sparse choices that may fall otherwise
        assert 0.01 < relative_error(ours, exact) < 0.3

    @staticmethod
    def kept(flows):
        def run(model, latents, *args, **kwargs):
            flow = fast_forward(model, latents, *args, **kwargs)
            if len(model.blocks) > 1:  # not to warm up
                flows.append(flow)
            return flow

        return run

    def test_the_8_bit_weights_are_those_of_the_checkpoint(self, load):
        for weights in (FP8, BOTH):
            with load(weights).exclusive() as model, load(AS_STORED).exclusive() as source:
                for block, original in zip(model.transformer.blocks, source.transformer.blocks):
                    layer, expected = block.ffn.w2, fp8.quantise(original.ffn.w2.weight)
                    assert torch.equal(layer.weight, expected.values) and torch.equal(layer.scales, expected.scales)

    @pytest.mark.parametrize("weights", ALL)
    def test_a_comparison_runs_both_with_them(self, load, tmp_path, weights):
        pipeline = load(weights)
        pair = compare(pipeline, request_of(pipeline), output_dir=tmp_path)
        for result in (pair.dense, pair.sparse):
            said = {name: result.versions.get(name) for name in ("quantization", "offload", "forward")}
            assert said == {"quantization": None, "offload": None, **weights.versions, "forward": "fast"}
            assert LoadOptions.from_versions(read_settings(result.video).versions) == pipeline.weights
        assert pair.psnr < 60

    def test_attention_in_8_bits_reaches_every_sparse_step_and_is_told(self, load, monkeypatch):
        """No kernel of it runs on a CPU: what the forward is asked for is noted, and left out."""
        pipeline, asked = load(FP8), []

        def run(*args, eight_bits, **kwargs):
            asked.append((args[5] is not None, eight_bits))  # whether block sparse attention runs, and how
            return fast_forward(*args, **kwargs)

        monkeypatch.setattr("pipeline.transformer.run_forward.fast_forward", run)
        monkeypatch.setattr(LoadOptions, "check_attention", lambda weights, device: None)
        for weights, bsa, said in ((ATTENTION, SAME, "8 bits"), (ATTENTION, None, None), (FP8, SAME, None)):
            monkeypatch.setattr(pipeline, "weights", weights)
            result = pipeline.generate(request_of(pipeline, bsa=bsa, seed=17))  # steps of a pair are timed in turn
            assert result.versions.get("attention") == said
            assert {given for given in asked if given[0] == (bsa is not None)} == {(bsa is not None, said is not None)}
            asked.clear()

    def test_the_attention_is_recorded(self, load, tmp_path, monkeypatch):
        records = []
        for weights in (AS_STORED, OFFLOAD):
            monkeypatch.setattr(load(weights), "record", True)
            video = load(weights).generate(request_of(load(weights)), output=tmp_path / f"{len(records)}.mp4").video
            records.append(AttentionRecord.load(record_path(video)))
        np.testing.assert_array_equal(records[0].recall, records[1].recall)

    def test_the_device_holds_two_blocks(self, load):
        offload = load(OFFLOAD)._model.offload
        assert offload.host_bytes == len(offload._stored) * offload.device_bytes // 2

    def test_a_sweep(self, load, tmp_path):
        pipeline = load(BOTH)
        sweep = Sweep(request_of(pipeline, steps=1), parse_axis("sparsity=0.5,0.75"), None)
        result = run_sweep(pipeline, sweep, lambda update: None, tmp_path)
        assert [bool(video.result) for video in result.videos()] == [True] * 3

    @pytest.mark.parametrize("weights", ALL)
    def test_the_machine_can_be_measured_with_them(self, load, weights):
        from pipeline.estimate.calibrate import measure

        parts = {point["part"] for point in measure(load(weights))}
        assert parts >= {"process", "linear", "dense", "sparse", "decode"}


class TestPlacement:
    @pytest.mark.parametrize("weights", [*ALL, pytest.param(ATTENTION, id="attention")])
    def test_stored_numbers_become_those_of_the_device(self, weights):
        source = random_dit(depth=3)
        expected = {name: value.bfloat16() for name, value in source.state_dict().items()}
        offload = place(source, CPU, torch.bfloat16, weights)
        assert (offload is not None) == weights.offload and is_fp8(source) == (weights.quantization is not None)
        kept = {name: value for name, value in source.state_dict().items() if name in expected}
        for name, value in kept.items():
            if value.dtype == torch.bfloat16:
                assert torch.equal(value, expected[name]), name
        left = {layer for layer in source.modules() if isinstance(layer, torch.nn.Linear)}
        assert all(layer.weight.dtype == torch.bfloat16 for layer in left)
        if weights.quantization:
            layer = source.blocks[2].ffn.w1
            assert isinstance(layer, Fp8Linear) and layer.dtype == torch.bfloat16
            assert torch.equal(layer.weight, fp8.quantise(expected["blocks.2.ffn.w1.weight"]).values)

    def test_a_gpu_never_has_more_than_it_keeps_and_a_block(self, monkeypatch):
        """Moves are noted instead of made, so the device may be one that is not here."""
        model, moves = random_dit(depth=4), []
        monkeypatch.setattr(
            torch.nn.Module, "to", lambda self, *to: moves.append((getattr(self, "number", None), to)) or self
        )
        for number, block in enumerate(model.blocks):
            block.number = number
        monkeypatch.setattr("pipeline.weights.offload.Offload", lambda *args: "offload")
        assert place(model, CUDA, torch.bfloat16, BOTH) == "offload"
        of_blocks = [(number, *to) for number, to in moves if number is not None]
        there = [(n, torch.bfloat16) for n in range(4)]
        assert of_blocks == [move for n in range(4) for move in (there[n], (n, CUDA), (n, "cpu"))]

    def test_layers_visit_one_at_a_time(self):
        model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
        model.own = torch.nn.Parameter(torch.ones(3))
        stored = {name: value.data_ptr() for name, value in model.named_parameters()}
        x, seen = torch.randn(2, 8), []
        expected = model(x)

        def away():
            return [name for name, value in model.named_parameters() if value.data_ptr() != stored[name]]

        visiting = LayerByLayer(model, list(model), CPU)
        for layer in model:
            layer.register_forward_hook(lambda *_: seen.append(away()))
        with visiting.on_device():
            assert torch.equal(model(x), expected)
        # the hooks of the test come after those that put a layer back
        assert seen == [["own"]] * 4 and away() == []

    def test_a_layer_that_fails_goes_back(self):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        place_of = model[0].weight.data_ptr()
        visiting = LayerByLayer(model, list(model), CPU)
        with pytest.raises(RuntimeError), visiting.on_device():
            model(torch.randn(2, 7))
        assert model[0].weight.data_ptr() == place_of

    def test_while_loading_to_the_host_fastvideo_has_no_other_device(self, tiny_pipeline):
        from fastvideo.distributed import get_local_torch_device, parallel_state

        before = parallel_state.get_local_torch_device.__code__
        try:
            get_local_torch_device.__code__ = (lambda: torch.device("cuda:0")).__code__
            with fastvideo_adapter._loading_to_host():
                assert get_local_torch_device() == CPU  # by whatever name it was imported
            assert get_local_torch_device() == CUDA
        finally:
            get_local_torch_device.__code__ = before

    def test_the_text_encoder_computes_what_it_does_without(self, load):
        pipeline = load(OFFLOAD)
        states = []
        for weights in (AS_STORED, OFFLOAD):
            with load(weights).exclusive() as model:
                states.append(model.encode_text(model.start(request_of(pipeline, guidance_scale=2.0))).states)
        assert torch.equal(*states)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            pytest.param(
                {"quantization": "int4"}, r"unknown quantization 'int4'; use fp8, fp8\+attention, or", id="unknown"
            ),
            pytest.param(
                {"quantization": "fp8", "forward": "plain"},
                "the plain forward cannot run with --quantization fp8; use the fast one or auto",
                id="plain-fp8",
            ),
            pytest.param(
                {"offload": True, "forward": "plain"},
                "the plain forward cannot run with --offload",
                id="plain-offload",
            ),
        ],
    )
    def test_before_anything_is_read(self, arguments, sentence):
        with pytest.raises(ValueError, match=sentence):
            LongCatPipeline.load("/nowhere", **arguments)

    def test_attention_in_8_bits_on_a_cpu(self, checkpoint, monkeypatch):
        monkeypatch.setattr(fastvideo_adapter, "FastVideoLongCat", lambda *_: pytest.fail("nothing may be loaded"))
        sentence = r"fp8\+attention needs a GPU, and this model runs on cpu; use --quantization fp8, or leave it out"
        with pytest.raises(ValueError, match=sentence):
            LongCatPipeline.load(checkpoint, device="cpu", **ATTENTION.arguments)

    def test_a_gpu_without_8_bit_products(self, monkeypatch):
        monkeypatch.setattr("pipeline.cli.read.rank_devices", lambda name, count: [CUDA] * count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        fp8.check_device.cache_clear()
        with pytest.raises(ValueError, match=r"compute capability 8\.9 or higher.*NVIDIA A100 has 8\.0"):
            checked_device("cuda", BOTH)
        assert checked_device("cuda", OFFLOAD) == CUDA
        fp8.check_device.cache_clear()

    @pytest.mark.parametrize("asked", ["auto", "fast"])
    @pytest.mark.parametrize("weights", ALL)
    def test_chunks_that_differ(self, load, weights, asked):
        request = request_of(load(), bsa=MIXED)
        sentence = rf"{weights} needs the fast forward.*2x4x4 and 2x3x8 tokens, divides the other; make one a multiple"
        with pytest.raises(ValueError, match=sentence):
            choose_forward(asked, request.workload, CPU, weights)
        with pytest.raises(ValueError, match=sentence):
            load(weights).generate_frames(request)
        # What reaches beyond the grid cuts no block, and dense attention has none.
        for runs in (BSAConfig(0.5, None, (2, 4, 6), (2, 4, 60)), None):
            assert choose_forward(asked, replace(request, bsa=runs).workload, CPU, weights).name == "fast"

    def test_the_plain_forward_chosen_later(self, load, monkeypatch):
        monkeypatch.setattr(load(FP8), "forward", "plain")
        with pytest.raises(ValueError, match="the plain forward cannot run with --quantization fp8"):
            load(FP8).generate_frames(request_of(load(FP8)))

    def test_auto_says_why_it_is_fast(self, load, caplog):
        with caplog.at_level(logging.INFO, "pipeline"):
            load(BOTH).generate_frames(request_of(load(BOTH), steps=1))
        assert "The fast forward runs because --quantization fp8 --offload needs it" in caplog.messages


class TestCommandLine:
    def run(self, checkpoint, *args):
        return main([*args[:1], "--model-path", str(checkpoint), "--prompt", "x", *map(str, args[1:])])

    def test_generate(self, checkpoint, load, tmp_path, capsys):
        size = ("--height", 80, "--width", 96, "--num-frames", 13, "--steps", 2, "--device", "cpu")
        options = ("--quantization", "fp8", "--offload", "--output", tmp_path / "video.mp4", "--json", "-")
        assert self.run(checkpoint, "generate", *size, *options) == 0
        captured = capsys.readouterr()
        assert "to cpu with --quantization fp8 --offload" in captured.err
        ran = replace(BOTH, precision="fp32")  # as a CPU computes 8-bit weights
        assert LoadOptions.from_versions(json.loads(captured.out)["versions"]) == ran
        assert LoadOptions.from_versions(read_settings(tmp_path / "video.mp4").versions) == ran

    @pytest.mark.parametrize(
        ("args", "sentence"),
        [
            pytest.param(
                ["generate", "--offload", "--forward", "plain"], "the plain forward cannot run with", id="plain"
            ),
            pytest.param(
                ["generate", "--quantization", "fp8", "--chunk-q", "2", "2", "2", "--chunk-k", "2", "3", "2"],
                "--quantization fp8 needs the fast forward",
                id="chunks",
            ),
            pytest.param(
                ["generate", "--quantization", "fp8+attention", "--device", "cpu"],
                "--quantization fp8+attention needs a GPU",
                id="8-bit-attention",
            ),
            pytest.param(
                ["sweep", "--offload", "--rows", "sparsity=0.5,0.75", "--device", "cpu"]
                + ["--chunk-q", "2", "2", "2", "--chunk-k", "2", "3", "2"],
                "--offload needs the fast forward",
                id="sweep",
            ),
        ],
    )
    def test_is_refused_before_loading(self, checkpoint, monkeypatch, capsys, tmp_path, args, sentence):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(LongCatPipeline, "load", lambda *_, **__: pytest.fail("nothing may be loaded"))
        assert self.run(checkpoint, *args) == 2
        assert sentence in capsys.readouterr().err

    def test_sweep_and_refine_hand_them_over(self, checkpoint, monkeypatch, capsys, tmp_path):
        given = []

        def load(*_, **arguments):
            given.append({name: arguments[name] for name in ("quantization", "offload")})
            raise ValueError("enough")

        monkeypatch.setattr(LongCatPipeline, "load", load)
        options = ("--quantization", "fp8", "--offload", "--device", "cpu", "--output")
        assert self.run(checkpoint, "sweep", "--rows", "sparsity=0.5,0.75", *options, tmp_path / "sweep") == 2
        assert self.run(checkpoint, "generate", *options, tmp_path / "video.mp4") == 2
        assert given == [{"quantization": "fp8", "offload": True}] * 2

    def test_info(self, checkpoint, capsys):
        assert self.run(checkpoint, "info", "--quantization", "fp8", "--offload", "--json", "-") == 0
        small = json.loads(capsys.readouterr().out)
        assert self.run(checkpoint, "info", "--json", "-") == 0
        usual = json.loads(capsys.readouterr().out)
        assert (small["quantization"], small["offload"]) == ("fp8", "yes") and "quantization" not in usual
        assert small["memory_expected"] < usual["memory_expected"]
