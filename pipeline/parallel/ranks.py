"""The ranks of one video: how they divide guidance and tokens, and how they agree to go on or to stop.

Every rank runs the same program on the same latents. Rank 0 alone hears the caller: at each boundary (a step, a decoded
frame) it tells the others whether to go on. This message travels on the host, so it does not wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pipeline.parallel.sequence import SequenceParallel, cuts

# (latents [B, C, T, H, W], timestep [B], text [B, L, E], text_mask [B, L]) -> velocity fp32 [B, C, T, H, W]
Velocity = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def mesh_shape(size: int, rows: int) -> tuple[int, int]:
    """Ranks for the rows of guidance, and ranks that share the tokens of a row.

    Two rows on an even number of ranks need no exchange between the halves during a forward pass, so they come first.
    """
    return (rows, size // rows) if size % rows == 0 else (1, size)


class Ranks:
    """This process among all ranks. The default process group must exist and be the same on all of them.

    device: where this rank computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._mesh = lru_cache(maxsize=None)(self._make_mesh)

    def _make_mesh(self, shape: tuple[int, int]) -> DeviceMesh:
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("guidance", "sequence"))

    def sequence(self, rows: int) -> SequenceParallel:
        """The ranks that share the tokens with this one, in a forward pass of so many rows of guidance."""
        return SequenceParallel(self._mesh(mesh_shape(self.size, rows)).get_group("sequence"))

    def divide(self, velocity: Velocity, rows: int) -> Velocity:
        """Run only this rank's rows of guidance, and gather all of them on every rank.

        velocity: computes some of the rows with the ranks of `sequence`.
        """
        parts = mesh_shape(self.size, rows)[0]
        if parts == 1:
            return velocity
        group = self._mesh(mesh_shape(self.size, rows)).get_group("guidance")
        mine = cuts(rows, parts)[dist.get_rank(group)]

        def divided(latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
            own = velocity(latents[mine], timestep[mine], text[mine], None if mask is None else mask[mine])
            out = own.new_empty(rows, *own.shape[1:])
            dist.all_gather_into_tensor(out, own.contiguous(), group=group)
            return out

        return divided

    def go_on(self, going: bool = True) -> bool:
        """Whether rank 0 goes on. All ranks call it at the same boundary, and only rank 0's `going` counts."""
        message = torch.tensor([going])
        dist.broadcast(message, 0)
        return bool(message)

    def tell(self, message: Any = None) -> Any:
        """Rank 0's message, on every rank. Anything that can be pickled."""
        box = [message]
        dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
        return box[0]
