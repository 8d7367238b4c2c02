"""Times forward passes and decoding of the embedded checkpoint on a CPU in fp32 and bf16, in one run: by the plain
forward, the fast one, and the fast one with native code (`bsa.native`).

    python benchmarks/precision_cpu.py

Rounds take turns and the least CPU time of each counts, so that a busy machine changes little. Also: the distance of
each forward to the plain one in fp32, and what the faster forward spends on products, attention, and the rest, which
bounds what sparsity can gain. Prints a table and writes benchmarks/results/precision_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from attention_cpu import machine

from bsa import BSAConfig
from bsa.native.choice import SWITCH
from bsa.native.processor import processor_flags
from pipeline import LongCatPipeline
from pipeline.request.choose_forward import ForwardChoice
from pipeline.transformer.run_forward import forward_for
from pipeline.transformer.self_attention import attention_for
from pipeline.weights.precision import INSTRUCTIONS

RESULTS = Path(__file__).parent / "results" / "precision_cpu.json"
LATENT_FRAMES = 3  # that are decoded
KINDS = {
    "aten::addmm": "linear layers",
    "aten::mm": "linear layers",
    "aten::bmm": "attention",
    "aten::baddbmm": "attention",
    "aten::_softmax": "attention",
    "aten::index_select": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "bsa::native_attention": "attention",
}


def inputs(pipeline: LongCatPipeline, prompt_tokens: int = 20) -> tuple:
    """Latents, timestep, text and mask of one step of the checkpoint's own size."""
    request = pipeline.info.request("x")
    generator = torch.Generator().manual_seed(0)
    model = pipeline._model
    latents = torch.randn(1, model.transformer.in_channels, *request.latent_shape, generator=generator)
    width = model.transformer.caption_embedder.linear_1.weight.shape[1]
    text = torch.randn(1, prompt_tokens, width, generator=generator)
    return latents, torch.full((1,), 700.0), text, None


FORWARDS = ("plain", "fast", "native")


def with_switch(forward: str, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The same, with native code for "native" alone."""

    def switched() -> torch.Tensor:
        os.environ[SWITCH] = "1" if forward == "native" else "0"
        return run()

    return switched


def shares(run) -> dict[str, float]:
    """Share of the operators' own time by kind."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    spent: Counter[str] = Counter()
    for event in profile.key_averages():
        spent[KINDS.get(event.key, "elementwise and copies")] += event.self_cpu_time_total
    return {kind: value / sum(spent.values()) for kind, value in spent.most_common()}


@torch.no_grad()
def measure(rounds: int) -> list[dict]:
    rows, runs, decodes = [], {}, {}
    for precision in ("fp32", "bf16"):
        pipeline = LongCatPipeline.load(device="cpu", precision=precision)
        given = inputs(pipeline)
        request = pipeline.info.request("x")
        for attention, bsa in (("dense", None), ("sparse", BSAConfig(0.75))):
            work = replace(request, bsa=bsa).workload
            for forward in FORWARDS:
                choice = ForwardChoice("plain" if forward == "plain" else "fast", "")
                step = forward_for(choice, pipeline._model, work, attention_for(work))
                runs[precision, forward, attention] = with_switch(forward, partial(step, *given))
        latents = torch.randn(1, pipeline._model.transformer.in_channels, LATENT_FRAMES, 32, 32)
        decodes[precision] = lambda model=pipeline._model, latents=latents: model.decode_frame(latents)
    outs = {key: run() for key, run in runs.items()}  # warms up
    seconds = {key: [] for key in (*runs, *decodes)}
    for _ in range(rounds):
        for key, run in (*runs.items(), *decodes.items()):
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            seconds[key].append((time.process_time() - cpu, time.perf_counter() - wall))
    for key, run in runs.items():
        precision, forward, attention = key
        exact = outs["fp32", "plain", attention]
        rows.append(
            {
                "what": f"{attention} forward",
                "precision": precision,
                "forward": forward,
                "cpu_s": min(cpu for cpu, _ in seconds[key]),
                "wall_s": min(wall for _, wall in seconds[key]),
                "distance": float((outs[key] - exact).norm() / exact.norm()),
                "shares": None if forward == "plain" else shares(run),
            }
        )
    for precision in decodes:
        cpu, wall = zip(*seconds[precision], strict=True)
        what = f"decode {LATENT_FRAMES} latent frames"
        rows.append({"what": what, "precision": precision, "cpu_s": min(cpu), "wall_s": min(wall)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(args.rounds)
    for row in rows:
        print(
            f"{row['what']:24} {row['precision']} {row.get('forward', ''):6} {row['cpu_s']:6.2f} s CPU, "
            f"{row['wall_s']:6.2f} s, distance {row.get('distance', 0):.1e}",
            {kind: round(share, 2) for kind, share in (row.get("shares") or {}).items()},
        )
    by = {(row["what"], row["precision"], row.get("forward")): row["cpu_s"] for row in rows}
    ratios = {
        f"{precision} {forward}": by["dense forward", precision, forward] / by["sparse forward", precision, forward]
        for precision in ("fp32", "bf16")
        for forward in FORWARDS
    }
    print(ratios)
    found = [name for name in INSTRUCTIONS if name in processor_flags()]
    report = machine(args) | {"instructions": found, "ratios": ratios, "rows": rows}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
