"""How the weights of a model are kept, chosen when it is loaded. Needs no PyTorch, for the page's process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bsa import Grid
from pipeline.request.video import VideoRequest

QUANTIZATIONS = ("fp8",)


@dataclass(frozen=True)
class Weights:
    """True where anything is other than stored; as text, the options of the command line.

    quantization: "fp8" for 8-bit weights in the transformer's blocks (`pipeline.model.fp8`), None for the
        checkpoint's own.
    offload: whether blocks (`pipeline.model.offload`) and text encoder stay in host memory and visit the GPU for their
        turn.

    Raises ValueError for a quantization that there is not.
    """

    quantization: str | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ValueError(
                f"unknown quantization {self.quantization!r}; use {', '.join(QUANTIZATIONS)}, or leave it out"
            )

    @property
    def options(self) -> tuple[str, ...]:
        """As words of a command line."""
        quantization = (f"--quantization {self.quantization}",) if self.quantization else ()
        return quantization + (("--offload",) if self.offload else ())

    def __bool__(self) -> bool:
        return bool(self.options)

    def __str__(self) -> str:
        return " ".join(self.options)

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `LongCatPipeline.load` that are not its defaults."""
        given = {"quantization": self.quantization, "offload": self.offload}
        return {name: value for name, value in given.items() if value}

    @property
    def versions(self) -> dict[str, str]:
        """What a video says about them; `from_versions` reads it."""
        return {name: "yes" if value is True else value for name, value in self.arguments.items()}

    @classmethod
    def from_versions(cls, versions: Mapping[str, str]) -> Weights:
        """From what a video says, in which anything may stand."""
        quantization = versions.get("quantization")
        return cls(quantization if quantization in QUANTIZATIONS else None, versions.get("offload") == "yes")

    def smaller(self) -> list[Weights]:
        """Those that take less memory of a GPU, the least change first."""
        ways = [Weights("fp8"), Weights(None, True), Weights("fp8", True)]
        return [way for way in ways if way != self and set(self.options) <= set(way.options)]

    def check_forward(self, forward: str) -> None:
        """Raises ValueError for the plain forward, which cannot run with them."""
        if self and forward == "plain":
            raise ValueError(f"the plain forward cannot run with {self}; use the fast one or auto, or leave {self} out")

    def check(self, request: VideoRequest) -> None:
        """Raises ValueError for a request that only the plain forward can run."""
        if self and (obstacle := mixed_chunks(request)):
            raise ValueError(
                f"{self} needs the fast forward, which cannot run this request because {obstacle}; give both the same "
                f"chunk, or load the model without {self}"
            )


AS_STORED = Weights()


def mixed_chunks(request: VideoRequest) -> str | None:
    """Why the fast forward cannot run a request, as the end of a sentence: it has one block order for all tokens."""
    if request.bsa is None or not request.bsa_status()[0]:
        return None
    chunks = request.bsa.chunk_q, request.bsa.chunk_k
    # What reaches beyond the grid makes no difference.
    if len({Grid(*map(min, request.grid, chunk)) for chunk in chunks}) == 1:
        return None
    return f"queries and keys have chunks of {chunks[0]} and {chunks[1]} tokens"
