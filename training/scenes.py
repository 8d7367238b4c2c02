"""The world of longcat-tiny: a grammar that draws a scene at random and says what it shows.

A scene is one or two moving shapes before a studio backdrop or a landscape, or a landscape in which
something happens (the camera pans, day turns to night, snow, fireworks). `sample_scene` returns
its caption, its attributes (for the automatic check in `training.evaluate`) and the numbers for
`training.render`. Coordinates: x to the right, y up, the frame is [-1, 1] high.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

SHAPES = ("ball", "square", "triangle", "star", "heart", "ring", "hexagon", "cross")
COLOURS = {
    "red": (0.90, 0.12, 0.14),
    "orange": (0.98, 0.52, 0.10),
    "yellow": (0.98, 0.84, 0.15),
    "green": (0.16, 0.70, 0.26),
    "cyan": (0.15, 0.80, 0.86),
    "blue": (0.14, 0.33, 0.92),
    "purple": (0.55, 0.22, 0.82),
    "pink": (0.98, 0.48, 0.72),
    "white": (0.96, 0.96, 0.96),
}
MOTIONS = ("right", "left", "up", "down", "bounce", "spin", "grow", "shrink", "circle", "sway", "pulse")
SHARES = (1, 1, 1, 1, 1, 3, 1, 1, 1.5, 1, 1)  # of the motions: a turning shape is new in every frame
BACKDROPS = {
    "white": (0.93, 0.93, 0.92),
    "grey": (0.55, 0.56, 0.58),
    "black": (0.05, 0.05, 0.06),
    "light blue": (0.62, 0.80, 0.93),
    "navy": (0.07, 0.10, 0.28),
    "cream": (0.95, 0.89, 0.76),
    "mint": (0.70, 0.90, 0.78),
    "lavender": (0.78, 0.72, 0.92),
    "brown": (0.40, 0.26, 0.16),
}
GROUNDS = ("sky", "hills", "mountains", "sea", "dunes", "city")
HOURS = {"day": 0.75, "sunset": 0.04, "night": -0.6}
EFFECTS = ("snow", "fireworks")
EVENTS = ("pan left", "pan right", "to night", "to day", "calm", *EFFECTS, "fireworks")
OBJECT_FIELDS = "present x0 y0 vx vy rx ry bounce frequency phase angle spin size growth pulse red green blue".split()

SIZES = {"small": 0.20, "": 0.29, "large": 0.40}
SYNONYMS = {
    "ball": ("ball", "ball", "circle", "sphere"),
    "square": ("square", "square", "box"),
    "ring": ("ring", "ring", "donut"),
    "cross": ("cross", "plus sign"),
    "large": ("large", "big", "huge"),
    "small": ("small", "little", "tiny"),
    "right": ("moves from left to right", "moving to the right", "slides right", "moves right"),
    "left": ("moves from right to left", "moving to the left", "slides left", "moves left"),
    "up": ("rises", "floats up", "moving up", "flies upwards"),
    "down": ("falls", "falling down", "moves down", "sinks"),
    "bounce": ("bounces", "bouncing", "bouncing up and down", "jumps up and down"),
    "spin": ("spins", "spinning", "rotates", "turning in place"),
    "grow": ("grows", "growing", "gets bigger", "comes closer"),
    "shrink": ("shrinks", "shrinking", "gets smaller", "moves away"),
    "circle": ("moves in a circle", "circling", "flies in circles"),
    "sway": ("sways from side to side", "swings left and right", "swaying"),
    "pulse": ("pulses", "pulsating", "beats like a heart"),
    "sky": ("in the sky", "against the open sky", "in the air"),
    "hills": ("over green hills", "above green hills", "over a green landscape"),
    "mountains": ("in front of snowy mountains", "over snowy mountains", "in the mountains"),
    "sea": ("over the sea", "above the ocean", "over the waves"),
    "dunes": ("over desert dunes", "in the desert", "above sand dunes"),
    "city": ("over a city", "above a city skyline", "over the city"),
    "day": ("during the day", "in daylight", "on a sunny day", "under a blue sky"),
    "sunset": ("at sunset", "at dusk", "in the evening light"),
    "night": ("at night", "under the stars", "in a starry night"),
}
_PLACES = {  # the same grounds as the subject of a landscape clip
    "sky": ("the sky", "an open sky"),
    "hills": ("green hills", "rolling green hills", "a green landscape"),
    "mountains": ("snowy mountains", "a mountain range", "mountains"),
    "sea": ("the sea", "ocean waves", "waves rolling on the sea"),
    "dunes": ("desert dunes", "a desert", "sand dunes"),
    "city": ("a city skyline", "a city", "the skyline of a city"),
}
_PREFIXES = ("", "", "", "", "a video of ", "a clip of ", "an animation of ")
_SUFFIXES = ("", "", "", "", "", ", smooth motion", ", beautiful", ", high quality", ", colourful", ", cinematic")


@dataclass(frozen=True)
class Mix:
    """The shares in which scenes are drawn. A name that stands twice in a tuple is drawn twice as often.

    kinds: weights of one shape, two shapes and landscapes. motions: a weight for each of `MOTIONS`.
    """

    kinds: tuple[float, float, float] = (54, 28, 18)
    shapes: tuple[str, ...] = SHAPES
    motions: tuple[float, ...] = SHARES
    events: tuple[str, ...] = EVENTS


EVEN = Mix()
# More of what the model drew worst: bouncing and swaying, hexagons, crosses and stars, camera pans and fireworks.
HARD = Mix(
    kinds=(50, 24, 26),
    shapes=(*SHAPES, *SHAPES, "hexagon", "hexagon", "hexagon", "cross", "cross", "star", "star", "heart"),
    motions=(1, 1, 1, 1, 2.5, 3, 1, 1, 1.5, 2.2, 1),
    events=(*EVENTS, "pan left", "pan right", "pan left", "pan right", "fireworks"),
)


@dataclass(frozen=True)
class Scene:
    """One drawn scene: its caption, its attributes by name, and the numbers the renderer reads."""

    caption: str
    attributes: dict[str, str]
    numbers: dict[str, list[float]]


def _say(rng: random.Random, key: str) -> str:
    return rng.choice(SYNONYMS.get(key, (key,)))


def one_hot(index: int, size: int) -> list[float]:
    return [float(i == index) for i in range(size)]


def _object(rng: random.Random, shape: str, colour: str, size: str, motion: str, column: float | None) -> dict:
    """The numbers of one shape. `column` fixes its horizontal place when two share the frame.

    Repeating motions begin alike in every scene. Swaying starts in the middle and to the right, circling at the top and
    clockwise, bouncing on the floor. Spinning starts upright and goes clockwise by half a turn. If one prompt had
    several possible courses, a small model would mix them. So extents differ by a tenth at most. A bounce is low enough
    for the VAE: at twice the height, an object near the floor crosses a latent's four frames in more than its radius.
    """
    number = dict.fromkeys(OBJECT_FIELDS, 0.0)
    base = SIZES[size] * rng.uniform(0.93, 1.07)
    reach = 0.95 - base
    number |= {
        "present": 1.0,
        "size": base,
        "x0": rng.uniform(-0.45, 0.45) if column is None else column + rng.uniform(-0.06, 0.06),
        "y0": rng.uniform(-0.30, 0.35),
        "angle": rng.uniform(-0.1, 0.1),
    }
    number["red"], number["green"], number["blue"] = (
        min(1.0, max(0.0, c + rng.uniform(-0.03, 0.03))) for c in COLOURS[colour]
    )
    free = column is None
    if motion in ("right", "left"):
        sign = 1 if motion == "right" else -1
        number["vx"] = sign * (2 * reach if free else 0.55) * rng.uniform(0.93, 1.0)
        number["x0"] = 0.0 if free else number["x0"]
    elif motion in ("up", "down"):
        sign = 1 if motion == "up" else -1
        number["vy"], number["y0"] = sign * 2 * reach * rng.uniform(0.93, 1.0), 0.0
    elif motion == "bounce":
        number["y0"], number["bounce"] = -0.88 + base, rng.uniform(0.50, 0.58)
        number["frequency"] = rng.uniform(1.48, 1.52)
    elif motion == "spin":
        number |= {"angle": 0.0, "spin": -math.pi * rng.uniform(0.98, 1.02)}
    elif motion in ("grow", "shrink"):
        rate = rng.uniform(1.2, 1.3)
        number["growth"] = rate if motion == "grow" else -rate
        number["size"] = min(base, 0.34)
        number["x0"], number["y0"] = number["x0"] * 0.5, number["y0"] * 0.4
    elif motion == "circle":
        radius = rng.uniform(0.41, 0.47) if free else 0.26
        number |= {"rx": radius, "ry": radius, "frequency": rng.uniform(-1.05, -0.95), "phase": math.pi / 2, "y0": 0.0}
        number["x0"] = number["x0"] * 0.3 if free else number["x0"]
    elif motion == "sway":
        number |= {
            "rx": rng.uniform(0.44, 0.50) if free else 0.2,
            "frequency": rng.uniform(1.2, 1.3),
            "phase": -math.pi / 2,
        }
        number["x0"] = number["x0"] * 0.3 if free else number["x0"]
    elif motion == "pulse":
        number |= {"pulse": 0.22, "frequency": rng.uniform(1.9, 2.1)}
    return number


def _backdrop(rng: random.Random) -> tuple[dict[str, list[float]], str, dict[str, str]]:
    """A studio backdrop: plain, gradient or checkerboard floor."""
    kind = rng.choices(("plain", "gradient", "checkerboard"), (5, 3, 2))[0]
    first, second = rng.sample(sorted(BACKDROPS), 2)
    numbers = {
        "studio": [1.0],
        "backdrop": one_hot(("plain", "gradient", "checkerboard").index(kind), 3),
        "colour_a": list(BACKDROPS[first]),
        "colour_b": list(BACKDROPS[second]),
    }
    if kind == "plain":
        text = rng.choice((f"on a {first} background", f"in front of a plain {first} wall", f"on {first}"))
    elif kind == "gradient":
        text = rng.choice((f"on a {first} to {second} gradient", f"before a gradient from {first} to {second}"))
    else:
        text = rng.choice(("on a checkerboard floor", "over a checkered floor"))
    return numbers, text, {"backdrop": kind, "backdrop_colour": first}


def _landscape(rng: random.Random, ground: str, hour: str) -> dict[str, list[float]]:
    sun = HOURS[hour] + rng.uniform(-0.04, 0.04)
    return {
        "ground": one_hot(GROUNDS.index(ground), len(GROUNDS)),
        "sun_from": [sun],
        "sun_to": [sun],
        "sun_x": [rng.uniform(-0.6, 0.6)],
        "terrain": [rng.uniform(0, 2 * math.pi) for _ in range(6)],
    }


def _defaults() -> dict[str, list[float]]:
    return {
        "studio": [0.0],
        "backdrop": [0.0] * 3,
        "colour_a": [0.0] * 3,
        "colour_b": [0.0] * 3,
        "ground": [0.0] * len(GROUNDS),
        "sun_from": [0.0],
        "sun_to": [0.0],
        "sun_x": [0.0],
        "terrain": [0.0] * 6,
        "pan": [0.0],
        "effect": [0.0] * len(EFFECTS),
        "bursts": [0.0] * 20,  # four times x, y, start, hue, spare
        "shape": [0.0] * (2 * len(SHAPES)),
        "objects": [0.0] * (2 * len(OBJECT_FIELDS)),
    }


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _shape_scene(rng: random.Random, count: int, mix: Mix) -> Scene:
    numbers = _defaults()
    studio = rng.random() < 0.55
    if studio:
        background, place, attributes = _backdrop(rng)
    else:
        ground, hour = rng.choice(GROUNDS), rng.choice(tuple(HOURS))
        background, attributes = _landscape(rng, ground, hour), {"ground": ground, "hour": hour}
        place = f"{_say(rng, ground)} {_say(rng, hour)}"
    numbers |= background

    colours = list(COLOURS)
    if studio:  # keep the subject visible
        colours = [c for c in colours if math.dist(COLOURS[c], numbers["colour_a"]) > 0.35]
    phrases, objects, shapes = [], [], []
    for i, colour in enumerate(rng.sample(colours, count)):
        shape, motion = rng.choice(mix.shapes), rng.choices(MOTIONS, mix.motions)[0]
        if shape in ("ball", "ring") and motion == "spin":  # a disc shows no rotation
            shape = rng.choice(("square", "triangle", "star", "heart", "cross"))
        size = rng.choices(tuple(SIZES), (2, 4, 2) if count == 1 else (2, 3, 0))[0]
        objects += list(_object(rng, shape, colour, size, motion, None if count == 1 else (-0.5, 0.5)[i]).values())
        shapes += one_hot(SHAPES.index(shape), len(SHAPES))
        adjective = f"{_say(rng, size)} " if size else ""
        phrases.append(f"{_article(f'{adjective}{colour} {_say(rng, shape)}')} {_say(rng, motion)}")
        attributes |= {f"shape{i}": shape, f"colour{i}": colour, f"motion{i}": motion, f"size{i}": size}
        attributes[f"phrase{i}"] = phrases[i]
    numbers["objects"][: len(objects)] = objects
    numbers["shape"][: len(shapes)] = shapes
    caption = rng.choice((" and ", ", ", " while ")).join(phrases)
    if rng.random() > 0.06:  # sometimes the place is left open
        caption, attributes["place"] = f"{caption} {place}", place
    return Scene(_decorate(rng, caption), {"kind": f"shapes{count}"} | attributes, numbers)


def _landscape_scene(rng: random.Random, mix: Mix) -> Scene:
    numbers = _defaults()
    ground = rng.choice(GROUNDS[1:])
    event = rng.choice(mix.events)
    hour = "night" if event == "fireworks" else rng.choice(tuple(HOURS))
    numbers |= _landscape(rng, ground, hour)
    place = rng.choice(_PLACES[ground])
    if event.startswith("pan"):
        direction = event.removeprefix("pan ")
        numbers["pan"] = [(1.0 if direction == "right" else -1.0) * rng.uniform(1.7, 1.9)]
        text = rng.choice((f"the camera pans {direction} over {place}", f"camera moving {direction} along {place}"))
        caption = f"{text} {_say(rng, hour)}"
    elif event == "to night":
        numbers["sun_from"], numbers["sun_to"] = [0.7], [-0.6]
        caption = rng.choice(
            (f"day turns to night over {place}", f"the sun sets over {place}", f"nightfall over {place}")
        )
    elif event == "to day":
        numbers["sun_from"], numbers["sun_to"] = [-0.5], [0.7]
        caption = rng.choice(
            (f"night turns to day over {place}", f"the sun rises over {place}", f"sunrise over {place}")
        )
    elif event == "calm":
        caption = f"{place} {_say(rng, hour)}"
    else:
        numbers["effect"] = one_hot(EFFECTS.index(event), len(EFFECTS))
        if event == "fireworks":
            bursts = []
            for i in range(4):
                bursts += [
                    rng.uniform(-0.7, 0.7),
                    rng.uniform(0.15, 0.75),
                    (i + rng.random() * 0.5) * 0.22,
                    rng.random(),
                    0.0,
                ]
            numbers["bursts"] = bursts
            caption = rng.choice((f"fireworks over {place} at night", f"colourful fireworks explode over {place}"))
        else:
            verb = rng.choice(("falls on", "falling over", "over"))
            caption = f"{event} {verb} {place} {_say(rng, hour)}"
    return Scene(
        _decorate(rng, caption), {"kind": "landscape", "ground": ground, "hour": hour, "event": event}, numbers
    )


def _decorate(rng: random.Random, caption: str) -> str:
    caption = rng.choice(_PREFIXES) + caption + rng.choice(_SUFFIXES)
    if rng.random() < 0.5:
        caption = caption[0].upper() + caption[1:]
    return caption + ("." if rng.random() < 0.3 else "")


def sample_scene(rng: random.Random, mix: Mix = EVEN) -> Scene:
    """Draw a scene: with `EVEN`, 54 % one shape, 28 % two shapes, 18 % landscapes."""
    kind = rng.choices((1, 2, 0), mix.kinds)[0]
    return _landscape_scene(rng, mix) if kind == 0 else _shape_scene(rng, kind, mix)
