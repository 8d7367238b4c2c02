"""Retrains the text encoder by regression onto a trained one, so that it also reads the order of words.

T5 does not scale its attention scores. `training.train_dit` once used Muon for the encoder too, and Muon let the
scores grow to standard deviations of 44 to 250. Every token then looked at one other, wherever that stood. The relative
position made no difference, and "from left to right" was the same as "from right to left". Here queries, keys and
position biases begin small again; the rest stays as it is. Each token's target is its vector from the trained encoder.
In captions with "from left to right" it is the vector for "from right to right", because the transformer draws that as
a motion to the right.

With --binding, every word of an object's phrase learns to tell everything the phrase says, and whether the object is
the first or the second. Cross-attention does not know where a word stands. Without the binding, "a blue square rises
and an orange triangle falls" is a bag of words, and the transformer makes two blue things that fall from it.

    python -m training.train_encoder --start OUT --minutes 8 --output OUT2
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from training.data import sample_training_scenes
from training.judge import NAMES
from training.optim import trapezoid
from training.run import Run
from training.scenes import SIZES, Scene
from training.tokenizer import TEXT_TOKENS, encode, load_tokenizer
from training.train_dit import build, save

READ_AS = {"from left to right": "from right to right", "from right to left": "from left to left"}
ORDERED = 24  # captions per batch in which word order matters
LR = 1.5e-3
FACTS = NAMES | {"size": tuple(SIZES), "place": ("0", "1")}  # the facts of an object, with their values


def without_order(caption: str) -> str:
    """The caption, reworded so that the order of words does not matter."""
    for words, same in READ_AS.items():
        if words in caption:
            return caption.replace(words, same)
    return caption


def jumble(rng: random.Random, caption: str, words: list[str]) -> str:
    """The caption with up to two words left out, replaced by one of `words`, or swapped: prompts are no captions."""
    said = caption.split()
    for _ in range(rng.choice((0, 1, 1, 2))):
        place, what = rng.randrange(len(said)), rng.choice(("drop", "replace", "swap"))
        if what == "swap":
            other = rng.randrange(len(said))
            said[place], said[other] = said[other], said[place]
        elif what == "replace":
            said[place] = rng.choice(words)
        elif len(said) > 1:
            del said[place]
    return " ".join(said)


class Binding(nn.Module):
    """Reads the object's `FACTS` from every word of its phrase.

    It takes the cosine to one direction for each value, so the facts must be a visible part of a word's vector.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.directions = nn.ParameterDict({name: torch.randn(len(values), dim) for name, values in FACTS.items()})

    def forward(self, words: Tensor, truth: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over the facts, and the share of correct facts. Words [N, dim], truth int64 [N]."""
        losses, right = [], []
        for name, directions in self.directions.items():
            told = 30 * F.normalize(words, dim=-1) @ F.normalize(directions, dim=-1).T
            losses.append(F.cross_entropy(told, truth[name]))
            right.append((told.argmax(-1) == truth[name]).float().mean())
        return torch.stack(losses).sum(), torch.stack(right).mean()


def phrases(tokenizer, scenes: list[Scene]) -> tuple[Tensor, dict[str, Tensor]]:
    """The tokens that belong to an object's phrase, bool [B, TEXT_TOKENS], and their facts, int64 [N] each."""
    captions = [scene.caption for scene in scenes]
    offsets = tokenizer(
        captions, padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_offsets_mapping=True
    )["offset_mapping"]
    inside = torch.zeros(len(scenes), TEXT_TOKENS, dtype=torch.bool)
    facts: dict[str, list[Any]] = {name: [] for name in FACTS}
    for row, scene in enumerate(scenes):
        a = scene.attributes
        for i in (i for i in range(2) if f"phrase{i}" in a):
            start = scene.caption.lower().index(a[f"phrase{i}"])
            stop = start + len(a[f"phrase{i}"])
            tokens = [token for token, (_, end) in enumerate(offsets[row]) if start < end <= stop]
            inside[row, tokens] = True
            for name, values in FACTS.items():
                facts[name] += [i if name == "place" else values.index(a[f"{name}{i}"])] * len(tokens)
    return inside, {name: torch.tensor(indices) for name, indices in facts.items()}


def captions(rng: random.Random, count: int, jumbled: float) -> Iterator[list[str]]:
    """Batches of training captions, some of them jumbled. `without_order` changes the last `ORDERED` of each batch."""
    ordered: list[str] = []
    while True:
        batch = [scene.caption for scene in sample_training_scenes(rng, count - ORDERED)]
        words = " ".join(batch).split()
        batch = [jumble(rng, text, words) if rng.random() < jumbled else text for text in batch]
        while len(ordered) < ORDERED:
            drawn = (scene.caption for scene in sample_training_scenes(rng, 64))
            ordered += [caption for caption in drawn if without_order(caption) != caption]
        yield batch + ordered[:ORDERED]
        del ordered[:ORDERED]


def two_shapes(rng: random.Random) -> Iterator[Scene]:
    """An endless stream of training scenes with objects. Two of three scenes have two objects."""
    while True:
        scenes = sample_training_scenes(rng, 256)
        two = [scene for scene in scenes if scene.attributes["kind"] == "shapes2"]
        one = [scene for scene in scenes if scene.attributes["kind"] == "shapes1"]
        yield from two + one[: len(two) // 2]


def fresh_attention(trained: UMT5EncoderModel) -> UMT5EncoderModel:
    """A copy with nearly uniform attention that still tells places apart."""
    encoder = UMT5EncoderModel(trained.config)
    encoder.load_state_dict(trained.state_dict())
    with torch.no_grad():
        for block in encoder.encoder.block:
            layer = block.layer[0]
            attention, dim = layer.SelfAttention, trained.config.d_model
            gain = layer.layer_norm.weight.square().mean()  # power of the input to the queries and keys
            nn.init.normal_(attention.k.weight, std=dim**-0.5)
            nn.init.normal_(attention.q.weight, std=float((dim * trained.config.d_kv) ** -0.5 / gain.clamp(min=1)))
            nn.init.normal_(attention.relative_attention_bias.weight, std=0.5)
    return encoder


def imitate(encoder, trained, tokenizer, said: list[str], meant: list[str], device: str) -> tuple[Tensor, Tensor]:
    """The encoder's vectors [B, L, dim] for `said`, and their relative squared error to the trained one's for `meant`.

    Both have equally many tokens. L is the length of the longest caption.
    """
    ids, mask = (x.to(device) for x in encode(tokenizer, said))
    same = encode(tokenizer, meant)[0].to(device)
    longest = int(mask.sum(1).max())
    ids, mask, same = ids[:, :longest], mask[:, :longest], same[:, :longest]
    with torch.no_grad():
        target = trained(input_ids=same, attention_mask=mask).last_hidden_state[mask.bool()]
    vectors = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return vectors, (vectors[mask.bool()] - target).square().mean() / target.square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True, help="folder of a run, or a checkpoint, to imitate")
    parser.add_argument("--encoder", type=Path, help="output of a run of this to go on from")
    parser.add_argument(
        "--jumbled", type=float, default=0.0, help="share of jumbled captions; first none, to learn order"
    )
    parser.add_argument("--binding", type=float, default=0.0, help="weight of telling what an object's phrase says")
    parser.add_argument("--output", type=Path, required=True, help="gets both networks, the transformer as it was")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=6)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    tokenizer = load_tokenizer()
    model = build(len(tokenizer), args.device, args.start, compiled=False).eval()
    trained: Any = model.text_encoder
    encoder: Any
    if args.encoder:
        encoder = build(len(tokenizer), args.device, args.encoder, compiled=False).text_encoder.train()
    else:
        encoder = fresh_attention(trained).to(args.device).train()
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.0)
    run, batches = Run(args.device, every=50), captions(random.Random(args.seed), args.batch, args.jumbled)
    if args.binding:
        binding, bound = Binding(encoder.config.d_model).to(args.device), two_shapes(random.Random(args.seed + 1))
        optimiser.add_param_group({"params": list(binding.parameters())})
    for progress in run.steps(args.minutes):
        batch = next(batches)
        meant = [without_order(caption) for caption in batch]
        _, loss = imitate(encoder, trained, tokenizer, batch, meant, args.device)
        losses = [loss]
        if args.binding:
            scenes = [next(bound) for _ in range(args.batch // 2)]
            batch = [scene.caption for scene in scenes]
            words, more = imitate(encoder, trained, tokenizer, batch, batch, args.device)
            inside, truth = phrases(tokenizer, scenes)
            truth = {name: indices.to(args.device) for name, indices in truth.items()}
            facts, told = binding(words[inside[:, : words.shape[1]].to(args.device)], truth)
            losses = [loss + more, facts, told]
            loss = loss + more + args.binding * facts
        for group in optimiser.param_groups:
            group["lr"] = LR * trapezoid(progress, 0.05, 0.6)
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        run.log(*losses)
    model.text_encoder = encoder.eval()
    save(model, args.output)
    columns = ["step", "seconds", "imitation", *(("facts", "share told") if args.binding else ())]
    run.report(args.output / "encoder.json", args, curve_columns=columns)


if __name__ == "__main__":
    main()
