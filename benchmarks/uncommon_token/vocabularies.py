"""Tokenizers of the experiment: byte-level BPE, trained on its texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from texts import THINGS, draw, pools
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BEGIN, END = "<s>", "</s>"
TEXTS = 20_000  # texts that a tokenizer is trained on: enough for every numeral of the answers to become a token
DIGITS = {"packs": r"\p{N}{1,3}", "splits": r"\p{N}"}


def pattern(digits: str) -> str:
    """The split pattern: words with their leading space, numerals as `digits` says, punctuation, space."""
    return rf" ?\p{{L}}+|{DIGITS[digits]}| ?[^\s\p{{L}}\p{{N}}]+|\s+"


def train(texts: Sequence[str], *, digits: str, size: int) -> Tokenizer:
    """Trains a tokenizer.

    Args:
        texts: what it is trained on.
        digits: `packs` for numerals of up to three digits in a token, `splits` for a token per digit.
        size: most tokens, special ones and the 256 bytes included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern(digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=5,
        special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


SINGULARS = [f"1 {thing.removesuffix('s')}" for thing in THINGS[0]] * 5000
SIZES = {"student": 1000, "splits": 1000, "words": 1000}
"""Most tokens of each tokenizer; training ends before where the texts have no more pairs."""


def write(folder: Path) -> dict[str, Path]:
    """Trains the tokenizers and writes each as `<name>/tokenizer.json`.

    `student` packs numerals and knows the words of the first half; `splits` has its words and a token per digit;
    `words` packs numerals as the student does and knows the words of the second half, and of the first half's things
    the singulars: the student's ` pens` is its ` pen` with an `s`.
    """
    pool, _ = pools()
    halves = [[text.text for text in draw(pool, TEXTS, seed=half, half=half)] for half in (0, 1)]
    made = {
        "student": train(halves[0], digits="packs", size=SIZES["student"]),
        "splits": train(halves[0], digits="splits", size=SIZES["splits"]),
        "words": train(halves[1] + SINGULARS, digits="packs", size=SIZES["words"]),
    }
    paths = {}
    for name, tokenizer in made.items():
        paths[name] = folder / name / "tokenizer.json"
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(paths[name]))
    return paths
