"""Presets: a press puts settings that belong together into the form; what cannot be had here says why."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from pipeline.presets import Preset, Situation, presets
from ui.form import DENSE_ONLY, SIDE_BY_SIDE
from ui.panels import Fields
from ui.settings import fill, form_values
from ui.site import Site

NEEDS = "Needs {needs}."
MISSING = "Missing here: {missing}."


class PresetList:
    """The buttons, one to a row with a line of text beside it. `parts` are what a change of the model changes."""

    def __init__(self, site: Site, fields: Fields) -> None:
        self._site = site
        self._presets = presets()
        self._rows: list[tuple[gr.Button, gr.HTML]] = []
        situation = self._situation()
        for preset in self._presets:
            missing = preset.missing(situation)
            with gr.Row(elem_classes="preset"):
                button = gr.Button(preset.name, size="sm", interactive=not missing, min_width=80)
                text = gr.HTML(_text(preset, missing), elem_classes="bare", apply_default_css=False)
            self._rows.append((button, text))
            button.click(
                _filler(site, fields, preset),
                [fields["mode"]],
                list(fields.values()),
                queue=False,
                show_progress="hidden",
                api_visibility="private",
            )

    @property
    def parts(self) -> list[Any]:
        return [part for row in self._rows for part in row]

    def view(self) -> list[Any]:
        """Values of `parts` for the model that is loaded now."""
        situation, changes = self._situation(), []
        for preset in self._presets:
            missing = preset.missing(situation)
            changes += [gr.update(interactive=not missing), _text(preset, missing)]
        return changes

    def _situation(self) -> Situation:
        estimates = self._site.estimates
        return Situation(self._site.checkpoint, estimates.device, estimates.total())


def _filler(site: Site, fields: Fields, preset: Preset):
    def fill_form(mode: str) -> dict[Any, Any]:
        request = site.checkpoint.request("-", **preset.values(site.checkpoint))
        values = form_values(request, side_by_side=mode in (SIDE_BY_SIDE, DENSE_ONLY))
        for own in ("prompt", "negative_prompt", "seed", "randomise"):
            del values[own]
        return fill(fields, values)

    return fill_form


def _text(preset: Preset, missing: tuple[str, ...]) -> str:
    absent = f"<b>{escape(MISSING.format(missing=', '.join(missing)))}</b>" if missing else ""
    needs = escape(NEEDS.format(needs=preset.needs))
    return f'<p class="preset-text">{escape(preset.about)} <span>{needs}</span> {absent}</p>'
