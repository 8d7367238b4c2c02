"""Counts the memory that a generation needs, in bytes, from the model's shape, the request and the load options."""

from __future__ import annotations

from bsa.grid import CELL
from pipeline.checkpoint.shape import ModelShape
from pipeline.machine.gpus import Device
from pipeline.parallel.mesh import mesh_shape, strip_count
from pipeline.request.load_options import AS_STORED, LoadOptions
from pipeline.request.video import VideoRequest
from pipeline.weights.precision import number_bytes

# Tensors of tokens x hidden that exist at the widest point of a block: three of the feed-forward, or q, k and v with
# their fp32 rotations. In bfloat16, 11.45 GiB at 84,480 x 4096 on an H200 are 17.8 of them, since norms use fp32.
_BLOCK_TENSORS = {"cpu": 13, "cuda": 18}
# The same for the fast forward on CUDA, which 8-bit and offloaded weights need: input, queries, keys, values, result
# and a part of the feed-forward. Counted, not measured.
_FAST_TENSORS = 6
# And between ranks, of their share: queries, keys and values as they are sent, and as they arrive. All ten are what two
# and four H200 took at 84,480 tokens (benchmarks/multi_gpu.py).
_EXCHANGE_TENSORS = 4
# And for attention in 8 bits: queries, keys and values in one byte each, padded to whole tiles. Counted, not measured.
_EIGHT_BIT_TENSORS = 2
_DECODER_TENSORS = 12  # at the decoder's last level: activations, and frames that its causal convolutions keep
_TEXT_SIZE = {"cuda": 2, "cpu": 4}  # bytes per weight of the text encoder, whatever the rest computes in
_PROCESS_BYTES = 900 * 2**20  # Python, PyTorch and FastVideo before any weight (resident set, CPU)
_CONTEXT_BYTES = 600 * 2**20  # a CUDA context and cuBLAS workspaces, beside what PyTorch allocates


def element_size(shape: ModelShape, device: Device, weights: LoadOptions) -> int:
    """Bytes per weight and activation."""
    return number_bytes(weights, device, shape.hidden)


def block_bytes(shape: ModelShape, device: Device, weights: LoadOptions) -> int:
    """Bytes of the weights of one transformer block. Scales, norms and biases are too few to count."""
    size = element_size(shape, device, weights)
    return _linear(shape) * (size if weights.quantization is None else 1) + _modulation(shape) * size


def _linear(shape: ModelShape) -> int:
    return 8 * shape.hidden**2 + 3 * shape.hidden * shape.ffn


def _modulation(shape: ModelShape) -> int:
    return 6 * shape.hidden * shape.modulation


def _outside_blocks(shape: ModelShape, device: Device, weights: LoadOptions) -> int:
    """Bytes of the transformer's weights outside its blocks, and of the blocks' small weights."""
    parameters = shape.transformer - shape.depth * (_linear(shape) + _modulation(shape))
    return max(0, parameters) * element_size(shape, device, weights)


def _offloads(device: Device, weights: LoadOptions) -> bool:
    return weights.offload and device.type == "cuda"


def _resident_bytes(shape: ModelShape, device: Device, weights: LoadOptions) -> int:
    """Bytes of the weights that stay on the device all the time."""
    size, block = element_size(shape, device, weights), block_bytes(shape, device, weights)
    both = _outside_blocks(shape, device, weights) + shape.vae * size
    if _offloads(device, weights):
        return both + 2 * block
    return both + (shape.depth + 2 * weights.offload) * block + shape.text_encoder * _TEXT_SIZE.get(device.type, 4)


def _visiting_bytes(shape: ModelShape, device: Device, weights: LoadOptions) -> int:
    """Bytes of the weights that are on the device only while a prompt is encoded."""
    return shape.text_visit * _TEXT_SIZE["cuda"] if _offloads(device, weights) else 0


def weight_bytes(shape: ModelShape, device: Device, weights: LoadOptions = AS_STORED) -> int:
    """Largest number of bytes of weights that are on the device at one time."""
    return _resident_bytes(shape, device, weights) + _visiting_bytes(shape, device, weights)


def host_bytes(shape: ModelShape, device: Device, weights: LoadOptions = AS_STORED) -> int:
    """Bytes of the weights that stay in host memory, besides those on the device."""
    if not _offloads(device, weights):
        return 0
    blocks = weights.gpus * shape.depth * block_bytes(shape, device, weights)  # each rank brings its own
    return blocks + shape.text_encoder * _TEXT_SIZE["cuda"]


def fixed_bytes(shape: ModelShape, device: Device, weights: LoadOptions = AS_STORED) -> int:
    """Bytes in use before the first generation: the weights and the process."""
    process = _CONTEXT_BYTES if device.type == "cuda" else _PROCESS_BYTES
    return _resident_bytes(shape, device, weights) + process


def kv_cache_bytes(
    shape: ModelShape, request: VideoRequest, device: Device, weights: LoadOptions = AS_STORED
) -> int:
    """Bytes of the keys and values of conditioning frames that are kept for all steps; 0 if none are."""
    work = request.workload
    if not work.cached:
        return 0
    given = work.grid._replace(t=work.conditioning)
    kept = 2 * given.volume * element_size(shape, device, weights)
    if work.bsa is not None:  # and what the selection compares: mean keys of blocks in fp32, or of their cells
        chunk, each = given.clip(work.bsa.chunk_k), 4
        if work.bsa.selector.by_cells:
            each = element_size(shape, device, weights) << (chunk.blocks(CELL).volume - 1).bit_length()
        kept += each * given.blocks(chunk).volume
    return shape.depth * shape.hidden * kept


def _kept_on_device(shape: ModelShape, request: VideoRequest, device: Device, weights: LoadOptions) -> int:
    sharing = mesh_shape(weights.gpus, request.workload.rows)[1]  # each of them keeps its heads
    kept = kv_cache_bytes(shape, request, device, weights) // sharing
    # on the CPU, host and device are the same memory
    return kept // shape.depth if request.start.kv_on_host and device.type == "cuda" else kept


def selection_bytes(shape: ModelShape, request: VideoRequest, weights: LoadOptions = AS_STORED) -> int:
    """Bytes of the lists of blocks that one GPU keeps for later steps; 0 if every step selects its own."""
    work = request.workload
    if work.bsa is None or work.blocks is None or work.bsa.select_every == 1:
        return 0
    parts = [part for part in (work.blocks, work.blocks.first) if part is not None]
    numbers = sum(part.q_blocks.volume for part in parts) * (max(part.min_kept for part in parts) + 1)
    layers = shape.depth - work.bsa.dense_layers_at(work.bsa.dense_steps, shape.depth)
    return 4 * layers * work.rows * shape.heads * numbers // weights.gpus


def activation_bytes(shape: ModelShape, request: VideoRequest, device: Device, weights: LoadOptions = AS_STORED) -> int:
    """Bytes of activations: the largest of the transformer's, the decoder's, and an offloaded text encoder's weights.

    The three are never needed at the same time.
    """
    size, work = element_size(shape, device, weights), request.workload
    copies = work.rows * work.step_grid.volume * shape.hidden * size // weights.gpus
    if weights and device.type == "cuda":
        tensors = _FAST_TENSORS + (_EXCHANGE_TENSORS if weights.gpus > 1 else 0)
        block = (tensors + (_EIGHT_BIT_TENSORS if weights.attends_in_8_bits and work.sparse else 0)) * copies
    else:
        block = _BLOCK_TENSORS.get(device.type, _BLOCK_TENSORS["cpu"]) * copies
        if work.blocks is not None:
            scores = 4 * work.rows * shape.heads * work.blocks.q_blocks.volume * work.blocks.k_blocks.volume
            # selection runs before the feed-forward widens the block, so only the excess counts
            block = max(block, 7 * copies + 4 * copies + 4 * scores)
    if work.cached:  # and all keys and values of one layer, those kept and those new
        joined = 2 * work.rows * work.grid.volume * shape.hidden * size // weights.gpus
        block += _kept_on_device(shape, request, device, weights) + joined
    block += selection_bytes(shape, request, weights)
    positions = request.height * request.width // shape.decoder_patch**2
    pixels = 3 * request.num_frames * request.height * request.width
    strips = strip_count(weights.gpus, request.latent_shape[1])
    decode = (_DECODER_TENSORS * 4 * positions * shape.decoder_width * size + 3 * 4 * pixels) // strips
    return max(block, decode, _visiting_bytes(shape, device, weights))


def least_bytes(shape: ModelShape, request: VideoRequest, device: Device, weights: LoadOptions = AS_STORED) -> int:
    """Bytes that certainly exist at one time; a request that needs more than the available memory cannot run.

    These are the weights, plus five tensors of tokens x hidden (input, queries, keys, values, result), or the decoded
    pixels and a copy of them.
    """
    size = element_size(shape, device, weights)
    work = request.workload
    block = 5 * work.rows * work.step_grid.volume * shape.hidden * size // weights.gpus
    block += _kept_on_device(shape, request, device, weights) + selection_bytes(shape, request, weights)
    pixels = 3 * request.num_frames * request.height * request.width // strip_count(
        weights.gpus, request.latent_shape[1]
    )
    visiting = _visiting_bytes(shape, device, weights)
    return _resident_bytes(shape, device, weights) + max(block, 2 * 4 * pixels, visiting)
