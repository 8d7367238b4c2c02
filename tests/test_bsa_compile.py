"""The kernels of bsa/ compiled ahead of time for an A100, an RTX 4090 and an H200: they build, fit and use the chip."""

import pytest
import torch

pytest.importorskip("triton")

from triton_aot import GPUS, build, ptxas_missing

pytestmark = pytest.mark.skipif(ptxas_missing() is not None, reason=str(ptxas_missing()))

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def attention(gpu, variant, dtype, dim, chunk_q, chunk_k, ragged):
    from bsa.kernels.descriptors import _attend_descriptors_kernel
    from bsa.kernels.launch import launch_options
    from bsa.kernels.pointers import _attend_blocks_kernel
    from bsa.kernels.small_blocks import _attend_small_blocks_kernel
    from bsa.variants import DESCRIPTORS, SMALL_BLOCKS

    capability, shared_memory = GPUS[gpu]
    filled = variant.tile_k if variant.kernel == SMALL_BLOCKS else chunk_k
    options = launch_options(DTYPES[dtype], dim, chunk_q, filled, shared_memory, variant)
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    token = 32 * dim  # heads inside the tokens
    constants = {**options, "CHUNK_Q": chunk_q, "CHUNK_K": chunk_k, "Q_TOKEN": token, "OUT_TOKEN": token}
    constants |= {"REGULAR": not ragged, "RAGGED_Q": ragged, "RAGGED_K": ragged}
    types = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), f"*{dtype}") | {"scale_log2": "fp32"}
    if variant.kernel == DESCRIPTORS:
        del constants["PRECISION"]
        constants |= {"Q_IN_REGISTERS": variant.q_in_registers, "SERPENTINE": variant.serpentine}
        types |= dict.fromkeys(("k_desc", "v_desc"), f"tensordesc<{dtype}[{options['TILE_K']}, {dim}]>")
        kernel = build(_attend_descriptors_kernel, capability, types, constants, **launch)
    else:
        constants |= {"HEAD_DIM": dim, "K_TOKEN": token, "V_TOKEN": token}
        kernel = _attend_blocks_kernel
        if variant.kernel == SMALL_BLOCKS:
            del constants["RAGGED_K"]  # a list may end within a tile on any grid
            constants |= {"SLOTS": chunk_k, "WIDE": False}
            kernel = _attend_small_blocks_kernel
        kernel = build(kernel, capability, types, constants, **launch)
    assert kernel.metadata.shared <= shared_memory
    return kernel


def attention_in_8_bits(gpu, descriptors, values, ragged):
    from bsa.kernels.eight_bits import _attend_8_bits_kernel

    capability, shared_memory = GPUS[gpu]
    constants = {"HEAD_DIM": 128, "DIM": 128, "CHUNK": 64, "TILES_Q": 1, "TILE_Q": 64, "TILES": 1, "TILE": 64}
    constants |= {"RAGGED": ragged, "DESCRIPTORS": descriptors, "SUMMED": 32 if ragged else 64}
    types = {"q_ptr": "*i8", "k": "*i8", "v": f"*{values}", "out_ptr": "*bf16", "peak": "fp32"}
    types |= dict.fromkeys(("q_scales_ptr", "k_scales_ptr", "v_scales_ptr"), "*fp32")
    if descriptors:
        types |= {"k": "tensordesc<i8[64, 128]>", "v": f"tensordesc<{values}[128, 64]>"}
    kernel = build(_attend_8_bits_kernel, capability, types, constants, num_warps=4, num_stages=3)
    assert kernel.metadata.shared <= shared_memory
    return kernel.asm["ptx"]


@pytest.mark.parametrize("ragged", [pytest.param(False, id="whole"), pytest.param(True, id="ragged")])
@pytest.mark.parametrize(
    ("gpu", "descriptors", "values", "products"),
    [
        pytest.param("A100", False, "fp16", ("s8.s8", "f16.f16"), id="A100"),
        pytest.param("RTX-4090", False, "fp8e4nv", ("s8.s8", "e4m3.e4m3"), id="RTX-4090"),
        pytest.param("H200", False, "fp8e4nv", ("s8.s8", "e4m3.e4m3"), id="H200"),
        pytest.param("H200", True, "fp8e4nv", ("s8.s8", "e4m3.e4m3"), id="H200-descriptors"),
    ],
)
def test_attention_in_8_bits_multiplies_8_bits(gpu, descriptors, values, products, ragged):
    ptx = attention_in_8_bits(gpu, descriptors, values, ragged)
    lines = [line for line in ptx.splitlines() if "mma" in line]
    assert all(any(kind in line for line in lines) for kind in products)
    assert ("wgmma.mma_async" in ptx) == (gpu == "H200")
    assert ("cp.async.bulk.tensor" in ptx) == descriptors


@pytest.mark.parametrize("gpu", GPUS)
def test_quantising_builds_everywhere(gpu):
    from bsa.kernels.quantise import _int8_kernel, _values_kernel

    sizes = {"HEAD_DIM": 128, "DIM": 128, "TILES": 1, "TILE": 64}
    types = {"x_ptr": "*bf16", "mean_ptr": "*fp32", "scales_ptr": "*fp32", "factor": "fp32"}
    build(_int8_kernel, GPUS[gpu][0], types | {"out_ptr": "*i8"}, sizes | {"MEAN": True, "TINY": 1e-12})
    values, largest = ("*fp16", 1.0) if gpu == "A100" else ("*fp8e4nv", 448.0)
    build(_values_kernel, GPUS[gpu][0], types | {"out_ptr": values}, sizes | {"LARGEST": largest})


def test_the_query_tile_leaves_shared_memory():
    """Three programs of 64 KB of keys and values fit into the 227 KB of a multiprocessor; with a query tile, two do."""
    from bsa.variants import VARIANTS

    kernel = attention("H200", VARIANTS["descriptors-64x64-w4-s3-q168"], "bf16", 128, 64, 64, False)
    assert 3 * (kernel.metadata.shared + 1024) <= 227 * 1024


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(
    ("dtype", "dim", "chunk_q", "chunk_k", "ragged"),
    [
        pytest.param("bf16", 128, 64, 64, False, id="longcat"),
        pytest.param("bf16", 128, 105, 105, True, id="odd-ragged"),
        pytest.param("fp16", 40, 128, 27, True, id="unequal-dim-40"),
        pytest.param("fp32", 64, 64, 64, True, id="fp32"),
        pytest.param("bf16", 256, 64, 64, True, id="dim-256"),
    ],
)
def test_the_baseline_builds_everywhere(gpu, dtype, dim, chunk_q, chunk_k, ragged):
    from bsa.variants import BASELINE

    ptx = attention(gpu, BASELINE, dtype, dim, chunk_q, chunk_k, ragged).asm["ptx"]
    # Tensor cores for half precision: without them the kernel would be right and an order slower.
    assert ("mma" in ptx) == (dtype != "fp32")


@pytest.mark.parametrize("ragged", [pytest.param(False, id="whole"), pytest.param(True, id="ragged")])
@pytest.mark.parametrize("name", [
        "pointers-128x64-w8-s3",
        "descriptors-64x64-w4-s5",
        "descriptors-64x32-w4-s3",
        "descriptors-64x64-w4-s5-qz",
        "small-blocks-128x64-w4-s4",
    ])
def test_other_variants_build_for_hopper(name, ragged):
    from bsa.variants import DESCRIPTORS, SMALL_BLOCKS, VARIANTS

    chunk, variant = 128 if "128" in name else 64, VARIANTS[name]
    chunk_k = 16 if variant.kernel == SMALL_BLOCKS else chunk
    ptx = attention("H200", variant, "bf16", 128, chunk, chunk_k, ragged).asm["ptx"]
    assert "wgmma.mma_async" in ptx
    assert ("cp.async.bulk.tensor" in ptx) == (variant.kernel == DESCRIPTORS)


@pytest.mark.parametrize("gpu", GPUS)
def test_top_k_builds_everywhere(gpu):
    from bsa.kernels.top_k import _top_k_kernel

    constants = {"COLUMNS": 2048, "RAGGED": True}
    types = {"scores_ptr": "*fp32", "log_sizes_ptr": "*fp32", "scale": "fp32"}
    build(_top_k_kernel, GPUS[gpu][0], types, constants, num_warps=4)
