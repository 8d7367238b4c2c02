"""Reads logins from the command line, a file or the environment, and limits how often a password can be guessed."""

from __future__ import annotations

import ipaddress
import math
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from pathlib import Path

VARIABLE = "BSA_AUTH"
TRIES, WINDOW = 10, 60.0  # failed logins that one address may make in this many seconds
MOST_ADDRESSES = 10_000


def read_logins(options: Iterable[str] = (), file: Path | None = None) -> list[tuple[str, str]]:
    """Return all logins as (name, password). An empty list lets everybody in.

    options: texts "name:password". They are visible in the system's list of processes, unlike the other two sources.
    file: has one "name:password" per line. The environment variable BSA_AUTH has the same lines. It is removed, so that
    programs started later do not inherit it.

    Raises:
        ValueError: an entry is not name:password, a name appears twice, or the file cannot be read. No message repeats
            a password.
    """
    sources = [("--auth", list(options)), (VARIABLE, os.environ.pop(VARIABLE, "").splitlines())]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ValueError(
                f"the login file {file} cannot be read ({reason}); give another with --auth-file"
            ) from None
        if not any(map(str.strip, lines)):
            raise ValueError(f"the login file {file} is empty; write one name:password on each line")
        sources.append((str(file), lines))
    logins: dict[str, str] = {}
    for source, lines in sources:
        for number, line in enumerate(lines, 1):
            if not line.strip() and source != "--auth":
                continue
            name, colon, password = line.strip().partition(":")
            if not (name and colon and password):
                raise ValueError(f"login {number} of {source} is not name:password; write one such as ada:secret")
            if name in logins:
                raise ValueError(f"the login name {name!r} is there twice; remove one")
            logins[name] = password
    return list(logins.items())


class Throttle:
    """Limits how many passwords one address may guess. Successful logins do not count.

    clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def begin(self, address: str) -> int:
        """Note a try, as failed until `succeeded`. Returns 0, or the seconds to wait where it may not be made."""
        now, group = self._clock(), network(address)
        times = self._failed.setdefault(group, deque())
        self._failed.move_to_end(group)
        while len(self._failed) > MOST_ADDRESSES:
            self._failed.popitem(last=False)
        while times and times[0] <= now - WINDOW:
            times.popleft()
        if len(times) >= TRIES:
            return max(1, math.ceil(times[0] + WINDOW - now))
        times.append(now)
        return 0

    def succeeded(self, address: str) -> None:
        if times := self._failed.get(network(address)):
            times.pop()


def network(address: str) -> str:
    """What stands for everybody who may send from an address: who has one IPv6 address has the 2^64 beside it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 and not ip.ipv4_mapped else str(ip)
