"""A mapping weighed by a corpus: the counts of a plain counter."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_vocabs import make_vocab

from xtoken_align import Mapping, Vocab, build, read_vocab
from xtoken_align.corpus.weigh import WAYS, batches, ways_of, weigh
from xtoken_align.coverage.classes import CLASSES, classify
from xtoken_align.errors import MismatchError

STUDENT = make_vocab(["a", "b", "c", " a", "ab", "12", "1", "2", "é"], name="student")
TEACHER = make_vocab(["a", "b", "ab", "abc", "1", "2", " ab"], name="teacher")
TEXTS = ["ab12", "a b é", "", "abab 12", "c" * 5]


def small() -> Mapping:
    return build(student=STUDENT, teacher=TEACHER)


@given(st.lists(st.text(st.sampled_from("abc12 é"), max_size=12), max_size=6))
def test_counts_are_those_of_a_plain_counter(texts: list[str]) -> None:
    mapping = small()
    found = weigh(mapping, STUDENT, texts)
    counts = Counter(token for ids in STUDENT.encode_batch(texts) for token in ids)
    way = ways_of(mapping)
    class_of = classify(STUDENT.kinds, STUDENT.surfaces.list)
    assert found.texts == len(texts)
    assert found.tokens == counts.total()
    assert found.bytes == sum(len(STUDENT.surfaces[token]) * count for token, count in counts.items())
    for position, name in enumerate(WAYS):
        assert found.ways[name] == sum(count for token, count in counts.items() if way[token] == position)
    for name, row in found.classes.items():
        assert row["tokens"] == sum(n for token, n in counts.items() if CLASSES[class_of[token]] == name)
        assert row["tokens"] == sum(row[way_name] for way_name in WAYS)
    assert sum(found.rules.values()) == found.tokens


def test_the_most_frequent_tokens_that_are_not_exact_come_first() -> None:
    found = weigh(small(), STUDENT, TEXTS, top=2)
    assert [(entry.surface, entry.count, entry.reason) for entry in found.frequent] == [
        (b"c", 5, "teacher cannot spell it"),
        (b"12", 2, "split by digits"),
    ]


def test_an_empty_corpus_has_no_tokens() -> None:
    found = weigh(small(), STUDENT, [])
    assert (found.texts, found.tokens, found.frequent) == (0, 0, ())


def slow_starts(mapping: Mapping, texts: list[str]) -> tuple[int, int]:
    """Chunks and those that start in one bin, walking byte by byte."""
    student_bin, teacher_bin = mapping.bins()
    chunks = together = 0
    for text in texts:
        begins = []
        for vocab in (STUDENT, TEACHER):
            at, table = 0, {}
            for token in vocab.encode_batch([text])[0]:
                table[at] = token
                at += len(vocab.surfaces[token])
            begins.append(table)
        for at in sorted(begins[0].keys() & begins[1].keys()):
            bins = student_bin[begins[0][at]], teacher_bin[begins[1][at]]
            chunks += 1
            together += bins[0] == bins[1] >= 0
    return chunks, int(together)


@given(st.lists(st.text(st.sampled_from("ab12"), max_size=12), max_size=6))
def test_chunk_starts_are_those_of_a_walk_over_the_bytes(texts: list[str]) -> None:
    mapping = small()
    starts = weigh(mapping, STUDENT, texts, teacher=TEACHER).starts
    assert starts is not None
    assert (starts.chunks, starts.together) == slow_starts(mapping, texts)
    assert starts.skipped == 0


def test_a_text_of_which_the_sides_say_other_bytes_is_left_out_of_the_starts() -> None:
    starts = weigh(small(), STUDENT, ["ab", "éa"], teacher=TEACHER).starts
    assert starts is not None
    assert (starts.skipped, starts.chunks) == (1, 1)


def test_one_accent_costs_a_stretch_and_not_the_whole_text(llama_qwen: Mapping, real: Callable[[str], Vocab]) -> None:
    text = "plain words and 123 numbers.\n" * 3000
    starts = weigh(llama_qwen, real("llama-3"), [text + "e\u0301\n" + text], teacher=real("qwen3")).starts
    assert starts is not None
    assert starts.skipped == 1
    assert starts.share == 1
    assert starts.chunks > 30_000


def test_the_sample_of_the_chunk_starts_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtoken_align.corpus.weigh.SAMPLE_BYTES", 10)
    starts = weigh(small(), STUDENT, ["ab" * 100_000] * 3, teacher=TEACHER).starts
    assert starts is not None
    assert 10 <= starts.bytes < 10_000


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_another_tokenizer_than_the_mappings_is_refused(role: str) -> None:
    student, teacher = (TEACHER, TEACHER) if role == "student" else (STUDENT, STUDENT)
    with pytest.raises(MismatchError, match=f"the mapping's {role} is {role}"):
        weigh(small(), student, ["ab"], teacher=teacher)


def test_a_student_of_another_logit_width_reads_the_same_text(real: Callable[[str], Vocab]) -> None:
    wide = build(student=read_vocab("llama-3", logits=130_000), teacher=real("qwen3"))
    assert weigh(wide, real("llama-3"), ["hello 123"]).ways["split"] == 1


def test_a_text_that_the_student_cannot_spell_is_counted() -> None:
    found = weigh(small(), STUDENT, ["ab", "zz", "", "  "])
    assert (found.texts, found.unspelled, found.tokens) == (4, 1, 1)


def test_a_long_text_is_one_text() -> None:
    found = weigh(small(), STUDENT, ["ab" * 300_000])
    assert (found.texts, found.tokens, found.bytes) == (1, 300_000, 600_000)


def test_a_batch_of_empty_texts_ends() -> None:
    assert max(map(len, batches(repeat("", 100_000)))) < 20_000


def test_memory_does_not_grow_with_the_number_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtoken_align.corpus.weigh._BATCH_CHARACTERS", 20_000)
    mapping, peaks = small(), []
    weigh(mapping, STUDENT, ["ab"], teacher=TEACHER)
    for count in (1_000, 8_000):
        tracemalloc.start()
        assert weigh(mapping, STUDENT, repeat("ab 12 a", count)).texts == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_of_real_text_nearly_every_chunk_starts_in_one_bin(llama_qwen: Mapping, real: Callable[[str], Vocab]) -> None:
    text = Path(json.__file__).read_text(encoding="utf-8")
    found = weigh(llama_qwen, real("llama-3"), [text], teacher=real("qwen3"))
    assert found.starts is not None
    assert found.starts.share == pytest.approx(1, abs=0.001)
    assert found.bytes == len(text.encode())
    assert found.ways["empty"] == 0
