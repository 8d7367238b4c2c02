"""Block Sparse Attention for video diffusion transformers.

The method is LongCat-Video's (arXiv 2510.22200, section 3.4.2 and appendix A.2): the token grid is cut
into small 3D chunks, mean-pooled queries and keys decide which key chunks each query chunk attends to,
and exact attention runs over those chunks only.

Importing this package imports nothing heavy: configurations are plain arithmetic. torch is imported with the first name
that computes, Triton when its kernel is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bsa.config import BlockPlan, BSAConfig
from bsa.grid import Grid
from bsa.selectors import Selector

if TYPE_CHECKING:
    from bsa.attention import block_sparse_attention
    from bsa.block_selection import BlockSelection
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
    "select_blocks",
]

_MODULES = {
    "BlockLayout": "bsa.layout",
    "BlockSelection": "bsa.block_selection",
    "block_order_attention": "bsa.ordered",
    "block_sparse_attention": "bsa.attention",
    "select_blocks": "bsa.selection",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
