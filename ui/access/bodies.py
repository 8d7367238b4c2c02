"""Checks the body of a request before Gradio reads it.

Gradio fetches any file that a client names, even from `http://...`, so a client could make it contact hosts that only
this machine can reach. No client needs this here, because files are uploaded. Besides, JSON that is nested too deeply
crashes its parser, or the code that handles it later.
"""

from __future__ import annotations

import json
from typing import Any

LARGEST = 4 * 2**20  # bytes of a request that is no upload; the form takes a few kilobytes
MOST_AT_ONCE = 64 * 2**20  # bytes of all requests that are being read, each by Gradio's parsers too
LONGEST_SESSION = 64  # characters of a session's name, which clients choose; Gradio's own have 11 and 36
DEEPEST = 64  # levels of lists and objects; the page and the clients send about ten

TOO_LARGE = f"The request is larger than {LARGEST >> 20} MiB; upload files instead of sending them inside it."
TOO_MANY = "The server is reading the requests of others; try again in a moment."
TOO_DEEP = f"The request's JSON is nested more than {DEEPEST} levels deep."
LONG_NUMBER = "The request has a number of thousands of digits; send a shorter one."
LONG_SESSION = f"The request's session_hash is no text of at most {LONGEST_SESSION} characters."
ELSEWHERE = "A file in the request has the address {path}; upload the file, this server fetches none from elsewhere."


class Refused(ValueError):
    """A request that is not passed on. The text is the answer, `status` its HTTP status."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


def check_body(body: bytes) -> None:
    """Raise `Refused` for JSON that names files elsewhere, is nested too deeply or has a long name for its session.

    What is no JSON, Gradio refuses.
    """
    paths: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # if a key appears twice, another parser may take the other value
        paths.extend(value for key, value in pairs if key == "path" and isinstance(value, str))
        return dict(pairs)

    if not body:
        return
    try:
        content = json.loads(body, object_pairs_hook=note)
    except RecursionError:
        raise Refused(TOO_DEEP) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        return
    except ValueError:  # Python reads no number of more than 4,300 digits
        raise Refused(LONG_NUMBER) from None
    session = content.get("session_hash") if isinstance(content, dict) else None
    if session is not None and not (isinstance(session, str) and len(session) <= LONGEST_SESSION):
        raise Refused(LONG_SESSION)
    for path in paths:
        if "://" in path:
            raise Refused(ELSEWHERE.format(path=ascii(path[:80])))
    if _depth(content) > DEEPEST:
        raise Refused(TOO_DEEP)


def _depth(content: Any) -> int:
    depth, level = 0, [content]
    while level := [
        inner
        for value in level
        if isinstance(value, dict | list)
        for inner in (value.values() if isinstance(value, dict) else value)
    ]:
        depth += 1
        if depth > DEEPEST:
            break
    return depth
