"""Who may log in: names and passwords from the command line, a file or the environment."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "BSA_AUTH"


def read_logins(options: Iterable[str] = (), file: Path | None = None) -> list[tuple[str, str]]:
    """All logins as (name, password); none at all means that everybody may come in.

    options: "name:password" each. file: one such line for each. The environment variable BSA_AUTH has lines like the
    file's and is removed, so that no other program that is started inherits it. Unlike the others, what is written on
    the command line shows in the system's list of processes.

    Raises:
        ValueError: something is not name:password, a name is there twice, or the file cannot be read. No sentence
            repeats a password.
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
