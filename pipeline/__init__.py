"""LongCat text-to-video with dense or Block Sparse Attention, on CUDA or CPU.

Importing this package imports neither torch nor FastVideo nor Triton nor a user interface, so that a process which only
asks for videos stays small. torch comes with `LongCatPipeline` and `choose_device`, the rest with
`LongCatPipeline.load`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _openmp, _start  # noqa: F401  come first
from .checkpoint import EMBEDDED_CHECKPOINT, CheckpointInfo, inspect_checkpoint
from .compare import compare
from .reproduce import cli_command, python_code
from .request import Cancelled, Comparison, StepUpdate, VideoRequest, VideoResult
from .resources import GpuReading, Resources, read_resources
from .settings import VideoSettings, read_settings
from .sweep import Sweep, SweepRun, run_sweep, sweep_videos
from .sweep_axes import Axis
from .sweep_result import SweepResult, SweepVideo

if TYPE_CHECKING:
    from .longcat import LongCatPipeline, choose_device

__all__ = [
    "EMBEDDED_CHECKPOINT",
    "Axis",
    "Cancelled",
    "CheckpointInfo",
    "Comparison",
    "GpuReading",
    "LongCatPipeline",
    "Resources",
    "StepUpdate",
    "Sweep",
    "SweepResult",
    "SweepRun",
    "SweepVideo",
    "VideoRequest",
    "VideoResult",
    "VideoSettings",
    "choose_device",
    "cli_command",
    "compare",
    "inspect_checkpoint",
    "python_code",
    "read_resources",
    "read_settings",
    "run_sweep",
    "sweep_videos",
]

_FROM_LONGCAT = ("LongCatPipeline", "choose_device")


def __getattr__(name: str) -> Any:
    if name not in _FROM_LONGCAT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(".longcat", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
