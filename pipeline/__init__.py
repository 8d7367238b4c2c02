"""LongCat text-to-video with dense or Block Sparse Attention, on CUDA or CPU.

Importing this package imports neither FastVideo nor Triton nor a user interface; `LongCatPipeline.load` does.
"""

from . import _openmp, _start  # noqa: F401  come first
from .checkpoint import EMBEDDED_CHECKPOINT, CheckpointInfo, inspect_checkpoint
from .compare import compare
from .longcat import LongCatPipeline, choose_device
from .reproduce import cli_command, python_code
from .request import Cancelled, Comparison, StepUpdate, VideoRequest, VideoResult
from .resources import GpuReading, Resources, read_resources
from .settings import VideoSettings, read_settings
from .sweep import Sweep, SweepRun, run_sweep
from .sweep_axes import Axis
from .sweep_result import SweepResult, SweepVideo

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
]
