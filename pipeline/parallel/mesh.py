"""How ranks divide the work of one video, as numbers. Imports no PyTorch, so that plans and estimates know it too."""

from __future__ import annotations


def mesh_shape(size: int, rows: int) -> tuple[int, int]:
    """Ranks for the rows of guidance, and ranks that share the tokens of a row.

    Two rows on an even number of ranks need no exchange between the halves during a forward pass, so they come first.
    """
    return (rows, size // rows) if size % rows == 0 else (1, size)


def strip_count(size: int, rows: int) -> int:
    """Ranks that divide a picture of so many rows of latents: all, or with fewer rows than ranks none but one."""
    return size if rows >= size else 1
