"""Keeps the selections of a denoising step for the next ones, because they change little from step to step."""

from __future__ import annotations

from bsa import BlockSelection, BSAConfig


class KeptSelections:
    """The selection of every layer, used again in the steps that `BSAConfig.selects_at` leaves out.

    Nothing is kept where every step selects.
    """

    def __init__(self, config: BSAConfig | None) -> None:
        self._config = config
        self._kept: dict[int, BlockSelection] = {}

    def begin(self, step: int) -> None:
        """Enter a step, counted from 0."""
        if self._config is not None and self._config.selects_at(step):
            self._kept.clear()

    def of(self, layer: int) -> BlockSelection | None:
        """The kept selection for the layer in this step, or None if it is to select."""
        return self._kept.get(layer)

    def keep(self, layer: int, selection: BlockSelection) -> None:
        """Remember what the layer selected, if a later step may use it."""
        if self._config is not None and self._config.select_every > 1:
            self._kept[layer] = selection
