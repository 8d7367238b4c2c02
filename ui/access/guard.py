"""An ASGI layer around the whole app. Before Gradio does, it decides which requests pass and which files are served."""

from __future__ import annotations

import asyncio
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse

from ui.access.bodies import LARGEST, MOST_AT_ONCE, TOO_LARGE, TOO_MANY, Refused, check_body
from ui.access.hosts import Hosts
from ui.access.login import Throttle
from ui.access.presence import Presence, session_of_stream
from ui.storage.disk import Disk
from ui.storage.files import FOLDER

SERVED = (".mp4", ".json", ".csv", ".png", ".jpg", ".webp")
_UPLOAD = re.compile(r"/gradio_api/upload/?$")
_LOGIN = re.compile(r"/login/?$")
# Gradio's screen recorder passes any upload to ffmpeg. This page does not offer it.
_CONTROLS = re.compile(r"[\0-\x1f\x7f]")  # Gradio cannot make an address of such a path
_UNUSED = re.compile(r"/gradio_api/process_recording/?$")
_FILE = re.compile(r"/gradio_api/(?:file[=/]|proxy=)(?P<path>.*)$", re.DOTALL)
# With this policy the browser lets the page fetch nothing from other hosts. Gradio compiles templates and needs eval.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
    )
)
SAME_FRAME = "frame-ancestors 'self'"
SPACES_FRAME = "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co https://*.hf.space"
REFUSED = "This file is not served."
ODD_PATH = "The path has control characters."
UNUSED = "This server does not offer that."
SLOWLY = "Too many logins failed from this address; try again in {seconds} s."
MOST_SEEN = 10_000

MaySee = Callable[[str, str], bool]


class Guard:
    """Protects the app.

    It answers only requests that are meant for this server and sent by its own pages or by programs. From the output
    folder it serves only media and tables in folders of jobs, and with logins only to the owner of the job. It fetches
    nothing from other hosts on behalf of a client. It adds security headers to every answer.

    cache: Gradio's folder of files that it serves; it may lie inside the output folder.
    hosts: the names of this server.
    may_see: called with a job's id and an owner; returns whether the job belongs to the owner. Used only with logins.
        Without logins, anyone who knows a file's path may read it, but a visitor cannot guess it.
    space: whether the app runs as a Hugging Face Space, which shows the page in a frame. Otherwise no other site may
        frame the page, and the browser may not contact other hosts.
    disk: says whether there is room for an upload, and is tidied after each one.
    presence: learns which clients are connected.
    """

    def __init__(
        self,
        app: Any,
        output_dir: Path,
        cache: Path,
        hosts: Hosts | None = None,
        may_see: MaySee = lambda job_id, owner: True,
        space: bool = False,
        disk: Disk | None = None,
        presence: Presence | None = None,
    ) -> None:
        self._app = app
        self._output_dir = output_dir.resolve()
        self._cache = cache.resolve()
        self._hosts = Hosts() if hosts is None else hosts
        self._may_see = may_see
        self._disk = disk
        self._presence = presence or Presence()
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._throttle = Throttle()
        self._reading = 0  # bytes of bodies
        self._headers = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
        if space:
            self._headers["Content-Security-Policy"] = SPACES_FRAME
        else:
            self._headers |= {"Content-Security-Policy": f"{POLICY}; {SAME_FRAME}", "X-Frame-Options": "SAMEORIGIN"}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":  # Gradio uses none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        async def refuse(text: str, status: int, headers: dict[str, str] | None = None) -> None:
            await PlainTextResponse(text, status_code=status, headers=headers)(scope, receive, send_with_headers)

        headers, path, posted = Headers(scope=scope), scope["path"], scope["method"] == "POST"
        multipart = headers.get("content-type", "").startswith("multipart/")
        if reason := self._hosts.refusal(headers):
            await refuse(reason, 403)
            return
        if _CONTROLS.search(path):
            await refuse(ODD_PATH, 400)
            return
        if _UNUSED.search(path):
            await refuse(UNUSED, 403)
            return
        wanted = _FILE.search(path)
        if wanted is not None and not await asyncio.to_thread(self._serves, wanted["path"], scope, headers):
            await refuse(REFUSED, 403)
            return
        if wanted is not None and "range" in headers:
            # Gradio fails at several ranges, and answers one with the request's headers. What it does not recognise it
            # leaves to Starlette, which knows them all; the unit may be written either way.
            scope["headers"] = [
                (name, value.upper() if name == b"range" else value) for name, value in scope["headers"]
            ]
        if posted and multipart and _UPLOAD.search(path):
            await self._upload(scope, receive, send_with_headers, refuse)
            return
        if scope["method"] not in ("GET", "HEAD"):
            try:
                receive = await self._checked(headers, receive)
            except Refused as refused:
                await refuse(str(refused), refused.status)
                return
        if posted and _LOGIN.search(path):
            await self._log_in(scope, receive, send_with_headers, refuse)
            return
        if not posted and (session := session_of_stream(path, scope["query_string"])):
            with self._presence.connected(session):
                await self._app(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    async def _checked(self, headers: Headers, receive: Any) -> Any:
        """Read the whole body and check it. Returns a `receive` that gives it again. Raises `Refused`."""
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said) > LARGEST:
            raise Refused(TOO_LARGE, 413)
        pieces, size, more = [], 0, True
        try:
            while more:
                message = await receive()
                if message["type"] != "http.request":  # the client is gone
                    return _again(message, receive)
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                self._reading += len(pieces[-1])
                more = message.get("more_body", False)
                if size > LARGEST:
                    raise Refused(TOO_LARGE, 413)
                if self._reading > MOST_AT_ONCE:
                    raise Refused(TOO_MANY, 503)
        finally:
            self._reading -= size
        body = b"".join(pieces)
        check_body(body)
        return _again({"type": "http.request", "body": body, "more_body": False}, receive)

    async def _upload(self, scope: Any, receive: Any, send: Any, refuse: Any) -> None:
        if self._disk is None:
            await self._app(scope, receive, send)
            return
        size = Headers(scope=scope).get("content-length", "")
        if reason := self._disk.refusal(int(size) if size.isdecimal() else 0):
            await refuse(reason, 507)
            return
        try:
            with self._disk.uploading():
                await self._app(scope, receive, send)
        finally:
            await asyncio.to_thread(self._disk.tidy)

    async def _log_in(self, scope: Any, receive: Any, send: Any, refuse: Any) -> None:
        address = scope["client"][0] if scope.get("client") else ""
        if seconds := self._throttle.begin(address):
            await refuse(SLOWLY.format(seconds=seconds), 429, {"Retry-After": str(seconds)})
            return

        async def note(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self._throttle.succeeded(address)
            await send(message)

        await self._app(scope, receive, note)

    def _serves(self, text: str, scope: Any, headers: Headers) -> bool:
        """Whether the file at a path may be served. Outside the output folder, Gradio decides: it knows its cache."""
        if "://" in text or "\0" in text:
            return False
        try:
            file = Path(os.path.abspath(text))
            return all(self._allows(path, scope, headers) for path in (file, file.resolve()))
        except (OSError, ValueError):
            return False

    def _allows(self, path: Path, scope: Any, headers: Headers) -> bool:
        if self._output_dir not in path.parents or self._cache in path.parents:
            return True
        folder, *inner = path.relative_to(self._output_dir).parts
        shown = not any(part.startswith(".") for part in inner)
        media = bool(inner) and shown and bool(FOLDER.fullmatch(folder)) and path.suffix.lower() in SERVED
        return media and self._is_owners(folder, scope, headers)

    def _is_owners(self, folder: str, scope: Any, headers: Headers) -> bool:
        """Whether a job's folder belongs to the visitor who is logged in. True if no login is required."""
        gradio = scope["app"]
        if gradio.auth is None:
            return True
        cookies = cookie_parser(headers.get("cookie", ""))
        tickets = (cookies.get(f"access-token-{kind}{gradio.cookie_id}") for kind in ("", "unsecure-"))
        name = gradio.tokens.get(next(filter(None, tickets), None))
        if name is None:
            return False
        key = folder, f"login:{name}"
        if key not in self._seen:
            if not self._may_see(folder.rpartition("-")[2], key[1]):
                return False
            self._seen[key] = None
            while len(self._seen) > MOST_SEEN:
                self._seen.popitem(last=False)
        return True


def _again(message: Any, receive: Any) -> Any:
    waiting = [message]

    async def give() -> Any:
        return waiting.pop() if waiting else await receive()

    return give
