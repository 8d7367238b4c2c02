"""Decides which host names this server answers to, and which pages may send it requests.

A page of another site can make a visitor's browser send requests here. If it makes its own name point to this machine
(DNS rebinding), it can read the answers as well. Two headers reveal this, because the browser sets them and no page can
change them: `Host` names the destination of a request, `Origin` the site of the page that sent it. Programs other than
browsers send no `Origin`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping

from pipeline.request.sentences import visible

ALLOWED = "BSA_ALLOW_HOST"  # environment variable of app.py's --allow-host
_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
LOOPBACK = ("localhost", "*.localhost")  # browsers treat the latter as loopback too, whatever a name server says
_SPACES = ("*.hf.space",)
_SHARED = ("*.gradio.live",)

UNKNOWN_HOST = (
    "This server does not answer to the name {host}. If that is its name, start it with --allow-host {host}, or use "
    "its IP address."
)
FOREIGN_ORIGIN = (
    "This request comes from a page of {origin}, not of this server, and was refused. If that page is to use it, start "
    "the server with --allow-host and the page's host name."
)


class Hosts:
    """Accepts requests that are meant for this server and come from its own pages or from programs. Refuses all others.

    names: host names that the server answers to, without a port; `*.example.org` stands for all names below it. IP
        addresses are always accepted, because no name server can lie about them.
    origins: hosts whose pages may send requests although the `Host` differs, as behind a proxy that rewrites it.
    """

    def __init__(self, names: Iterable[str] = LOOPBACK, origins: Iterable[str] = ()) -> None:
        self._names = _Names(names)
        self._origins = _Names(origins)

    @classmethod
    def of_server(cls, host: str, allowed: Iterable[str] = (), share: bool = False) -> Hosts:
        """Collect the names of a server that listens on `host`.

        These are the names of the server and its machine, the names that the user allowed, and the name of the Space or
        the public link in front of it.

        Raises:
            ValueError: one of `allowed` is not a host name.
        """
        chosen = [_checked(text) for text in allowed]
        names = [*LOOPBACK, host, socket.gethostname(), f"{socket.gethostname()}.local"]
        if "SPACE_ID" in os.environ:
            chosen += [os.environ["SPACE_HOST"]] if os.environ.get("SPACE_HOST") else []
            names += _SPACES
        if share:
            names += _SHARED
        return cls([*names, *chosen], chosen)

    def refusal(self, headers: Mapping[str, str]) -> str | None:
        """The reason to refuse a request with these headers, or None."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not _is_address(name := _name_of(host)) and name not in self._names:
            return UNKNOWN_HOST.format(host=visible(name[:80]))
        if origin is not None and not self._is_own(origin.lower(), (host or "").lower()):
            return FOREIGN_ORIGIN.format(origin=visible(origin[:80]))
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        scheme, _, place = origin.partition("://")  # a sandbox or a local file sends "null", which has no host
        return scheme in ("http", "https") and bool(place) and (place == host or _name_of(place) in self._origins)


class _Names:
    def __init__(self, names: Iterable[str]) -> None:
        names = {name.lower() for name in names}
        self._exact = {name for name in names if not name.startswith("*.")}
        self._below = tuple(name[1:] for name in names if name.startswith("*."))

    def __contains__(self, name: str) -> bool:
        return name in self._exact or name.endswith(self._below)


def _checked(text: str) -> str:
    name = text.strip().lower().rstrip(".")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"--allow-host {text!r} is not a host name; use one such as video.example.org, or *.example.org for all "
            "below it, without http:// and without a port"
        )
    return name


def _name_of(host: str) -> str:
    """The name or address in a Host header, without the port."""
    name, colon, port = host.rpartition(":")
    name = (name if colon and port.isdecimal() else host).lower().rstrip(".")
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
