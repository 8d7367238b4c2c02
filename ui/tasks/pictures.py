"""Pictures to begin with: examples from the world of the included checkpoint, and a look at the chosen one.

`python -m training.pictures` draws the examples, with the renderer that drew the training clips.
"""

from __future__ import annotations

import base64
import io
import json
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.media.clip import read_clip
from pipeline.media.picture import read_picture
from ui.look.parts import Drawn

log = logging.getLogger("ui")

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "pictures"
SIDE = 160  # pixels of the longer side of what is shown


@dataclass(frozen=True)
class Example:
    """A picture, and a prompt that goes on from it."""

    path: Path
    prompt: str


class ExamplePictures(Drawn):
    """The examples as buttons. Event: select brings {"name"} of the one that was pressed."""

    def __init__(self, **kwargs: Any) -> None:
        shown = [
            {"name": name, "prompt": one.prompt, "source": data_url(read_picture(one.path))}
            for name, one in examples().items()
        ]
        super().__init__("pictures", ["pictures.js"], {"pictures": shown}, **kwargs)


@cache
def examples() -> dict[str, Example]:
    """The examples by name; none, and a line in the log, where they are missing."""
    try:
        prompts = json.loads((FOLDER / "pictures.json").read_text(encoding="utf-8"))
        return {name: Example(FOLDER / f"{name}.png", prompt) for name, prompt in prompts.items()}
    except (OSError, ValueError, AttributeError) as error:
        log.warning("the example pictures in %s cannot be shown: %s", FOLDER, error)
        return {}


def look_at(path: str, clip: bool) -> str:
    """The picture, or the last frame of the clip, as a data URL. Raises ValueError for a file that cannot be read."""
    return data_url(read_clip(path)[-1] if clip else read_picture(path))


def data_url(pixels: Any) -> str:
    """A small JPEG of a picture, uint8 [H, W, 3]."""
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
