"""TeaCache (arXiv 2411.19108): a denoising step whose input has changed little goes on with the flow of an earlier one.

The input is measured as the first block sees it: normalised, and modulated by the timestep's embedding. From step to
step its relative L1 change is added up, and the transformer runs again once the sum reaches the threshold. The first
and the last step always run.

What is LongCat's own here:

* The paper maps the change to that of the output by a polynomial fitted for each model. None is published for LongCat,
  so the sum is that of the changes themselves (the identity). Thresholds of other models mean nothing here.
* Of guidance's two rows the input is the same: they differ in the text alone, which enters later. So one decision holds
  for both.
* Frames that are given do not change and are not measured, so kept keys and values do not matter either.
* What is used again is the flow itself, after guidance. The original keeps what all blocks added to their input and
  runs the last layer anew. On the embedded checkpoint that lost as much (docs/quality.md), and it would take as much
  memory again as all tokens. With the flow kept, a step and those skipped after it are one longer Euler step, so this
  chooses the places of fewer steps, for each video anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.parallel.ranks import ONE_RANK, Ranks
from pipeline.transformer.forward import (
    Modulation,
    _linear_fp32,
    _modulate,
    embed_timestep,
    patchify,
)

MOST_TOKENS = 4096  # of the input that are measured, evenly spread: a mean over so many is that over all

# (latents [1, C, T, H, W], timestep [1]) -> the modulated input, fp32 of any shape
Signal = Callable[[Tensor, Tensor], Tensor]


class TeaCache:
    """Decides for each step of one generation whether the transformer runs.

    threshold: 0 runs it in every step, and measures nothing.
    steps: of the generation. signal: what is measured, such as `modulated_input`.
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

    def due(self, latents: Tensor, timestep: Tensor) -> bool:
        """Enter the next step, and say whether the transformer is to run in it.

        latents: of the frames that are made, fp32 [1, C, T, H, W]. timestep: [1], as the transformer gets it.
        """
        self.step += 1
        due = self._changed(latents, timestep) or self.step in (0, self._last)
        if due:
            self._sum = 0.0
            self.ran.append(self.step)
        return due

    def _changed(self, latents: Tensor, timestep: Tensor) -> bool:
        if not self._threshold:
            return True
        now, before = self._signal(latents, timestep), self._before
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


@torch.no_grad()
def modulated_input(model: Any, latents: Tensor, timestep: Tensor) -> Tensor:
    """The first block's input, normalised and modulated by the timestep: fp32 [1, up to `MOST_TOKENS`, E].

    model: a loaded `FastVideoLongCat`. latents: fp32 [1, C, T, H, W]. timestep: [1], of all frames.
    """
    transformer = model.transformer
    patches = patchify(latents, tuple(transformer.patch_size))
    patches = patches[:, :: -(-patches.shape[1] // MOST_TOKENS)]
    proj = transformer.patch_embed.proj
    # in fp32 for any dtype of the model, because rounding is no change
    x = F.linear(patches.float(), proj.weight.flatten(1).float(), proj.bias.float())
    t = embed_timestep(transformer, timestep, 1)
    blocks = transformer.blocks[:1] if model.offload is None else model.offload.blocks(1)
    for block in blocks:
        shift, scale, *_ = _linear_fp32(block.adaln_linear_1, F.silu(t)).unsqueeze(2).chunk(6, dim=-1)
        x = _modulate(x, Modulation(shift, scale, scale))
    return x
