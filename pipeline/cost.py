"""What a generation costs: operations and bytes, counted from the checkpoint's configuration and the request.

Counts, not seconds: `pipeline.estimate` turns them into seconds with rates measured on the machine. The rates here
only say how the parts compare with each other, which fills the gap between a first measurement and another size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bsa import BSAConfig, Grid
from pipeline.checkpoint import WEIGHTS, CheckpointInfo, component_parameters
from pipeline.limits import Device
from pipeline.request import VideoRequest
from pipeline.weights import AS_STORED, Weights

_UNKNOWN = "the configurations of {name} do not tell its size ({reason})"

TEXT_TOKENS = 40  # of a prompt of a sentence or two; cross-attention is too small a part for more exactness


@dataclass(frozen=True)
class ModelShape:
    """What the cost of a checkpoint depends on.

    hidden, depth, heads, ffn, modulation: of the transformer; the last is the width of its time embedding.
    transformer, text_encoder, vae: parameters of each. text_visit: of the text encoder, those that are together while
    one of its layers runs: embedding and layer.
    decoder_width: channels of the VAE decoder's last level, which works on squares of decoder_patch pixels.
    """

    hidden: int
    depth: int
    heads: int
    ffn: int
    modulation: int
    transformer: int
    text_encoder: int
    text_visit: int
    vae: int
    decoder_width: int
    decoder_patch: int

    @property
    def parameters(self) -> int:
        """Of all components."""
        return self.transformer + self.text_encoder + self.vae

    @classmethod
    def read(cls, info: CheckpointInfo) -> ModelShape:
        """From the checkpoint's small files. Raises ValueError when one is missing or damaged."""
        try:
            configs = {
                part: json.loads((info.path / part / "config.json").read_text(encoding="utf-8")) for part in WEIGHTS
            }
            parameters = {part: component_parameters(info.path / part, info.path) for part in WEIGHTS}
        except (OSError, ValueError) as error:
            raise ValueError(_UNKNOWN.format(name=info.name, reason=error)) from error
        return cls.of(info.name, configs, parameters)

    @classmethod
    def of(cls, name: str, configs: Mapping[str, Any], parameters: Mapping[str, int]) -> ModelShape:
        """From each component's config.json and number of parameters. Raises ValueError when a value is unusable."""
        try:
            transformer, vae, text = (configs[part] for part in ("transformer", "vae", "text_encoder"))
            embedding = int(text.get("vocab_size", 256_384)) * int(text.get("d_model", 4096))
            layer = (parameters["text_encoder"] - embedding) // int(text.get("num_layers", 24))
            hidden = int(transformer.get("hidden_size", 4096))
            ffn = int(hidden * transformer.get("mlp_ratio", 4) * 2 / 3)
            return cls(
                hidden=hidden,
                depth=int(transformer.get("depth", 48)),
                heads=int(transformer.get("num_attention_heads", 32)),
                ffn=-(-ffn // 256) * 256,  # LongCat's SwiGLU is rounded up to a multiple of 256
                modulation=int(transformer.get("adaln_tembed_dim", 512)),
                transformer=parameters["transformer"],
                text_encoder=parameters["text_encoder"],
                text_visit=embedding + max(0, layer),
                vae=parameters["vae"],
                decoder_width=int(vae.get("base_dim", 96)) * int(vae.get("dim_mult", [1])[0]),
                decoder_patch=int(vae.get("patch_size") or 1),
            )
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            raise ValueError(_UNKNOWN.format(name=name, reason=error)) from None


class Rates(NamedTuple):
    """How fast the parts run, in operations a second, and what else they cost, in operations.

    layout: per element moved into blocks and back. select: per pair of pooled blocks. ragged: factor on all of sparse
    attention where the chunks do not divide the grid. launch: seconds per layer that do not depend on the size.
    """

    linear: float
    dense: float
    sparse: float
    decode: float
    layout: float
    select: float
    ragged: float
    launch: float


# Measured once with benchmarks/: two CPU threads in fp32, one H200 in bfloat16. Only their ratios matter.
_RATES = {
    "cpu": Rates(73e9, 155e9, 115e9, 136e9, 530, 500, 1.6, 1.5e-3),
    "cuda": Rates(350e12, 600e12, 400e12, 50e12, 4000, 20000, 1.3, 1e-3),
}


def reference_rates(device: Device) -> Rates:
    return _RATES.get(device.type, _RATES["cpu"])


def linear_seconds(shape: ModelShape, tokens: int, rates: Rates) -> float:
    """One block without its self-attention, for one row of the batch, at the reference rates."""
    weights = 6 * shape.hidden**2 + 3 * shape.hidden * shape.ffn
    return (2 * tokens * weights + 4 * tokens * TEXT_TOKENS * shape.hidden) / rates.linear + rates.launch


def dense_seconds(shape: ModelShape, tokens: int, rates: Rates) -> float:
    """The self-attention of one block, every token with every token."""
    return 4 * tokens**2 * shape.hidden / rates.dense


def sparse_seconds(shape: ModelShape, grid: Grid, bsa: BSAConfig, kept: float, rates: Rates) -> float:
    """The self-attention of one block with `kept` key blocks per query block: layout, selection, attention.

    A block that the edge cuts short costs as much as a whole one, because it is padded to its chunk.
    """
    plan = bsa.blocks(grid)
    chunk_k = Grid(*map(min, grid, bsa.chunk_k)).volume
    pairs = 4 * grid.volume * kept * chunk_k * shape.hidden
    layout = rates.layout * grid.volume * shape.hidden
    select = rates.select * shape.heads * plan.q_blocks.volume * plan.k_blocks.volume
    return (pairs + layout + select) / rates.sparse * (rates.ragged if plan.ragged else 1)


def decode_seconds(shape: ModelShape, frames: int, height: int, width: int, rates: Rates) -> float:
    """The VAE's decoder: its convolutions cost as much for every pixel, about 800 width^2 per position."""
    positions = frames * height * width / shape.decoder_patch**2
    return positions * 800 * shape.decoder_width**2 / rates.decode


def kept_blocks(bsa: BSAConfig, grid: Grid, density: float | None = None) -> float:
    """Key blocks per query block. Where a cdf threshold decides, from a measured density, and without one the most
    that it can be: the best blocks always hold at least their share of the mass."""
    plan = bsa.blocks(grid)
    if plan.kept is not None:
        return plan.kept
    most = max(plan.min_kept, bsa.cdf_threshold * plan.k_blocks.volume)
    return most if density is None else min(most, density * plan.k_blocks.volume)


# -- memory -------------------------------------------------------------------------------------------------------

# Tensors of tokens x hidden alive at the widest place of a block (the feed-forward's three, or q, k, v with their
# fp32 rotations). bfloat16: 11.45 GiB at 84,480 x 4096 on an H200 are 17.8 of them, because norms work in fp32.
_BLOCK_TENSORS = {"cpu": 13, "cuda": 18}
# Of the fast forward, which 8-bit and offloaded weights need, on CUDA: input, queries, keys, values, result and a
# part of the feed-forward. Counted, not measured.
_FAST_TENSORS = 6
_DECODER_TENSORS = 12  # of the decoder's last level: activations, and the frames its causal convolutions keep
_PROCESS_BYTES = 900 * 2**20  # Python, PyTorch and FastVideo before any weight (resident set, CPU)
_CONTEXT_BYTES = 600 * 2**20  # a CUDA context and cuBLAS workspaces, beside what PyTorch allocates


def element_size(device: Device) -> int:
    """Bytes per weight and activation: bfloat16 on CUDA, fp32 elsewhere."""
    return 2 if device.type == "cuda" else 4


def block_bytes(shape: ModelShape, device: Device, weights: Weights) -> int:
    """Weights of one block of the transformer. Its scales, norms and biases are too few to count."""
    size = element_size(device)
    return _linear(shape) * (1 if weights.quantization == "fp8" else size) + _modulation(shape) * size


def _linear(shape: ModelShape) -> int:
    return 8 * shape.hidden**2 + 3 * shape.hidden * shape.ffn


def _modulation(shape: ModelShape) -> int:
    return 6 * shape.hidden * shape.modulation


def _outside_blocks(shape: ModelShape, device: Device) -> int:
    """Weights of the transformer beside its blocks, and what was not counted of those."""
    parameters = shape.transformer - shape.depth * (_linear(shape) + _modulation(shape))
    return max(0, parameters) * element_size(device)


def _offloads(device: Device, weights: Weights) -> bool:
    return weights.offload and device.type == "cuda"


def _resident_bytes(shape: ModelShape, device: Device, weights: Weights) -> int:
    """Weights that are on the device all the time."""
    size, block = element_size(device), block_bytes(shape, device, weights)
    both = _outside_blocks(shape, device) + shape.vae * size
    if _offloads(device, weights):
        return both + 2 * block
    return both + (shape.depth + 2 * weights.offload) * block + shape.text_encoder * size


def _visiting_bytes(shape: ModelShape, device: Device, weights: Weights) -> int:
    """Weights that are on the device while a prompt is encoded, and not after that."""
    return shape.text_visit * element_size(device) if _offloads(device, weights) else 0


def weight_bytes(shape: ModelShape, device: Device, weights: Weights = AS_STORED) -> int:
    """The most weights that are on the device at one time, as the pipeline loads them."""
    return _resident_bytes(shape, device, weights) + _visiting_bytes(shape, device, weights)


def host_bytes(shape: ModelShape, device: Device, weights: Weights = AS_STORED) -> int:
    """Weights in host memory for good, beside those on the device."""
    if not _offloads(device, weights):
        return 0
    return shape.depth * block_bytes(shape, device, weights) + shape.text_encoder * element_size(device)


def fixed_bytes(shape: ModelShape, device: Device, weights: Weights = AS_STORED) -> int:
    """What is taken before the first generation: the weights and the process."""
    process = _CONTEXT_BYTES if device.type == "cuda" else _PROCESS_BYTES
    return _resident_bytes(shape, device, weights) + process


def activation_bytes(shape: ModelShape, request: VideoRequest, device: Device, weights: Weights = AS_STORED) -> int:
    """The larger of the transformer's and the decoder's, which do not run at the same time; and of the text encoder's
    weights where they are there for their turn only."""
    size, grid = element_size(device), request.grid
    rows = 2 if request.guidance_scale > 1 else 1
    copies = rows * grid.volume * shape.hidden * size
    if weights and device.type == "cuda":
        block = _FAST_TENSORS * copies
    else:
        block = _BLOCK_TENSORS.get(device.type, _BLOCK_TENSORS["cpu"]) * copies
        if request.bsa_status()[0]:
            plan = request.bsa.blocks(grid)
            scores = 4 * rows * shape.heads * plan.q_blocks.volume * plan.k_blocks.volume
            # selection runs before the feed-forward widens the block, so only what goes beyond counts
            block = max(block, 7 * copies + 4 * copies + 4 * scores)
    positions = request.height * request.width // shape.decoder_patch**2
    pixels = 3 * request.num_frames * request.height * request.width
    decode = _DECODER_TENSORS * 4 * positions * shape.decoder_width * size + 3 * 4 * pixels
    return max(block, decode, _visiting_bytes(shape, device, weights))


def least_bytes(shape: ModelShape, request: VideoRequest, device: Device, weights: Weights = AS_STORED) -> int:
    """What certainly exists at one time, so that what needs more than there is cannot run: the weights, and five
    tensors of tokens x hidden (input, queries, keys, values, result) or the decoded pixels and a copy of them."""
    size = element_size(device)
    rows = 2 if request.guidance_scale > 1 else 1
    block = 5 * rows * request.grid.volume * shape.hidden * size
    pixels = 3 * request.num_frames * request.height * request.width
    visiting = _visiting_bytes(shape, device, weights)
    return _resident_bytes(shape, device, weights) + max(block, 2 * 4 * pixels, visiting)
