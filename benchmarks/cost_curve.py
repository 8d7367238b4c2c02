"""Times one forward pass (fast, bf16, random weights of the real size) by frames and size, dense and sparse.

    python benchmarks/cost_curve.py            # writes benchmarks/results/cost_curve.json
    python benchmarks/cost_curve.py --smoke    # tiny, on the CPU

Small videos come first, so that an interrupted run still has complete lines. A forward pass of more than 8 s runs only
once.
"""

from functools import partial

from dit import Models, grid_of, inputs
from gpu import Rows, arguments, device_for, milliseconds

from bsa import BSAConfig, Grid
from pipeline.transformer.fast_forward import fast_forward

POINTS = {
    "480p": (1, 5, 13, 29, 61, 93, 189),
    "704p": (1, 13, 29, 61, 93, 189),
    "720p": (1, 29, 93),
    "1080p": (1, 29, 61, 93),
}
SMOKE = {"480p": (Grid(1, 4, 4), Grid(3, 4, 4)), "704p": (Grid(2, 4, 5),)}


def main() -> None:
    parser = arguments(__doc__, "cost_curve")
    args = parser.parse_args()
    device = device_for(parser, args.smoke)
    rows, models = Rows(args, device), Models(device, args.smoke)
    config = BSAConfig(0.5 if args.smoke else 0.9375)
    if args.smoke:
        points = [(grid, size, 4 * grid.t - 3) for size, grids in SMOKE.items() for grid in grids]
    else:
        points = [(grid_of(size, frames), size, frames) for size, counts in POINTS.items() for frames in counts]
    points.sort(key=lambda point: point[0].volume)
    warm = False
    for grid, size, frames in points:
        for name, bsa in (("sparse", config), ("dense", None)):
            key = {"size": size, "frames": frames, "grid": str(grid), "tokens": grid.volume, "what": name}
            if bsa is not None and grid.t == 1 or not rows.missing(key):  # LongCat attends densely within one frame
                continue
            model, _ = models("bf16")
            if not warm:  # compilation happens once and belongs to no point of the curve
                small = inputs(model, next(grid for grid, _, _ in points if grid.t >= min(4, points[-1][0].t)), device)
                fast_forward(model, *small, config), fast_forward(model, *small, None)
                warm = True
            run = partial(fast_forward, model, *inputs(model, grid, device), bsa)
            once_above = 8 if grid.volume > 50_000 else None
            rows.measure(key, partial(milliseconds, run, device, repeats=3, limit=8, once_above=once_above))
    rows.finish()


if __name__ == "__main__":
    main()
