"""The public endpoints and their parameters are those of tests/data/endpoints.json, however the server was started.

Clients are written against this list: a name that changes with an option of the server breaks them.
"""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from app_server import served

LIST = Path(__file__).parent / "data" / "endpoints.json"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"model_switch": True}, id="model switch"),
        pytest.param({"logins": [("ann", "secret")]}, id="login"),
        pytest.param({"mcp": True, "model_switch": True}, id="MCP and model switch"),
    ],
)
def test_the_list_is_the_committed_one(tmp_path, options):
    with served(tmp_path, **options) as address, httpx.Client(base_url=address) as client:
        for name, password in options.get("logins", ()):
            assert client.post("/login", data={"username": name, "password": password}).is_success
        info = client.get("/gradio_api/info").raise_for_status().json()
    assert not info["unnamed_endpoints"]
    assert listed(info["named_endpoints"]) == json.loads(LIST.read_text())


def listed(endpoints: dict) -> dict:
    """{endpoint: {"parameters": {name: "type = default" as the Python client prints them}, "returns": {name: type}}}"""
    return {
        name: {
            "parameters": {one["parameter_name"]: said(one) for one in endpoint["parameters"]},
            "returns": {one["label"]: one["python_type"]["type"] for one in endpoint["returns"]},
        }
        for name, endpoint in sorted(endpoints.items())
    }


def said(parameter: dict) -> str:
    kind = parameter["python_type"]["type"]
    if not parameter["parameter_has_default"]:
        return kind
    default = parameter["parameter_default"]
    return f"{kind}{' | None' if default is None else ''} = {default!r}"
