"""A little Hugging Face Hub on loopback: the requests that huggingface_hub makes for one model, and their faults."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Serves the folder `root` as the model `repo`.

    status: answer everything with this code and error. break_after: close the connection of the first large file
    after so many bytes, once. pause: seconds between pieces of a large file. sent: bytes sent of each file.
    """

    root: Path
    repo: str = "someone/longcat"
    status: int = 200
    error: str = ""
    break_after: int = 0
    pause: float = 0.0
    sent: dict[str, int] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    going: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.going.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this lasts, no file comes to its end."""
        self.going.clear()
        try:
            yield
        finally:
            self.going.set()

    def listing(self) -> dict:
        files = [path for path in self.root.rglob("*") if path.is_file()]
        names = [{"rfilename": str(path.relative_to(self.root)), "size": path.stat().st_size} for path in files]
        return {"id": self.repo, "modelId": self.repo, "sha": COMMIT, "siblings": names, "tags": [], "private": False}


@contextmanager
def serving(hub: FakeHub, monkeypatch, cache: Path) -> Iterator[FakeHub]:
    """Run it and point huggingface_hub, with an empty cache, to it."""
    from huggingface_hub import constants

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub = self.hub
        path = self.path.partition("?")[0]
        if hub.status != 200 or hub.repo not in path:
            self._fail(*(hub.status, hub.error) if hub.status != 200 else (404, "RepoNotFound"))
        elif path.startswith("/api/models/"):
            self._send(json.dumps(hub.listing()).encode(), {"Content-Type": "application/json"}, with_body)
        else:
            name = re.sub(r"^.*/resolve/[^/]+/", "", path)
            file = hub.root / name
            if not file.is_file():
                self._fail(404, "EntryNotFound")
                return
            content = file.read_bytes()
            etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(content, {**etag, "Accept-Ranges": "bytes"}, with_body, name)

    def _fail(self, status: int, error: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, headers: dict[str, str], with_body: bool, name: str = "") -> None:
        hub, total, start = self.hub, len(content), 0
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
            content = content[start : int(asked[2]) + 1 if asked[2] else None]
            hub.ranges.append(f"{name} from {start}")
        self.send_response(206 if asked else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not with_body:
            return
        piece = 64 * 1024
        hub.going.wait()
        for begin in range(0, len(content), piece):
            if hub.break_after and total > hub.break_after and begin >= hub.break_after:
                hub.break_after = 0
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(content[begin : begin + piece])
            if name:
                hub.sent[name] = hub.sent.get(name, 0) + len(content[begin : begin + piece])
            if hub.pause and total > piece:
                time.sleep(hub.pause)
