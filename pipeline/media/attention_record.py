"""The attention record of a video: the blocks that BSA selected, and how much of the full attention they hold.

A record has

* the selections of some (step, layer, head): all of them if they fit into a bound, otherwise evenly spread ones
  (`Sampled` lists them);
* the density of every (step, layer, head): selected query-key token pairs over all pairs;
* the recall of every (step, layer, head): the share of the softmax mass, over all keys, that lies inside the selected
  blocks, measured on a sample of the queries.

`pipeline.model.recorder` makes the record while the video is generated.

File format, `<video's stem>.attention.npz` (NumPy, no pickles):

    about         JSON text: format (1, or 2 with conditioning frames), grid, chunk_q, chunk_k [frames, rows, columns of
                  tokens], the steps, layers and heads of the stored selections, request, versions; in format 2
                  conditioning, the number of first frames whose blocks are cut apart from the rest
    selections    uint8 [steps stored, layers stored, heads stored, query blocks, ceil(key blocks / 8)]; key block n is
                  bit n % 8 of byte n // 8. Blocks are counted in raster (frame, row, column) order. Query blocks of
                  conditioning frames that do not run in a step keep none
    block_recall  fp32 [steps stored, layers stored, heads stored, query blocks], from one token of the block; NaN if
                  no token was sampled
    density       fp32 [steps, layers, heads]; NaN in steps that TeaCache skipped
    recall        fp32 [steps, layers, heads], the mean over the sampled query blocks, weighted by their tokens; NaN in
                  such steps
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bsa.grid import Grid
from pipeline.machine.whole_files import replacing

FORMAT, WITH_CONDITIONING = 1, 2


class Sampled(NamedTuple):
    """The steps, layers and heads whose selections are stored: every combination of them, counted from 0."""

    steps: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]

    @classmethod
    def within(cls, steps: int, layers: int, heads: int, most: int) -> Sampled:
        """As many of each as fit into `most` combinations, evenly spread, ends included. None if not even one fits."""
        counts = [steps, layers, heads] if most else [0, 0, 0]
        while np.prod(counts) > most:
            counts[counts.index(max(counts))] -= 1
        spread = (np.linspace(0, size - 1, kept).round() for size, kept in zip((steps, layers, heads), counts))
        return cls(*(tuple(int(number) for number in numbers) for numbers in spread))


@dataclass(frozen=True, eq=False)
class AttentionRecord:
    """The record of one video. The top of this module describes its arrays, which are the same as in the file."""

    grid: Grid
    chunk_q: Grid
    chunk_k: Grid
    sampled: Sampled
    selections: np.ndarray
    block_recall: np.ndarray
    density: np.ndarray
    recall: np.ndarray
    request: dict[str, Any]
    versions: dict[str, str]
    conditioning: int = 0

    @property
    def q_blocks(self) -> Grid:
        return self.grid.blocks(self.chunk_q, self.conditioning)

    @property
    def k_blocks(self) -> Grid:
        return self.grid.blocks(self.chunk_k, self.conditioning)

    def masks(self, step: int, layer: int, query_block: int) -> np.ndarray:
        """The key blocks that each stored head keeps for a query block, bool [heads stored, key blocks].

        Raises:
            ValueError: the step or layer is not stored, or the query block does not exist.
        """
        place = [_position(self.sampled.steps, step, "step"), _position(self.sampled.layers, layer, "layer")]
        if not 0 <= query_block < self.q_blocks.volume:
            raise ValueError(f"query block {query_block} does not exist; use 0 to {self.q_blocks.volume - 1}")
        bits = self.selections[place[0], place[1], :, query_block]
        return np.unpackbits(bits, axis=-1, count=self.k_blocks.volume, bitorder="little").astype(bool)

    def kept(self, step: int, layer: int, head: int, query_block: int) -> np.ndarray:
        """The key blocks that a query block keeps in one head, ascending int64. Raises ValueError if not stored."""
        masks = self.masks(step, layer, query_block)
        return np.flatnonzero(masks[_position(self.sampled.heads, head, "head")])

    def recall_of(self, step: int, layer: int, query_block: int) -> np.ndarray:
        """Recall of one query block in every stored head, fp32 [heads stored]. NaN if it was not sampled."""
        place = _position(self.sampled.steps, step, "step"), _position(self.sampled.layers, layer, "layer")
        return self.block_recall[place[0], place[1], :, query_block]

    def summary(self) -> dict[str, Any]:
        """Mean recall and density, overall, per layer, per step, and as [layers][steps], as values for JSON; None for
        steps that were skipped."""
        report: dict[str, Any] = {
            "grid": list(self.grid),
            "chunk_q": list(self.chunk_q),
            "chunk_k": list(self.chunk_k),
            "key_blocks": self.k_blocks.volume,
            "bsa_params": self.request["bsa"],
        }
        for name in ("recall", "density"):
            values = np.ma.masked_invalid(getattr(self, name))
            report[name] = float(values.mean())
            report[f"{name}_by_layer"] = values.mean(axis=(0, 2)).tolist()
            report[f"{name}_by_step"] = values.mean(axis=(1, 2)).tolist()
            report[f"{name}_by_layer_and_step"] = values.mean(axis=2).T.tolist()
        return report

    def save(self, path: Path) -> None:
        """Write the file; it appears complete or not at all. Raises OSError if it cannot be written.

        The format is that of `numpy.savez_compressed`, but with the lowest compression level: it takes a sixth of the
        time for a tenth more bytes.
        """
        given = {"conditioning": self.conditioning} if self.conditioning else {}
        about = {
            "format": WITH_CONDITIONING if given else FORMAT,
            **given,
            **{name: list(getattr(self, name)) for name in ("grid", "chunk_q", "chunk_k")},
            **self.sampled._asdict(),
            "request": self.request,
            "versions": self.versions,
        }
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            for name, array in {"about": np.array(json.dumps(about)), **arrays}.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)

    @classmethod
    def load(cls, path: Path | str) -> AttentionRecord:
        """Read a file that `save` wrote. Raises ValueError for anything else."""
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                arrays = {name: file[name] for name in _ARRAYS}
            if about["format"] in (FORMAT, WITH_CONDITIONING):
                parts: dict[str, Any] = {name: Grid(*about[name]) for name in ("grid", "chunk_q", "chunk_k")}
                sampled = Sampled(*(tuple(about[name]) for name in Sampled._fields))
                parts |= {"conditioning": about.get("conditioning", 0)}
                return cls(**parts, **arrays, sampled=sampled, request=about["request"], versions=about["versions"])
        except FileNotFoundError:
            raise ValueError(f"there is no file {path}; a sparse generation with recording on writes it") from None
        except (OSError, KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            reason = f"{path} is not an attention record ({type(error).__name__})"
            raise ValueError(f"{reason}; give a file that ends in .attention.npz") from None
        known = f"{FORMAT} and {WITH_CONDITIONING}"
        raise ValueError(f"{path} has format {about['format']}, this version reads {known}; record it again")


_ARRAYS = ("selections", "block_recall", "density", "recall")


def record_path(video: Path) -> Path:
    """The path of a video's record, beside the video."""
    return video.with_suffix(".attention.npz")


def _position(stored: tuple[int, ...], number: int, name: str) -> int:
    try:
        return stored.index(number)
    except ValueError:
        listed = ", ".join(map(str, stored)) or "none"
        raise ValueError(f"{name} {number} is not stored; the stored {name}s are {listed}, counted from 0") from None
