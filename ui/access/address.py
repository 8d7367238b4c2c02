"""The address that the server listens on: whether this machine has it, and its port is free, told before loading."""

from __future__ import annotations

import errno
import socket

UNKNOWN = "--host {host} is no address of this machine ({reason}); use 127.0.0.1, or 0.0.0.0 for every network"
TAKEN = "port {port} of {host} is taken; try --port {other}"
FORBIDDEN = "port {port} of {host} is not allowed; try --port {other}"
FAILED = "cannot listen on port {port} of {host} ({reason}); try another --host or --port"
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL)


def check_address(host: str, port: int) -> None:
    """Bind to it for a moment, and to the port of 127.0.0.1, where Gradio looks whether it is free.

    Raises:
        ValueError: the host is no name or address of this machine.
        OSError: the port is taken or not allowed.
    """
    for name in dict.fromkeys((host, "127.0.0.1")):
        try:
            places = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (socket.gaierror, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no host name"
            raise ValueError(UNKNOWN.format(host=name, reason=reason)) from None
        for family, kind, protocol, _, place in places:
            try:
                with socket.socket(family, kind, protocol) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:  # as the server has it: its IPv4 is another place
                        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    probe.bind(place)
            except OSError as error:
                if error.errno in _NOT_HERE:
                    raise ValueError(UNKNOWN.format(host=name, reason=error.strerror)) from None
                raise OSError(_sentence(error, name, port)) from None


def taken(host: str, port: int) -> str:
    """The sentence for a port that somebody else listens on."""
    return TAKEN.format(host=host, port=port, other=port % 65535 + 1)


def _sentence(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return taken(host, port)
    if error.errno in (errno.EACCES, errno.EPERM):
        return FORBIDDEN.format(host=host, port=port, other=7860 if port != 7860 else 7861)
    return FAILED.format(host=host, port=port, reason=error.strerror)
