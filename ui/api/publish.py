"""Turns functions into named endpoints and describes their parameters to clients.

Every failure of an endpoint is a `gr.Error`, because of other exceptions the client only learns that there was one.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import GenericAlias
from typing import Any, get_args

import gradio as gr
from gradio.data_classes import FileData
from gradio.utils import get_upload_folder

from pipeline.request.sentences import one_line
from ui.access.presence import Presence
from ui.jobs.failures import sentence
from ui.look.parts import serve_in_place

log = logging.getLogger("ui")

WRONG_COUNT = "/{name} takes {wanted} values in this order: {names}; {given} were given"
NOT_UPLOADED = "{name} is no uploaded file; pass gradio_client.handle_file(path)"
REQUIRED = inspect.Parameter.empty


class Upload(dict):
    """Type of a parameter that takes a file, which the client uploads first: {"path", "meta", ...}."""


class Page(gr.Blocks):
    """Blocks of which many tabs may be open, and whose API says `int | None` of a parameter that may be null.

    Gradio writes `None | int`, and its client and its page of the API add ` | None` where that is the default.

    presence: which clients are there; whoever serves the page keeps it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.presence = Presence()
        super().__init__(*args, **kwargs)

    def get_api_info(self, *args: Any, **kwargs: Any) -> Any:
        info = super().get_api_info(*args, **kwargs)
        for endpoint in info["named_endpoints"].values():
            for parameter in endpoint["parameters"]:
                said, null = parameter["python_type"], "None | "
                if said["type"].startswith(null):
                    added = parameter["parameter_has_default"] and parameter["parameter_default"] is None
                    said["type"] = said["type"].removeprefix(null) + ("" if added else " | None")
        return info

    def get_config_file(self, *args: Any, **kwargs: Any) -> Any:
        """Without the connection that Gradio holds open for each page, to learn when it is closed: a browser allows six
        to one server, for all tabs together."""
        config = super().get_config_file(*args, **kwargs)
        config["connect_heartbeat"] = False
        return config

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Say what a call lacks; Gradio would answer it with nothing."""
        if block_fn.api_visibility == "public" and len(inputs) != len(block_fn.inputs):
            names = ", ".join(inspect.signature(block_fn.fn).parameters) or "none"
            values = {"name": block_fn.api_name, "wanted": len(block_fn.inputs), "given": len(inputs), "names": names}
            raise gr.Error(WRONG_COUNT.format(**values), print_exception=False)
        super().validate_inputs(block_fn, inputs)


def publish(
    page: gr.Blocks, handler: Callable, table: list[tuple[str, Any, Any, str]], returns: list[tuple[str, Any]]
) -> None:
    """Give the handler the table's signature and register it under its own name.

    table: (name, type, default, description) of each parameter. returns: (label, type) of each value. Gradio derives
    the types from the signature and would label the values "1st", "2nd"; the labels are ours.
    """

    @wraps(handler)
    async def endpoint(*values: Any) -> Any:
        try:
            return await handler(**{name: value for (name, *_), value in zip(table, values, strict=True)})
        except gr.Error:  # first, because Gradio's is a ValueError too, and its text as such has quotes
            raise
        except ValueError as error:
            raise gr.Error(one_line(error), print_exception=False) from None
        except Exception as error:
            log.exception("/%s failed", handler.__name__)
            raise gr.Error(sentence(error), print_exception=False) from None

    signed: Any = endpoint  # what is read of a function here, its type does not say
    del signed.__wrapped__  # whose signature would hide the table's

    endpoint.__annotations__ = {name: kind for name, kind, _, _ in table}
    kinds = tuple(kind for _, kind in returns)
    signed.__signature__ = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
            for name, kind, default, _ in table
        ],
        return_annotation=GenericAlias(tuple, kinds) if len(kinds) > 1 else kinds[0],
    )
    # MCP clients are told of a parameter what the docstring says of it
    about = handler.__doc__ or ""
    endpoint.__doc__ = "\n".join([about, "Args:", *(f"{name}: {text}" for name, _, _, text in table)])
    event = gr.api(
        endpoint,
        api_name=handler.__name__,
        api_description=" ".join(about.split()),
        concurrency_limit=None,
    )
    function = page.fns[event["id"]]
    # Gradio numbers names that are taken: whoever adds an event under a name of the API before it breaks its clients
    assert function.api_name == handler.__name__, f"/{handler.__name__} became /{function.api_name}"
    component: Any
    for component, (_, kind, _, text) in zip(function.inputs, table, strict=True):
        component.label = text
        if kind is Upload or Upload in get_args(kind):
            component._api_info = _schema(kind)
    for component, label in zip(function.outputs, (name for name, _ in returns), strict=True):
        component.label = label
        serve_in_place(component)


def _schema(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type with `Upload`, which Gradio cannot make. From it clients know that they upload a
    file."""
    file = FileData.model_json_schema()
    shared = {"$defs": file.pop("$defs")} if "$defs" in file else {}  # where its references look for them
    known = {Upload: file, str: {"type": "string"}, type(None): {"type": "null"}}
    kinds = sorted(get_args(kind) or (kind,), key=lambda one: one is not type(None))
    return shared | (known[kinds[0]] if len(kinds) == 1 else {"oneOf": [known[one] for one in kinds]})


def uploaded(name: str, value: Any) -> str:
    """The path of a file that a client uploaded. Raises ValueError for anything else: whoever names a file of the
    server's does not get it."""
    path = value.get("path") if isinstance(value, dict) else None
    if isinstance(path, str) and "\0" not in path:
        file = Path(path).resolve()
        if Path(get_upload_folder()).resolve() in file.parents and file.is_file():
            return str(file)
    raise ValueError(NOT_UPLOADED.format(name=name))
