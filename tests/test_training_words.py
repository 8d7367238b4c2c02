"""What the embedded checkpoint's tokenizer makes of a prompt: known words as they are, unknown ones left out."""

import random
import re

import pytest
from tokenizers import Tokenizer, normalizers

from pipeline import EMBEDDED_CHECKPOINT
from pipeline.checkpoint.vocabulary import read_vocabulary
from training.known_words import FORMS, REORDERED, caption_words, reading, understood_words
from training.scenes import sample_scene

FILE = str(EMBEDDED_CHECKPOINT / "tokenizer" / "tokenizer.json")
LONG = 5000  # letters, the most that a prompt may have


@pytest.fixture(scope="module")
def shipped():
    return Tokenizer.from_file(FILE)


@pytest.fixture(scope="module")
def read(shipped):
    return shipped.normalizer.normalize_str


def test_the_checkpoint_has_the_rules_of_the_grammar(shipped):
    assert shipped.normalizer.__getstate__() == reading(caption_words()).__getstate__()


def test_captions_are_what_they_were_token_for_token(shipped):
    plain, rng = Tokenizer.from_file(FILE), random.Random(5)
    plain.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    captions = [sample_scene(rng).caption for _ in range(3000)]
    captions = [caption for caption in captions if not re.search("|".join(REORDERED), caption.lower())]
    assert [c.ids for c in shipped.encode_batch(captions)] == [c.ids for c in plain.encode_batch(captions)]


@pytest.mark.parametrize(
    "said, meant",
    [
        pytest.param("a shiny red ball bounces", "a red ball bounces", id="adjective"),
        pytest.param("A red ball bounces gracefully!", "a red ball bounces", id="adverb"),
        pytest.param("a starry zorblax ring rises", "a starry ring rises", id="made up"),
        pytest.param("a starfish and a red ball rise", "a red ball rises", id="begins with a known word"),
        pytest.param("a star-shaped light-blue thing", "a star light blue", id="hyphens"),
        pytest.param("close-up of a red ball, 4k", "a red ball", id="hyphenated unknown word, and a number"),
        pytest.param("a photo of a red ball", "a red ball", id="what leads to the subject"),
        pytest.param("a gigantic orange star and an elegant red ball", "an orange star and a red ball", id="articles"),
        pytest.param("a ball on a wooden table at sunset", "a ball at sunset", id="place in the middle"),
        pytest.param("a ball in front of a brick house", "a ball", id="place at the end"),
        pytest.param("a ball over the stormy sea", "a ball over the sea", id="known place"),
        pytest.param("a red ball, a cat and a blue square", "a red ball and a blue square", id="one of three"),
        pytest.param("a red ball spins and laughs.", "a red ball spins.", id="one of two verbs"),
        pytest.param("a red ball rolls and bounces", "a red ball bounces", id="the other of two verbs"),
        pytest.param("two gray balls bouncing", "grey ball bouncing", id="other forms"),
        pytest.param("a pink cross sways on a wooden floor", "a pink cross swaying on a floor", id="half a phrase"),
        pytest.param("a ball flies to the left", "a ball moving to the left", id="half a phrase with a direction"),
        pytest.param("a heart beats like a drum", "a heart pulses", id="half a phrase after a word went"),
        pytest.param("a ring circles, two circles fall", "a ring circling, circles falls", id="verb and noun"),
        pytest.param("day turns to night over green hills", "the sun sets over green hills", id="order: to night"),
        pytest.param("Night turning to day, over the sea", "the sun rises, over the sea", id="order: to day"),
        pytest.param("a cat in the kitchen", "", id="nothing known"),
        pytest.param("一只红球 🎈", "", id="another script"),
        pytest.param("", "", id="empty"),
    ],
)
def test_unknown_words_and_what_they_leave_hanging_go(read, said, meant):
    assert read(said) == meant


def test_what_is_read_is_read_the_same_again(read):
    rng, words = random.Random(7), [*understood_words(), "velvet", "cat", ",", ".", "in front of", "-", "on"]
    for _ in range(300):
        once = read(" ".join(rng.choices(words, k=12)))
        assert read(once) == once


@pytest.mark.parametrize("piece", ["a", "a ", "-", ", ", "on a ", "red-", "zebra ", "é", "in front of "])
def test_a_prompt_of_the_greatest_length_is_read(read, piece):
    assert read((piece * LONG)[:LONG]) == ""


def test_every_form_becomes_a_word_of_the_captions_and_the_page_knows_it(read):
    known = read_vocabulary(EMBEDDED_CHECKPOINT)
    for word, forms in FORMS.items():
        assert [read(form) for form in forms.split()] == [read(word)] * len(forms.split())
        assert known.unknown(f"{word} {forms}") == []


def test_prompts_of_the_palette_are_read_as_they_are(read):
    known, rng = read_vocabulary(EMBEDDED_CHECKPOINT), random.Random(9)
    drawn = [{name: rng.choice(phrases) for name, phrases in known.groups.items()} for _ in range(1000)]
    prompts = [*known.sentences, known.default, *(known.template.format(**phrases) for phrases in drawn)]
    for prompt in prompts:
        meant = prompt.replace("a orange", "an orange")
        for phrase, instead in REORDERED.items():
            meant = re.sub(phrase, instead, meant)
        assert read(prompt) == meant
