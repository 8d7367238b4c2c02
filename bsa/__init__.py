"""Block Sparse Attention for video diffusion transformers.

The method is LongCat-Video's (arXiv 2510.22200, section 3.4.2 and appendix A.2): the token grid is cut
into small 3D chunks, mean-pooled queries and keys decide which key chunks each query chunk attends to,
and exact attention runs over those chunks only.

Importing this package imports torch and nothing heavier; Triton is imported when its kernel is first used.
"""

from bsa.attention import block_sparse_attention
from bsa.config import BlockPlan, BSAConfig, Grid
from bsa.layout import BlockLayout
from bsa.ordered import block_order_attention
from bsa.selection import BlockSelection, select_blocks

__all__ = [
    "BSAConfig",
    "BlockLayout",
    "BlockPlan",
    "BlockSelection",
    "Grid",
    "block_order_attention",
    "block_sparse_attention",
    "select_blocks",
]
