"""LongCat text-to-video with dense or Block Sparse Attention, on CUDA or CPU.

Importing this package imports neither torch nor FastVideo nor Triton nor a user interface, so that a process which only
asks for videos stays small. torch comes with `LongCatPipeline`, the rest with `LongCatPipeline.load`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline import _start  # noqa: F401  comes first
from pipeline.checkpoint.info import EMBEDDED_CHECKPOINT, CheckpointInfo, inspect_checkpoint
from pipeline.machine.resources import GpuReading, Resources, read_resources
from pipeline.media.comment import VideoSettings, read_settings
from pipeline.request.result import Comparison, VideoResult
from pipeline.request.start import FromClip, FromFrames, FromImage, FromNoise
from pipeline.request.video import Cancelled, StepUpdate, VideoRequest
from pipeline.runs.as_code import cli_command, python_code
from pipeline.runs.compare import compare
from pipeline.sweeps.run_sweep import run_sweep, sweep_videos
from pipeline.sweeps.search import Floor, Search
from pipeline.sweeps.sweep import Sweep, SweepRun
from pipeline.sweeps.sweep_axes import Axis
from pipeline.sweeps.sweep_result import SweepResult, SweepVideo

if TYPE_CHECKING:
    from pipeline.machine.device import choose_device
    from pipeline.runs.longcat import LongCatPipeline

__all__ = [
    "EMBEDDED_CHECKPOINT",
    "Axis",
    "Cancelled",
    "CheckpointInfo",
    "Comparison",
    "Floor",
    "FromClip",
    "FromFrames",
    "FromImage",
    "FromNoise",
    "GpuReading",
    "LongCatPipeline",
    "Resources",
    "Search",
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

_MODULES = {"LongCatPipeline": "pipeline.runs.longcat", "choose_device": "pipeline.machine.device"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
