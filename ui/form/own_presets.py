"""The visitor's own presets: settings under a name, kept in the browser, and carried as a file.

A preset is the JSON of a request without its prompt and seed, so it is checked like one, and reads on other servers.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from pipeline import VideoRequest
from ui.form.inputs import Fields
from ui.form.read import SIDE_BY_SIDE, TEXT, form_request, page_sentence
from ui.form.restore import fill, general_values
from ui.look.parts import QUIET, Drawn, event_data, notice_html
from ui.site import Site

SAVED = "The settings of the form are kept in this browser as {name}."
USED = "The settings of your preset {name} are in the form."
NO_NAME = "Give the preset a name first."
BAD = "This preset cannot be used: {reason}"
LONGEST = 60  # letters of a name


class OwnPresets(Drawn):
    """The list, which the browser keeps. Its value is {"saved": {"name", "settings"}} when there is a new one.

    Events: edit asks for the form's settings under a name, select uses a preset. Both bring {"name", "settings"}.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("own_presets", ["own_presets.js"], {}, **kwargs)


def own_presets(site: Site, fields: Fields, notice: gr.HTML) -> None:
    """Add the list and its events."""
    panel, names = OwnPresets(), list(fields)

    def save(event: gr.EventData, *values: Any) -> tuple[Any, str]:
        form, name = dict(zip(names, values, strict=True)), _asked(event)[0]
        if not name:
            return gr.skip(), notice_html(NO_NAME, "error")
        try:
            settings = preset_of(site, form)
        except ValueError as error:
            return gr.skip(), notice_html(page_sentence(error), "error")
        return {"saved": {"name": name, "settings": settings}}, notice_html(SAVED.format(name=name), "done")

    def use(event: gr.EventData) -> dict[Any, Any]:
        name, settings = _asked(event)
        try:
            changes = fill(fields, preset_values(settings))
        except ValueError as error:
            return {notice: notice_html(BAD.format(reason=page_sentence(error)), "error")}
        return changes | {notice: notice_html(USED.format(name=name))}

    panel.edit(save, list(fields.values()), [panel, notice], **QUIET)
    panel.select(use, None, [notice, *fields.values()], **QUIET)


def preset_of(site: Site, form: dict[str, Any]) -> dict[str, Any]:
    """The form's settings as JSON. Raises ValueError for a value that cannot be used."""
    plain = {**form, "prompt": "-", "negative_prompt": "", "seed": 0, "refine": None, "windows": "", "task": TEXT}
    request = form_request(site.checkpoint, plain)
    return request.to_dict() | {"side_by_side": form["mode"] == SIDE_BY_SIDE}


def preset_values(settings: Any) -> dict[str, Any]:
    """The form's values of a preset. Raises ValueError for settings that are none."""
    if not isinstance(settings, dict):
        raise ValueError("it has no settings")
    settings = dict(settings)
    side_by_side = settings.pop("side_by_side", False) is True
    return general_values(VideoRequest.from_dict(settings), side_by_side)


def _asked(event: gr.EventData) -> tuple[str, Any]:
    data = event_data(event)
    name = data.get("name")
    return (name.strip()[:LONGEST] if isinstance(name, str) else ""), data.get("settings")
