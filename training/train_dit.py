"""Trains the transformer and text encoder of longcat-tiny by rectified flow on a pool of encoded clips.

Every step draws its attention at random: dense, or block sparse with a random sparsity and chunk shape. So the
model knows sparse attention as LongCat does. Runs for a fixed time, and can start from an earlier run's weights.

    python -m training.train_dit --vae OUT --minutes 4 --frames 4 --batch 128 --output OUT
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from bsa import BSAConfig, Grid
from pipeline.transformer.forward import EAGER, Attend, Stages, after_attention, attend_dense, before_attention
from training.data import GIVEN, Pool, add_pool_arguments, open_pool
from training.dit import LongCatDiT
from training.optim import Optimiser, trapezoid
from training.parallel import is_first, join, place
from training.run import Run
from training.sampling import TextToVideo, attend_sparse, draw_sigmas, with_given
from training.tokenizer import encode, load_tokenizer

SPARSITIES = (0.5, 0.75, 0.75, 0.75, 0.875, 0.875, 0.875, 0.9375, 0.9375)
CHUNKS = ((4, 4, 4), (4, 4, 4), (2, 4, 4), (4, 4, 8), (2, 8, 8), (1, 8, 8))


def text_config(vocab_size: int) -> UMT5Config:
    return UMT5Config(
        vocab_size=vocab_size,
        d_model=256,
        d_kv=64,
        d_ff=512,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def build(vocab_size: int, device: str, start: Path | None, compiled: bool) -> TextToVideo:
    """Build the two networks, fresh or with `stored_weights(start)`."""
    stages = EAGER
    if compiled:
        stages = Stages(torch.compile(before_attention, dynamic=False), torch.compile(after_attention, dynamic=False))
    model = TextToVideo(UMT5EncoderModel(text_config(vocab_size)), LongCatDiT(), stages).to(device)
    if start:
        model.load_state_dict(stored_weights(start), strict=True)
    return model.train()


def stored_weights(start: Path) -> dict[str, torch.Tensor]:
    """Both networks' weights by name, from a run's folder or from a checkpoint written by `training.export`."""
    if not (start / "model_index.json").exists():
        return {k: v for file in sorted(start.glob("model-*.safetensors")) for k, v in load_file(file).items()}
    state = {
        f"{part}.{k}": v
        for part in ("text_encoder", "transformer")
        for file in sorted((start / part).glob("*.safetensors"))
        for k, v in load_file(file).items()
    }
    return state | {"text_encoder.encoder.embed_tokens.weight": state["text_encoder.shared.weight"]}  # tied


def save(model: TextToVideo, folder: Path, dtype: torch.dtype = torch.bfloat16, limit: int = 16_500_000) -> None:
    """Write model-N.safetensors, each below `limit` bytes."""
    shard: dict[str, torch.Tensor] = {}
    size, shards = 0, []
    for name, tensor in model.state_dict().items():
        if name.endswith("embed_tokens.weight"):  # tied to text_encoder.shared
            tensor = tensor.clone()
        tensor = tensor.detach().to(dtype).contiguous()
        if size + tensor.nbytes > limit:
            shards.append(shard)
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    for i, part in enumerate([*shards, shard]):
        save_file(part, folder / f"model-{i}.safetensors")


def trained_parts(model: TextToVideo, keep_encoder: bool) -> list[nn.Module]:
    """The networks to train. Training can undo an encoder's reading of word order, so the encoder can be kept."""
    model.text_encoder.requires_grad_(not keep_encoder)
    return [model.transformer] if keep_encoder else [model.text_encoder, model.transformer]


def finish(model: TextToVideo, optimiser: Optimiser, run: Run, report: str, args) -> None:
    """Write the averaged weights and the run's report into `args.output`."""
    optimiser.load_average()
    if is_first():
        save(model, args.output)
        run.report(args.output / report, args, processes=place()[1])


def draw_attention(rng: random.Random, dense: float) -> Attend:
    """Dense with probability `dense`, else block sparse with a random sparsity and chunk shape."""
    if rng.random() < dense:
        return attend_dense
    chunk = Grid(*rng.choice(CHUNKS))
    return attend_sparse(BSAConfig(sparsity=rng.choice(SPARSITIES), chunk_q=chunk, chunk_k=chunk))


def draw_given(rng: random.Random, shares: Sequence[float], frames: int) -> int:
    """The number of clean latent frames of a step: none, or one of a picture, or four of the end of a clip.

    It is below `frames`, so that something remains to be made.
    """
    possible = [(given, share) for given, share in zip(GIVEN, shares, strict=True) if given < frames]
    return rng.choices(*zip(*possible, strict=True))[0]


def flow_loss(
    model: TextToVideo, pool: Pool, empty, batch: int, frames: int, attend: Attend, given: int = 0, drop: float = 0.1
) -> Tensor:
    """Mean squared error of the predicted velocity at noise levels of `draw_sigmas`.

    given: first latent frames that stay clean and do not count. drop: share of the captions that are left out.
    """
    x, ids, mask = pool.batch(batch, frames, given)
    dropped = torch.rand(batch, 1, device=x.device) < drop
    ids, mask = torch.where(dropped, empty[0], ids), torch.where(dropped, empty[1], mask)
    sigma = draw_sigmas(batch, x.device)
    noise = torch.randn_like(x)
    noisy = with_given(torch.lerp(x, noise, sigma.view(-1, 1, 1, 1, 1)), x[:, :, :given])
    velocity = model.velocity(noisy, sigma, model.encode(ids, mask), mask, attend, given)
    return (velocity - (x - noise))[:, :, given:].square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pool_arguments(parser, clips=12000)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder of an earlier run, or a checkpoint, to go on from")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, the clips not counted")
    parser.add_argument("--wall", type=float, help="minutes in all instead, the clips and compilation counted")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.4, help="share of the time in which the rate falls")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    rank, _ = join()
    torch.manual_seed(args.seed + 1000 * rank)
    torch.set_float32_matmul_precision("high")
    rng, device = random.Random(args.seed), args.device
    tokenizer = load_tokenizer()
    run = Run(device)
    pool = open_pool(args, tokenizer)
    model = build(len(tokenizer), device, args.start, compiled=not args.eager)
    optimiser = Optimiser(trained_parts(model, args.keep_encoder), args.lr, args.ema)
    empty = tuple(x.to(device) for x in encode(tokenizer, [""]))
    for progress in run.steps(args.minutes, args.wall):
        attend = draw_attention(rng, args.dense)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            given = draw_given(rng, args.given, args.frames)
            loss = flow_loss(model, pool, empty, args.batch, args.frames, attend, given)
        loss.backward()
        optimiser.step(trapezoid(progress, 0.01 if args.start else 0.03, args.decay))
        run.log(loss)
    finish(model, optimiser, run, "dit.json", args)


if __name__ == "__main__":
    main()
