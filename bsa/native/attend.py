"""The Python side of attend.c: attention of tensors in CPU memory over lists of key blocks."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from bsa.block_selection import BlockSelection
from bsa.layout import BlockLayout
from bsa.native.build import load

SOURCE = Path(__file__).with_name("attend.c")
LARGEST_DIM = 256
# What the C file is compiled for, in the names of the compiler and of /proc/cpuinfo.
_AVX512 = {"-mavx512f": "avx512f", "-mavx512bw": "avx512bw", "-mavx512dq": "avx512dq", "-mavx512vl": "avx512vl"}
FEATURES: dict[torch.dtype, dict[str, str]] = {
    torch.float32: _AVX512 | {"-mfma": "fma"},
    torch.bfloat16: _AVX512 | {"-mfma": "fma", "-mavx512bf16": "avx512_bf16"},
}
_PAIR = {torch.float32: 1, torch.bfloat16: 2}
_NO_MEMORY, _BAD_LIST = 1, 2

_Strides = ctypes.c_int64 * 3


class _Request(ctypes.Structure):
    """`Request` of attend.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out")),
        *((f"{name}_strides", _Strides) for name in ("q", "k", "v", "out")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "dim", "q_blocks", "k_blocks", "width")),
        *((name, ctypes.c_void_p) for name in ("q_starts", "q_sizes", "k_starts", "k_sizes")),
        *((name, ctypes.c_void_p) for name in ("q_tokens", "k_tokens", "indices", "counts")),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_uint32),
        ("parallel", ctypes.c_void_p),
    ]


def attend_natively(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: BlockSelection,
    q_layout: BlockLayout,
    k_layout: BlockLayout,
    scale: float,
    out: Tensor,
    *,
    raster: bool,
) -> None:
    """Compute attention over the selected blocks into ``out``.

    q, k, v, out: [B, H, S, D] bfloat16 or fp32 on the CPU, any strides, but for out's last, which is 1; D a multiple of
        32 up to 256. Tokens are in raster order, or in block order with raster=False.
    selection: int32, with any strides.
    Raises ValueError for a selection with a block that there is not, `bsa.native.build.NotBuilt` without an object.
    """
    device = q.device
    blocks = (q_layout.starts(device), q_layout.sizes(device), k_layout.starts(device), k_layout.sizes(device))
    tokens = (q_layout.order(device), k_layout.order(device)) if raster else (None, None)
    lists = selection.indices.int().contiguous(), selection.counts.int().contiguous()
    _run(q, k, v, out, scale, blocks, tokens, lists)


def attend_everything(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """Compute attention of all queries over all keys into ``out``. Tensors as in `attend_natively`; k and v may have
    another number of tokens than q."""
    starts = torch.zeros(1, dtype=torch.int32)
    q_sizes, k_sizes = (torch.full_like(starts, x.shape[2]) for x in (q, k))
    _run(q, k, v, out, scale, (starts, q_sizes, starts, k_sizes), (None, None), None)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    scale: float,
    blocks: tuple[Tensor, Tensor, Tensor, Tensor],
    tokens: tuple[Tensor | None, Tensor | None],
    lists: tuple[Tensor, Tensor] | None,
) -> None:
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, _, dim = q.shape
    threads = torch.get_num_threads()
    indices, counts = (None, None) if lists is None else lists
    request = _Request(
        *(x.data_ptr() for x in (q, k, v, out)),
        *(_Strides(*x.stride()[:3]) for x in (q, k, v, out)),
        *(batch, heads, dim, len(blocks[0]), len(blocks[2]), 0 if indices is None else indices.shape[-1]),
        *(x.data_ptr() for x in blocks),
        *(None if x is None else x.data_ptr() for x in (*tokens, indices, counts)),
        *(scale, threads, thread_pool()),
    )
    library = compiled(q.dtype)
    with torch.profiler.record_function("bsa::native_attention"):
        fault = library.attend_blocks(ctypes.byref(request))
    if fault == _BAD_LIST:
        raise ValueError(
            f"the selection has a list without blocks, or with one outside 0..{len(blocks[2]) - 1}; pass one that was "
            "made for the same shapes"
        )
    if fault == _NO_MEMORY:
        raise MemoryError(f"no memory for a copy of {tuple(k.shape)} keys and values")


@lru_cache(maxsize=4)
def compiled(dtype: torch.dtype) -> ctypes.CDLL:
    """The object for tensors of a dtype. Raises `bsa.native.build.NotBuilt`."""
    library = load(SOURCE, (f"-DPAIR={_PAIR[dtype]}", *FEATURES[dtype]))
    library.attend_blocks.argtypes = [ctypes.POINTER(_Request)]
    library.attend_blocks.restype = ctypes.c_int
    return library


@lru_cache(maxsize=1)
def thread_pool() -> int | None:
    """The function that runs another on PyTorch's own threads, `GOMP_parallel` of the OpenMP that it loaded; None where
    it has another pool. A second pool would wait for the same cores."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError):
        return None
