"""Times one forward pass of the LongCat transformer (real size, random weights) on a GPU, dense and sparse.

    python benchmarks/forward.py              # 704p x 93 frames; writes benchmarks/results/forward.json
    python benchmarks/forward.py --smoke      # tiny, on the CPU

"plain" is pipeline/transformer/forward.py with one PyTorch kernel per operation. "fast" is
pipeline/transformer/fast_forward.py with the attention kernels that bsa/tuned.json names for this GPU. "FastVideo" is
FastVideo's transformer with the same weights. "difference" is the relative distance to the plain bf16 forward pass. The
rows of --numerics are the distances of all of them to the plain forward pass in fp32, on 2,048 tokens.
"""

from functools import partial

import torch
from dit import Models, grid_of, inputs
from fastvideo_peer import forward_of
from gpu import Rows, arguments, device_for, profiled

from bsa import BSAConfig, Grid, block_sparse_attention
from bsa.variants import Tuning, tuning_for
from pipeline.transformer.fast_forward import fast_forward
from pipeline.transformer.forward import attend_dense, longcat_forward

REPEATS, LIMIT = 3, 20  # runs, and the seconds after which no further one starts


@torch.no_grad()
def plain(model, given, config):
    if config is None:
        return longcat_forward(model, *given, attend_dense)
    return longcat_forward(model, *given, lambda q, k, v, grid, _: block_sparse_attention(q, k, v, grid, config))


def relative(a, b) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def chosen_kernel(model, config, device) -> str:
    """The kernel that tuned.json chooses for the sparse attention."""
    if device.type != "cuda":
        return "torch"
    chunk = config.chunk_q.volume
    dim = model.config.hidden_size // model.config.num_attention_heads
    tuning = tuning_for(torch.cuda.get_device_name(device), "bfloat16", dim, chunk, chunk)
    return f"{tuning.variant.name}{', fused top-k' if tuning.fused_top_k else ''}"


class Comparison:
    """The rows of one size."""

    def __init__(self, rows: Rows, models: Models, device, size: str, grid: Grid, config: BSAConfig) -> None:
        self._rows, self._models, self._device, self._config = rows, models, device, config
        self._key = {"size": size, "grid": str(grid), "sparsity": config.sparsity}
        self._given = inputs(models("bf16")[0], grid, device)
        self._references = {}

    def _bsa(self, what: str) -> BSAConfig | None:
        return self._config if "sparse" in what else None

    def _difference(self, what: str, out) -> dict:
        return {"difference": relative(out, self._references["sparse" if "sparse" in what else "dense"])}

    def _need(self, name: str) -> None:
        """Compute the plain result again if this run does not have it, because it continues an earlier one."""
        if name not in self._references:
            model, _ = self._models("bf16")
            self._references[name] = plain(model, self._given, self._config if name == "sparse" else None)

    def plain(self, name: str) -> None:
        model, _ = self._models("bf16")

        def keep(out):
            self._references[name] = out
            return {}

        run = partial(plain, model, self._given, self._bsa(name))
        self._measure(f"plain, {name}", run, keep, once_above=15)

    def fast(self, name: str, form: str = "bf16", tuning: Tuning | None = None, eight_bits: bool = False) -> None:
        what = f"fast, {name}" + ("" if form == "bf16" else f", {form}") + (", 8-bit attention" if eight_bits else "")
        what += ", baseline kernel" if tuning is not None else ""
        if not self._rows.missing(self._key | {"what": what}):
            return
        if form == "bf16":
            self._need(name)
        model, offload = self._models(form)
        bsa = self._bsa(name)
        run = partial(fast_forward, model, *self._given, bsa, tuning=tuning, eight_bits=eight_bits, offload=offload)
        kernel = "" if bsa is None or tuning is not None else chosen_kernel(model, bsa, self._device)
        check = partial(self._difference, name) if name in self._references else None
        self._measure(what, run, check, {"kernel": kernel} if kernel else {})

    def fastvideo(self, name: str) -> None:
        what = f"FastVideo, {name}"
        if not self._rows.missing(self._key | {"what": what}):
            return
        self._need(name)
        model, _ = self._models("bf16")

        def measure():
            theirs = forward_of(model, self._device)
            run = partial(theirs, self._given, self._bsa(name))
            return profiled(run, self._device, repeats=2, limit=LIMIT, check=partial(self._difference, name))

        self._rows.measure(self._key | {"what": what}, measure)

    def _measure(self, what, run, check, about=None, once_above=None) -> None:
        options = {"repeats": REPEATS, "limit": LIMIT, "check": check, "once_above": once_above}
        self._rows.measure(self._key | {"what": what}, lambda: (about or {}) | profiled(run, self._device, **options))


def numerics(rows: Rows, models: Models, device, grid: Grid, config: BSAConfig, smoke: bool) -> None:
    """Measure the distances to fp32 with the same bf16 weights and inputs."""
    key = {"size": "small", "grid": str(grid), "sparsity": config.sparsity}
    names = ("plain", "fast", "FastVideo", "fast, fp8", "fast, 8-bit attention", "fast, fp8, 8-bit attention")
    if not any(rows.missing(key | {"what": f"{what}, {name}"}) for what in names for name in ("dense", "sparse")):
        return
    model, _ = models("bf16")
    given = inputs(model, grid, device)
    torch.backends.cudnn.allow_tf32 = False  # the patch embedding is a convolution
    exact_given = [x.float() if torch.is_tensor(x) else x for x in given]
    model.float()  # converted in place and rebuilt later, because both side by side would need 76 GiB
    exact = {name: plain(model, exact_given, bsa) for name, bsa in (("dense", None), ("sparse", config))}
    del model
    models.drop()
    runs = {
        "plain": lambda bsa: plain(models("bf16")[0], given, bsa),
        "fast": lambda bsa: fast_forward(models("bf16")[0], *given, bsa),
        "FastVideo": lambda bsa: forward_of(models("bf16")[0], device)(given, bsa),
        "fast, fp8": lambda bsa: fast_forward(models("fp8")[0], *given, bsa),
        "fast, 8-bit attention": lambda bsa: fast_forward(models("bf16")[0], *given, bsa, eight_bits=True),
        "fast, fp8, 8-bit attention": lambda bsa: fast_forward(models("fp8")[0], *given, bsa, eight_bits=True),
    }
    for what in names:
        for name, bsa in (("dense", None), ("sparse", config)):
            if smoke and (what == "FastVideo" and bsa is not None or "8-bit" in what):
                continue  # their kernels need a GPU
            if "8-bit" in what and bsa is None:
                continue
            rows.measure(
                key | {"what": f"{what}, {name}"},
                lambda what=what, name=name, bsa=bsa: {"error": relative(runs[what](bsa), exact[name])},
            )


def main() -> None:
    parser = arguments(__doc__, "forward")
    parser.add_argument("--size", choices=["480p", "704p", "720p", "1080p"], default="704p")
    parser.add_argument("--frames", type=int, default=93)
    parser.add_argument("--few", action="store_true", help="leave out peers, offload and most dense rows")
    parser.add_argument("--numerics", action="store_true", help="distances to fp32 on a small grid instead")
    args = parser.parse_args()
    device = device_for(parser, args.smoke)
    rows, models = Rows(args, device), Models(device, args.smoke)
    config = BSAConfig(0.5 if args.smoke else 0.9375)
    if args.numerics:
        numerics(rows, models, device, Grid(4, 8, 8) if args.smoke else Grid(8, 16, 16), config, args.smoke)
        return rows.finish()
    grid = Grid(5, 6, 8) if args.smoke else grid_of(args.size, args.frames)
    compare = Comparison(rows, models, device, args.size, grid, config)
    compare.plain("sparse")
    compare.fast("sparse")
    compare.fast("sparse", tuning=Tuning())
    if not (args.few or args.smoke):  # its kernel needs a GPU
        compare.fastvideo("sparse")
    if not args.few:
        compare.plain("dense")
    compare.fast("dense")
    if not args.few:
        compare.fastvideo("dense")
    compare.fast("sparse", "fp8")
    if not args.smoke:  # computed on a GPU alone
        compare.fast("sparse", "bf16", eight_bits=True)
        compare.fast("sparse", "fp8", eight_bits=True)
    if not args.few:
        compare.fast("dense", "fp8")
        compare.fast("sparse", "bf16 offload")
        compare.fast("sparse", "fp8 offload")
    rows.finish()


if __name__ == "__main__":
    main()
