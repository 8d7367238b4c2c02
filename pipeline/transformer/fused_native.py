"""The operations of `fused.py` as C for CPUs with AVX-512: one pass over the tokens, where PyTorch makes five to ten.

Compiled on first use, as `bsa.native` is, and optional as that is.
"""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bsa import BlockLayout
from bsa.cells import cells_of
from bsa.native.attend import FEATURES, thread_pool
from bsa.native.build import NotBuilt, load
from bsa.native.choice import lacking
from pipeline.transformer.fused_cpu import CpuOperations
from pipeline.weights.fp8 import Quantised

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("fused_native.c")


class _Request(ctypes.Structure):
    """`Request` of fused_native.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "a", "b", "out", "gate", "gain", "shift")),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine", "frames", "starts", "sizes", "cells", "cell_sizes")),
        *((name, ctypes.c_int64) for name in ("tokens", "width", "heads", "head_stride", "cell_count", "cells_stride")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("x", "a", "b", "out", "gate", "gain")),
        ("threads", ctypes.c_uint32),
        ("parallel", ctypes.c_void_p),
    ]


@lru_cache(maxsize=2)
def _compiled(dtype: torch.dtype) -> ctypes.CDLL:
    """The object for products of a dtype. Raises NotBuilt."""
    return load(SOURCE, (f"-DBF16={int(dtype == torch.bfloat16)}", *FEATURES[dtype]))


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these operations cannot run with products of a dtype, or None. Says once which of them a CPU runs."""
    if device.type != "cpu":
        return f"the tensors are on {device.type}, not on the CPU"
    if dtype not in FEATURES:
        return f"they take bfloat16 and float32, not {dtype}"
    return lacking(dtype) or _unbuilt(dtype)


@lru_cache(maxsize=2)
def _unbuilt(dtype: torch.dtype) -> str | None:
    try:
        _compiled(dtype)
    except NotBuilt as error:
        logger.info("PyTorch does the work between matrix products because %s", error)
        return str(error)
    return None


class NativeOperations(CpuOperations):
    """The functions of `fused.py`, with the same arguments and results. Those that quantise are `CpuOperations`'."""

    def residual_norm_(
        self,
        x: Tensor,
        branch: Tensor | None,
        gate: Tensor | None,
        gain: Tensor | None,
        shift: Tensor | None,
        frames: Tensor | None,
        fp8: bool = False,
    ) -> Tensor | Quantised | None:
        if fp8:
            return super().residual_norm_(x, branch, gate, gain, shift, frames, fp8)
        out = None if gain is None else torch.empty(x.shape, dtype=self.dtype)
        branch = None if branch is None else branch.to(self.dtype).contiguous()
        for row in range(x.shape[0]):
            gates, gains, shifts = (
                None if rows is None else rows[row if rows.shape[0] > 1 else 0] for rows in (gate, gain, shift)
            )
            one = all(rows is None or len(rows) == 1 for rows in (gates, gains))
            a, new = (None if part is None else part[row] for part in (branch, out))
            given = {"gate": gates, "gain": gains, "shift": shifts, "frames": None if one else frames}
            self._run("residual_norm", x[row], None, x=x[row], a=a, out=new, **given)
        return out

    def head_norm_(
        self,
        x: Tensor,
        weight: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        layout: BlockLayout | None,
        cells: bool = False,
    ) -> Tensor | None:
        gain, (cosine, sine) = weight.float()[None], (None, None) if rope is None else rope
        for row in range(x.shape[0]):
            self._run("head_norm", x[row], None, a=x[row], gain=gain, cosine=cosine, sine=sine)
        return None if layout is None else self._means(x, layout, cells)

    def _means(self, x: Tensor, layout: BlockLayout, by_cells: bool) -> Tensor:
        """What `bsa.selection.pool_in_order` returns, of x [B, N, H, D]."""
        blocks: dict[str, Tensor | None] = {"starts": layout.starts(x.device), "sizes": layout.sizes(x.device)}
        count, name = layout.blocks.volume, "block_means"
        per_block: tuple[int, ...] = ()
        if by_cells:
            cells = cells_of(layout, x.device)
            name, per_block = "cell_means", cells.sizes.shape[1:]
            blocks |= {"cells": cells.cell_of_slot, "cell_sizes": cells.sizes}
        means = torch.empty(x.shape[0], x.shape[2], count, *per_block, x.shape[3])
        for row in range(x.shape[0]):
            self._run(name, x[row], count, x=means[row], a=x[row], **blocks)
        return means

    def swiglu_(self, a: Tensor, b: Tensor, fp8: bool = False) -> Tensor | Quantised:
        if fp8:
            return super().swiglu_(a, b, fp8)
        rows = a.view(-1, a.shape[-1])
        self._run("swiglu", rows, None, a=rows, b=b.reshape(rows.shape))
        return a

    def _run(self, name: str, like: Tensor, count: int | None, **tensors: Tensor | None) -> None:
        """Run a function of the object. All tensors are contiguous in the last axis.

        like: [tokens, width] or [tokens, heads, width]. count: of what threads share, if that is not tokens.
        """
        given: dict[str, Any] = {key: x.data_ptr() for key, x in tensors.items() if x is not None}
        strides = {
            f"{key}_stride": x.stride(0)
            for key in ("x", "a", "b", "out", "gate", "gain")
            if (x := tensors.get(key)) is not None
        }
        heads = {"heads": like.shape[1], "head_stride": like.stride(1)} if like.ndim == 3 else {}
        if (cells := tensors.get("cells")) is not None and (of := tensors.get("cell_sizes")) is not None:
            heads |= {"cell_count": of.shape[1], "cells_stride": cells.stride(0) if len(cells) > 1 else 0}
        sizes = {"tokens": like.shape[0] if count is None else count, "width": like.shape[-1], **heads}
        request = _Request(**given, **strides, **sizes, threads=torch.get_num_threads(), parallel=thread_pool())
        with torch.profiler.record_function(f"native::{name}"):
            getattr(_compiled(self.dtype), name)(ctypes.byref(request))
