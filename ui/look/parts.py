"""Parts that panels share: boxes drawn by this project's scripts, and options of events that only change the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr

from ui.static import asset

# Options of events that only change the page: answered at once, even during a video, and not part of the API.
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_BARE: dict[str, Any] = {"elem_classes": "bare", "apply_default_css": False}


def box(name: str | None = None, value: str = "") -> gr.HTML:
    """A box for HTML without Gradio's own style. name: id of its element."""
    return gr.HTML(value, elem_id=name, **_BARE)


def event_data(event: gr.EventData) -> dict[str, Any]:
    """The data that a script of a panel sent with its event; empty if it is no object."""
    return event._data if isinstance(event._data, dict) else {}


def serve_in_place(component: Any) -> None:
    """Let a component hand out files where they are, in the output folder. Gradio would copy each into its cache, from
    where it is served after the original was deleted."""

    async def stay(path: Any) -> str:
        return str(path)

    component.async_move_resource_to_block_cache = stay


class Drawn(gr.HTML):
    """A box that files of ui/static draw from a JSON value: `name`.html and the scripts.

    scripts: joined to one function body in this order; each may use the earlier ones.
    functions: those that the scripts may call on the server, outside the event queue.
    kwargs: arguments for Gradio, which makes a component anew with its own arguments on every update.
    """

    def __init__(
        self,
        name: str,
        scripts: Sequence[str],
        value: Any = None,
        functions: Sequence[Callable[..., Any]] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            value,
            html_template=asset(f"{name}.html"),
            js_on_load="".join(asset(script) for script in scripts),
            server_functions=list(functions),
            elem_id=name,
            **_BARE,
            **kwargs,
        )
        serve_in_place(self)

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


def notice_html(text: str, kind: str = "info") -> str:
    role = "alert" if kind == "error" else "status"
    return f'<p class="notice" data-kind="{kind}" role="{role}">{escape(text)}</p>'
