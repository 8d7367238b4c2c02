"""LongCat text-to-video with dense or Block Sparse Attention, on CUDA or CPU.

Importing this package imports neither torch nor FastVideo nor Triton nor a user interface, so that a process which only
asks for videos stays small. torch comes with `LongCatPipeline` and `choose_device`, the rest with
`LongCatPipeline.load`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline import _start  # noqa: F401  comes first
from pipeline.checkpoint import EMBEDDED_CHECKPOINT, CheckpointInfo, inspect_checkpoint
from pipeline.compare import compare
from pipeline.reproduce import cli_command, python_code
from pipeline.request import Cancelled, Comparison, StepUpdate, VideoRequest, VideoResult
from pipeline.resources import GpuReading, Resources, read_resources
from pipeline.settings import VideoSettings, read_settings
from pipeline.sweep import Sweep, SweepRun, run_sweep, sweep_videos
from pipeline.sweep_axes import Axis
from pipeline.sweep_result import SweepResult, SweepVideo

if TYPE_CHECKING:
    from pipeline.longcat import LongCatPipeline, choose_device

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
