"""Writes tests/data/refinement_6b3f4b8.npz with the original LongCat-Video code: refining after refined frames.

    python tests/original_refinement.py CLONE [FILE.npz]

CLONE is a clone as original_vectors.py takes it, and that file says what of it runs and on which weights. No adapter is
on. test_pipeline_long_refinement.py compares.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from original_vectors import DEPTH, PROMPT, SEED, SIZE, load, sample


class Window(NamedTuple):
    """How a clip of 13 frames is refined: after so many frames, and as many of them or twice as many."""

    given: int
    double: bool
    sparse: bool = False


WINDOWS = {
    "spatial": Window(5, double=False),
    "double": Window(10, double=True),
    "double-sparse": Window(10, double=True, sparse=True),
}


def clip(frames: int, height: int, width: int, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator).numpy()


def coarse() -> np.ndarray:
    """The clip to refine."""
    return clip(13, 48, 80, seed=11)


def refined(case: Window) -> np.ndarray:
    """Frames that are refined already, three more than are used."""
    return clip(case.given + 3, *SIZE, seed=12)


def main(clone: Path, target: Path) -> None:
    os.environ["TRITON_INTERPRET"] = os.environ["TORCHDYNAMO_DISABLE"] = "1"
    from PIL import Image
    from tiny_checkpoint import write_tiny_checkpoint

    written = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        pipeline = load(clone, write_tiny_checkpoint(Path(folder) / "checkpoint", depth=DEPTH))
        for name, case in WINDOWS.items():
            pipeline.dit.enable_bsa() if case.sparse else pipeline.dit.disable_bsa()
            torch.manual_seed(SEED)  # of all draws, as the original takes only one of them from its generator
            latents = pipeline.generate_refine(
                video=[Image.fromarray(frame) for frame in refined(case)],
                prompt=PROMPT,
                stage1_video=[Image.fromarray(frame) for frame in coarse()],
                num_cond_frames=case.given,
                spatial_refine_only=not case.double,
                output_type="latent",
            )
            written[name] = sample(latents)
            print(name, flush=True)
    np.savez_compressed(target, **written)
    print(f"written to {target}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    here = Path(__file__).parent
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else here / "data" / "refinement_6b3f4b8.npz")
