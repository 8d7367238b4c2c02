"""The presets on the page: a press fills the form with settings that belong together; unavailable ones say why."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from ui.form.inputs import Fields, adapter_choices
from ui.form.preset_rules import Preset, Situation, presets
from ui.form.read import DENSE_ONLY, SIDE_BY_SIDE
from ui.form.refine import ClipChooser
from ui.form.restore import fill, general_values
from ui.look.parts import QUIET, box
from ui.site import Site

NEEDS = "Needs {needs}."
MISSING = "Missing here: {missing}."


class PresetList:
    """The buttons of the presets, one per row with a line of text beside it.

    parts: the components that change with the model.
    clips: chooses the clip for the refining preset. shown: id of the job on the stage.
    """

    def __init__(self, site: Site, fields: Fields, clips: ClipChooser, shown: gr.State) -> None:
        self._site = site
        self._clips = clips
        self._lora, self._refine = fields["lora"], fields["refine"]
        self._presets = presets()
        self._rows: list[tuple[gr.Button, gr.HTML]] = []
        situation = self._situation()
        for preset in self._presets:
            missing = preset.missing(situation)
            with gr.Row(elem_classes="preset"):
                button = gr.Button(preset.name, size="sm", interactive=not missing, min_width=80)
                text = box(value=_text(preset, missing, situation))
            self._rows.append((button, text))
            if preset.refines:
                clips.on_press(button, shown)
            else:
                button.click(_filler(site, fields, preset), [fields["mode"]], list(fields.values()), **QUIET)

    def connect(self, page: gr.Blocks, shown: gr.State) -> None:
        """Update the buttons when the page opens, because the model may have changed, and when a clip comes or goes."""
        changes = [page.load, shown.change, self._refine.change]
        gr.on(changes, self.view, [shown, self._refine], self.parts, trigger_mode="always_last", **QUIET)

    @property
    def parts(self) -> list[Any]:
        return [*(part for row in self._rows for part in row), self._lora]

    def view(self, job_id: str, clip: str | None, request: gr.Request) -> list[Any]:
        """Values of `parts` for the loaded model, the clip in the form and the job on the stage."""
        found = clip or self._clips.shown_clip(job_id, self._site.owner(request))
        situation, changes = self._situation(clip=found is not None), []
        for preset in self._presets:
            missing = preset.missing(situation)
            changes += [gr.update(interactive=not missing), _text(preset, missing, situation)]
        return [*changes, gr.update(choices=adapter_choices(self._site.checkpoint))]

    def _situation(self, clip: bool = False) -> Situation:
        estimates = self._site.estimates
        weights = self._site.worker.weights
        return Situation(self._site.checkpoint, estimates.device, estimates.total(), clip, weights)


def _filler(site: Site, fields: Fields, preset: Preset):
    def fill_form(mode: str) -> dict[Any, Any]:
        request = site.checkpoint.request("-", **preset.values(site.checkpoint))
        return fill(fields, general_values(request, side_by_side=mode in (SIDE_BY_SIDE, DENSE_ONLY)))

    return fill_form


def _text(preset: Preset, missing: tuple[str, ...], here: Situation) -> str:
    absent = f"<b>{escape(MISSING.format(missing=', '.join(missing)))}</b>" if missing else ""
    needs = escape(NEEDS.format(needs=preset.needs(here)))
    return f'<p class="preset-text">{escape(preset.about)} {escape(preset.why)} <span>{needs}</span> {absent}</p>'
