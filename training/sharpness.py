"""Judges two things that the classifier does not see: are edges sharp, and has the object the outline of its shape?

Both are measured, not learnt. `acutance` looks at all strong edges of a clip. `outline` cuts the object out of a plain
backdrop and lays the outlines of all shapes over it, at every angle. A ball that is an egg, or has a ghost, fits badly.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.scenes import SHAPES
from training.shapes import DISTANCES

WINDOW = 9  # pixels; no edge of an object is wider
STRONG = 0.35  # difference of brightness within the window, of 1, that makes an edge
APART = 0.2  # distance in RGB from the backdrop that makes a pixel the object's; a shadow is nearer
ANGLES = 36
SIDE = 96  # pixels of the square in which outlines are compared


def acutance(video: Tensor) -> float:
    """The mean share of an edge's height that lies between two neighbouring pixels, 0 to 1.

    video: [3, T, H, W] in [-1, 1]. An edge drawn over two pixels has 0.6 to 0.8, one blurred over eight 0.2. NaN if
    the video has no strong edge.
    """
    brightness = ((video + 1) / 2).mean(dim=0).unsqueeze(1)  # [T, 1, H, W]
    pad = WINDOW // 2
    contrast = F.max_pool2d(brightness, WINDOW, 1, pad) + F.max_pool2d(-brightness, WINDOW, 1, pad)
    down = F.pad(brightness.diff(dim=2).abs(), (0, 0, 0, 1))
    right = F.pad(brightness.diff(dim=3).abs(), (0, 1, 0, 0))
    steep = torch.maximum(down, right)
    middle = (contrast > STRONG) & (
        steep == F.max_pool2d(steep, WINDOW, 1, pad)
    )  # there the window has all of the edge
    return float((steep / contrast.clamp(min=1e-6))[middle].mean())


class Outline(NamedTuple):
    """The shape that an object's outline fits best, and how well the named shape fits, as intersection over union."""

    told: str
    fit: float


def cut_out(frame: Tensor) -> Tensor:
    """The pixels of a frame [3, H, W] that are not its plain backdrop, bool [H, W]. The border shows the backdrop."""
    image = (frame + 1) / 2
    border = torch.cat([image[:, :4].flatten(1), image[:, -4:].flatten(1), image[..., :4].flatten(1)], dim=1)
    # a plain wall is a little darker in the corners than in the middle
    backdrop = border.median(dim=1).values.view(3, 1, 1)
    return (image - backdrop).norm(dim=0) > APART


def outline(frame: Tensor, shape: str) -> Outline | None:
    """Compare the outline of the one object in a frame [3, H, W] with those of all shapes; None if nothing is there."""
    mask = cut_out(frame)
    area = int(mask.sum())
    if area < 60:
        return None
    rows, columns = (axis.float() for axis in mask.nonzero().T)
    centre, radius = (float(rows.mean()), float(columns.mean())), 1.25 * math.sqrt(area)
    axis = torch.linspace(-radius, radius, SIDE, device=frame.device)
    y, x = torch.meshgrid(axis + centre[0], axis + centre[1], indexing="ij")
    height, width = mask.shape
    place = torch.stack([2 * (x + 0.5) / width - 1, 2 * (y + 0.5) / height - 1], dim=-1)
    seen = F.grid_sample(mask[None, None].float(), place[None], align_corners=False)[0, 0] > 0.5
    templates = _templates().to(frame.device)  # [shapes, angles, SIDE, SIDE]
    together = (templates & seen).sum(dim=(2, 3)) / (templates | seen).sum(dim=(2, 3))
    fits = together.amax(dim=1)
    return Outline(SHAPES[int(fits.argmax())], float(fits[SHAPES.index(shape)]))


@lru_cache(maxsize=1)
def _templates() -> Tensor:
    """Every shape with unit area and its centre of mass in the middle, at every angle: bool [shapes, angles, S, S]."""
    axis = torch.linspace(-1.5, 1.5, 600)
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    side = torch.linspace(-1.25, 1.25, SIDE)
    below, right = torch.meshgrid(side, side, indexing="ij")
    turns = torch.arange(ANGLES).view(-1, 1, 1) * (2 * math.pi / ANGLES)
    u = right * turns.cos() + below * turns.sin()
    v = below * turns.cos() - right * turns.sin()
    drawn = []
    for distance in DISTANCES:
        inside = distance(x, y) < 0
        scale = math.sqrt(float(inside.float().mean()) * 9)  # of the area, 3 by 3
        cx, cy = float(x[inside].mean()), float(y[inside].mean())
        drawn.append(distance(u * scale + cx, -v * scale + cy) < 0)
    return torch.stack(drawn)
