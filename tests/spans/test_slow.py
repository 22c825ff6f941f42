"""The fast paths against the slow twin, over pairs of families and over small vocabularies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from families import FAMILIES_AND_WORDY, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_spans import slow_chunks
from span_checks import chunk_rows, vocab

from xtoken_align import Vocab
from xtoken_align.spans.aligner import align_ids
from xtoken_align.vocab.kinds import Kind

NAMES = ("gpt2", "qwen", "llama2", "gemma", "nllb", "unigram-bytes", "t5", "bert-uncased", "bert-cased", "clip", "gpt1")
PAIRS = [(name, NAMES[at - 1]) for at, name in enumerate(NAMES)] + [
    *(("llama2", "bert-uncased"), ("clip", "gpt2"), ("gpt2", "unigram-bytes"), ("metaspace-always", "llama3")),
    *(("bert-uncased", "qwen"), ("gpt2-prefix", "albert"), ("byte-normaliser", "gpt2"), ("llama2", "llama2")),
]


@cache
def specials(side: Vocab) -> list[int]:
    return [token_id for token_id, kind in enumerate(side.kinds) if kind > Kind.BYTE][:8]


@st.composite
def edited(draw: st.DrawFn, text: str, side: Vocab) -> list[int]:
    """The ids of a text, cut, with tokens missing, put in twice, specials among them, or a dummy prefix."""
    ids = list(side.encode_batch([text])[0])
    for _ in range(draw(st.sampled_from([0, 0, 1, 2, 3]))):
        at = draw(st.integers(0, len(ids)))
        edit = draw(st.sampled_from(["special", "special", "left", "right", "gone", "twice", "space"]))
        if edit == "special" and specials(side):
            ids.insert(at, draw(st.sampled_from(specials(side))))
        elif edit == "left":
            del ids[: at // 4]
        elif edit == "right":
            del ids[len(ids) - at // 4 :]
        elif edit == "gone":
            del ids[at : at + 1]
        elif edit == "twice":
            ids[at:at] = ids[at : at + 2]
        elif edit == "space" and b" " in side.lowest_text_id:
            ids.insert(0, side.lowest_text_id[b" "])
    return ids


def agree(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]], student: Vocab, teacher: Vocab) -> None:
    spans = align_ids(ours, theirs, student=student, teacher=teacher)
    for row, pair in enumerate(zip(ours, theirs, strict=True)):
        assert chunk_rows(spans, row) == slow_chunks(*pair, student=student, teacher=teacher)


@pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=str)
def test_families_are_aligned_as_the_slow_twin_aligns_them(student: str, teacher: str) -> None:
    ours, theirs = FAMILIES_AND_WORDY[student].vocab(), FAMILIES_AND_WORDY[teacher].vocab()

    @settings(max_examples=12)
    @given(data=st.data(), drawn=st.lists(texts(), min_size=1, max_size=3))
    def holds(data: st.DataObject, drawn: list[str]) -> None:
        agree(
            [data.draw(edited(text, ours)) for text in drawn],
            [data.draw(edited(text, theirs)) for text in drawn],
            ours,
            theirs,
        )

    holds()


LETTERS = (b"a", b"b", b" ", b"ab", b"ba", b" a", b"aba", b"bb", b"\xc3", b"\xa9", "é".encode(), b"\xa9a", b"A")
SPECIALS = ("<s>", "</s>", "<x>", "<y>", "<pad>")
MARKED = [
    vocab(
        [*LETTERS, *SPECIALS],
        roles={"bos": [len(LETTERS)], "eos": [len(LETTERS) + 1], "pad": [len(LETTERS) + 4]},
        dummy_prefix=dummy_prefix,
        change=change,
    )
    for dummy_prefix in (False, True)
    for change in (str, str.lower, lambda text: text.replace("\u00e9", "").replace("A", "ab"))
]


@settings(max_examples=100)
@given(
    rows=st.lists(st.tuples(*[st.lists(st.integers(0, len(LETTERS) + len(SPECIALS) - 1), max_size=9)] * 2), max_size=3),
    pair=st.tuples(st.sampled_from(MARKED), st.sampled_from(MARKED)),
)
def test_any_ids_are_aligned_as_the_slow_twin_aligns_them(
    rows: list[tuple[list[int], list[int]]], pair: tuple[Vocab, Vocab]
) -> None:
    agree([row[0] for row in rows], [row[1] for row in rows], *pair)


@given(
    head=st.lists(st.integers(0, len(LETTERS) - 1), max_size=6),
    tail=st.lists(st.integers(0, len(LETTERS) - 1), max_size=6),
    middles=st.tuples(*[st.lists(st.integers(0, len(LETTERS) + len(SPECIALS) - 1), max_size=3)] * 2),
    pair=st.tuples(st.sampled_from(MARKED), st.sampled_from(MARKED)),
)
def test_texts_around_a_difference_are_aligned_as_the_slow_twin_aligns_them(
    head: list[int], tail: list[int], middles: tuple[list[int], list[int]], pair: tuple[Vocab, Vocab]
) -> None:
    agree([head + middles[0] + tail], [head + middles[1] + tail], *pair)


S, C3, A9 = len(LETTERS), 8, 9
"""`<s>` and the two bytes of é."""


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([C3, A9, S, 0], [S, 0]),
        ([0, S, C3, A9], [1, 0, S, C3, A9]),
        ([0, 0], [0, C3, A9, 1, 0]),
        ([S, C3, A9, S], [C3, A9, S]),
    ],
)
def test_bytes_that_a_normaliser_takes_away_beside_specials_and_ends(ours: list[int], theirs: list[int]) -> None:
    agree([ours, theirs], [theirs, ours], MARKED[0], MARKED[2])
