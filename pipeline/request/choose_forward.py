"""Chooses the forward pass of a generation: the plain one, or the fast one for large videos. Imports no PyTorch."""

from __future__ import annotations

from typing import NamedTuple

from bsa.variants import measured_as
from pipeline.machine.device import gpu_name
from pipeline.machine.gpus import Device
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.request.workload import Workload

FORWARDS = ("auto", "plain", "fast")


class ForwardChoice(NamedTuple):
    """name: "plain" or "fast"; reason: why, as the end of a sentence.

    eight_bits: whether block sparse attention is computed in 8 bits.
    """

    name: str
    reason: str
    eight_bits: bool = False


def checked_forward(name: str) -> str:
    """The name; ValueError unless it is one of `FORWARDS`."""
    if name not in FORWARDS:
        raise ValueError(f"unknown forward {name!r}; choose one of {', '.join(FORWARDS)}")
    return name


def choose_forward(asked: str, work: Workload, device: Device, weights: LoadOptions = AS_STORED) -> ForwardChoice:
    """ "auto" takes the fast forward where the weights need it, on CPUs, and on GPUs that bsa/tuned.json has
    measurements of, and the plain one elsewhere.

    A dense and a sparse video get the same one, so that only the attention differs between them; but not where neither
    of the chunks of queries and keys divides the other: ask for "plain" to compare such videos.

    Raises:
        ValueError: the fast forward was asked for, or the weights need it, and it cannot run this generation, or
            the device cannot compute as the weights ask for.
    """
    weights.check_forward(checked_forward(asked))
    weights.check_attention(device.type)
    obstacle = work.mixed_chunks
    if weights and obstacle:
        raise ValueError(
            f"{weights} needs the fast forward, which cannot run this request because {obstacle}; make one a multiple "
            f"of the other, or load the model without {weights}"
        )
    if asked == "fast" and obstacle:
        raise ValueError(f"the fast forward cannot run this request because {obstacle}; use the plain one, or auto")
    eight_bits = weights.attends_in_8_bits and work.sparse
    if asked != "auto":
        return ForwardChoice(asked, "it was asked for", eight_bits)
    if weights:
        return ForwardChoice("fast", f"{weights} needs it", eight_bits)
    if device.type != "cuda":
        return ForwardChoice("plain", obstacle) if obstacle else ForwardChoice("fast", "it is the faster one on a CPU")
    gpu = gpu_name(device)
    measured = None if gpu is None else measured_as(gpu)
    if measured is None:
        return ForwardChoice("plain", f"the fast one has not been measured on {gpu or 'this GPU'}")
    if obstacle:
        return ForwardChoice("plain", obstacle)
    return ForwardChoice("fast", f"it was measured on {measured}" + ("" if measured == gpu else ", the same chip"))
