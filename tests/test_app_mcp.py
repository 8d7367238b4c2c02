"""The API as tools of the Model Context Protocol: the real client against a live server over the fake pipeline."""

from __future__ import annotations

import ast
import asyncio
from functools import partial

import httpx
import pytest
from app_server import running_page
from fake_pipeline import FakePipeline
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, Tool

import app


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "serve", partial(app.serve, mcp=True))
        with running_page(FakePipeline(fail_with=RuntimeError("broken")), tmp_path_factory.mktemp("outputs")) as page:
            yield page


@pytest.fixture(scope="module")
def tools(address) -> dict[str, Tool]:
    async def listed(session: ClientSession) -> list[Tool]:
        return (await session.list_tools()).tools

    return {tool.name: tool for tool in in_session(address, listed)}


def in_session(address: str, what):
    async def run():
        async with streamable_http_client(f"{address}/gradio_api/mcp/") as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                return await what(session)

    return asyncio.run(run())


def call(address: str, tool: str, **arguments) -> CallToolResult:
    return in_session(address, lambda session: session.call_tool(tool, arguments))


def test_the_tools_are_the_named_endpoints(tools):
    names = "cancel compare continue estimate find generate image_to_video inspect long refine refine_long"
    names += " resources result sweep"
    assert set(tools) == set(names.split())


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        pytest.param("generate", "Returns the video (MP4, H.264) and a report", id="generate"),
        pytest.param("compare", "with dense and with block sparse attention", id="compare"),
        pytest.param("estimate", "Makes nothing. Fails with the numbers if the video cannot fit.", id="estimate"),
    ],
)
def test_a_tool_is_described_by_its_docstring(tools, tool, words):
    assert words in tools[tool].description


def test_parameters_have_types_defaults_and_words_and_only_the_prompt_is_required(tools):
    schema = tools["generate"].inputSchema
    assert schema["required"] == ["prompt"]
    assert schema["properties"]["width"].items() >= {"type": "integer", "default": 96}.items()
    assert all(value["description"] for tool in tools.values() for value in tool.inputSchema["properties"].values())
    assert schema["properties"]["chunk_q"].items() >= {"type": "array", "default": [4, 4, 4]}.items()


def test_generate_gives_the_report_and_an_address_that_serves_the_video(address):
    result = call(address, "generate", prompt="a red ball", seed=5, num_frames=9)
    assert not result.isError
    video, report = ast.literal_eval(result.content[0].text)  # Gradio writes Python, not JSON
    assert (report["request"]["seed"], report["bsa_active"]) == (5, True)
    assert httpx.get(video["url"]).content[4:8] == b"ftyp"  # the first box of an MP4 file


@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        pytest.param("estimate", {"width": 97}, "width 97 is not a multiple of 16; try 96 or 112", id="bad size"),
        pytest.param("generate", {"prompt": "please fail"}, "RuntimeError: broken", id="fault"),
        pytest.param("cancel", {"job_id": "nobody's"}, "is not a job of yours", id="unknown job"),
    ],
)
def test_an_error_arrives_with_its_sentence(address, tool, arguments, sentence):
    result = call(address, tool, **arguments)
    assert result.isError
    assert sentence in result.content[0].text


def test_mcp_and_a_login_exclude_each_other(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(app, "serve", lambda *args, **options: None)  # else a server that nobody ends
    assert app.main(["--mcp", "--auth", "ann:secret", "--output-dir", str(tmp_path)]) == 2
    assert "--mcp cannot ask for a login" in capsys.readouterr().err
