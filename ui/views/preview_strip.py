"""Turns latent previews into small images that fit into an event."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

MAX_FRAMES = 16
MAX_SIDE = 192


def preview_strip(frames: np.ndarray | None) -> dict[str, Any] | None:
    """Make one JPEG with the preview's frames stacked from top to bottom, as a data URL.

    frames: uint8 [H, W, 3] or [T, H, W, 3]. At most 16 frames spread over the clip are kept, and large frames are
        reduced, because the strip is sent with every step.
    Returns {"src", "frames", "width", "height"}, or None without a preview.
    """
    if frames is None:
        return None
    clip = np.asarray(frames)
    if clip.ndim == 3:
        clip = clip[None]
    keep = np.unique(np.linspace(0, len(clip) - 1, min(len(clip), MAX_FRAMES)).round().astype(int))
    stride = -(-max(clip.shape[1:3]) // MAX_SIDE)
    clip = clip[keep, ::stride, ::stride]
    count, height, width, _ = clip.shape
    buffer = io.BytesIO()
    Image.fromarray(clip.reshape(count * height, width, 3)).save(buffer, "JPEG", quality=92, subsampling=0)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"src": source, "frames": count, "width": width, "height": height}
