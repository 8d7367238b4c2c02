"""The settings of a request that people give one by one, in one table: form, API and command line read it."""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline.request.values import real_number, whole_number


class Field(NamedTuple):
    """name: of the `VideoRequest` attribute, in JSON and the API, with dashes on the command line. kind: its type.
    label: in sentences. help: what it means, as a sentence without its full stop."""

    name: str
    kind: type
    label: str
    help: str

    def read(self, value: Any) -> Any:
        """The value in its type, however a browser or JSON delivered it. ValueError where that cannot be."""
        if self.kind is int:
            return whole_number(self.label, value)
        return real_number(self.label, value) if self.kind is float else value


FIELDS = {
    field.name: field
    for field in (
        Field("prompt", str, "prompt", "What the video shows, in a sentence or two"),
        Field(
            "negative_prompt",
            str,
            "negative prompt",
            "What it should not show; counts only when guidance_scale is above 1",
        ),
        Field("width", int, "width", "Pixels, a multiple of 16"),
        Field("height", int, "height", "Pixels, a multiple of 16"),
        Field("num_frames", int, "number of frames", "Frames, of the form 4n + 1"),
        Field("steps", int, "number of steps", "Denoising steps"),
        Field("guidance_scale", float, "guidance scale", "Classifier-free guidance, 1 for none"),
        Field("seed", int, "seed", "Seed of the initial noise"),
        Field("fps", int, "frames per second", "Frames per second of the file"),
        Field("use_distill", bool, "few-step schedule", "The few-step schedule of LongCat's distilled model"),
        Field(
            "lora",
            str,
            "adapter",
            "Adapters of the checkpoint, such as distill, style:0.7 (its strength) or distill+style:0.7; 'distill' is "
            "made for 16 steps and guidance_scale 1",
        ),
        Field(
            "teacache_thresh",
            float,
            "TeaCache threshold",
            "Skips steps that differ by less than this from the last one that ran, 0 to 1: a less alike video in less "
            "time; 0 runs every step",
        ),
    )
}
