"""Turns errors into one line for people."""

from __future__ import annotations

import errno

from pipeline.engine.parent import EngineDied
from pipeline.machine.memory import out_of_memory
from pipeline.request.sentences import one_line

NO_MEMORY = "the device ran out of memory; use a smaller size, fewer frames or a higher sparsity"
NOT_WRITTEN = "the video could not be written ({reason}); check space and permission of the output folder"
NOT_READ = "a file of it could not be read, or its process not started ({reason}); try again in a moment"
NO_HANDLES = "the server has too many files and connections open ({reason}); try again in a moment"
TWICE = "it was begun twice, and both times the engine ended: {reason}"
UNEXPECTED = "{kind}: {reason}; the server's log has the details"


def sentence(error: Exception, system: str = NOT_WRITTEN) -> str:
    """One line for people: our own errors as they are, anything else with its type and a remedy.

    system: what an error of the operating system means here.
    """
    text = one_line(error)
    kind = getattr(error, "kind", type(error).__name__)  # of an error in the engine's process
    if isinstance(error, (ValueError, EngineDied)) or kind == "RankLost":
        return text
    if out_of_memory(error):
        return NO_MEMORY
    if isinstance(error, OSError):
        return (NO_HANDLES if error.errno in (errno.EMFILE, errno.ENFILE) else system).format(reason=text)
    return UNEXPECTED.format(kind=kind, reason=text or "no message")
