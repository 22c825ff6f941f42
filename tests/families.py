"""The families of tokenizers: each one's small file, the vocabulary read from it, and what its surfaces must spell."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import family_shapes as shapes
from family_shapes import ALPHABET, GAPS, WORDS, add, corpus, id_in, next_id, unigram, wordpiece
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from xtoken_align import Vocab
from xtoken_align.read import assemble
from xtoken_align.readers.tokenizer_json import parse_tokenizer_json

__all__ = [
    "ALPHABET",
    "FAMILIES",
    "FAMILIES_AND_WORDY",
    "WORDS",
    "WORDY",
    "Family",
    "add",
    "corpus",
    "id_in",
    "next_id",
    "surfaces",
    "texts",
    "unigram",
    "vocab_of",
    "wordpiece",
]

SPELLED_SPECIALS = (
    *("<s>", "</s>", "<unk>", "<pad>", "<mask>", "<|endoftext|>", "<|im_start|>", "<think>", "<unused3>", "[CLS]"),
    *("[UNK]", "[PAD]", "[MASK]", "[SEP]", "<0x41>", "<0x0A>", "<0xE4>", "<extra_id_0>"),
    "<|reserved_special_token_0|>",
)
_GAP = re.compile(r"\s+")


def texts(*, specials: bool = True) -> st.SearchStrategy[str]:
    """Texts of many scripts, gaps of all kinds and, on demand, strings that spell special tokens."""
    parts = [st.sampled_from(WORDS), st.sampled_from(GAPS), st.text(st.sampled_from(ALPHABET), max_size=4)]
    if specials:
        parts.append(st.sampled_from(SPELLED_SPECIALS))
    joined = st.lists(st.one_of(parts), max_size=12).map("".join)
    # Single characters can spell a special token too, such as `</s>`.
    return joined if specials else joined.filter(lambda text: not any(name in text for name in SPELLED_SPECIALS))


@dataclass(frozen=True)
class Family:
    """One shape of `tokenizer.json`.

    Attributes:
        name: what tests call it.
        build: makes the JSON.
        written: what the surfaces of a text's tokens spell together, where every character is in the vocabulary.
        prefixed: whether the original puts a dummy prefix before the text.
    """

    name: str
    build: Callable[[], dict[str, Any]]
    written: Callable[[str], str] = str
    prefixed: bool = False

    def data(self) -> dict[str, Any]:
        """A copy of the JSON."""
        return deepcopy(_built(self.name))

    def vocab(self) -> Vocab:
        """The vocabulary read from it."""
        return _vocab(self.name)

    def original(self) -> Tokenizer:
        """The tokenizer as `tokenizers` loads it."""
        return _original(self.name)


@cache
def _built(name: str) -> dict[str, Any]:
    return FAMILIES_AND_WORDY[name].build()


@cache
def _vocab(name: str) -> Vocab:
    return vocab_of(_built(name), name=name)


@cache
def _original(name: str) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(_built(name)))


def vocab_of(data: dict[str, Any], *, name: str = "small", **options: Any) -> Vocab:
    """The vocabulary of a file's JSON."""
    return assemble(parse_tokenizer_json(data, name=name), name=name, source=name, **options)


def surfaces(vocab: Vocab, ids: Iterable[int]) -> bytes:
    """The surfaces of ids, one after another."""
    return b"".join(vocab.surfaces[token_id] for token_id in ids)


def _marks_as_spaces(text: str) -> str:
    return text.replace("▁", " ")


def _normalised(name: str) -> Callable[[str], str]:
    def normalise(text: str) -> str:
        written: str = _original(name).normalizer.normalize_str(text)
        return written

    return normalise


def _one_space(name: str) -> Callable[[str], str]:
    """The normaliser's text with every run of whitespace as one space, none at the end."""
    return lambda text: _GAP.sub(" ", _marks_as_spaces(_normalised(name)(text))).rstrip()


FAMILIES = {
    family.name: family
    for family in (
        Family("gpt2", shapes.gpt2),
        Family("gpt2-prefix", shapes.prefix_space, prefixed=True),
        Family("roberta", shapes.roberta),
        Family("neox", shapes.neox, _normalised("neox")),
        Family("starcoder", shapes.starcoder),
        Family("falcon", shapes.falcon),
        Family("llama3", shapes.llama3),
        Family("qwen", shapes.qwen, _normalised("qwen")),
        Family("byte-normaliser", shapes.byte_normaliser),
        Family("llama2", shapes.llama2, _marks_as_spaces, prefixed=True),
        Family("metaspace-first", lambda: shapes.metaspace("first"), _marks_as_spaces, prefixed=True),
        Family("metaspace-always", lambda: shapes.metaspace("always"), _marks_as_spaces, prefixed=True),
        Family("metaspace-never", lambda: shapes.metaspace("never"), _marks_as_spaces),
        Family("gemma", shapes.gemma, _marks_as_spaces),
        Family("nllb", shapes.nllb, _marks_as_spaces, prefixed=True),
        Family(
            "unigram-bytes",
            lambda: shapes.unigram(
                normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme="never"), byte_fallback=True
            ),
            lambda text: _marks_as_spaces(_normalised("unigram-bytes")(text)),
        ),
        Family("deberta", shapes.deberta, lambda text: _marks_as_spaces(_normalised("deberta")(text)), prefixed=True),
        Family("t5", shapes.t5, _one_space("t5"), prefixed=True),
        Family("albert", shapes.albert, _one_space("albert"), prefixed=True),
    )
}
"""Families whose surfaces spell the text they came from, by name."""

WORDY = {
    family.name: family
    for family in (
        Family("bert-uncased", lambda: shapes.wordpiece(lowercase=True), _normalised("bert-uncased")),
        Family("bert-cased", lambda: shapes.wordpiece(lowercase=False), _normalised("bert-cased")),
        Family("clip", shapes.clip, _normalised("clip")),
        Family("gpt1", shapes.gpt1, _normalised("gpt1")),
    )
}
"""Families that know words and not the spaces between them."""

FAMILIES_AND_WORDY = {**FAMILIES, **WORDY, "word-level": Family("word-level", shapes.word_level)}
