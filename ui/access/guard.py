"""What the server hands out, whatever Gradio would: an ASGI layer around the whole app."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse

from ui.jobs.files import FOLDER

SERVED = (".mp4", ".json", ".csv", ".png", ".jpg", ".webp")
_FILE = re.compile(r"/gradio_api/(?:file[=/]|proxy=)(?P<path>.*)$", re.DOTALL)
# The page fetches nothing from elsewhere, and here the browser sees to it. Gradio compiles templates, hence the eval.
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
REFUSED = "This file is not served."


class Guard:
    """Serves of the output folder only the media and tables in folders of jobs, fetches nothing from elsewhere on a
    client's behalf, and sends security headers.

    cache: Gradio's own folder of files that it serves, which may lie in the output folder.
    strict: send the policy that keeps the browser from asking other hosts, too; the Hugging Face frame needs it off.
    """

    def __init__(self, app: Any, output_dir: Path, cache: Path, strict: bool = True) -> None:
        self._app = app
        self._output_dir = output_dir.resolve()
        self._cache = cache.resolve()
        self._headers = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
        if strict:
            self._headers["Content-Security-Policy"] = POLICY

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        wanted = _FILE.search(scope["path"])
        if wanted is not None and not self._serves(wanted["path"]):
            await PlainTextResponse(REFUSED, status_code=403)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _serves(self, text: str) -> bool:
        """Whether a path may be asked for; outside of the output folder Gradio decides, which knows its cache."""
        if "://" in text or "\0" in text:
            return False
        try:
            file = Path(os.path.abspath(text))
            return all(self._allows(path) for path in (file, file.resolve()))
        except OSError:
            return False

    def _allows(self, path: Path) -> bool:
        if self._output_dir not in path.parents or self._cache in path.parents:
            return True
        folder, *inner = path.relative_to(self._output_dir).parts
        shown = not any(part.startswith(".") for part in inner)
        return bool(inner) and shown and bool(FOLDER.fullmatch(folder)) and path.suffix.lower() in SERVED
