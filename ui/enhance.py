"""Rewrites prompts with a language model, over any OpenAI-compatible endpoint that whoever starts the server names.

Off unless it is named. No visitor can name one, or a header, so nobody makes this server ask other addresses.
"""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pipeline import CheckpointInfo

KEY = "BSA_ENHANCE_KEY"  # environment variable with the endpoint's key
SECONDS = 60.0
LARGEST = 256 * 1024  # bytes of an answer
LONGEST = 2000  # letters of a prompt, asked or answered

TASK = (
    "Rewrite the user's idea as a prompt for a text-to-video model: one paragraph of plain English that says what is "
    "to be seen, how it moves, the place, the light and the camera. Keep what the user asks for. Answer with the "
    "prompt alone."
)
FEW_WORDS = "The model knows no other words than these: {words}. Its prompts look like this: {example}"
NOT_AN_ADDRESS = "{url!r} is not the address of an endpoint; use one such as http://localhost:11434/v1"
NO_MODEL = "an endpoint for prompts needs the name of its model; add --enhance-model"
FAILED = "the prompt could not be rewritten: {reason}"
NO_ANSWER = "the endpoint answered without a text"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *given: Any) -> None:
        """The named address answers, or nobody."""
        return None


@dataclass(frozen=True)
class Enhancer:
    """An endpoint. url: its base address, such as http://localhost:11434/v1. key: sent as a bearer token, "" for none.

    Raises ValueError for an address that is none, or without a model.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(NOT_AN_ADDRESS.format(url=self.url))
        if not self.model:
            raise ValueError(NO_MODEL)

    def rewrite(self, prompt: str, checkpoint: CheckpointInfo) -> str:
        """The prompt as the language model puts it. Raises ValueError with the reason if there is no answer."""
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": task(checkpoint)},
                {"role": "user", "content": prompt[:LONGEST]},
            ],
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=SECONDS) as answer:
                return _text(json.loads(answer.read(LARGEST)))
        except urllib.error.HTTPError as error:
            raise ValueError(FAILED.format(reason=f"the endpoint answered {error.code}")) from None
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise ValueError(FAILED.format(reason=str(reason)[:200])) from None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(FAILED.format(reason=NO_ANSWER)) from None


def add_enhancer(parser: argparse.ArgumentParser) -> None:
    """Add the options that name an endpoint."""
    about = (
        f"OpenAI-compatible endpoint that may rewrite prompts, such as http://localhost:11434/v1; its key is in {KEY}"
    )
    parser.add_argument("--enhance-url", metavar="URL", help=about)
    parser.add_argument("--enhance-model", metavar="NAME", default="", help="the endpoint's model")


def read_enhancer(options: argparse.Namespace) -> Enhancer | None:
    """The endpoint that the options name, or None. Raises ValueError as `Enhancer` does."""
    if options.enhance_url is None:
        return None
    return Enhancer(options.enhance_url, options.enhance_model, os.environ.get(KEY, ""))


def task(checkpoint: CheckpointInfo) -> str:
    """The instruction to the language model. For a small checkpoint it has the words that this knows."""
    known = checkpoint.vocabulary
    if known is None:
        return TASK
    return f"{TASK} {FEW_WORDS.format(words=', '.join(sorted(known.words)), example=known.default)}"


def _text(answer: Any) -> str:
    text = answer["choices"][0]["message"]["content"].strip().strip('"').strip()
    if not text:
        raise ValueError(NO_ANSWER)
    return text[:LONGEST]
