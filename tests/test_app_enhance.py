"""Prompts that a language model rewrites: against a real server that speaks as OpenAI's do."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from app_server import running_page
from browser import button, needs_chromium, notice, open_page
from fake_pipeline import CHECKPOINT, FakePipeline
from playwright.sync_api import expect

import app
from pipeline import EMBEDDED_CHECKPOINT, inspect_checkpoint
from ui.enhance import Enhancer


class Endpoint(ThreadingHTTPServer):
    """Answers every request with `status`, `headers` and `body`, and keeps what it was asked."""

    def __init__(self):
        self.asked, self.status, self.headers, self.body = [], 200, {}, b""
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def say(self, text: str) -> None:
        self.body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST

    def log_message(self, *given):
        pass


@pytest.fixture
def endpoint():
    with Endpoint() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_prompt_is_rewritten_with_the_words_that_a_small_model_knows(endpoint):
    endpoint.say(' "A red ball bounces." ')
    known = replace(CHECKPOINT, vocabulary=inspect_checkpoint(EMBEDDED_CHECKPOINT).vocabulary)
    assert Enhancer(endpoint.url, "small", "secret").rewrite("ball", known) == "A red ball bounces."
    ((path, key, body),) = endpoint.asked
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "small")
    assert body["messages"][1] == {"role": "user", "content": "ball"}
    assert "hexagon" in body["messages"][0]["content"]
    Enhancer(endpoint.url, "small").rewrite("ball", CHECKPOINT)
    assert endpoint.asked[1][1] is None and "hexagon" not in endpoint.asked[1][2]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        pytest.param(500, b"", "the endpoint answered 500", id="error"),
        pytest.param(302, b"", "the endpoint answered 302", id="redirect"),
        pytest.param(200, b"<html>", "answered without a text", id="no JSON"),
        pytest.param(200, b"[]", "answered without a text", id="another JSON"),
        pytest.param(200, b'{"choices": [{"message": {"content": " "}}]}', "answered without a text", id="empty"),
        pytest.param(200, b'{"choices": [{"message": {"content": null}}]}', "answered without a text", id="null"),
        pytest.param(200, b"1" * 300_000, "answered without a text", id="endless"),
    ],
)
def test_what_is_no_answer_is_a_sentence_and_no_redirect_is_followed(endpoint, status, body, said):
    endpoint.status, endpoint.body, endpoint.headers = status, body, {"Location": f"{endpoint.url}/elsewhere"}
    with pytest.raises(ValueError, match=f"the prompt could not be rewritten: .*{said}"):
        Enhancer(endpoint.url, "small").rewrite("ball", CHECKPOINT)
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--enhance-url", "file:///etc/passwd", "--enhance-model", "m"], "is not the address", id="file"),
        pytest.param(["--enhance-url", "localhost:1", "--enhance-model", "m"], "is not the address", id="no scheme"),
        pytest.param(["--enhance-url", "http://localhost:1/v1"], "add --enhance-model", id="no model"),
    ],
)
def test_bad_options_are_refused_at_the_start(options, said, tmp_path, capsys):
    assert app.main([*options, "--output-dir", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


@needs_chromium
def test_the_button_is_there_only_with_an_endpoint_and_fills_the_prompt(browser, endpoint, tmp_path):
    endpoint.say("a blue star <b>spins</b>")
    with running_page(FakePipeline(), tmp_path, enhancer=Enhancer(endpoint.url, "small")) as address:
        page = open_page(browser, address)
        page.locator("#prompt textarea").fill("star")
        button(page, "Improve the prompt").click()
        expect(page.locator("#prompt textarea")).to_have_value("a blue star <b>spins</b>")
        endpoint.status = 503
        button(page, "Improve the prompt").click()
        expect(notice(page)).to_have_text("The prompt could not be rewritten: the endpoint answered 503.")
        page.context.close()
