"""Recognises a visitor of the page by a ticket in the browser, or by the login.

A ticket is a random number that the server signs and the browser keeps. So a reload, a second tab and a restarted
server find the same visitor, and nobody can impersonate another without that ticket. With a login, the name decides.
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

from ui.access.login import network
from ui.storage.files import private_folder

log = logging.getLogger("ui")

MOST_SESSIONS = 10_000


class Visitors:
    """Issues tickets and finds the owner of a request.

    output_dir: folder that keeps the signing key, so that tickets survive a restart; None for a key in memory only.
    """

    def __init__(self, output_dir: Path | None = None) -> None:
        self._key = secrets.token_bytes(32) if output_dir is None else _kept_key(output_dir)
        self._sessions: OrderedDict[str, str] = OrderedDict()

    @property
    def browser_secret(self) -> str:
        """The key that encrypts the page's storage. Every browser receives it, so it is not the signing key."""
        return self._sign("browser")

    def new_ticket(self) -> str:
        return self._ticket(f"visitor:{secrets.token_hex(16)}")

    def owner_of(self, ticket: object) -> str:
        """The owner that a ticket names, or "" for a ticket that was not issued here."""
        owner, _, signature = ticket.rpartition(".") if isinstance(ticket, str) else ("", "", "")
        genuine = hmac.compare_digest(signature.encode(errors="replace"), self._sign(owner).encode())
        return owner if genuine else ""

    def greet(self, request: gr.Request, ticket: object) -> str:
        """Record the owner of a session when a page is opened: the login if there is one, else the ticket's owner.

        Returns the ticket of the session. The browser keeps it, but a login's ticket only until the login ends.
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
        """The owner of an event: the login, the visitor who opened the page, or else the session itself."""
        if request.username:
            return f"login:{request.username}"
        return self._sessions.get(str(request.session_hash), f"session:{request.session_hash}")

    def address(self, request: gr.Request) -> str:
        """The address that an event came from; "" for a login, because nobody can make up logins."""
        return "" if request.username or request.client is None else network(request.client.host)

    def ticket(self, request: gr.Request) -> str:
        """A ticket for the owner of an event, for requests that come without a session."""
        return self._ticket(self.owner(request))

    def _ticket(self, owner: str) -> str:
        return f"{owner}.{self._sign(owner)}"

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def _kept_key(output_dir: Path) -> bytes:
    """Read the key from the private folder. A missing or damaged key is replaced by a new one."""
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
