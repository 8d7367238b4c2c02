"""Block Sparse Attention for video diffusion transformers.

The method is LongCat-Video's (arXiv 2510.22200, section 3.4.2 and appendix A.2). The token grid is cut into small 3D
chunks. Mean-pooled queries and keys decide which key chunks each query chunk attends to, and exact attention runs over
these chunks only.

Importing this package imports nothing heavy, because configurations are plain arithmetic. torch is imported with the
first name that computes, and Triton at the first use of a kernel.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bsa.config import BlockPlan, BSAConfig
from bsa.grid import Grid
from bsa.selectors import Selector

if TYPE_CHECKING:
    from bsa.attention import block_sparse_attention
    from bsa.block_selection import BlockSelection
    from bsa.dense import full_attention
    from bsa.layout import BlockLayout
    from bsa.ordered import block_order_attention
    from bsa.selection import select_blocks

__all__ = [
    "BSAConfig",
    "BlockLayout",
    "BlockPlan",
    "BlockSelection",
    "Grid",
    "Selector",
    "block_order_attention",
    "block_sparse_attention",
    "full_attention",
    "nested_layouts",
    "select_blocks",
]

_MODULES = {
    "BlockLayout": "bsa.layout",
    "BlockSelection": "bsa.block_selection",
    "block_order_attention": "bsa.ordered",
    "block_sparse_attention": "bsa.attention",
    "full_attention": "bsa.dense",
    "nested_layouts": "bsa.layout",
    "select_blocks": "bsa.selection",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
