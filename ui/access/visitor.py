"""Who is asking: a visitor of the page, recognised by its browser or by its login.

A visitor is a random number that the server signs and the browser keeps, so that a reload, a second tab and a restart
of the server find the same one, and nobody can take another's place without its ticket. With a login, the name decides.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from collections import OrderedDict
from pathlib import Path

import gradio as gr

from ui.jobs.files import private_folder

log = logging.getLogger("ui")

MOST_SESSIONS = 10_000


class Visitors:
    """Hands out tickets and says whose a request is.

    output_dir: where the signing key is kept, so that tickets outlive the server; None for a key that dies with it.
    """

    def __init__(self, output_dir: Path | None = None) -> None:
        self._key = secrets.token_bytes(32) if output_dir is None else _kept_key(output_dir)
        self._sessions: OrderedDict[str, str] = OrderedDict()

    @property
    def browser_secret(self) -> str:
        """What the page encrypts its storage with. It is sent to every browser, hence not the signing key."""
        return self._sign("browser")

    def new_ticket(self) -> str:
        return self._ticket(f"visitor:{secrets.token_hex(16)}")

    def owner_of(self, ticket: object) -> str:
        """The owner that a ticket names; "" for a ticket that was not handed out here."""
        owner, _, signature = ticket.rpartition(".") if isinstance(ticket, str) else ("", "", "")
        genuine = hmac.compare_digest(signature.encode(errors="replace"), self._sign(owner).encode())
        return owner if genuine else ""

    def greet(self, request: gr.Request, ticket: object) -> str:
        """Take note of whose session this is, when a page is opened: the login's, or else the ticket's.

        Returns the ticket of the session. A browser keeps it, except a login's, which ends with the login.
        """
        if request.username:
            ticket = self._ticket(f"login:{request.username}")
        elif not self.owner_of(ticket):
            ticket = self.new_ticket()
        session = str(request.session_hash)
        self._sessions[session] = self.owner_of(ticket)
        self._sessions.move_to_end(session)
        while len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return str(ticket)

    def owner(self, request: gr.Request) -> str:
        """Whose an event is: the login's, the visitor's who opened the page, or else the session's own."""
        if request.username:
            return f"login:{request.username}"
        return self._sessions.get(str(request.session_hash), f"session:{request.session_hash}")

    def ticket(self, request: gr.Request) -> str:
        """A ticket for the owner of an event, for what asks without a session."""
        return self._ticket(self.owner(request))

    def _ticket(self, owner: str) -> str:
        return f"{owner}.{self._sign(owner)}"

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def _kept_key(output_dir: Path) -> bytes:
    """The key in the private folder, written there first if it is missing or damaged."""
    try:
        file = private_folder(output_dir) / "key"
        key = file.read_bytes() if file.exists() else b""
        if len(key) != 32:
            key = secrets.token_bytes(32)
            fresh = file.with_name(f"key.{os.getpid()}")
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
                stream.write(key)
            os.replace(fresh, file)
        return key
    except OSError as error:
        log.warning("no key can be kept in %s (%s); visitors are new ones after a restart", output_dir, error.strerror)
        return secrets.token_bytes(32)
