"""8-bit products of the transformer's blocks: numbers against float64, memory by arithmetic, what is refused."""

import importlib.util
from pathlib import Path

import pytest
import torch
from programs import run_interpreted
from random_dit import random_dit, random_inputs
from torch import nn

from bsa import BSAConfig, block_sparse_attention
from pipeline.transformer.fast_forward import fast_forward
from pipeline.transformer.forward import longcat_forward
from pipeline.weights import fp8
from pipeline.weights.fp8 import Fp8Linear, is_fp8, quantise, to_fp8, weight_bytes
from pipeline.weights.lora import LoraLayer

ROOT = Path(__file__).resolve().parents[1]


def relative_error(value, expected):
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def real_dit():
    spec = importlib.util.spec_from_file_location("dit", ROOT / "benchmarks" / "dit.py")
    dit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dit)
    with torch.device("meta"):
        return dit.LongCatDiT(dit.DiTConfig(**dit.REAL)).to(torch.bfloat16)


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(torch.randn(5, 48, generator=torch.Generator().manual_seed(0)), id="normal"),
        pytest.param(torch.randn(5, 48, generator=torch.Generator().manual_seed(0)) * 1e-7, id="small"),
        pytest.param(torch.randn(5, 48, generator=torch.Generator().manual_seed(0)) * 1e30, id="large"),
        pytest.param(torch.tensor([[3.0, -3.0, 1.0], [0.0, 0.0, 0.0]]), id="zeros"),
        pytest.param(torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).bfloat16(), id="bfloat16"),
    ],
)
def test_rows_are_rounded_to_the_nearest_8_bit_number(x):
    values, scales = quantise(x)
    assert values.dtype == torch.float8_e4m3fn and scales.shape == (*x.shape[:-1], 1)
    stands_for = values.double() * scales.double()
    # Four significant bits: half a unit is at most 1/16 of a number, and below 2^-6 an absolute 2^-10.
    bound = torch.maximum(x.double().abs() / 16, scales.double() * 2.0**-10) * (1 + 1e-6)
    assert bool(((stands_for - x.double()).abs() <= bound).all())
    largest = x.double().abs().amax(-1)
    torch.testing.assert_close(stands_for.abs().amax(-1), largest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "channels", "out"),
    [pytest.param((2, 9), 64, 32, id="small"), pytest.param((33,), 4096, 48, id="wide")],
)
def test_the_product_is_that_of_the_dequantised_numbers_and_near_the_exact_one(rows, channels, out, bias):
    torch.manual_seed(0)
    exact = nn.Linear(channels, out, bias=bias).requires_grad_(False)
    layer = Fp8Linear(exact.weight, exact.bias)
    x = torch.randn(*rows, channels)
    given = quantise(x)
    torch.testing.assert_close(given.to(torch.float64), given.values.double() * given.scales, rtol=1e-6, atol=0)
    dequantised = (given.values.double() * given.scales) @ (layer.weight.double() * layer.scales).T
    dequantised = dequantised + exact.bias.double() if bias else dequantised
    result = layer(x)
    assert result.dtype == torch.float32 and torch.equal(result, layer(given))
    # The factors are exact; 4096 sums in fp32.
    assert relative_error(result, dequantised) < 1e-5
    # Rounding to four significant bits errs by 2.6 % (rms) in each factor, which makes 3.7 % in a sum of products.
    assert 0.02 < relative_error(result, exact.double()(x.double())) < 0.045


@pytest.mark.parametrize("config", [pytest.param(None, id="dense"), pytest.param(BSAConfig(0.5), id="sparse")])
def test_the_fast_forward_is_the_plain_one_of_the_same_8_bit_weights(config):
    model = to_fp8(random_dit())
    inputs = random_inputs(model, (5, 7, 6))

    def attend(q, k, v, grid, conditioning):
        if config is None:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return block_sparse_attention(q, k, v, grid, config)

    with torch.no_grad():
        plain = longcat_forward(model, *inputs, attend)
        exact = longcat_forward(random_dit(), *inputs)
    # Sums in another order move a few activations to the neighbouring 8-bit number (6 % of it): far below the error of
    # the quantisation itself, as the last line shows.
    assert relative_error(fast_forward(model, *inputs, config), plain) < 0.01
    if config is None:
        assert 0.01 < relative_error(plain, exact) < 0.15


def test_in_parts_and_at_once_are_the_same():
    model = to_fp8(random_dit())
    inputs = random_inputs(model, (4, 4, 4))
    whole, parts = (fast_forward(model, *inputs, None, ffn_tokens=n) for n in (16384, 37))
    assert relative_error(parts, whole) < 1e-6


def test_an_adapter_on_top_gets_what_the_8_bit_numbers_stand_for():
    outs = []
    for convert, adapter in ((False, False), (False, True), (True, True)):
        model = to_fp8(random_dit()) if convert else random_dit()
        generator = torch.Generator().manual_seed(3)
        for layer in (model.blocks[0].self_attn.to_out, model.blocks[1].ffn.w2) if adapter else ():
            outputs, inputs = layer.weight.shape
            down, up = (torch.randn(shape, generator=generator) for shape in ((4, inputs), (outputs, 4)))
            layer.lora = LoraLayer(down / inputs**0.5, up, 1.0)
        outs.append(fast_forward(model, *random_inputs(model, (3, 4, 5)), None))
    without, exact, ours = outs
    assert relative_error(ours, exact) < 0.15 < 0.3 < relative_error(without, exact)


def test_what_becomes_8_bit_and_what_stays():
    model = random_dit(dtype=torch.bfloat16)
    assert not is_fp8(model)
    assert to_fp8(model) is model and is_fp8(model)
    converted = {name for name, layer in model.named_modules() if isinstance(layer, Fp8Linear)}
    assert converted == {f"blocks.{number}.{name}" for number in range(2) for name in fp8.LAYERS}
    assert all(weight.dtype == torch.bfloat16 for weight in model.parameters())
    before = model.blocks[1].ffn.w2
    assert to_fp8(model).blocks[1].ffn.w2 is before


def test_real_weights_take_at_most_14_gib():
    model = real_dit()
    parameters = sum(weight.numel() for weight in model.parameters())
    assert 13.5e9 < parameters < 13.7e9
    assert weight_bytes(model) == 2 * parameters
    to_fp8(model)
    in_blocks = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, Fp8Linear))
    assert in_blocks / parameters > 0.95
    assert weight_bytes(model) <= 14 * 2**30
    scales = sum(layer.scales.numel() for layer in model.modules() if isinstance(layer, Fp8Linear))
    assert weight_bytes(model) == in_blocks + 2 * (parameters - in_blocks) + 4 * scales


def test_a_gpu_without_fp8_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    fp8.check_device.cache_clear()
    with pytest.raises(ValueError, match=r"8\.9 or higher.*NVIDIA A100 has 8\.0; leave fp8 off"):
        fp8.check_device(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    fp8.check_device.cache_clear()
    fp8.check_device(torch.device("cuda", 0))
    fp8.check_device.cache_clear()


def test_what_cannot_be_converted_is_left_as_it_was():
    model = random_dit()
    model.blocks[1].ffn.w2 = nn.Linear(256, 60, bias=False)
    with pytest.raises(ValueError, match=r"blocks\.1\.ffn\.w2 has 256 to 60 channels.*multiples of 16; leave fp8 off"):
        to_fp8(model)
    assert not is_fp8(model)
    model.blocks[1].ffn.w2 = nn.Linear(256, 64, bias=False)
    model.blocks[1].ffn.w2.lora = object()
    with pytest.raises(ValueError, match=r"blocks\.1\.ffn\.w2 has a LoRA adapter on; take it off"):
        to_fp8(model)
    assert not is_fp8(model)


def test_interpreted_kernels_scale_the_rows_as_the_functions_in_pytorch():
    pytest.importorskip("triton")
    errors = run_interpreted("fp8_interpreter.py")
    assert set(errors) == {"norm", "residual-norm", "swiglu", "quantise"}
    # fp32 throughout, sums of 48 terms: the interpreter cannot round to 8 bits, so that step is left out on both sides.
    assert max(errors.values()) < 2e-6, errors


@pytest.mark.parametrize("gpu", ["RTX-4090", "H200"])
def test_kernels_build_for_gpus_with_fp8(gpu):
    pytest.importorskip("triton")
    from triton_aot import GPUS, build, ptxas_missing

    if reason := ptxas_missing():
        pytest.skip(reason)
    from pipeline.transformer import fused_triton as kernels

    half = dict.fromkeys(("x_ptr", "branch_ptr", "a_ptr", "b_ptr"), "*bf16")
    single = dict.fromkeys(("gate_ptr", "gain_ptr", "shift_ptr", "scales_ptr"), "*fp32")
    types = {**half, **single, "out_ptr": "*fp8e4nv", "eps": "fp32"}
    flags = dict.fromkeys(("BRANCH", "GATE", "NORM", "FRAMES", "FP8"), True)
    capability = GPUS[gpu][0]
    residual = {"SIZE": 4096, "BLOCK": 4096, "ROWS": 8, "LARGEST": fp8.LARGEST, **flags}
    built = build(kernels._residual_norm_kernel, capability, types, residual, num_warps=8)
    # Rounded to nearest, and what is too large becomes the largest number: one instruction, on Ada by way of fp16.
    assert "cvt.rn.satfinite.e4m3x2" in built.asm["ptx"]
    for size, block, warps, swiglu in ((4096, 4096, 8, False), (11008, 16384, 16, True)):
        rows = {"SIZE": size, "BLOCK": block, "LARGEST": fp8.LARGEST, "SWIGLU": swiglu}
        built = build(kernels._quantise_kernel, capability, types, rows, num_warps=warps)
        assert "cvt.rn.satfinite.e4m3x2" in built.asm["ptx"]
