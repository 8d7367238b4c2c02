"""Trains the video VAE of longcat-tiny on freshly rendered clips for a fixed time, then measures its latents.

python -m training.train_vae --minutes 4 --output OUT
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from training.data import FRAMES, sample_training_scenes
from training.optim import trapezoid
from training.render import pack, render
from training.run import Run
from training.vae import VideoVAE, load_vae

FULL_MOTION = 0.1  # a pixel that changes this much between neighbouring frames, in [-1, 1], counts fully as moving
MOTION_WEIGHT = 4.0


def edges(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Differences of neighbouring frames, rows and columns."""
    return x.diff(dim=2), x.diff(dim=3), x.diff(dim=4)


def motion_of(video: Tensor) -> Tensor:
    """The difference of each pixel from the frame before or after: [B, 3, T, H, W] -> [B, 1, T, H, W] in [0, 1]."""
    change = video.diff(dim=2).abs().amax(dim=1, keepdim=True)
    before, after = F.pad(change, (0, 0, 0, 0, 1, 0)), F.pad(change, (0, 0, 0, 0, 0, 1))
    return (torch.maximum(before, after) / FULL_MOTION).clamp(max=1)


def loss_of(vae: VideoVAE, video: Tensor, kl_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """L1 on pixels and on their differences (clean edges, steady motion), plus KL. Returns loss, plain L1, KL.

    Moving pixels fill a few hundredths of a clip and are the hardest to draw. They count 1 + `MOTION_WEIGHT` times.
    """
    mean, logvar = vae.encode(video)
    mean, logvar = mean.float(), logvar.float()
    decoded = vae.decode(mean + torch.randn_like(mean) * (0.5 * logvar).exp()).float()
    weight = 1 + MOTION_WEIGHT * motion_of(video)
    weight = weight / weight.mean()
    error = decoded - video
    detail = sum(
        (e.abs() * w).mean()
        for e, w in zip(edges(error), (weight[:, :, 1:], weight[:, :, :, 1:], weight[..., 1:]), strict=True)
    )
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return (error.abs() * weight).mean() + 0.5 * detail + kl_weight * kl, error.abs().mean(), kl


@torch.no_grad()
def measure(vae: VideoVAE, device: str, size: int, clips: int = 32) -> dict:
    """Mean and deviation of each latent channel, and PSNR over unseen clips: overall, and where something moves."""
    rng = random.Random(10_001)
    latents, errors, moving = [], [], []
    for _ in range(clips // 4):
        video = render(pack(sample_training_scenes(rng, 4), device), FRAMES, size, size)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            mean, _ = vae.encode(video)
            decoded = vae.decode(mean)
        latents.append(mean.float())
        error, moves = (decoded.float().clamp(-1, 1) - video).square().mean(dim=1, keepdim=True), motion_of(video)
        errors.append(error.mean(dim=(1, 2, 3, 4)))
        moving += [(e * m).sum() / m.sum() for e, m in zip(error, moves, strict=True) if m.any()]
    z = torch.cat(latents)
    psnr, psnr_moving = (10 * torch.log10(4 / mse) for mse in (torch.cat(errors), torch.stack(moving)))
    return {
        "latents_mean": z.mean(dim=(0, 2, 3, 4)).tolist(),
        "latents_std": z.std(dim=(0, 2, 3, 4)).tolist(),
        "psnr_mean": psnr.mean().item(),
        "psnr_min": psnr.min().item(),
        "psnr_moving": psnr_moving.mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--wall", type=float, help="minutes in all instead, compilation counted")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder of an earlier run, or a checkpoint, to go on from")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=13)
    parser.add_argument("--size", type=int, default=256, help="rows and columns of the rendered clip")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--kl", type=float, default=2e-4)
    parser.add_argument("--decoder-only", action="store_true", help="keep the encoder and so the latents")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.decoder_only and not args.start:
        parser.error("--decoder-only keeps an encoder; name its folder with --start")
    args.output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    rng = random.Random(args.seed)
    cuda = args.device == "cuda"
    vae, statistics = load_vae(args.start, args.device) if args.start else (VideoVAE().to(args.device), None)
    vae.train()
    if args.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=cuda)
    draw, objective = render, loss_of
    if not args.eager:
        draw, objective = torch.compile(render, dynamic=False), torch.compile(loss_of, dynamic=False)

    def clips() -> Tensor:
        packed = pack(sample_training_scenes(rng, args.batch), args.device)
        length = args.frames / FRAMES
        start = torch.rand(args.batch, device=args.device) * (1 - length)
        top, left = torch.randint(0, (args.size - args.crop) // 8 + 1, (2,), device=args.device).mul(8).unbind()
        window = (top, left, args.crop, args.crop)
        video = draw(packed, args.frames, args.size, args.size, start, length, window)
        return video.contiguous(memory_format=torch.channels_last_3d)

    average = [p.detach().clone() for p in trained]
    run = Run(args.device)
    for progress in run.steps(args.minutes, args.wall):
        with torch.autocast(args.device, torch.bfloat16, enabled=cuda):
            loss, l1, kl = objective(vae, clips(), args.kl)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = args.lr * trapezoid(progress, 0.03, 0.5)
        optimiser.step()
        optimiser.zero_grad()
        decay = min(0.998, 1 - 1 / (1 + run.count / 4))
        torch._foreach_lerp_(average, [p.detach() for p in trained], 1 - decay)
        run.log(loss, l1, kl)
    with torch.no_grad():
        torch._foreach_copy_([*trained], average)
    save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, args.output / "vae.safetensors")
    measured = measure(vae, args.device, args.size)
    if args.decoder_only and statistics is not None:  # models trained on these latents expect their old statistics
        measured |= {
            f"latents_{name}": values.tolist() for name, values in zip(("mean", "std"), statistics, strict=True)
        }
    run.report(args.output / "vae.json", args, **measured)


if __name__ == "__main__":
    main()
