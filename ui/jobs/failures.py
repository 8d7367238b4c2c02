"""Turns errors into one line for people."""

from __future__ import annotations

from pipeline.engine.parent import EngineDied
from pipeline.machine.memory import out_of_memory
from pipeline.request.sentences import one_line

NO_MEMORY = "the device ran out of memory; use a smaller size, fewer frames or a higher sparsity"
NOT_WRITTEN = "the video could not be written ({reason}); check space and permission of the output folder"
UNEXPECTED = "{kind}: {reason}; the server's log has the details"


def sentence(error: Exception) -> str:
    """One line for people: this project's own errors unchanged, any other with its type and a remedy."""
    text = one_line(error)
    if isinstance(error, (ValueError, EngineDied)):
        return text
    if out_of_memory(error):
        return NO_MEMORY
    if isinstance(error, OSError):
        return NOT_WRITTEN.format(reason=text)
    kind = getattr(error, "kind", type(error).__name__)  # set on errors from the engine's process
    return UNEXPECTED.format(kind=kind, reason=text or "no message")
