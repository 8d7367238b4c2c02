"""What the server hands out and to whom, and that the page needs nothing from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from app_server import running_page, served
from browser import Watch, chromium, needs_chromium, open_page
from fake_pipeline import FakePipeline
from gradio_client import Client

import app
from ui.access.login import VARIABLE, read_logins

ROOT = Path(__file__).parents[1]
JOB = "20260102-030405-0123456789ab"


def get(address: str, path: str):
    """Status, headers and body, whatever the status is."""
    try:
        with urllib.request.urlopen(address + path) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An output folder with everything that might lie in one, and a secret beside it."""
    outside = tmp_path_factory.mktemp("outside")
    output = tmp_path_factory.mktemp("outputs").resolve()
    (outside / "secret.mp4").write_text("SECRET")
    job = output / JOB
    (job / ".hidden").mkdir(parents=True)
    for name in ("dense.mp4", "report.json", "sweep.csv"):
        (job / name).write_text("VIDEO")
    for name in ("key.pem", "sparse.attention.npz", ".partial.mp4", ".hidden/a.mp4"):
        (job / name).write_text("SECRET")
    for name in (".app/key", ".app/history.sqlite", "history.sqlite", "secrets.json", "Notes/a.mp4"):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("SECRET")
    (job / "link.mp4").symlink_to(outside / "secret.mp4")
    (job / "inner.mp4").symlink_to(output / "history.sqlite")
    (output / "20260102-030405-aaaaaaaaaaaa").symlink_to(outside)
    with served(output) as address:
        yield address, output, outside


class TestFiles:
    @pytest.mark.parametrize("name", ["dense.mp4", "report.json", "sweep.csv"])
    def test_media_of_jobs_are_served(self, place, name):
        address, output, _ = place
        assert get(address, f"/gradio_api/file={output / JOB / name}")[::2] == (200, b"VIDEO")

    @pytest.mark.parametrize(
        "path",
        [
            pytest.param("{output}/history.sqlite", id="database"),
            pytest.param("{output}/.app/history.sqlite", id="private database"),
            pytest.param("{output}/.app/key", id="signing key"),
            pytest.param("{output}/secrets.json", id="file beside the jobs"),
            pytest.param("{output}/Notes/a.mp4", id="folder that is no job"),
            pytest.param("{output}/{job}/key.pem", id="other file of a job"),
            pytest.param("{output}/{job}/sparse.attention.npz", id="record"),
            pytest.param("{output}/{job}/.partial.mp4", id="hidden file"),
            pytest.param("{output}/{job}/.hidden/a.mp4", id="hidden folder"),
            pytest.param("{output}/{job}/link.mp4", id="link to the outside"),
            pytest.param("{output}/{job}/inner.mp4", id="link to the database"),
            pytest.param("{output}/20260102-030405-aaaaaaaaaaaa/secret.mp4", id="linked folder"),
            pytest.param("{output}/{job}/../history.sqlite", id="dots"),
            pytest.param("{output}/{job}/../../../../../../etc/passwd", id="many dots"),
            pytest.param("{outside}/secret.mp4", id="outside"),
            pytest.param("/etc/passwd", id="passwd"),
            pytest.param("//etc/passwd", id="two slashes"),
            pytest.param("{root}/app.py", id="the program"),
            pytest.param("app.py", id="relative"),
            pytest.param("http://example.com/", id="another host"),
            pytest.param("file:///etc/passwd", id="file url"),
            pytest.param("{output}", id="the folder"),
            pytest.param("{output}/{job}/dense.mp4\0.mp4", id="null byte"),
        ],
    )
    @pytest.mark.parametrize("route", ["file=", "file/", "proxy="])
    @pytest.mark.parametrize("quote", [urllib.parse.quote, lambda text: urllib.parse.quote(text, safe="")])
    def test_nothing_else_is(self, place, path, route, quote):
        address, output, outside = place
        wanted = path.format(output=output, job=JOB, outside=outside, root=ROOT)
        status, _, body = get(address, f"/gradio_api/{route}{quote(wanted)}")
        assert status in (400, 403, 404)
        assert b"SECRET" not in body and b"root:" not in body

    def test_security_headers(self, place):
        address, _, _ = place
        _, headers, _ = get(address, "/")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "connect-src 'self'" in headers["Content-Security-Policy"]

    def test_an_upload_beyond_the_limit_is_refused(self, tmp_path):
        with served(tmp_path, max_upload=1000) as address:
            for size, expected in ((900, 200), (5000, 413)):
                body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n' + b"0" * size
                request = urllib.request.Request(
                    f"{address}/gradio_api/upload",
                    body + b"\r\n--x--\r\n",
                    {"Content-Type": "multipart/form-data; boundary=x"},
                )
                try:
                    status = urllib.request.urlopen(request).status
                except urllib.error.HTTPError as error:
                    status = error.code
                assert status == expected


class TestLogin:
    def test_sources(self, tmp_path, monkeypatch):
        file = tmp_path / "logins"
        file.write_text("bob:b:c\n\n  eve:e \n", encoding="utf-8-sig")  # with a byte-order mark, as Windows has it
        monkeypatch.setenv(VARIABLE, "env:secret\n")
        logins = read_logins(["ada:lovelace"], file)
        assert logins == [("ada", "lovelace"), ("env", "secret"), ("bob", "b:c"), ("eve", "e")]
        assert VARIABLE not in os.environ  # and so in no child's
        assert read_logins() == []

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            pytest.param(["adahunter2"], "login 1 of --auth is not name:password", id="no colon"),
            pytest.param([":hunter2"], "login 1 of --auth is not name:password", id="no name"),
            pytest.param(["ada:"], "login 1 of --auth is not name:password", id="no password"),
            pytest.param([""], "login 1 of --auth is not name:password", id="empty"),
            pytest.param(["ada:hunter2", "ada:hunter3"], "the login name 'ada' is there twice", id="twice"),
        ],
    )
    def test_refuses_without_repeating_a_password(self, options, sentence):
        with pytest.raises(ValueError) as caught:
            read_logins(options)
        assert str(caught.value).startswith(sentence)
        assert "hunter" not in str(caught.value)

    def test_a_file_that_cannot_be_used(self, tmp_path):
        (tmp_path / "empty").write_text("\n")
        with pytest.raises(ValueError, match="is empty; write one name:password"):
            read_logins((), tmp_path / "empty")
        with pytest.raises(ValueError, match="cannot be read"):
            read_logins((), tmp_path / "missing")

    def test_without_a_login_nothing_is_told(self, tmp_path):
        with served(tmp_path, logins=[("ada", "hunter2")]) as address:
            for path in (
                "config",
                "gradio_api/info",
                "gradio_api/openapi.json",
                "gradio_api/file=/tmp/a",
                "monitoring",
            ):
                assert get(address, f"/{path}")[0] in (401, 403, 404), path
            assert b"hunter2" not in get(address, "/")[2]
            with pytest.raises(Exception, match="(?i)login|auth|credentials"):
                Client(address, verbose=False, auth=("ada", "wrong"))
            client = Client(address, verbose=False, auth=("ada", "hunter2"))
            assert client.predict("a", job_id="first", api_name="/generate")[1]["job_id"] == "first"
            # the same login from another client owns the same jobs
            other = Client(address, verbose=False, auth=("ada", "hunter2"))
            assert other.predict("first", api_name="/cancel")["state"] == "done"


class TestCommandLine:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            pytest.param(["--auth", "nobody"], "error: login 1 of --auth is not name:password", id="login"),
            pytest.param(["--max-upload", "0"], "'0' is not a size; use a whole number of MiB", id="upload"),
        ],
    )
    def test_refuses(self, options, sentence, tmp_path):
        done = subprocess.run(
            [sys.executable, "app.py", "--device", "cpu", "--output-dir", tmp_path, *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert sentence in done.stderr

    def test_mcp_without_its_package_is_a_sentence(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match="--mcp needs the package mcp, which is not installed"):
            app.check_mcp()


@needs_chromium
def test_no_tab_asks_another_host(tmp_path):
    with running_page(FakePipeline(), tmp_path) as address, chromium() as browser:
        watch = Watch()
        page = open_page(browser, address, watch)
        for tab in page.locator("#details").get_by_role("tab").all():
            tab.click()
            page.wait_for_timeout(300)
        page.get_by_role("button", name="Use via API").click()
        page.get_by_text("API documentation").first.wait_for()
        page.wait_for_timeout(500)
        assert not watch.foreign
        # and where a script tried to, the browser refuses it before a packet leaves
        refused = page.evaluate("fetch('https://example.com/').then(() => 'sent', () => 'refused')")
        assert refused == "refused"
