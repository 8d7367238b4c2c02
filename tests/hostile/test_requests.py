"""Requests that other sites, strangers and broken clients send: answered with a short refusal, never served."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from app_server import served
from gradio_client import Client

import app
from ui.access.bodies import DEEPEST, Refused, check_body
from ui.access.hosts import ALLOWED, Hosts
from ui.access.login import MOST_ADDRESSES, TRIES, WINDOW, Throttle

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with served(tmp_path_factory.mktemp("outputs")) as address:
        yield address


@pytest.fixture(scope="module")
def inside():
    """A service that only this machine can reach, and what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/secret.mp4", asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def file_handlers(address):
    """Those that take a file, as (index, number of inputs, place of the file)."""
    config = httpx.get(f"{address}/config").json()
    files = {part["id"] for part in config["components"] if part["type"] == "file"}
    found = [
        (event["id"], len(event["inputs"]), event["inputs"].index(next(iter(files.intersection(event["inputs"])))))
        for event in config["dependencies"]
        if files.intersection(event["inputs"])
    ]
    assert len(found) >= 3
    return found


class TestHostsAndOrigins:
    @pytest.mark.parametrize(
        "host",
        [
            "localhost",
            "localhost:7860",
            "127.0.0.1:80",
            "[::1]:7860",
            "[fe80::1]",
            "192.168.1.20:8080",
            "app.localhost:7860",
            "LOCALHOST.",
            None,
        ],
    )
    def test_own_names_need_no_option(self, host):
        assert Hosts.of_server("0.0.0.0").refusal({} if host is None else {"host": host}) is None

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "evil.example:7860",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evillocalhost",
            "x.hf.space",
            "x.gradio.live",
            "",
            "[::1].evil.example",
            "2130706433",
            "\x1b[31mred",
        ],
    )
    def test_other_names_are_refused(self, host):
        said = Hosts.of_server("0.0.0.0").refusal({"host": host})
        assert said.startswith("This server does not answer to the name") and "\x1b" not in said

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            pytest.param("http://localhost:7860", "localhost:7860", id="localhost"),
            pytest.param("http://127.0.0.1:9000", "127.0.0.1:9000", id="another-port-of-docker"),
            pytest.param("http://[::1]:7860", "[::1]:7860", id="ipv6"),
            pytest.param("https://VIDEO.example.org", "video.example.org", id="proxy-that-keeps-the-host"),
            pytest.param("https://video.example.org", "127.0.0.1:7860", id="proxy-that-rewrites-the-host"),
            pytest.param("https://video.example.org:8443", "127.0.0.1:7860", id="proxy-on-another-port"),
        ],
    )
    def test_own_pages_are_served(self, origin, host):
        hosts = Hosts.of_server("127.0.0.1", ["video.example.org"])
        assert hosts.refusal({"host": host, "origin": origin}) is None

    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "http://localhost:3000",
            "http://127.0.0.1:7860",
            "http://localhost",
            "null",
            "",
            "file://",
            "chrome-extension://localhost:7860",
            "http://localhost:7860.evil.example",
            "http://evil.example#localhost:7860",
            "https://x.hf.space",
        ],
    )
    def test_other_pages_are_refused(self, origin):
        said = Hosts.of_server("127.0.0.1").refusal({"host": "localhost:7860", "origin": origin})
        assert said.startswith("This request comes from a page of")

    def test_a_space_answers_to_its_own_name_and_its_own_pages(self, monkeypatch):
        monkeypatch.setenv("SPACE_ID", "someone/longcat")
        monkeypatch.setenv("SPACE_HOST", "someone-longcat.hf.space")
        hosts = Hosts.of_server("0.0.0.0")
        for host in ("someone-longcat.hf.space", "10.16.3.4:7860"):
            assert hosts.refusal({"host": host, "origin": "https://someone-longcat.hf.space"}) is None
            assert hosts.refusal({"host": host, "origin": "https://evil.hf.space"})
        assert hosts.refusal({"host": "evil.example"})

    def test_a_public_link_answers_to_gradios_names(self):
        hosts = Hosts.of_server("127.0.0.1", share=True)
        assert hosts.refusal({"host": "abc.gradio.live", "origin": "https://abc.gradio.live"}) is None
        assert hosts.refusal({"host": "abc.gradio.live", "origin": "https://evil.gradio.live"})

    def test_names_below_an_allowed_one(self):
        hosts = Hosts.of_server("0.0.0.0", ["*.example.org"])
        assert hosts.refusal({"host": "a.b.example.org"}) is None
        assert hosts.refusal({"host": "example.org"}) and hosts.refusal({"host": "evilexample.org"})

    @pytest.mark.parametrize("name", ["http://a.example", "a.example:80", "*", "*.", "a b", "", "a/b", "-", "*.*.a"])
    def test_what_is_no_name_is_refused_at_the_start(self, name, capsys, tmp_path):
        assert app.main(["--allow-host", name, "--device=cpu", f"--output-dir={tmp_path}"]) == 2
        assert "is not a host name; use one such as" in capsys.readouterr().err

    def test_names_from_the_environment(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setenv(ALLOWED, "a.example b:1")
        assert app.main(["--device=cpu", f"--output-dir={tmp_path}"]) == 2
        assert "--allow-host 'b:1' is not a host name" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "headers",
        [
            pytest.param({"Host": "evil.example"}, id="host"),
            pytest.param({"Origin": "https://evil.example"}, id="origin"),
            pytest.param({"Origin": "null"}, id="null"),
        ],
    )
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/"),
            ("GET", "/config"),
            ("POST", "/gradio_api/call/resources"),
            ("POST", "/gradio_api/queue/join"),
            ("POST", "/gradio_api/upload"),
            ("POST", "/gradio_api/mcp/"),
            ("POST", "/login"),
            ("DELETE", "/gradio_api/mcp/"),
        ],
    )
    def test_the_server_refuses(self, address, method, path, headers):
        answer = httpx.request(method, address + path, headers=headers | JSON, json={"data": []})
        assert answer.status_code == 403
        assert answer.text.startswith("This ")

    def test_scripts_and_the_page_itself_are_served(self, address):
        assert httpx.post(f"{address}/gradio_api/call/resources", json={"data": []}).status_code == 200
        own = {"Origin": address}
        assert httpx.post(f"{address}/gradio_api/call/resources", json={"data": []}, headers=own).status_code == 200
        assert "worker" in Client(address, verbose=False).predict(api_name="/resources")

    def test_no_other_site_may_frame_the_page(self, address):
        headers = httpx.get(address).headers
        assert "frame-ancestors 'self'" in headers["Content-Security-Policy"].split("; ")
        assert headers["X-Frame-Options"] == "SAMEORIGIN"

    def test_hugging_face_may_frame_its_space(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SPACE_ID", "someone/longcat")
        with served(tmp_path) as address:
            headers = httpx.get(address).headers
        assert headers["Content-Security-Policy"].startswith("frame-ancestors 'self' https://huggingface.co ")
        assert "X-Frame-Options" not in headers


class TestFilesElsewhere:
    @pytest.mark.parametrize("escaped", [False, True])
    def test_nothing_is_fetched(self, address, inside, file_handlers, escaped):
        url, asked = inside
        for index, inputs, place in file_handlers:
            data = [None] * inputs
            data[place] = {"path": url, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.mp4"}
            body = json.dumps({"data": data, "fn_index": index, "session_hash": "abc"})
            body = body.replace("/", "\\/") if escaped else body
            for path in ("queue/join", f"run/{index}", "run/predict"):
                answer = httpx.post(f"{address}/gradio_api/{path}", content=body, headers=JSON)
                assert answer.status_code == 400
                assert answer.text.startswith("A file in the request has the address 'http://127.0.0.1")
        assert not asked

    @pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-json", ""])
    def test_whatever_the_request_calls_its_body(self, address, content_type):
        body = b'{"data": [{"path": "http://a/"}]}'
        headers = {"Content-Type": content_type}
        assert httpx.post(f"{address}/gradio_api/call/resources", content=body, headers=headers).status_code == 400

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(b'{"path": "http://a/"}', id="outermost"),
            pytest.param(b'[[{"a": [{"path": "ftp://a/"}]}]]', id="inside"),
            pytest.param(b'{"path": "http://a/", "path": "/tmp/a"}', id="twice"),
            pytest.param(b'{"\\u0070ath": "http\\u003a//a/"}', id="escaped"),
            pytest.param('{"path": "http://a/"}'.encode("utf-16"), id="utf-16"),
            pytest.param(b'{"session_hash": "' + b"x" * 65 + b'"}', id="long-session"),
            pytest.param(b'{"session_hash": ["x"]}', id="session-list"),
            pytest.param(b"[" * 100_000, id="not-closed"),
            pytest.param(b"[" * 100_000 + b"]" * 100_000, id="endless"),
            pytest.param(b'{"a":' * (DEEPEST + 1) + b"1" + b"}" * (DEEPEST + 1), id="deep"),
        ],
    )
    def test_refused_bodies(self, body):
        with pytest.raises(Refused):
            check_body(body)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"null",
            b"no JSON",
            b'{"path": "/tmp/gradio/a.mp4", "url": "http://localhost:7860/gradio_api/file=/tmp/gradio/a.mp4"}',
            b'{"session_hash": "0123456789a"}',
            b'{"session_hash": null}',
            b'{"data": ["a poster that says http://example.com"]}',
            b"[" * DEEPEST + b"]" * DEEPEST,
        ],
    )
    def test_ordinary_bodies(self, body):
        check_body(body)

    def test_a_large_body_is_refused(self, address):
        body = b'{"data": ["' + b"x" * 5 * 2**20 + b'"]}'
        answer = httpx.post(f"{address}/gradio_api/call/resources", content=body, headers=JSON)
        assert answer.status_code == 413
        assert answer.text.startswith("The request is larger than 4 MiB; upload files")

    def test_deeply_nested_json_is_a_sentence(self, address):
        body = b'{"data": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
        answer = httpx.post(f"{address}/gradio_api/call/estimate", content=body, headers=JSON)
        assert (answer.status_code, answer.text) == (400, "The request's JSON is nested more than 64 levels deep.")

    def test_a_number_of_thousands_of_digits_is_a_sentence(self, address):
        content = '{"data": [' + "9" * 5000 + "]}"
        answer = httpx.post(f"{address}/gradio_api/call/estimate", content=content, headers=JSON)
        assert (answer.status_code, answer.text.partition(";")[0]) == (
            400, "The request has a number of thousands of digits"
        )  # fmt: skip

    def test_control_characters_in_a_path_are_a_sentence(self, address):
        answer = httpx.get(f"{address}/gradio_api/heartbeat/A%00")
        assert (answer.status_code, answer.text) == (400, "The path has control characters.")

    def test_the_screen_recorders_endpoint_is_closed(self, address):
        assert httpx.post(f"{address}/gradio_api/process_recording", files={"video": b"x"}).status_code == 403


class TestLogins:
    def test_guessing_is_slowed_down(self, tmp_path):
        with served(tmp_path, logins=[("ada", "right")]) as address:

            def log_in(password):
                return httpx.post(f"{address}/login", data={"username": "ada", "password": password})

            assert [log_in("right").status_code for _ in range(TRIES + 1)] == [200] * (TRIES + 1)
            assert [log_in("wrong").status_code for _ in range(TRIES)] == [400] * TRIES
            refused = log_in("right")  # nor does the right one tell a guesser anything
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["Retry-After"]) <= WINDOW
            assert refused.text.startswith("Too many logins failed from this address; try again in ")

    def test_the_window_passes(self):
        now = 100.0
        throttle = Throttle(lambda: now)
        assert [throttle.begin("1.2.3.4") for _ in range(TRIES)] == [0] * TRIES
        assert throttle.begin("1.2.3.4") == WINDOW
        assert throttle.begin("1.2.3.5") == 0
        now += WINDOW
        assert throttle.begin("1.2.3.4") == 0

    def test_all_of_an_ipv6_network_is_one_client(self):
        throttle = Throttle(lambda: 0.0)
        waits = [throttle.begin(f"2001:db8::{number:x}") for number in range(TRIES + 1)]
        assert waits == [0] * TRIES + [WINDOW]
        assert throttle.begin("2001:db8:0:1::1") == 0

    def test_memory_is_bounded(self, monkeypatch):
        monkeypatch.setattr("ui.access.login.MOST_ADDRESSES", 3)
        throttle = Throttle(lambda: 0.0)
        for number in range(10):
            throttle.begin(f"1.2.3.{number}")
        assert len(throttle._failed) == 3 < MOST_ADDRESSES

    def test_files_of_a_job_are_its_owners(self, tmp_path):
        with served(tmp_path, logins=[("ada", "a"), ("bob", "b")]) as address:
            report = Client(address, verbose=False, auth=("ada", "a")).predict("x", api_name="/generate")[1]
            file = next(tmp_path.glob("*-*/*.mp4"))
            assert report["job_id"] in file.parent.name

            def ask(name, password):
                with httpx.Client(base_url=address) as client:
                    if name:
                        client.post("/login", data={"username": name, "password": password})
                    return client.get(f"/gradio_api/file={file}").status_code

            assert ask("ada", "a") == 200
            assert ask("bob", "b") == 403
            assert ask("bob", "wrong") == 403
            assert ask("", "") == 403
