"""The ranks of the tests of `pipeline.parallel`, of each size: python tests/parallel_ranks.py FOLDER

All ranks run every case, and compare what they got with what a process computes alone. Rank 0 writes the distances to
FOLDER/SIZE.json. The ranks are forks of one process, for which PyTorch and diffusers are imported once.
"""

import json
import multiprocessing
import sys
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist
from random_dit import random_dit, random_inputs

from bsa import BSAConfig
from pipeline.model.teacache import TeaCache
from pipeline.parallel.mesh import mesh_shape
from pipeline.parallel.ranks import Group, Ranks, leave
from pipeline.parallel.sequence import ALONE
from pipeline.parallel.strips import Strips
from pipeline.transformer.fast_forward import fast_forward
from pipeline.transformer.forward import trim_text
from pipeline.transformer.kv_cache import KeyValues
from pipeline.weights.fp8 import to_fp8
from pipeline.weights.offload import Offload

CPU = torch.device("cpu")
SIZES = (2, 3, 4)
SMALL = (2, 3, 4)
# grid, config, options of the model ("heads", "fp8", "offload"), options of the forward
CASES = {
    "dense": ((4, 8, 8), None, {}, {}),
    "whole-blocks": ((4, 8, 8), BSAConfig(0.5), {}, {}),
    "ragged": ((5, 7, 6), BSAConfig(0.5), {}, {}),
    "odd-chunks": ((3, 5, 7), BSAConfig(0.6, None, SMALL, SMALL), {"heads": 8}, {}),
    "threshold": ((3, 5, 6), BSAConfig(None, 0.7, (2, 2, 2), (2, 2, 2)), {}, {}),
    "cells": ((4, 6, 8), BSAConfig(0.5, selection="cells"), {}, {}),
    "dense-layers": ((3, 5, 6), BSAConfig(0.5, None, SMALL, SMALL, dense_layers=1), {}, {"dense_layers": 1}),
    "zeroed-padding": ((4, 4, 4), BSAConfig(0.5, None, (2, 2, 2), (2, 2, 2)), {}, {"zero_text_padding": True}),
    "parts": ((3, 5, 7), None, {}, {"ffn_tokens": 7}),
    "fp8": ((3, 5, 6), BSAConfig(0.5, None, SMALL, SMALL), {"fp8": True}, {}),
    "given-frames": ((4, 5, 6), BSAConfig(0.5, None, SMALL, SMALL), {}, {"conditioning": 1}),
    "given-frames-dense": ((3, 5, 6), None, {}, {"conditioning": 2}),
    "nested-chunks": ((4, 6, 7), BSAConfig(0.5, None, (2, 4, 4), (2, 2, 4)), {}, {}),
    "offload": ((3, 5, 6), BSAConfig(0.5, None, SMALL, SMALL), {"offload": True}, {}),
    "one-token-each": ((1, 2, 2), None, {}, {}),
}


def distance(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def same_selection(seen: list, alone: list, heads: slice) -> bool:
    """Whether every layer chose for the heads of this rank the blocks that one process chooses."""
    assert len(seen) == len(alone) > 0
    return all(
        torch.equal(mine.mask(64), whole.mask(64)[:, heads]) for mine, whole in zip(seen, alone, strict=True) if mine
    )


def forward_case(ranks: Ranks, grid, config, model_options, options) -> dict:
    model = random_dit(num_attention_heads=model_options.get("heads", 4))
    if model_options.get("fp8"):
        to_fp8(model)
    inputs = random_inputs(model, grid)
    alone, seen = [], []
    expected = fast_forward(model, *inputs, config, **options, observe=lambda q, k, s: alone.append(s))
    offload = Offload(model, CPU) if model_options.get("offload") else None
    parallel = ranks.sequence(1)
    out = fast_forward(
        model, *inputs, config, **options, offload=offload, parallel=parallel, observe=lambda q, k, s: seen.append(s)
    )
    heads = parallel.share(expected[0, 0].numel(), model.blocks[0].self_attn.num_heads).heads
    found = {"error": distance(out, expected), "equal": torch.equal(out, expected)}
    return found if config is None else found | {"same_selection": same_selection(seen, alone, heads)}


def guidance_case(ranks: Ranks) -> dict:
    """Two rows with texts of different lengths, the halves of the ranks on one row each where their number is even."""
    model, config = random_dit(), BSAConfig(0.5, None, SMALL, SMALL)
    latents, time, text, mask = random_inputs(model, (3, 5, 6))
    latents = latents[:1].repeat(2, 1, 1, 1, 1)
    expected = fast_forward(model, latents, time, text, mask, config)
    calls = []

    def velocity(*inputs):
        calls.append(len(inputs[0]))
        return fast_forward(model, *inputs, config, parallel=ranks.sequence(2))

    out = ranks.divide(velocity, 2)(latents, time, *trim_text(text, mask)[:1], mask)
    assert calls == [2 // mesh_shape(ranks.size, 2)[0]]
    return {"error": distance(out, expected)}


def cache_case(ranks: Ranks) -> dict:
    """Two rows of guidance after conditioning frames whose keys and values were kept: by each rank, of its heads."""
    model, config = random_dit(), BSAConfig(0.5, None, SMALL, SMALL)
    latents, time, text, mask = random_inputs(model, (5, 5, 6))
    latents = latents[:1].repeat(2, 1, 1, 1, 1)

    def run(parallel, divide):
        cache = KeyValues()
        options = {"conditioning": 2, "cache": cache, "parallel": parallel}
        fast_forward(model, latents[:1, :, :2], time.new_zeros(1), text[:1], mask[:1], config, **options)
        step = divide(lambda *inputs: fast_forward(model, *inputs, config, **options))
        return step(latents[:, :, 2:], time, text, mask), cache.bytes

    expected, whole = run(ALONE, lambda velocity: velocity)
    out, kept = run(ranks.sequence(2), lambda velocity: ranks.divide(velocity, 2))
    return {"error": distance(out, expected), "kept": kept / whole}


def vae_case(ranks: Ranks, patch: int, rows: int) -> dict:
    """Wan's VAE with random weights, as FastVideo runs it, on pictures of an odd number of latent rows."""
    from diffusers import AutoencoderKLWan  # here, because a test imports the names of the cases alone

    torch.manual_seed(0)
    channels = {} if patch == 1 else {"in_channels": 12, "out_channels": 12, "patch_size": 2}
    mult, down = ((1, 2, 2, 2), (False, True, True)) if patch == 1 else ((1, 2, 2), (True, True))
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=list(mult), num_res_blocks=1, temperal_downsample=list(down), **channels
    ).eval()
    strips = Strips(dist.group.WORLD, rows)
    latents, pixels = torch.randn(1, 4, 3, rows, 5), torch.rand(1, 3, 9, 8 * rows, 24) * 2 - 1
    with torch.no_grad():
        whole, posterior = vae.decode(latents).sample, vae.encode(pixels).latent_dist.parameters
        with strips.divided(vae.decoder):
            decoded = vae.decode(strips.cut(latents)).sample
        with strips.divided(vae.encoder):
            encoded = vae.encode(strips.cut(pixels, 8)).latent_dist.parameters
        again = vae.decode(latents).sample
    decoded, encoded = strips.gather(decoded, 8), strips.gather(encoded)
    errors = {"decode": distance(decoded, whole), "encode": distance(encoded, posterior)}
    return errors | {"restored": torch.equal(again, whole)}


def refusal_case(ranks: Ranks) -> dict:
    model = random_dit(num_attention_heads=1)
    try:
        fast_forward(model, *random_inputs(model, (2, 2, 3)), None, parallel=ranks.sequence(1))
    except ValueError as error:
        return {"refused": str(error)}
    return {"refused": ""}


def talk_case(ranks: Group) -> dict:
    found = {"job": ranks.next_job({"job": 7} if ranks.rank == 0 else None), "settled": [ranks.settled]}
    found["once"] = [None if one is None else one.tolist() for one in ranks.once(lambda: (torch.tensor([1.5]), None))]
    found["mean"] = float(ranks.mean(torch.tensor(float(ranks.rank)), weight=1 + ranks.rank))
    found["largest"], found["collected"] = ranks.largest(ranks.rank), ranks.collect(ranks.rank)
    found["raised"] = [raised(ranks.once, fails_on(ranks, 0)), raised(agreeing, ranks, fails_on(ranks, 1))]
    found["settled"].append(ranks.settled)
    return found


def fails_on(ranks: Group, rank: int):
    def fail():
        if ranks.rank == rank:
            raise ValueError(f"rank {rank} cannot")

    return fail


def agreeing(ranks: Group, work) -> None:
    with ranks.together():
        work()


def teacache_case(ranks: Group) -> list[int]:
    """The steps that run. Each rank measures another change, as GPUs of several kinds might."""
    values = iter([1 + step * 0.02 * (1 + ranks.rank) for step in range(9)])
    cache = TeaCache(0.1, 9, lambda timestep: torch.tensor([next(values)]), ranks)
    for _ in range(9):
        cache.due(torch.zeros(1))
    return cache.ran


def raised(call, *arguments) -> str:
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    return ""


def be_rank(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"{size}.store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=300))
    ranks = Group(CPU)
    found = {name: forward_case(ranks, *case) for name, case in CASES.items()}
    if size == 3:  # of which one has neighbours on both sides
        found |= {"vae": vae_case(ranks, 1, 7), "vae-in-patches": vae_case(ranks, 2, 5)}
    found |= {"cache": cache_case(ranks), "teacache": teacache_case(ranks)}
    found |= {"guidance": guidance_case(ranks), "refusal": refusal_case(ranks), "talk": talk_case(ranks)}
    every = [None] * size
    dist.all_gather_object(every, found)
    if rank == 0:
        (folder / f"{size}.json").write_text(json.dumps(every))
    del ranks
    leave()


def main(folder: Path) -> None:
    import diffusers  # noqa: F401

    process = multiprocessing.get_context("fork").Process
    for size in SIZES:
        ranks = [process(target=be_rank, args=(rank, size, folder), daemon=True) for rank in range(size)]
        for rank in ranks:
            rank.start()
        left = {rank.sentinel: rank for rank in ranks}
        while left:
            for ended in wait(left):
                if left.pop(ended).exitcode:
                    sys.exit(f"one of {size} ranks failed")  # the others, which would wait for it, end with this one


if __name__ == "__main__":
    main(Path(sys.argv[1]))
