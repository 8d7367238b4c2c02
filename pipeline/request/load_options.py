"""Options for loading a model: the precision of its weights, where they are kept, and how many GPUs share the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

QUANTIZATIONS = ("fp8", "fp8+attention")
PRECISIONS = ("auto", "bf16", "fp32")
_LEAST: dict[str, Any] = {"quantization": "fp8", "offload": True}


@dataclass(frozen=True)
class LoadOptions:
    """Options for the weights of a model. False where they are as stored, whatever the precision of the computation; as
    text, the options of the command line for them.

    quantization: "fp8" for 8-bit weights in the transformer's blocks (`pipeline.weights.fp8`), "fp8+attention" for
        block sparse attention in 8 bits as well (`bsa.kernels.eight_bits`), None for the checkpoint's own.
    offload: whether blocks (`pipeline.weights.offload`) and text encoder stay in host memory and visit the GPU for
        their turn.
    gpus: number of GPUs that make one video together, each with weights of its own (`pipeline.parallel`).
    precision: "bf16" or "fp32" for weights and activations; "auto" leaves it to `pipeline.weights.precision`.

    Raises ValueError for a quantization or precision that there is not, or a number of GPUs below one.
    """

    quantization: str | None = None
    offload: bool = False
    gpus: int = 1
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ValueError(
                f"unknown quantization {self.quantization!r}; use {', '.join(QUANTIZATIONS)}, or leave it out"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}; use one of {', '.join(PRECISIONS)}")
        if self.gpus < 1:
            raise ValueError(f"gpus is {self.gpus}; use 1 or more")

    @property
    def options(self) -> tuple[str, ...]:
        """As words of a command line."""
        return self._kept + (() if self.precision == "auto" else (f"--precision {self.precision}",))

    @property
    def _kept(self) -> tuple[str, ...]:
        """The options that change how weights are kept, which the fast forward alone can run with."""
        quantization = (f"--quantization {self.quantization}",) if self.quantization else ()
        gpus = (f"--gpus {self.gpus}",) if self.gpus > 1 else ()
        return quantization + (("--offload",) if self.offload else ()) + gpus

    def __bool__(self) -> bool:
        return bool(self._kept)

    def __str__(self) -> str:
        return " ".join(self._kept)

    @property
    def attends_in_8_bits(self) -> bool:
        """Whether block sparse attention is computed in 8 bits."""
        return self.quantization == "fp8+attention"

    @property
    def of_one(self) -> LoadOptions:
        """How each of the GPUs keeps its weights."""
        return replace(self, gpus=1)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `LongCatPipeline.load` that differ from its defaults."""
        given = {"quantization": self.quantization, "offload": self.offload}
        gpus = {"gpus": self.gpus} if self.gpus > 1 else {}
        precision = {} if self.precision == "auto" else {"precision": self.precision}
        return {name: value for name, value in given.items() if value} | gpus | precision

    @property
    def versions(self) -> dict[str, str]:
        """The entry in a video's metadata; `from_versions` reads it."""
        return {name: "yes" if value is True else str(value) for name, value in self.arguments.items()}

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> LoadOptions:
        """Pick the load options out of the arguments of `LongCatPipeline.load`."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls) if field.name in arguments})

    @classmethod
    def from_versions(cls, versions: Mapping[str, str]) -> LoadOptions:
        """From what a video says, in which anything may stand."""
        quantization, precision = versions.get("quantization"), versions.get("precision")
        gpus = str(versions.get("gpus"))
        return cls(
            quantization if quantization in QUANTIZATIONS else None,
            versions.get("offload") == "yes",
            int(gpus) if gpus.isdecimal() and len(gpus) < 4 and int(gpus) else 1,
            precision if precision in PRECISIONS else "auto",
        )

    def smaller(self) -> list[LoadOptions]:
        """The options that take less memory of each GPU, the smallest change first."""
        less = [
            replace(self, precision="auto", **given) for given in ({"quantization": "fp8"}, {"offload": True}, _LEAST)
        ]
        return [options for options in less if options._kept != self._kept and {*self._kept} <= {*options._kept}]

    def check_forward(self, forward: str) -> None:
        """Raises ValueError for the plain forward, which cannot run with them."""
        if self and forward == "plain":
            raise ValueError(f"the plain forward cannot run with {self}; use the fast one or auto, or leave {self} out")

    def check_attention(self, device: str) -> None:
        """Raises ValueError for attention in 8 bits on a device of another kind than "cuda"; they have no kernel."""
        if self.attends_in_8_bits and device != "cuda":
            raise ValueError(
                f"--quantization {self.quantization} needs a GPU, and this model runs on {device}; use --quantization "
                "fp8, or leave it out"
            )


AS_STORED = LoadOptions()
