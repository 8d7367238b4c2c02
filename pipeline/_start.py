"""Settings that must precede other imports: waiting in OpenMP, the numbering of GPUs in CUDA, and Ctrl-C.

``python -m pipeline`` and ``python app.py`` import for seconds. Ctrl-C in that time prints one word and exits with code
130, without a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

# PyTorch's OpenMP threads spin while they wait. As soon as anything else wants a core (a browser that plays the videos
# is enough), the spinning steals it from the thread that is waited for: on two busy cores decoding took 18 to 22 s, and
# 3.6 to 5.5 s with threads that sleep. On idle cores both take the same within a few percent.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# CUDA would number GPUs from the fastest on. With this it does as NVML and nvidia-smi do, so that a process without
# PyTorch reads the GPU that another one computes on.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")

_APP = Path(__file__).resolve().parents[1] / "app.py"


def _leave(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def begin() -> None:
    """To be called by the package, which both import before anything else. Does nothing for other programs."""
    # Python puts "-m" there while it looks for the module, and the module's file afterwards
    by_name = sys.argv[:1] == ["-m"] and __package__ in sys.orig_argv
    by_file = bool(sys.argv[0:1]) and Path(sys.argv[0]).resolve() == _APP
    if (by_name or by_file) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def end() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


begin()
