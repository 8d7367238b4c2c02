"""What the text encoder makes of word order, the noise levels of the training, and training in several processes."""

import functools
import random

import pytest
import torch
from torch.distributed import TCPStore
from training_processes import alone, one_of_two

from pipeline import EMBEDDED_CHECKPOINT
from training.optim import Optimiser
from training.sampling import PURE_NOISE, draw_sigmas
from training.scenes import sample_scene
from training.tokenizer import encode, load_tokenizer
from training.train_dit import build, trained_parts
from training.train_encoder import (
    FACTS,
    ORDERED,
    Binding,
    captions,
    fresh_attention,
    phrases,
    two_shapes,
    without_order,
)

ORDERS = ["a red square moves from left to right", "a red square moves from right to left"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module")
def shipped(tokenizer):
    return build(len(tokenizer), "cpu", EMBEDDED_CHECKPOINT, compiled=False).eval()


@pytest.fixture(scope="module")
def velocity(shipped, tokenizer):
    """What a prompt makes of noise alone: latents half as high and wide as trained, or of other `frames` and `size`."""

    @functools.cache
    @torch.no_grad()
    def predict(prompt: str, frames: int = 16, size: int = 16) -> torch.Tensor:
        noise = torch.randn(1, 16, frames, size, size, generator=torch.Generator().manual_seed(1))
        ids, mask = encode(tokenizer, [prompt])
        return shipped.velocity(noise, torch.ones(1), shipped.encode(ids, mask), mask)

    return predict


@pytest.mark.parametrize("prompt", ORDERS)
def test_the_shipped_model_tells_from_left_to_right_from_its_opposite(velocity, prompt):
    """Where nothing but noise is given, its estimate is nearer to that of the same direction in plain words."""
    directions = {name: velocity(f"a red square moves to the {name}") for name in ("left", "right")}
    said = velocity(prompt)
    distances = {name: (said - estimate).norm().item() for name, estimate in directions.items()}
    right = prompt.split()[-1]
    assert distances[right] < 0.5 * max(distances.values())


@pytest.mark.parametrize(
    "other",
    [
        pytest.param("a blue square falls and an orange triangle rises", id="motions swapped"),
        pytest.param("a blue triangle rises and an orange square falls", id="shapes swapped"),
        pytest.param("an orange square rises and a blue triangle falls", id="colours swapped"),
    ],
)
def test_the_shipped_model_tells_two_objects_from_the_same_words_swapped(velocity, other):
    """The same in other words is nearer. As a bag of words, what is swapped is the same."""
    said, same, swapped = (
        velocity(f"{text} on a cream background", frames=8, size=24)
        for text in (
            "a blue square rises and an orange triangle falls",
            "a blue square rises, an orange triangle falls",
            other,
        )
    )
    assert (said - same).norm() < 0.5 * (said - swapped).norm()


def test_a_fresh_attention_tells_orders_apart_and_is_not_one_hot(shipped, tokenizer):
    torch.manual_seed(0)
    encoder = fresh_attention(shipped.text_encoder)
    ids, mask = encode(tokenizer, ORDERS)
    left, right = (int((ids[0] == word).nonzero()[0]) for word in (ids[0, 5], ids[0, 7]))
    seen: list[torch.Tensor] = []

    def look(module, args, out):
        heads = (module.q(args[0]), module.k(args[0]))
        q, k = (x.unflatten(-1, (4, -1)).transpose(1, 2) for x in heads)
        seen.append((q @ k.mT).std())

    for block in encoder.encoder.block:
        block.layer[0].SelfAttention.register_forward_hook(look)
    with torch.no_grad():
        out = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert len(seen) == 3 and max(seen) < 3
    assert (out[0, left] - out[1, right]).norm() > 1e-3 * out[0, left].norm()  # one word at two places


def test_captions_of_which_the_order_matters():
    batch = next(captions(random.Random(1), ORDERED + 8, jumbled=0.5))
    assert len(batch) == ORDERED + 8
    assert all(("from left to right" in text) != ("from right to left" in text) for text in batch[-ORDERED:])
    assert without_order(ORDERS[0]) == "a red square moves from right to right"
    assert without_order(ORDERS[1]) == "a red square moves from left to left"
    assert without_order("swings left and right") == "swings left and right"


def test_the_words_of_a_phrase_and_what_they_are_to_tell(tokenizer):
    scenes = [
        scene
        for scene in (sample_scene(random.Random(seed)) for seed in range(60))
        if scene.attributes["kind"] != "landscape"
    ]
    inside, truth = phrases(tokenizer, scenes)
    ids, _ = encode(tokenizer, [scene.caption for scene in scenes])
    told = iter(zip(*(truth[name].tolist() for name in ("colour", "shape", "motion", "place")), strict=True))
    for row, scene in enumerate(scenes):
        a = scene.attributes
        objects = [i for i in range(2) if f"phrase{i}" in a]
        words = tokenizer.decode(ids[row, inside[row]]).lower()
        assert words == " ".join(a[f"phrase{i}"] for i in objects)
        for i in objects:
            for _ in tokenizer.tokenize(a[f"phrase{i}"]):
                colour, shape, motion, place = next(told)
                said = FACTS["colour"][colour], FACTS["shape"][shape], FACTS["motion"][motion], place
                assert said == (a[f"colour{i}"], a[f"shape{i}"], a[f"motion{i}"], i)
    assert next(told, None) is None


def test_a_word_that_points_to_its_facts_tells_them():
    binding, facts = Binding(64), {name: torch.tensor([0, 1]) for name in FACTS}
    with torch.no_grad():
        for i, directions in enumerate(binding.directions.values()):
            directions.copy_(torch.eye(64)[12 * i : 12 * i + len(directions)])
    words = torch.stack([sum(directions[i] for directions in binding.directions.values()) for i in range(2)])
    loss, right = binding(words, facts)
    assert right == 1 and loss < 0.01
    loss, right = binding(words.flip(0), facts)
    assert right == 0 and loss > 10


def test_most_scenes_to_bind_have_two_objects():
    drawn = two_shapes(random.Random(2))
    kinds = [next(drawn).attributes["kind"] for _ in range(300)]
    assert set(kinds) == {"shapes1", "shapes2"} and kinds.count("shapes2") > 180


def test_muon_leaves_the_text_encoder_alone(shipped):
    optimiser = Optimiser([shipped.text_encoder, shipped.transformer], 1e-3)
    theirs = {id(p) for group in optimiser.muon.param_groups for p in group["params"]}
    assert theirs and not theirs & {id(p) for p in shipped.text_encoder.parameters()}


@pytest.mark.parametrize("keep", [True, False])
def test_the_text_encoder_can_be_kept(tokenizer, keep):
    model = build(len(tokenizer), "cpu", EMBEDDED_CHECKPOINT, compiled=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = Optimiser(trained_parts(model, keep), 1e-3)
    ids, mask = encode(tokenizer, ORDERS)
    velocity = model.velocity(torch.randn(2, 16, 1, 4, 4), torch.ones(2), model.encode(ids, mask), mask)
    velocity.square().mean().backward()
    optimiser.step(1.0)
    changed = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"transformer"} | (set() if keep else {"text_encoder"})


def test_many_noise_levels_are_near_one():
    torch.manual_seed(0)
    sigma = draw_sigmas(20_000, "cpu")
    assert sigma.min() > 0 and sigma.max() == 1
    assert (sigma == 1).float().mean() == pytest.approx(PURE_NOISE, abs=0.005)
    assert (sigma > 0.97).float().mean() == pytest.approx(0.28, abs=0.02)  # 0.262 of the normal part, and pure noise
    assert (sigma < 0.5).float().mean() == pytest.approx(0.13, abs=0.01)


def test_two_processes_average_and_agree(tmp_path):
    # the store is here, as it is torchrun's, and not the first process's: nobody can take its port in between
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path), store.port), nprocs=2)
    for rank in range(2):
        ones, two, weight, agreed = torch.load(tmp_path / f"{rank}.pt")
        assert (ones == 0.5).all() and two == 2 and (weight == 0.5).all() and agreed == 10


def test_alone_nothing_is_averaged():
    torch.multiprocessing.spawn(alone, nprocs=1)
