"""Signed distance fields of the shapes, in units of a shape's size, negative inside."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _polygon(x: Tensor, y: Tensor, corners: int, inner: float) -> Tensor:
    """Distance to a regular polygon whose sides are `inner` from the centre."""
    sector = 2 * math.pi / corners
    angle = torch.atan2(x, y)
    angle = angle - sector * torch.round(angle / sector)
    radius = torch.sqrt(x * x + y * y + 1e-9)
    return radius * torch.cos(angle) - inner


def _star(x: Tensor, y: Tensor) -> Tensor:
    """A star with five points: fold the plane into one tenth, then take the line from an outer to an inner corner."""
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, y)
    angle = (angle - sector * torch.round(angle / sector)).abs()
    radius = torch.sqrt(x * x + y * y + 1e-9)
    px, py = radius * torch.sin(angle), radius * torch.cos(angle)
    ox, oy = 0.0, 1.05
    ix, iy = 0.5 * math.sin(sector / 2), 0.5 * math.cos(sector / 2)
    nx, ny = oy - iy, ix - ox  # outward normal of that line
    return ((px - ox) * nx + (py - oy) * ny) / math.hypot(nx, ny)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """A square on its corner with a half disc on each upper side; exact distance by region."""
    x, y = x.abs() * 0.66, y * 0.66 + 0.56
    lobe = torch.sqrt((x - 0.25) ** 2 + (y - 0.75) ** 2 + 1e-9) - math.sqrt(2) / 4
    along = 0.5 * (x + y).clamp(min=0)
    side = torch.sqrt(torch.minimum(x * x + (y - 1) ** 2, (x - along) ** 2 + (y - along) ** 2) + 1e-9)
    return torch.where(x + y > 1, lobe, side * torch.sign(x - y)) / 0.66


def _rounded_box(x: Tensor, y: Tensor, width: float, height: float, corner: float) -> Tensor:
    dx, dy = x.abs() - width + corner, y.abs() - height + corner
    outside = torch.sqrt(dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2 + 1e-9)
    return outside + torch.maximum(dx, dy).clamp(max=0) - corner


def _length(x: Tensor, y: Tensor) -> Tensor:
    return torch.sqrt(x * x + y * y + 1e-9)


DISTANCES = (  # one field of (x, y) per entry of SHAPES
    lambda x, y: _length(x, y) - 0.88,
    lambda x, y: _rounded_box(x, y, 0.78, 0.78, 0.10),
    lambda x, y: _polygon(x, -(y + 0.14), 3, 0.54),
    _star,
    _heart,
    lambda x, y: (_length(x, y) - 0.66).abs() - 0.22,
    lambda x, y: _polygon(x, y, 6, 0.80),
    lambda x, y: torch.minimum(_rounded_box(x, y, 0.88, 0.30, 0.06), _rounded_box(x, y, 0.30, 0.88, 0.06)),
)
