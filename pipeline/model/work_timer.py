"""Times the denoising steps and the decoding of one generation on a clock that other programs do not advance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipeline.machine.measure import OtherPrograms, Stopwatch
from pipeline.model.denoising import Velocity
from pipeline.request.timing import Timing, equal_work
from pipeline.request.workload import Workload


class WorkTimer:
    """Collects what `Timing` holds. The load of other programs counts from its creation on."""

    def __init__(self, device: torch.device) -> None:
        self._watch = Stopwatch(device)
        self._steps: list[tuple[Any, Any]] = []
        self._references: list[tuple[Any, Any]] = []
        self._others = None if device.type == "cuda" else OtherPrograms()
        self._decoded: tuple[Any, Any] | None = None

    def each(self, velocity: Velocity, reference: Velocity | None = None, at: Sequence[int] = ()) -> Velocity:
        """The same velocity, with every call of it timed as a step. What happens between the calls does not count.

        reference: is called before it, with the same inputs, in the steps `at` (counted from 0), and timed apart. Its
            result is dropped.
        """

        def timed(latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
            began = self._watch.mark()
            if reference is not None and len(self._steps) in at:
                reference(latents, timestep, text, mask)
                self._references.append((began, began := self._watch.mark()))
            flow = velocity(latents, timestep, text, mask)
            self._steps.append((began, self._watch.mark()))
            return flow

        return timed

    def reference_seconds(self) -> float:
        """Wall seconds spent on references, once the device has ended them."""
        return sum(self._watch.wall(*span) for span in self._references)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Time a block as the decoding."""
        began = self._watch.mark()
        yield
        self._decoded = began, self._watch.mark()

    def timing(
        self,
        work: Workload,
        layers: int,
        recorded: Sequence[float] | None = None,
        ran: Sequence[int] | None = None,
    ) -> Timing:
        """The timing, once the device has ended its work.

        recorded: seconds of each step, on the same clock, that were spent recording.
        ran: the steps, counted from 0, that the calls of the velocity stand for; None for every one in turn.
        """
        assert self._decoded is not None
        seconds = [self._watch.work(*span) for span in self._steps]
        ran = range(len(seconds)) if ran is None else ran
        apart = [0.0 if recorded is None else recorded[step] for step in ran]
        return Timing(
            clock=self._watch.clock,
            steps=tuple(max(0.0, whole - part) for whole, part in zip(seconds, apart, strict=True)),
            alike=equal_work(work, ran, layers),
            decode=self._watch.work(*self._decoded),
            others=None if self._others is None else self._others.share(),
            reference=tuple(self._watch.work(*span) for span in self._references),
        )
