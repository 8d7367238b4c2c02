"""The fast tokenizer of longcat-tiny. It was trained once on captions of the grammar, and leaves out unknown words.

The weights belong to its token numbers, so all later programs read the embedded one, even when the grammar changes.

    python -m training.tokenizer --output OUT   # a new tokenizer; it needs new weights
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pipeline import EMBEDDED_CHECKPOINT
from training.known_words import caption_words, reading
from training.scenes import sample_scene

TEXT_TOKENS = 48  # of a training caption; longer ones are cut


def train_tokenizer(captions: int = 20000, seed: int = 7) -> PreTrainedTokenizerFast:
    """Train a lower-casing BPE with byte fallback and UMT5's special tokens: <pad> 0, </s> 1, <unk> 2."""
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = reading(caption_words())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
    )
    special = ["<pad>", "</s>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()-▁")
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, min_frequency=20, show_progress=False
    )
    tokenizer.train_from_iterator((sample_scene(rng).caption for _ in range(captions)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _fast(tokenizer)


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The embedded tokenizer, made once by `train_tokenizer`."""
    return _fast(Tokenizer.from_file(str(EMBEDDED_CHECKPOINT / "tokenizer" / "tokenizer.json")))


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def encode(tokenizer: PreTrainedTokenizerFast, captions: list[str]):
    """Ids and attention mask, both int64 [B, TEXT_TOKENS]."""
    batch = tokenizer(captions, padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for tokenizer.json")
    train_tokenizer().save_pretrained(parser.parse_args().output)
