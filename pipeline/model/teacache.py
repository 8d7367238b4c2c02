"""TeaCache (arXiv 2411.19108): a denoising step that differs little from the last full one goes on with its flow.

How much steps differ is measured on the timestep's embedding, by which the transformer modulates every block. From step
to step its relative L1 change is added up, and the transformer runs again once the sum reaches the threshold. The first
and the last step always run.

What is chosen here:

* The paper measures the first block's input modulated by that embedding; its code for Wan 2.1, a relative of LongCat,
  measures the embedding alone. So does this: with as many steps, the video is nearer to the whole one by many decibels
  on the embedded checkpoint (docs/quality.md). It also makes the decision one for all: for both rows of guidance, for
  dense and sparse attention, for every prompt, and for given frames with or without kept keys and values.
* The paper maps the change to that of the output by a polynomial fitted for each model. None is published for LongCat,
  so the sum is that of the changes themselves (the identity). Thresholds of other models mean nothing here.
* What is used again is the flow itself, after guidance. The original keeps what all blocks added to their input and
  runs the last layer anew. On the embedded checkpoint that lost as much, and it would take as much memory again as all
  tokens. With the flow kept, a step and those skipped after it are one longer Euler step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from pipeline.parallel.ranks import ONE_RANK, Ranks

# timestep fp32 [1] -> what is measured of it, fp32 of any shape
Signal = Callable[[Tensor], Tensor]


class TeaCache:
    """Decides for each step of one generation whether the transformer runs.

    threshold: 0 runs it in every step, and measures nothing.
    steps: of the generation. signal: what is measured of a timestep.
    ranks: those that make the video together; all of them decide alike.

    Attributes:
        step: the step at hand, counted from 0.
        ran: the steps in which the transformer ran so far, the one at hand included if it is to run.
    """

    def __init__(self, threshold: float, steps: int, signal: Signal, ranks: Ranks = ONE_RANK) -> None:
        self._threshold, self._last, self._signal, self._ranks = threshold, steps - 1, signal, ranks
        self._before: Tensor | None = None
        self._sum = 0.0
        self.step = -1
        self.ran: list[int] = []

    def due(self, timestep: Tensor) -> bool:
        """Enter the next step, and say whether the transformer is to run in it.

        timestep: fp32 [1], not rounded, so that every precision runs the same steps.
        """
        self.step += 1
        due = self._changed(timestep) or self.step in (0, self._last)
        if due:
            self._sum = 0.0
            self.ran.append(self.step)
        return due

    def _changed(self, timestep: Tensor) -> bool:
        if not self._threshold:
            return True
        now, before = self._signal(timestep), self._before
        self._before = now
        if before is None:
            return True
        change = ((now - before).abs().mean() / before.abs().mean()).item()
        # GPUs of two kinds may differ in the last digit. What is no number is no reason to skip.
        self._sum += self._ranks.largest(change)
        return not self._sum < self._threshold

    def spans(self) -> Iterator[range]:
        """For the transformer's next run and each one after it: the steps since the last one, the one at hand last."""
        while True:
            yield range(self.ran[-2] + 1 if len(self.ran) > 1 else 0, self.step + 1)
