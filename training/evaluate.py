"""Does the model draw what the prompt says? A classifier of colour, shape and motion judges held-out prompts.

The classifier is trained on renders of the training prompts. Its score on renders of the held-out prompts,
passed through the VAE, is the ceiling; its score on generated videos is the result, dense and sparse.

    python -m training.evaluate --vae OUT --start OUT --output OUT --prompts 96
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bsa import BSAConfig
from pipeline.denoising import guide
from pipeline.forward import attend_dense
from training.data import FRAMES, HEIGHT, sample_test_scenes, sample_training_scenes
from training.optim import trapezoid
from training.render import pack, render
from training.run import Run
from training.sampling import attend_sparse, sample
from training.scenes import COLOURS, MOTIONS, SHAPES, Scene
from training.tokenizer import encode, train_tokenizer
from training.train_dit import build, load_vae

NAMES = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS}
VIEW = (8, 96, 96)  # frames and pixels the classifier sees: a small hexagon and a small ball must differ


def view(video: Tensor) -> Tensor:
    """Shrink clips [B, 3, T, H, W] to what the classifier sees, with two coordinate channels: [B, 8, 5, 96, 96].

    A clip of one frame stays one frame.
    """
    count = min(VIEW[0], video.shape[2])
    frames = torch.linspace(0, video.shape[2] - 1, count, device=video.device).round().long()
    small = F.interpolate(video.float()[:, :, frames], size=(count, *VIEW[1:]), mode="area").transpose(1, 2)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n, device=video.device) for n in VIEW[1:]), indexing="ij")
    return torch.cat([small, torch.stack(axes).expand(*small.shape[:2], -1, -1, -1)], dim=2)


class Classifier(nn.Module):
    """Convolutions on each frame; colour and shape from all frames pooled, motion from where things are in each.

    Takes `view`s. Of a single frame it tells colour and shape only.
    """

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        for in_dim, out_dim in ((5, 32), (32, 64), (64, 96), (96, 128)):
            layers += [nn.Conv2d(in_dim, out_dim, 3, 2, 1), nn.GroupNorm(8, out_dim), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(128, 128, 3, 1, 1), nn.GroupNorm(8, 128), nn.SiLU())
        self.place = nn.Linear(128 * 36, 64)
        self.heads = nn.ModuleDict(
            {
                "colour": nn.Linear(256, len(COLOURS)),
                "shape": nn.Linear(256, len(SHAPES)),
                "motion": nn.Sequential(nn.Linear(64 * VIEW[0], 256), nn.SiLU(), nn.Linear(256, len(MOTIONS))),
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x.flatten(0, 1))  # [B * frames, 128, 6, 6]
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1).unflatten(0, x.shape[:2])
        look = pooled.mean(1)
        told = {name: self.heads[name](look) for name in ("colour", "shape")}
        if x.shape[1] == VIEW[0]:
            places = F.silu(self.place(maps.flatten(1))).view(len(x), -1)
            told["motion"] = self.heads["motion"](places)
        return told


def labels(scenes: list[Scene], device: str) -> dict[str, Tensor]:
    return {
        name: torch.tensor([values.index(scene.attributes[f"{name}0"]) for scene in scenes], device=device)
        for name, values in NAMES.items()
    }


def one_shape_scenes(rng: random.Random, count: int) -> list[Scene]:
    scenes: list[Scene] = []
    while len(scenes) < count:
        scenes += [s for s in sample_training_scenes(rng, count) if s.attributes["kind"] == "shapes1"]
    return scenes[:count]


def train_classifier(minutes: float, device: str, batch: int, seed: int = 3) -> Classifier:
    """Train on renders of one-shape training scenes, slightly noisy so that edges are no crutch.

    Colour and shape are learned from single frames of many scenes, which differ more than eight frames of one scene
    do; motion from clips.
    """
    rng, net = random.Random(seed), Classifier().to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    run = Run(device)

    @torch.no_grad()
    def noisy(scenes: list[Scene], frames: int, start: Tensor | float, length: float) -> Tensor:
        x = view(render(pack(scenes, device), frames, *VIEW[1:], start, length))
        x[:, :, :3] += 0.06 * torch.rand(1, device=device) * torch.randn_like(x[:, :, :3])
        return x

    for progress in run.steps(minutes):
        stills, clips = one_shape_scenes(rng, 4 * batch), one_shape_scenes(rng, batch // 2)
        x = noisy(stills, 1, torch.rand(len(stills), device=device), 0.0)
        y = noisy(clips, VIEW[0], 0.0, 1.0)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            look, moves = net(x), net(y)["motion"]
        truth = labels(stills, device)
        losses = [F.cross_entropy(look[name].float(), truth[name]) for name in ("colour", "shape")]
        losses.append(F.cross_entropy(moves.float(), labels(clips, device)["motion"]))
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * trapezoid(progress, 0.03, 0.6)
        sum(losses).backward()
        optimiser.step()
        optimiser.zero_grad()
        run.log(*losses)
    return net.eval()


@torch.no_grad()
def score(net: Classifier, video: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Share of clips whose colour, shape, motion, and all three, the classifier recognises."""
    device = str(video.device.type)
    right = {}
    for name, truth in labels(scenes, device).items():
        guesses = torch.cat([net(view(part))[name].argmax(-1) for part in video.split(16)])
        right[name] = guesses == truth
    right["all three"] = torch.stack(list(right.values())).all(0)
    return {name: round(values.float().mean().item(), 4) for name, values in right.items()}


def contact_sheet(video: Tensor, path: Path, columns: int = 8) -> None:
    """One clip a row, `columns` frames each."""
    frames = torch.linspace(0, video.shape[2] - 1, columns).round().long()
    rows = ((video[:, :, frames].clamp(-1, 1) + 1) * 127.5).byte().permute(0, 3, 2, 4, 1)  # [B, H, n, W, 3]
    image = rows.flatten(2, 3).flatten(0, 1).cpu().numpy()
    Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument(
        "--start", type=Path, help="folder of train_dit or distill; without it only the classifier is trained"
    )
    parser.add_argument("--classifier", type=Path, help="keep the classifier here, or read it from here")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--minutes", type=float, default=1.0, help="to train the classifier")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--sparsities", type=float, nargs="*", default=(0.5, 0.75, 0.875, 0.9375))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, nargs=2, default=(FRAMES, HEIGHT))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    device, cuda = args.device, args.device == "cuda"
    torch.manual_seed(0)
    tokenizer = train_tokenizer()
    vae, (mean, std) = load_vae(args.vae, device)
    mean, std = mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
    if args.classifier and args.classifier.exists():
        net = Classifier().to(device).eval()
        net.load_state_dict(load_file(args.classifier))
    else:
        net = train_classifier(args.minutes, device, args.batch)
        if args.classifier:
            save_file(net.state_dict(), args.classifier)
    if not args.start:
        return
    model = build(len(tokenizer), device, args.start, compiled=False).eval()
    scenes = sample_test_scenes(random.Random(20_000), args.prompts)
    frames, pixels = args.size

    @torch.no_grad()
    def decode(z: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            return torch.cat([vae.decode(part * std + mean).float().clamp(-1, 1) for part in z.split(4)])

    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=cuda):
        truth = torch.cat(
            [
                vae.decode(vae.encode(render(pack(scenes[i : i + 4], device), frames, pixels, pixels))[0])
                .float()
                .clamp(-1, 1)
                for i in range(0, len(scenes), 4)
            ]
        )
    report = {
        "prompts": len(scenes),
        "steps": args.steps,
        "guidance": args.guidance,
        "renders through the VAE": score(net, truth, scenes),
    }
    print("renders", report["renders through the VAE"], flush=True)
    contact_sheet(truth[:12], args.output / "sheet-renders.png")

    ids, mask = (x.to(device) for x in encode(tokenizer, [scene.caption for scene in scenes]))
    none = tuple(x.to(device).expand(len(scenes), -1) for x in encode(tokenizer, [""]))
    noise = torch.randn(len(scenes), 16, (frames - 1) // 4 + 1, pixels // 8, pixels // 8, device=device)

    def generate(attend) -> Tensor:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=cuda):
            text, empty = model.encode(ids, mask), model.encode(*none)

            def predict(x: Tensor, sigma: Tensor) -> Tensor:
                if args.guidance == 1:
                    return model.velocity(x, sigma, text, mask, attend)
                both = (
                    torch.cat([x, x]),
                    torch.cat([sigma, sigma]),
                    torch.cat([empty, text]),
                    torch.cat([none[1], mask]),
                )
                return guide(model.velocity(*both, attend), args.guidance)

            return decode(sample(predict, noise, args.steps))

    dense = generate(attend_dense)
    report["dense"] = score(net, dense, scenes)
    print("dense", report["dense"], flush=True)
    contact_sheet(dense[:12], args.output / "sheet-dense.png")
    for sparsity in args.sparsities:
        video = generate(attend_sparse(BSAConfig(sparsity=sparsity)))
        mse = (video - dense).square().mean(dim=(1, 2, 3, 4))
        report[f"bsa {sparsity}"] = score(net, video, scenes) | {
            "psnr to dense": round((10 * torch.log10(4 / mse)).mean().item(), 2)
        }
        print(f"bsa {sparsity}", report[f"bsa {sparsity}"], flush=True)
        if sparsity == 0.875:
            contact_sheet(video[:12], args.output / "sheet-sparse.png")
    report["captions"] = [scene.caption for scene in scenes[:12]]
    (args.output / "evaluation.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
