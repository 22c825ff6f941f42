"""Real tokenizers against figures that were counted independently, and against the rules that hold for every pair."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from xtoken_align import Mapping, Vocab, build
from xtoken_align.rules.pieces import Pair, decompose, equal_surfaces
from xtoken_align.vocab.kinds import Kind

Real = Callable[[str], Vocab]

_ALL, _NONE = (10, 100, 1000), (10, 0, 0)


def numerals(vocab: Vocab, size: int) -> set[bytes]:
    return {s for s in vocab.lowest_text_id if len(s) == size and s.isdigit() and s.isascii()}


@pytest.mark.parametrize(
    ("student", "teacher", "equal", "digits"),
    [
        ("llama-3", "qwen3", 109_566, _NONE),
        ("llama-3", "qwen3.6", 115_771, _NONE),
        ("llama-3", "llama-4", 100_438, _ALL),
        ("qwen3", "qwen3.6", 131_586, (10, None, None)),
        ("llama-4", "qwen3.6", 148_175, _NONE),
    ],
)
def test_equal_surfaces_and_numerals_are_as_counted(
    real: Real, student: str, teacher: str, equal: int, digits: tuple[int | None, ...]
) -> None:
    assert int((equal_surfaces(real(student), real(teacher)) >= 0).sum()) == equal
    for size, expected in enumerate(digits, start=1):
        own = numerals(real(student), size)
        assert len(own) == (0 if expected is None else 10**size)
        assert len(own & numerals(real(teacher), size)) == (expected or 0)


def test_281_tokens_of_qwen3_keep_their_id_in_qwen_3_6(real: Real) -> None:
    equal = equal_surfaces(real("qwen3"), real("qwen3.6"))
    assert int((equal == np.arange(len(equal))).sum()) == 281


def test_llama_3_from_qwen3_is_as_counted(llama_qwen: Mapping) -> None:
    coverage = llama_qwen.coverage()
    assert llama_qwen.W.shape == (128_256, 151_936)
    assert coverage.rules["exact"] == 109_566
    assert coverage.lossy == 13
    for size, exact in ((1, 10), (2, 0), (3, 0)):
        row = coverage.classes[f"digits_{size}"]
        assert (row.total, row.exact, row.split, row.empty) == (10**size, exact, 10**size - exact, 0)
    assert coverage.by_class_and_rule["digits_2"] == {"digits": 100}
    assert coverage.by_class_and_rule["digits_3"] == {"digits": 1000}
    assert coverage.recommendation.paper_rule.loss == "p-kl"
    assert (
        "0 of 100 numerals of 2 digits and 0 of 1,000 numerals of 3 digits"
        in coverage.recommendation.paper_rule.because
    )
    assert coverage.empty["teacher cannot spell it"] == 0


def test_201_is_2_0_1_by_decay(llama_qwen: Mapping) -> None:
    row = llama_qwen.row("201")
    assert row.rule == "digits"
    assert [(link.surface, round(link.weight, 4)) for link in row.links] == [
        (b"2", 0.9009),
        (b"0", 0.0901),
        (b"1", 0.009),
    ]


def test_llama_3_from_qwen3_has_a_bin_per_equal_text_and_one_per_matched_special(llama_qwen: Mapping) -> None:
    student_bin, teacher_bin = llama_qwen.bins()
    special = llama_qwen.student.kinds == Kind.SPECIAL
    matched = np.flatnonzero(special & (llama_qwen.matrix.owner > 0))
    # Two of Llama-3's specials may stand for one of Qwen3's, and then share its bin.
    columns = {llama_qwen.row(int(token_id)).links[0].teacher_id for token_id in matched}
    assert len(set(student_bin[~special & (student_bin >= 0)].tolist())) == 109_566
    assert llama_qwen.bin_sizes.count == 109_566 + len(columns)
    assert (llama_qwen.bin_sizes.largest_student, llama_qwen.bin_sizes.largest_teacher) == (376, 872)
    counts = np.bincount(student_bin[student_bin >= 0]), np.bincount(teacher_bin[teacher_bin >= 0])
    assert [int(side.max()) for side in counts] == [376, 872]
    assert all((side > 0).all() for side in counts)
    text = llama_qwen.student.kinds == Kind.TEXT
    assert (student_bin[text] >= 0).all()


def test_rows_sum_to_one_or_are_empty(llama_qwen: Mapping) -> None:
    sums = np.asarray(llama_qwen.W.sum(axis=1, dtype=np.float64)).ravel()
    assert np.all((np.abs(sums - 1) < 1e-6) | (sums == 0))
    assert np.array_equal(sums == 0, llama_qwen.matrix.owner == 0)
    assert llama_qwen.W.has_canonical_format


def test_partial_utf8_is_matched_by_bytes_and_never_by_the_replacement_character(llama_qwen: Mapping) -> None:
    student, teacher = llama_qwen.student, llama_qwen.teacher
    partial = [i for i in np.flatnonzero(student.kinds == Kind.TEXT).tolist() if not is_utf8(student.surfaces[i])]
    assert len(partial) == 1352
    for token_id in partial:
        row = llama_qwen.row(token_id)
        assert row.rule in ("exact", "bytes")
        assert all("\ufffd".encode() not in link.surface for link in row.links)
        assert b"".join(teacher.surfaces[i] for i in llama_qwen.decompositions("student")[token_id]) == row.surface


def is_utf8(surface: bytes) -> bool:
    try:
        surface.decode()
    except UnicodeDecodeError:
        return False
    return True


_PAIRS = [
    ("llama-3", "qwen3"),
    ("llama-3", "mistral-v1"),
    ("llama-4", "mistral-v3"),
    ("mistral-tekken-240911", "qwen3.6"),
    ("deepseek", "o200k"),
    ("gpt-oss", "mistral-tekken-240718"),
    ("llama-3.1", "cl100k"),
    ("j2", "mistral-v1"),
    ("j2", "llama-3"),
]


@pytest.mark.parametrize(("student", "teacher"), [pair for both in _PAIRS for pair in (both, both[::-1])])
def test_pieces_spell_their_token_unless_it_is_counted_as_lossy(real: Real, student: str, teacher: str) -> None:
    tokens, by = real(student), real(teacher)
    pieces = decompose(tokens, by, equal_surfaces(tokens, by))
    lossy = set(pieces.lossy.tolist())
    surfaces, said = tokens.surfaces.list, by.surfaces.list
    wrong = [
        token_id
        for token_id in np.flatnonzero(pieces.lengths).tolist()
        if (b"".join([said[piece] for piece in pieces[token_id]]) == surfaces[token_id]) == (token_id in lossy)
    ]
    assert wrong == []
    assert not (pieces.lengths[tokens.kinds > Kind.BYTE] > 0).any()
    assert (by.kinds[pieces.ids] <= Kind.BYTE).all()


@pytest.mark.parametrize(("student", "teacher"), [("llama-3", "qwen3"), ("mistral-v1", "llama-3")])
def test_both_ways_of_a_pair_are_written_as_each_alone(real: Real, student: str, teacher: str) -> None:
    tokens, by = real(student), real(teacher)
    pair = Pair.of(tokens, by)
    for pieces, alone in (
        (pair.student_pieces, decompose(tokens, by, equal_surfaces(tokens, by))),
        (pair.teacher_pieces, decompose(by, tokens, equal_surfaces(by, tokens))),
    ):
        assert np.array_equal(pieces.lengths, alone.lengths)
        assert np.array_equal(pieces.ids, alone.ids)
        assert np.array_equal(pieces.lossy, alone.lossy)


@pytest.mark.parametrize("teacher", ["qwen3", "mistral-v1", "llama-4", "o200k"])
def test_every_text_token_of_llama_3_can_be_spelled(real: Real, teacher: str) -> None:
    student = real("llama-3")
    pieces = decompose(student, real(teacher), equal_surfaces(student, real(teacher)))
    assert (pieces.lengths[student.kinds == Kind.TEXT] > 0).all()


@pytest.mark.parametrize("teacher", ["qwen3", "deepseek", "mistral-v3", "j2"])
def test_a_byte_fallback_token_becomes_its_byte_and_never_a_special_token(real: Real, teacher: str) -> None:
    student, by = real("mistral-v1"), real(teacher)
    mapping = build(student=student, teacher=by)
    token_id = student.lowest_byte_id[b"8"]
    row = mapping.row(token_id)
    assert mapping.row("<0x38>") == row or mapping.row("<0x38>").surface == b"<0x38>"
    assert [link.surface for link in row.links] == [b"8"]
    assert row.rule == ("exact" if by.lowest_byte_id else "bytes")
    for byte_id in student.ids_of(Kind.BYTE).tolist():
        for link in mapping.row(byte_id).links:
            assert link.surface == student.surfaces[byte_id]
            assert by.kinds[link.teacher_id] <= Kind.BYTE


@pytest.mark.parametrize(
    "vocab", ["llama-3", "qwen3", "mistral-v1", "mistral-tekken-240911", "deepseek", "gpt-oss", "j2"]
)
def test_text_that_spells_special_tokens_is_encoded_as_text(real: Real, vocab: str) -> None:
    by = real(vocab)
    texts = ["<|endoftext|>", "<|eot_id|>", "<s>", "</s>", "<unk>", "[INST]", "<|im_start|>user", "<｜User｜>"]
    texts += [by.surfaces[token_id].decode() for token_id in by.ids_of(Kind.SPECIAL).tolist()]
    for text, ids in zip(texts, by.encode_batch(texts), strict=True):
        assert (by.kinds[ids] <= Kind.BYTE).all(), text
        if is_plain_ascii(text):
            assert b"".join(by.surfaces[token_id] for token_id in ids) == text.encode()


def is_plain_ascii(text: str) -> bool:
    return text.isascii() and "  " not in text


@pytest.mark.parametrize(
    ("student", "teacher"), [("llama-3", "llama-3.1"), ("llama-3.1", "llama-3"), ("gpt-oss", "o200k")]
)
def test_equal_fingerprints_give_the_identity(real: Real, student: str, teacher: str) -> None:
    mapping = build(student=real(student), teacher=real(teacher))
    text = real(student).speakable_ids
    assert mapping.coverage().recommendation.paper_rule.loss == "identity"
    assert mapping.coverage().rules["identity"] >= len(text)
    assert np.array_equal(mapping.matrix.top[0][text], text)
    assert mapping.coverage().lossy == 0
    bins = mapping.bins()
    assert np.array_equal(bins[0][text], bins[1][text])


def test_the_reversed_pair_has_the_decompositions_of_the_other_side(real: Real, llama_qwen: Mapping) -> None:
    reversed_pair = build(student=real("qwen3"), teacher=real("llama-3"))
    for side, other in (("student", "teacher"), ("teacher", "student")):
        ours, theirs = llama_qwen.decompositions(side), reversed_pair.decompositions(other)
        assert np.array_equal(ours.lengths, theirs.lengths)
        assert np.array_equal(ours.ids, theirs.ids)
    assert reversed_pair.coverage().classes["digits_1"].exact == 10
