"""Measures peak memory and time of one forward pass of the real size by option, under a hard limit; and of decoding.

    python benchmarks/memory.py            # 720p x 93 frames; writes benchmarks/results/memory.json
    python benchmarks/memory.py --smoke    # tiny, on the CPU, where nothing limits memory

A limit stands for a card of that size. PyTorch may hold 1 GiB less, which is left to the driver and CUDA's context.
"rows" 2 is a step with guidance. The weights get their form before the limit is set; docs/hopper.md says how a card of
that size loads them. The text encoder is not included: it runs earlier and can leave the GPU afterwards.
"""

from functools import partial

import torch
from dit import Models, grid_of, inputs
from fastvideo_peer import decoder
from forward import plain
from gpu import Rows, arguments, device_for, limited, profiled

from bsa import BSAConfig, Grid
from pipeline.transformer.fast_forward import FFN_TOKENS, fast_forward

CONTEXT_GIB = 1.0
# label, form, sparse, rows, tokens per part of the feed-forward, card in GiB
FORWARDS = (
    ("plain", "bf16", True, 1, None, None),
    ("fast", "bf16", True, 1, FFN_TOKENS, None),
    ("fast", "bf16", False, 1, FFN_TOKENS, None),
    ("fast", "bf16", True, 1, FFN_TOKENS, 24),
    ("fast", "bf16 offload", True, 1, FFN_TOKENS, 24),
    ("fast", "bf16 offload", True, 2, FFN_TOKENS, 24),
    ("fast", "bf16 offload", True, 2, FFN_TOKENS, 18),
    ("fast", "bf16 offload", True, 2, FFN_TOKENS, 12),
    ("fast", "bf16 offload", False, 2, FFN_TOKENS, 24),
    ("fast", "fp8", True, 1, FFN_TOKENS, 24),
    ("fast", "fp8", True, 2, FFN_TOKENS, 24),
    ("fast", "fp8", False, 2, FFN_TOKENS, 24),
    ("fast", "fp8", True, 1, 4096, 18),
    ("fast", "fp8 offload", True, 2, 4096, 12),
)


def main() -> None:
    parser = arguments(__doc__, "memory")
    parser.add_argument("--size", choices=["480p", "704p", "720p", "1080p"], default="720p")
    parser.add_argument("--frames", type=int, default=93)
    args = parser.parse_args()
    device = device_for(parser, args.smoke)
    rows, models = Rows(args, device), Models(device, args.smoke)
    config = BSAConfig(0.5 if args.smoke else 0.9375)
    grid = Grid(5, 6, 8) if args.smoke else grid_of(args.size, args.frames)
    about = {"size": args.size, "grid": str(grid)}
    for what, form, sparse, count, part, card in FORWARDS:
        key = about | {"what": f"{what}, {'sparse' if sparse else 'dense'}", "form": form, "rows": count}
        key |= {"ffn_tokens": part, "card_gib": card}
        if not rows.missing(key):
            continue
        model, offload = models(form)
        bsa = config if sparse else None
        given = inputs(model, grid, device, count)
        if what == "plain":
            run = partial(plain, model, given, bsa)
        else:
            run = partial(fast_forward, model, *given, bsa, ffn_tokens=part, offload=offload)

        def measure(run=run, card=card):
            with limited(card and card - CONTEXT_GIB, device):
                return profiled(run, device, repeats=1, once_above=10)

        rows.measure(key, measure)
    del models
    latent = (2, 4, 4) if args.smoke else (grid.t, 2 * grid.h, 2 * grid.w)
    latents = torch.randn(1, 16, *latent, device=device)
    for tiled in (False, True):
        key = about | {"what": f"decoding, {'in tiles' if tiled else 'frame by frame'}", "form": "bf16", "rows": 1}
        key |= {"ffn_tokens": None, "card_gib": 24}

        def decode(tiled=tiled):
            with torch.no_grad(), limited(24 - CONTEXT_GIB, device):
                return profiled(partial(decoder(device, tiled, args.smoke), latents), device, repeats=1, once_above=10)

        rows.measure(key, decode)
    rows.finish()


if __name__ == "__main__":
    main()
