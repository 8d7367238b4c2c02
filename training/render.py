"""Draws scenes as video. Every pixel is a closed formula of place and time: a GPU renders hundreds of clips a second.

Shapes are signed distance fields (anti-aliased over one pixel, bevelled, with a soft shadow).
Landscapes are layered ridge lines. The sky's colours follow the height of the sun.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.scenes import OBJECT_FIELDS, SHAPES, Scene
from training.shapes import DISTANCES


def pack(scenes: list[Scene], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Stack the numbers of several scenes: name -> fp32 [B, n]."""
    return {
        name: torch.tensor([scene.numbers[name] for scene in scenes], dtype=torch.float32, device=device)
        for name in scenes[0].numbers
    }


def _seen(weight: Tensor) -> bool:
    """Whether `weight` is above zero in any clip. A compiled `render` cannot ask this, so it draws everything."""
    return torch.compiler.is_compiling() or bool(weight.any())


def _smooth(low: float, high: float, x: Tensor) -> Tensor:
    s = ((x - low) / (high - low)).clamp(0, 1)
    return s * s * (3 - 2 * s)


def _mix(a: Tensor, b: Tensor, amount: Tensor) -> Tensor:
    return a + (b - a) * amount


def _hash(x: Tensor, y: Tensor | float = 0.0) -> Tensor:
    """A random-looking value in [0, 1) that depends only on integer coordinates."""
    return torch.frac(torch.frac(x * 0.1031 + y * 0.3183 + 0.137) * (x * 0.7131 + y * 1.9717 + 33.33)).abs()


def _rgb(red: float, green: float, blue: float, like: Tensor) -> Tensor:
    # built on the device, so that a compiler can fold it into the formula around it
    return torch.cat([like.new_full((1, 1, 1, 1, 1), value) for value in (red, green, blue)], dim=1)


def _per_clip(x: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], to broadcast over frames and pixels."""
    return x.view(-1, 1, 1, 1)


def _colour(x: Tensor) -> Tensor:
    return x.view(-1, 3, 1, 1, 1)


def _draw_object(
    image: Tensor,
    x: Tensor,
    y: Tensor,
    time: Tensor,
    kind: Tensor,
    o: dict[str, Tensor],
    wall: Tensor,
    pixel: float,
) -> Tensor:
    """Paint one shape over `image` [B, 3, T, H, W], with a faint shadow where there is a `wall` [B, 1, 1, 1] behind."""
    turn = 2 * math.pi * o["frequency"] * time + o["phase"]
    cx = o["x0"] + o["vx"] * (time - 0.5) + o["rx"] * torch.cos(turn)
    cy = o["y0"] + o["vy"] * (time - 0.5) + o["ry"] * torch.sin(turn) + o["bounce"] * torch.sin(turn / 2).abs()
    size = o["size"] * torch.exp(o["growth"] * (time - 0.5)) * (1 + o["pulse"] * torch.sin(turn))
    angle = o["angle"] + o["spin"] * time

    seen = [_seen(kind[:, i]) for i in range(len(DISTANCES))]

    def place(dx: Tensor, dy: Tensor) -> Tensor:
        cos, sin = torch.cos(angle), torch.sin(angle)
        u, v = (dx * cos + dy * sin) / size, (dy * cos - dx * sin) / size
        return sum(_per_clip(kind[:, i]) * field(u, v) for i, field in enumerate(DISTANCES) if seen[i]) * size

    shadow = place(x - cx - 0.05, y - cy + 0.07)
    image = image * (1 - 0.16 * wall * o["present"] * _smooth(0.07, -0.07, shadow)).unsqueeze(1)

    distance = place(x - cx, y - cy)
    cover = _smooth(pixel, -pixel, distance) * o["present"]
    bevel = _smooth(0.0, 0.10, -distance)
    light = ((x - cx) * -0.45 + (y - cy) * 0.65) / size
    shade = 0.72 + 0.20 * bevel + 0.16 * light
    spot = torch.exp(-(((x - cx) / size + 0.32) ** 2 + ((y - cy) / size - 0.36) ** 2) * 14) * 0.35 * bevel
    colour = torch.stack([o["red"], o["green"], o["blue"]], dim=1)
    painted = (colour * shade.unsqueeze(1) + spot.unsqueeze(1)).clamp(0, 1)
    return _mix(image, painted, cover.unsqueeze(1))


# ---- backgrounds ----


def _studio(p: dict[str, Tensor], x: Tensor, y: Tensor, pixel: float) -> Tensor:
    first, second = _colour(p["colour_a"]), _colour(p["colour_b"])
    plain = first * (1.02 - 0.10 * (x * x + y * y)).unsqueeze(1)
    gradient = _mix(second, first, _smooth(-0.95, 0.95, y).unsqueeze(1))
    depth = 0.55 / (0.12 - (y + 0.15)).clamp(min=0.02)
    # edges two pixels wide, which near the horizon is wider than a square
    columns = torch.tanh(torch.sin(x * depth * 4.0) * 0.7 / (pixel * 4 * depth))
    rows = torch.tanh(torch.sin(depth * 6.0) * 0.7 / (pixel * 11 * depth * depth))
    tiles = 0.45 + 0.33 * columns * rows
    floor = _rgb(1, 0.98, 0.95, x) * (
        tiles * _smooth(-0.15, -0.45, y) + 0.45 * (1 - _smooth(-0.15, -0.45, y))
    ).unsqueeze(1)
    wall = _rgb(0.72, 0.76, 0.82, x) * (0.85 + 0.15 * y).unsqueeze(1)
    board = _mix(wall, floor, _smooth(-0.13, -0.17, y).unsqueeze(1))
    kind = p["backdrop"]
    parts = [kind[:, i].view(-1, 1, 1, 1, 1) * image for i, image in enumerate((plain, gradient, board))]
    return parts[0] + parts[1] + parts[2]


def _sky(p: dict[str, Tensor], x: Tensor, y: Tensor, sun: Tensor, pan: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sky [B, 3, T, H, W], ambient light of the ground [B, 3, T, 1, 1] and darkness [B, T, 1, 1]."""
    day = _smooth(0.02, 0.5, sun)
    dark = _smooth(-0.05, -0.35, sun)
    dusk = (1 - day) * (1 - dark)

    def three(at_day: Tensor, at_dusk: Tensor, at_night: Tensor) -> Tensor:
        return at_day * day.unsqueeze(1) + at_dusk * dusk.unsqueeze(1) + at_night * dark.unsqueeze(1)

    top = three(_rgb(0.22, 0.50, 0.90, x), _rgb(0.30, 0.22, 0.50, x), _rgb(0.02, 0.03, 0.10, x))
    low = three(_rgb(0.72, 0.87, 0.98, x), _rgb(1.00, 0.55, 0.25, x), _rgb(0.08, 0.11, 0.26, x))
    sky = _mix(low, top, _smooth(-0.35, 0.9, y).unsqueeze(1))

    radius = torch.sqrt((x - _per_clip(p["sun_x"][:, 0])) ** 2 + (y - (sun * 0.9 - 0.05)) ** 2 + 1e-9)
    disc, glow = _smooth(0.135, 0.120, radius), torch.exp(-radius * radius * 5)
    warm = three(_rgb(1.0, 0.97, 0.80, x), _rgb(1.0, 0.80, 0.40, x), _rgb(0.9, 0.6, 0.4, x))
    bright = (1 - dark).unsqueeze(1)
    sky = _mix(sky, warm, (0.35 * glow).unsqueeze(1) * bright)
    sky = _mix(sky, warm, disc.unsqueeze(1) * bright)

    sx, sy = (x + 0.1 * pan) * 5, y * 5
    column, row = torch.floor(sx), torch.floor(sy)
    seed = _per_clip(p["terrain"][:, 0])
    jx, jy = _hash(column + 17 * seed, row + 3.1), _hash(column + 5.7, row + 29 * seed)
    away = (sx - column - 0.2 - 0.6 * jx) ** 2 + (sy - row - 0.2 - 0.6 * jy) ** 2
    star = torch.exp(-away * 90) * _smooth(0.55, 0.9, _hash(column + 3.3, row + 11 * seed))
    moon_x, moon_y = x + _per_clip(p["sun_x"][:, 0]), y - 0.62
    moon = _smooth(0.115, 0.10, torch.sqrt(moon_x**2 + moon_y**2 + 1e-9)) * _smooth(
        0.095, 0.11, torch.sqrt((moon_x - 0.05) ** 2 + (moon_y - 0.03) ** 2 + 1e-9)
    )
    sky = sky + ((star * 0.9 + moon * 0.9) * dark).unsqueeze(1) * _rgb(1.0, 0.98, 0.88, x)
    ambient = three(_rgb(1.0, 1.0, 1.0, x), _rgb(0.80, 0.52, 0.45, x), _rgb(0.20, 0.23, 0.38, x))
    return sky, ambient, dark


def _ridge(x: Tensor, p: dict[str, Tensor], layer: int, height: float, rough: float) -> Tensor:
    a, b = _per_clip(p["terrain"][:, layer]), _per_clip(p["terrain"][:, layer + 3])
    return height + rough * (torch.sin(2.1 * x + a) + 0.5 * torch.sin(4.7 * x + b))


def _slope(x: Tensor, p: dict[str, Tensor], layer: int) -> Tensor:
    """How steep a ridge of roughness 1 rises to the right, about -1 to 1."""
    a, b = _per_clip(p["terrain"][:, layer]), _per_clip(p["terrain"][:, layer + 3])
    return 0.5 * (torch.cos(2.1 * x + a) + torch.cos(4.7 * x + b))


def _peaks(x: Tensor, p: dict[str, Tensor], layer: int, height: float, rough: float) -> Tensor:
    a, b = _per_clip(p["terrain"][:, layer]), _per_clip(p["terrain"][:, layer + 3])

    def zigzag(u: Tensor) -> Tensor:
        return (torch.frac(u.add(40.0)) * 2 - 1).abs()

    return height + rough * (zigzag(0.75 * x + a / 6) + 0.45 * zigzag(1.9 * x + b / 6) - 0.7)


def _ground(
    p: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    time: Tensor,
    pan: Tensor,
    sky: Tensor,
    ambient: Tensor,
    dark: Tensor,
    sun: Tensor,
) -> Tensor:
    edge = 0.012

    def layers(colours, line, heights, rough, snow=False, sand=False):
        image = sky
        for i, (colour, height) in enumerate(zip(colours, heights, strict=True)):
            along = x + pan * (0.35 + 0.32 * i)
            top = line(along, p, i, height, rough * (1.25 - 0.25 * i))
            shade = 0.92 + 0.25 * (y - top).clamp(-0.6, 0)
            if sand:  # lit and dark flanks, and ripples: without them a camera that pans seems to stand still
                shade = shade + 0.13 * _slope(along, p, i) + 0.05 * torch.sin(14 * along + 9 * (y - top))
            tint = _rgb(*colour, x) * shade.unsqueeze(1)
            if snow and i < 2:
                cap = _smooth(-0.20, -0.14, y - top) * _smooth(0.05, 0.2, top + 0.25)
                tint = _mix(tint, _rgb(0.95, 0.97, 1.0, x), cap.unsqueeze(1))
            image = _mix(image, tint * ambient, _smooth(edge, -edge, y - top).unsqueeze(1))
        return image

    def hills() -> Tensor:
        return layers(((0.45, 0.66, 0.42), (0.30, 0.58, 0.28), (0.20, 0.48, 0.18)), _ridge, (-0.15, -0.38, -0.66), 0.10)

    def mountains() -> Tensor:
        colours = ((0.50, 0.55, 0.66), (0.36, 0.41, 0.52), (0.22, 0.36, 0.26))
        return layers(colours, _peaks, (0.25, -0.12, -0.68), 0.50, snow=True)

    def sea() -> Tensor:
        horizon = -0.15
        depth = (horizon - y).clamp(min=0.0)
        near = 1 / (0.08 + depth)
        waves = torch.sin(near * 5.5 + 2.2 * torch.sin(x * 1.7 + pan + 2 * math.pi * time) + 2 * math.pi * time * 2)
        crest = waves * _smooth(0.02, 0.45, depth)
        water = _mix(_rgb(0.16, 0.45, 0.66, x), _rgb(0.05, 0.26, 0.46, x), _smooth(0.0, 0.8, depth).unsqueeze(1))
        foam = 0.10 * ambient * _smooth(0.55, 1.0, crest).unsqueeze(1)
        water = water * ambient * (1 + 0.22 * crest).unsqueeze(1) + foam
        path = torch.exp(-(((x - _per_clip(p["sun_x"][:, 0])) / (0.10 + 0.4 * depth)) ** 2)) * (0.55 + 0.45 * crest)
        low_sun = _smooth(-0.25, -0.02, sun) * _smooth(0.6, 0.15, sun)
        water = water + (path * low_sun * 0.55).unsqueeze(1) * _rgb(1.0, 0.72, 0.40, x)
        return _mix(sky, water, _smooth(horizon + edge, horizon - edge, y).unsqueeze(1))

    def dunes() -> Tensor:
        colours = ((0.93, 0.76, 0.50), (0.88, 0.66, 0.38), (0.78, 0.54, 0.28))
        return layers(colours, _ridge, (-0.22, -0.44, -0.70), 0.12, sand=True)

    def city() -> Tensor:
        image = sky
        for i, (scale, height, tone) in enumerate(((2.9, 0.22, 0.42), (2.1, -0.12, 0.26))):
            u = (x + pan * (0.45 + 0.4 * i)) * scale
            block = torch.floor(u)
            seed = _per_clip(p["terrain"][:, i]) * 7
            top = height - 0.55 + 0.75 * _hash(block * 3.7 + seed, 1.0 + i)
            wx, wy = (u - block) * 4, y * scale * 3.2
            lit = (_hash(torch.floor(wx) + block * 4 + seed, torch.floor(wy)) > 0.45).float()
            inside = _smooth(0.22, 0.32, (torch.frac(wx) - 0.5).abs() * -1 + 0.5) * _smooth(
                0.22, 0.32, 0.5 - (torch.frac(wy.add(60.0)) - 0.5).abs()
            )
            side = _smooth(0.02, 0.05, 0.5 - ((u - block) - 0.5).abs())
            wall = _rgb(tone, tone * 1.02, tone * 1.15, x) * (0.85 + 0.15 * side).unsqueeze(1) * ambient
            window = _mix(wall * 1.35, _rgb(1.0, 0.84, 0.45, x).expand_as(wall), (lit * dark).unsqueeze(1))
            wall = _mix(wall, window, (inside * _smooth(0.0, 0.05, top - y - 0.04)).unsqueeze(1))
            image = _mix(image, wall, _smooth(edge, -edge, y - top).unsqueeze(1))
        return image

    kinds = (lambda: sky, hills, mountains, sea, dunes, city)
    shown = [p["ground"][:, i].view(-1, 1, 1, 1, 1) for i in range(len(kinds))]
    return sum((weight * draw() for weight, draw in zip(shown, kinds, strict=True) if _seen(weight)), start=sky * 0)


def _weather(p: dict[str, Tensor], image: Tensor, x: Tensor, y: Tensor, time: Tensor) -> Tensor:
    if not _seen(p["effect"]):
        return image
    snow, fireworks = (p["effect"][:, i].view(-1, 1, 1, 1, 1) for i in range(2))
    flakes = torch.zeros_like(x + time)
    for layer, (scale, speed) in enumerate(((3.0, 1.0), (4.5, 0.8))):
        u, v = x * scale + 0.35 * torch.sin(2 * math.pi * time + layer), y * scale + time * speed * scale
        column, row = torch.floor(u), torch.floor(v)
        across, down = (
            u - column - 0.3 - 0.4 * _hash(column, row + layer),
            v - row - 0.3 - 0.4 * _hash(row, column + 7.0),
        )
        flakes = torch.maximum(flakes, _smooth(0.030, 0.012, across**2 + down**2))
    image = _mix(image, torch.ones_like(image), 0.92 * snow * flakes.unsqueeze(1))

    for i in range(4):
        bx, by, start, hue = (_per_clip(p["bursts"][:, 5 * i + j]) for j in range(4))
        age = ((time - start) / 0.34).clamp(0, 1)
        alive = ((time - start > 0) & (time - start < 0.34)).float() * (1 - age) ** 0.5
        dx, dy = x - bx, y - by + 0.12 * age * age
        radius, angle = torch.sqrt(dx * dx + dy * dy + 1e-9), torch.atan2(dx, dy)
        reach = 0.46 * (1 - (1 - age) ** 2)
        glow = torch.zeros_like(radius)
        for points, share in ((12, 1.0), (8, 0.55)):
            sector = 2 * math.pi / points
            bend = angle - sector * torch.round(angle / sector)
            spark = ((radius - reach * share) ** 2 + (radius * bend) ** 2) / (0.030 + 0.012 * age) ** 2
            tail = (
                _smooth(0.024, 0.0, (radius * bend).abs())
                * _smooth(0.0, 1.0, radius / (reach * share + 1e-3))
                * (radius < reach * share)
            )
            glow = glow + 1.5 * torch.exp(-spark) + 0.7 * tail
        tint = torch.cat(
            [0.55 + 0.45 * torch.cos(2 * math.pi * (hue + shift)) for shift in (0.0, 0.33, 0.67)], dim=1
        ).view(-1, 3, 1, 1, 1)
        image = image + fireworks * (glow * alive).unsqueeze(1) * (0.35 + 0.75 * tint)
    return image


def render(
    p: dict[str, Tensor],
    frames: int,
    height: int,
    width: int,
    start: Tensor | float = 0.0,
    length: float = 1.0,
    window: tuple[Tensor | int, Tensor | int, int, int] | None = None,
) -> Tensor:
    """Draw clips.

    Args:
        p: packed scenes, name -> [B, n].
        frames, height, width: size of the clip in frames and pixels.
        start, length: part of the scene's time to show; 0 to 1 is the whole. start may be [B].
        window: (top, left, rows, columns) of the frame to draw; all of it by default. Offsets may be tensors:
            a compiled `render` then needs no new compilation.

    Returns:
        fp32 [B, 3, frames, rows, columns] in [-1, 1].
    """
    device = p["studio"].device
    pixel = 2.0 / height
    top, left, rows, columns = window or (0, 0, height, width)
    time = torch.linspace(0, 1, frames, device=device).view(1, -1, 1, 1) * length
    time = time + (start.view(-1, 1, 1, 1) if isinstance(start, Tensor) else start)
    y = (1 - (torch.arange(rows, device=device) + top + 0.5) * pixel).view(1, 1, -1, 1)
    x = ((torch.arange(columns, device=device) + left + 0.5) * pixel - width / height).view(1, 1, 1, -1)

    sun = _mix(_per_clip(p["sun_from"][:, 0]), _per_clip(p["sun_to"][:, 0]), time)
    pan = _per_clip(p["pan"][:, 0]) * time
    image = _studio(p, x, y, pixel).expand(-1, -1, frames, -1, -1)
    if _seen(p["studio"] < 1):
        sky, ambient, dark = _sky(p, x, y, sun, pan)
        outdoors = _weather(p, _ground(p, x, y, time, pan, sky, ambient, dark, sun), x, y, time)
        image = _mix(outdoors, image, p["studio"].view(-1, 1, 1, 1, 1))
    for i in range(2):
        numbers = p["objects"].view(-1, 2, len(OBJECT_FIELDS))[:, i]
        o = {name: _per_clip(numbers[:, j]) for j, name in enumerate(OBJECT_FIELDS)}
        o["size"] = o["size"].clamp(min=1e-3)
        if not _seen(o["present"]):
            continue
        kind = p["shape"].view(-1, 2, len(SHAPES))[:, i]
        image = _draw_object(image, x, y, time, kind, o, _per_clip(p["studio"][:, 0]), pixel)
    return image.clamp(0, 1) * 2 - 1
