"""Chooses the numbers that a model computes with: bfloat16 or fp32. Imports PyTorch only to measure.

A GPU computes in bfloat16, as the original does. A CPU is faster in bfloat16 only if it has instructions for products
of such numbers; without them PyTorch converts each operand.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

from bsa.native.processor import processor_flags
from pipeline.machine.gpus import Device
from pipeline.request.load_options import LoadOptions

INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
# The narrowest transformer that was measured is the embedded checkpoint's (benchmarks/precision_cpu.py). Those of tests
# are narrower.
LEAST_WIDTH = 256
_PROBE = 1024, 256, 768  # tokens, inputs and outputs of the product that `measured` times
_ROUNDS = 5


class Precision(NamedTuple):
    """name: "bf16" or "fp32"; reason: why, as the end of a sentence."""

    name: str
    reason: str


def choose_precision(weights: LoadOptions, device: Device, width: int) -> Precision:
    """The precision that a model computes in on `device`. width: the hidden size of its transformer.

    On a CPU "auto" goes by its instructions, as far as they can be read; `measured` checks that once PyTorch is loaded.

    Raises:
        ValueError: fp32 was asked for on a GPU, or bf16 together with 8-bit weights on a CPU.
    """
    if device.type == "cuda":
        if weights.precision == "fp32":
            raise ValueError("a GPU computes in bf16, as the original does; leave --precision fp32 out, or use the CPU")
        return Precision("bf16", "the device is a GPU")
    if weights.quantization is not None:
        if weights.precision == "bf16":
            raise ValueError(
                f"a CPU computes {weights.quantization} weights in fp32; leave --precision bf16 out, or load the "
                f"model without --quantization {weights.quantization}"
            )
        return Precision("fp32", f"a CPU computes {weights.quantization} weights so")
    if weights.precision != "auto":
        return Precision(weights.precision, "it was asked for")
    found = [name for name in INSTRUCTIONS if name in processor_flags()]
    if not found:
        return Precision("fp32", f"the processor has neither of {' and '.join(INSTRUCTIONS)}")
    if width < LEAST_WIDTH:
        reason = f"bf16 was measured from a width of {LEAST_WIDTH} on, and this transformer has {width}"
        return Precision("fp32", reason)
    return Precision("bf16", f"the processor has {found[0]}")


def measured(choice: Precision) -> Precision:
    """The same choice, unless "auto" took bf16 for the CPU and a product in it is no faster than in fp32.

    Takes some 20 ms. Products in both precisions take turns and the least CPU time of each counts, so a busy machine
    changes little: with the instructions, bf16 takes 0.4 of the time.
    """
    fp32, bf16 = _product_seconds()
    measure = f"a product in bf16 takes {bf16 / fp32:.2f} times as long as in fp32"
    if bf16 < fp32:
        return Precision("bf16", f"{choice.reason}, and {measure}")
    return Precision("fp32", f"{measure}, though {choice.reason}")


def _product_seconds() -> tuple[float, float]:
    """Seconds of one linear layer in fp32 and in bf16, the least of a few."""
    import torch
    import torch.nn.functional as F

    tokens, inputs, outputs = _PROBE
    x, weight = torch.ones(tokens, inputs), torch.ones(outputs, inputs)
    pairs = [(x, weight), (x.bfloat16(), weight.bfloat16())]
    least = [float("inf")] * 2
    for _ in range(_ROUNDS):
        for number, pair in enumerate(pairs):
            began = time.process_time()
            F.linear(*pair)
            least[number] = min(least[number], time.process_time() - began)
    return least[0], least[1]


def settled(weights: LoadOptions, device: Device, width: int) -> LoadOptions:
    """The same options with the precision that `choose_precision` expects, where there is a choice: on a CPU."""
    name = choose_precision(weights, device, width).name
    return weights if device.type == "cuda" else replace(weights, precision=name)


def number_bytes(weights: LoadOptions, device: Device, width: int) -> int:
    """Bytes of a weight or an activation."""
    return 2 if device.type == "cuda" or choose_precision(weights, device, width).name == "bf16" else 4
