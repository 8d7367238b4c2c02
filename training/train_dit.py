"""Train the transformer and text encoder of longcat-tiny by rectified flow on a pool of encoded clips.

Every step draws its attention: dense, or block sparse with a random sparsity and chunk shape, so that the
model knows sparse attention as LongCat does. Runs for a fixed time and goes on from an earlier run's weights.

    python -m training.train_dit --vae OUT --minutes 4 --frames 4 --batch 128 --output OUT
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from bsa import BSAConfig
from pipeline.forward import EAGER, Stages, after_attention, attend_dense, before_attention
from training.data import FRAMES, HEIGHT, Pool, make_pool
from training.dit import LongCatDiT
from training.optim import Optimiser, trapezoid
from training.render import render
from training.sampling import SHIFT, TextToVideo, attend_sparse
from training.tokenizer import encode, train_tokenizer
from training.vae import VideoVAE

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
    """The two networks, fresh or from `start`/model*.safetensors."""
    stages = EAGER
    if compiled:
        stages = Stages(torch.compile(before_attention, dynamic=False), torch.compile(after_attention, dynamic=False))
    model = TextToVideo(UMT5EncoderModel(text_config(vocab_size)), LongCatDiT(), stages).to(device)
    if start:
        state = {k: v for file in sorted(start.glob("model-*.safetensors")) for k, v in load_file(file).items()}
        model.load_state_dict(state, strict=True)
    return model.train()


def save(model: TextToVideo, folder: Path, dtype: torch.dtype = torch.bfloat16, limit: int = 16_500_000) -> None:
    """Write model-N.safetensors, each below `limit` bytes."""
    shard, size, shards = {}, 0, []
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


def draw_attention(rng: random.Random, dense: float):
    """Dense with probability `dense`, else block sparse; and its name for the log."""
    if rng.random() < dense:
        return attend_dense, "dense"
    sparsity, chunk = rng.choice(SPARSITIES), rng.choice(CHUNKS)
    return attend_sparse(BSAConfig(sparsity=sparsity, chunk_q=chunk, chunk_k=chunk)), f"bsa {sparsity}"


def flow_loss(model: TextToVideo, pool: Pool, empty, batch: int, frames: int, attend, drop: float = 0.1):
    """Mean squared error of the predicted velocity at a logit-normal, shifted noise level."""
    x, ids, mask = pool.batch(batch, frames)
    dropped = torch.rand(batch, 1, device=x.device) < drop
    ids, mask = torch.where(dropped, empty[0], ids), torch.where(dropped, empty[1], mask)
    sigma = torch.sigmoid(torch.randn(batch, device=x.device))
    sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
    noise = torch.randn_like(x)
    noisy = torch.lerp(x, noise, sigma.view(-1, 1, 1, 1, 1))
    velocity = model.velocity(noisy, sigma, model.encode(ids, mask), mask, attend)
    return (velocity - (x - noise)).square().mean()


def load_vae(folder: Path, device: str):
    """The trained VAE and its latent statistics (mean, deviation)."""
    vae = VideoVAE().to(device).eval()
    vae.load_state_dict(load_file(folder / "vae.safetensors"))
    report = json.loads((folder / "vae.json").read_text())
    return vae, tuple(torch.tensor(report[f"latents_{name}"], device=device) for name in ("mean", "std"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="folder of train_vae")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder of an earlier run to go on from")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, the pool not counted")
    parser.add_argument("--pool", type=int, default=12000, help="clips")
    parser.add_argument("--pool-file", type=Path, help="keep the pool here, or read it from here")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=16, help="latent frames per clip")
    parser.add_argument("--dense", type=float, default=0.4, help="share of steps with dense attention")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.4, help="share of the time in which the rate falls")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, nargs=2, default=(FRAMES, HEIGHT), help="frames and pixels of a clip")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    rng, device, cuda = random.Random(args.seed), args.device, args.device == "cuda"
    tokenizer = train_tokenizer()

    began = time.time()
    if args.pool_file and args.pool_file.exists():
        pool = Pool(**load_file(args.pool_file, device=device))
    else:
        vae, statistics = load_vae(args.vae, device)
        draw = render if args.eager else torch.compile(render, dynamic=False)
        frames, pixels = args.size
        pool = make_pool(
            vae,
            tokenizer,
            statistics,
            args.pool,
            100 + args.seed,
            device,
            (frames, pixels, pixels),
            batch=min(16, args.pool),
            draw=draw,
        )
        if args.pool_file:
            save_file(vars(pool), args.pool_file)
    if cuda:
        torch.cuda.synchronize()
    print(f"pool of {len(pool.latents)} clips after {time.time() - began:.0f} s", flush=True)

    model = build(len(tokenizer), device, args.start, compiled=not args.eager)
    optimiser = Optimiser([model.text_encoder, model.transformer], args.lr, args.ema)
    empty = tuple(x.to(device) for x in encode(tokenizer, [""]))
    curve, recent, warm = [], [], None
    start = time.time()
    while warm is None or (progress := (time.time() - warm) / (60 * args.minutes)) < 1:
        attend, name = draw_attention(rng, args.dense)
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            loss = flow_loss(model, pool, empty, args.batch, args.frames, attend)
        loss.backward()
        optimiser.step(0.05 if warm is None else trapezoid(progress, 0.03 if not args.start else 0.01, args.decay))
        recent.append(loss.detach())
        if optimiser.steps == 3:  # the clock starts once everything is compiled
            if cuda:
                torch.cuda.synchronize()
            print(f"compiled after {time.time() - start:.0f} s", flush=True)
            warm = time.time()
        if optimiser.steps % 100 == 0:
            curve.append([optimiser.steps, round(time.time() - start, 1), round(torch.stack(recent).mean().item(), 5)])
            recent.clear()
            if optimiser.steps % 500 == 0:
                print("step {} {} s loss {}".format(*curve[-1]), flush=True)
    optimiser.load_average()
    save(model, args.output)
    report = {
        "steps": optimiser.steps,
        "seconds": round(time.time() - began, 1),
        "arguments": {k: str(v) for k, v in vars(args).items()},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "curve": curve,
    }
    (args.output / "dit.json").write_text(json.dumps(report, indent=1))
    print(f"{optimiser.steps} steps, loss {curve[-1][2] if curve else None}, {report['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
