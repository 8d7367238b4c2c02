"""The ranks of one video: how they divide guidance, tokens and pictures, and how they go on or stop together.

Every rank runs the same program on the same latents. Only rank 0 hears the caller, so at each boundary (a step, a
decoded frame) all ranks ask each other whether to go on. These messages travel on the host, and so wait for no GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pipeline.parallel.mesh import mesh_shape, strip_count
from pipeline.parallel.sequence import ALONE, SequenceParallel, cuts
from pipeline.parallel.strips import Strips
from pipeline.request.video import Cancelled

# (latents [B, C, T, H, W], timestep [B], text [B, L, E], text_mask [B, L]) -> velocity fp32 [B, C, T, H, W]
Velocity = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

_A_YEAR = timedelta(days=365)  # that a rank waits for the next job


class Ranks:
    """The only rank, which shares nothing with anybody. `Group` is one of several."""

    rank, size = 0, 1

    def sequence(self, rows: int) -> SequenceParallel:
        """The ranks that share the tokens with this one, in a forward pass of so many rows of guidance."""
        return ALONE

    def divide(self, velocity: Velocity, rows: int) -> Velocity:
        """Run only this rank's rows of guidance, and gather all of them on every rank.

        velocity: computes some of the rows with the ranks of `sequence`.
        """
        return velocity

    def has_last_row(self, rows: int) -> bool:
        """Whether this rank computes the last row of guidance."""
        return True

    def strips(self, rows: int) -> Strips | None:
        """How ranks divide pictures of so many rows of latents; None where each makes the whole picture."""
        return None

    def once(self, compute: Callable[[], tuple[Tensor | None, ...]]) -> tuple[Tensor | None, ...]:
        """Compute on rank 0 and return the result on every rank, which raises its ValueError or `Cancelled` as well."""
        return compute()

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends on all ranks in the same way: if it raises on one of them, it raises on all.

        Nothing in it may exchange data between ranks.
        """
        yield

    def mean(self, values: Tensor, weight: float) -> Tensor:
        """The weighted mean over the ranks. On the device it waits."""
        return values

    def largest(self, value: float) -> float:
        """The largest value of all ranks."""
        return value

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks on rank 0, and an empty list on the others. Anything that can be pickled."""
        return [value]

    def done(self) -> None:
        """Nothing more is exchanged in this job, so what fails from here on concerns this rank alone."""


ONE_RANK = Ranks()


class Group(Ranks):
    """This process among all ranks. The default process group must exist and be the same on all of them.

    device: where this rank computes.
    settled: whether all ranks are at the same point, so that they can take a next job. After an error it is true only
        if the error was raised on all of them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.settled = True
        self._host = dist.new_group(backend="gloo")
        self._jobs = dist.new_group(backend="gloo", timeout=_A_YEAR)
        self._meshes: dict[tuple[int, int], DeviceMesh] = {}

    def _mesh(self, shape: tuple[int, int]) -> DeviceMesh:
        if shape not in self._meshes:
            self._meshes[shape] = init_device_mesh(self.device.type, shape, mesh_dim_names=("guidance", "sequence"))
        return self._meshes[shape]

    def sequence(self, rows: int) -> SequenceParallel:
        return SequenceParallel(self._mesh(mesh_shape(self.size, rows)).get_group("sequence"))

    def _rows(self, rows: int) -> slice:
        shape = mesh_shape(self.size, rows)
        return cuts(rows, shape[0])[self._mesh(shape).get_local_rank("guidance")]

    def has_last_row(self, rows: int) -> bool:
        return self._rows(rows).stop == rows

    def divide(self, velocity: Velocity, rows: int) -> Velocity:
        mine, group = self._rows(rows), self._mesh(mesh_shape(self.size, rows)).get_group("guidance")
        if mine == slice(0, rows):
            return velocity

        def divided(latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
            own = velocity(latents[mine], timestep[mine], text[mine], None if mask is None else mask[mine])
            out = own.new_empty(rows, *own.shape[1:])
            dist.all_gather_into_tensor(out, own.contiguous(), group=group)
            return out

        return divided

    def strips(self, rows: int) -> Strips | None:
        if strip_count(self.size, rows) == 1:
            return None
        return Strips(self._mesh((1, self.size)).get_group("sequence"), rows)

    def once(self, compute: Callable[[], tuple[Tensor | None, ...]]) -> tuple[Tensor | None, ...]:
        made: tuple[Tensor | None, ...] = ()
        message: list[Any] = [None]
        if self.rank == 0:
            try:
                made = compute()
                message = [tuple(None if one is None else one.cpu() for one in made)]
            except (ValueError, Cancelled) as error:
                message = [error]
        dist.broadcast_object_list(message, 0, group=self._host, device=torch.device("cpu"))
        if isinstance(message[0], Exception):
            self.settled = True
            raise message[0]
        return made if self.rank == 0 else tuple(None if one is None else one.to(self.device) for one in message[0])

    @contextmanager
    def together(self) -> Iterator[None]:
        mine: BaseException | None = None
        try:
            yield
        except BaseException as error:
            if self.rank > 0 and not isinstance(error, (ValueError, Cancelled)):
                raise  # such as a lack of memory, after which this rank ends
            mine = error
        fine = torch.tensor([mine is None], dtype=torch.int32)
        dist.all_reduce(fine, dist.ReduceOp.MIN, group=self._host)
        if fine:
            return
        every: list[Any] = [None] * self.size
        portable = None if mine is None else ValueError(str(mine)) if isinstance(mine, ValueError) else Cancelled()
        dist.all_gather_object(every, portable, group=self._host)
        self.settled = True
        raise mine or next(error for error in every if error is not None)

    def mean(self, values: Tensor, weight: float) -> Tensor:
        sums = torch.cat([values.double().cpu().flatten() * weight, torch.tensor([weight], dtype=torch.float64)])
        dist.all_reduce(sums, group=self._host)
        return (sums[:-1] / sums[-1]).view(values.shape)

    def largest(self, value: float) -> float:
        most = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self._host)
        return float(most)

    def collect(self, value: Any) -> list[Any]:
        every: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, every, 0, group=self._host)
        return every or []

    def done(self) -> None:
        self.settled = True

    def next_job(self, job: Any = None) -> Any:
        """Rank 0's next job, on every rank. Anything that can be pickled."""
        message, self.settled = [job], False
        dist.broadcast_object_list(message, 0, group=self._jobs, device=torch.device("cpu"))
        return message[0]


def leave() -> None:
    """Leave the process group, if there is one, and end its threads. No `Group` of it may be held any more.

    A thread of gloo may still have to let go of a tensor. Python ends threads that ask for it while it exits, and with
    such a one the whole process: exit code 134, after all work was done.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()  # meshes and their groups refer to each other
