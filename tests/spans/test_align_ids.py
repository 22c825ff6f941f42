"""Spans from ids: specials, padding, packed rows, forms of input, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from span_checks import any_text, check, chunk_rows, surfaces_of, vocab

from xtoken_align import Vocab
from xtoken_align.errors import OptionError
from xtoken_align.spans.aligner import align_ids, align_texts
from xtoken_align.spans.spans import Spans

Real = Callable[[str], Vocab]

A, B, AB, BOS, EOS, PAD, TURN, LONE = range(8)
STUDENT = vocab(
    ["a", "b", "ab", "<s>", "</s>", "<pad>", "<turn>", "<lone>"],
    roles={"bos": [BOS], "eos": [EOS], "pad": [PAD], "eot": [TURN]},
)
T_A, T_B, T_BA, T_BOS, T_EOS, T_TURN, T_OTHER = range(7)
# The end is the padding too.
TEACHER = vocab(
    ["a", "b", "ba", "<begin>", "<end>", "<turn>", "<other>"], roles={"bos": [T_BOS], "eos": [T_EOS], "pad": [T_EOS]}
)
NAMES = ("student", "teacher", "count", "weight", "student_ids", "teacher_ids", "student_segments", "teacher_segments")


def align(student_ids: Any, teacher_ids: Any, **options: Any) -> Spans:
    return align_ids(student_ids, teacher_ids, student=STUDENT, teacher=TEACHER, **options)


def rows(student_ids: list[int], teacher_ids: list[int]) -> tuple[list[int], list[int]]:
    return chunk_rows(align([student_ids], [teacher_ids]))


@pytest.mark.parametrize(
    ("student_ids", "teacher_ids", "expected"),
    [
        # A special on one side alone costs itself.
        ([BOS, A, B], [T_A, T_B], ([-1, 0, 1], [0, 1])),
        ([BOS, BOS, A, B], [T_A, T_B], ([-1, -1, 0, 1], [0, 1])),
        ([A, B, EOS], [T_A, T_B], ([0, 1, -1], [0, 1])),
        ([A, B], [T_A, T_B, T_EOS, T_EOS], ([0, 1], [0, 1, -1, -1])),
        ([A, LONE, B], [T_A, T_B], ([0, -1, 1], [0, 1])),
        ([A, LONE, B, A], [T_A, T_BA], ([0, -1, 1, 1], [0, 1])),
        ([A, B, LONE, A], [T_A, T_BA], ([0, 1, -1, 1], [0, 1])),
        ([AB, A], [T_A, T_OTHER, T_B, T_A], ([0, 1], [0, -1, 0, 1])),
        # Those of one role or one string at one place are a chunk.
        ([BOS, A], [T_BOS, T_A], ([0, 1], [0, 1])),
        ([BOS, BOS, A], [T_BOS, T_A], ([0, -1, 1], [0, 1])),
        ([A, TURN, B], [T_A, T_TURN, T_B], ([0, 1, 2], [0, 1, 2])),
        ([A, TURN, B, EOS], [T_A, T_TURN, T_B, T_EOS], ([0, 1, 2, 3], [0, 1, 2, 3])),
        ([BOS, LONE, TURN, A], [T_OTHER, T_TURN, T_BOS, T_A], ([-1, -1, 0, 1], [-1, 0, -1, 1])),
        # Not those of other places, of other meaning, or padding.
        ([TURN, A, B], [T_A, T_TURN, T_B], ([-1, 0, 1], [0, -1, 1])),
        ([A, EOS], [T_A, T_TURN], ([0, -1], [0, -1])),
        ([A, PAD], [T_A, T_EOS], ([0, -1], [0, -1])),
        ([A, LONE], [T_A, T_OTHER], ([0, -1], [0, -1])),
        # Nothing but specials, and nothing.
        ([BOS, EOS], [T_BOS, T_EOS], ([0, 1], [0, 1])),
        ([], [T_A], ([], [-1])),
        ([], [], ([], [])),
    ],
)
def test_specials_cost_themselves_or_make_chunks(
    student_ids: list[int], teacher_ids: list[int], expected: tuple[list[int], list[int]]
) -> None:
    assert rows(student_ids, teacher_ids) == expected
    mirrored = align_ids([teacher_ids], [student_ids], student=TEACHER, teacher=STUDENT)
    # Of two pairs that cross, one is as good as the other.
    if student_ids[:1] + student_ids[2:3] != [BOS, TURN]:
        assert chunk_rows(mirrored) == expected[::-1]


@pytest.mark.parametrize("extra", [["<|begin_of_text|>"], ["<|begin_of_text|>"] * 2, ["<|eot_id|>", "<|end_of_text|>"]])
def test_specials_in_real_text_move_nothing_else(real: Real, extra: list[str]) -> None:
    ours, theirs = real("llama-3"), real("deepseek")
    text = "Hello 12345, Größe 😊"
    ids = ours.encode_batch([text])[0], theirs.encode_batch([text])[0]
    plain = chunk_rows(align_ids([ids[0]], [ids[1]], student=ours, teacher=theirs))
    special = [ours.raw.index(name) for name in extra]
    for at in range(len(ids[0]) + 1):
        spiced = ids[0][:at] + special + ids[0][at:]
        ours_now, theirs_now = chunk_rows(align_ids([spiced], [ids[1]], student=ours, teacher=theirs))
        assert theirs_now == plain[1]
        assert ours_now == plain[0][:at] + [-1] * len(special) + plain[0][at:]


def test_the_mask_says_what_padding_is_where_it_is_also_the_end() -> None:
    ids = [[T_A, T_B, T_EOS, T_EOS, T_EOS], [T_EOS, T_EOS, T_A, T_B, T_EOS]]
    mask = [[True, True, True, False, False], [False, False, True, True, True]]
    spans = align([[A, B, EOS], [A, B, EOS]], np.array(ids), teacher_mask=np.array(mask))
    assert spans.student.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert spans.teacher.tolist() == [[0, 1, 2, -1, -1], [-1, -1, 0, 1, 2]]
    assert spans.teacher_segments.tolist() == [[0, 0, 0, -1, -1], [-1, -1, 0, 0, 0]]
    assert spans.teacher_ids.tolist() == [[T_A, T_B, T_EOS, 0, 0], [0, 0, T_A, T_B, T_EOS]]


def text_rows() -> st.SearchStrategy[list[tuple[list[int], list[int]]]]:
    def cut(drawn: tuple[list[str], list[int]]) -> tuple[list[int], list[int]]:
        words, (front, back) = drawn
        text = "".join(words)
        ours = STUDENT.encode_batch([text])[0]
        theirs = [T_BOS] * (front % 2) + TEACHER.encode_batch([text])[0] + [T_EOS] * (back % 3)
        return [BOS] * front + ours[: len(ours) - (back == 2)], theirs

    one = st.tuples(
        st.lists(st.sampled_from(["ab", "a", "b", "ba"]), max_size=6), st.tuples(st.integers(0, 2), st.integers(0, 2))
    ).map(cut)
    return st.lists(one, min_size=1, max_size=4)


def padded(side: list[list[int]], *, left: bool, fill: int) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, side))
    ids = np.full((len(side), longest), fill)
    mask = np.zeros_like(ids, dtype=bool)
    for row, own in enumerate(side):
        place = slice(longest - len(own), longest) if left else slice(0, len(own))
        ids[row, place], mask[row, place] = own, True
    return ids, mask


def equal_rows(one: Spans, other: Spans, count: int) -> None:
    assert np.array_equal(one.numpy().count, other.numpy().count)
    assert np.array_equal(one.numpy().weight, other.numpy().weight)
    for row in range(count):
        assert chunk_rows(one, row) == chunk_rows(other, row)


@given(drawn=text_rows(), left=st.booleans(), kind=st.sampled_from([bool, np.int32, np.int64, np.uint8, float]))
def test_lists_arrays_and_tensors_give_equal_spans_whatever_padding_holds(
    drawn: list[tuple[list[int], list[int]]], left: bool, kind: type
) -> None:
    ours, theirs = [row[0] for row in drawn], [row[1] for row in drawn]
    ragged = align(ours, theirs)
    (ids, mask), (their_ids, their_mask) = padded(ours, left=left, fill=-100), padded(theirs, left=left, fill=10**9)
    if kind is not float:
        masks = {"student_mask": mask.astype(kind), "teacher_mask": their_mask.astype(kind)}
        equal_rows(ragged, align(ids.astype(np.int32), their_ids, **masks), len(drawn))
    masks = {"student_mask": torch.from_numpy(mask), "teacher_mask": torch.from_numpy(their_mask).long()}
    equal_rows(ragged, align(torch.from_numpy(ids), torch.from_numpy(their_ids), **masks), len(drawn))
    equal_rows(ragged, align([np.array(row, dtype=np.int32) for row in ours], theirs), len(drawn))
    equal_rows(ragged, align(tuple(torch.tensor(row, dtype=torch.int64) for row in ours), theirs), len(drawn))
    if len({len(row) for row in ours}) == 1 and not left:
        equal_rows(ragged, align(ids.tolist(), theirs), len(drawn))


@given(drawn=text_rows(), left=st.booleans(), missing=st.integers(0, 5), start=st.integers(0, 3))
def test_packed_documents_are_aligned_as_if_alone(
    drawn: list[tuple[list[int], list[int]]], left: bool, missing: int, start: int
) -> None:
    ids, numbers = ([], []), ([], [])
    alone = []
    for number, pair in enumerate(drawn, start=start):
        kept = pair if number != missing else ([], pair[1])
        for side in (0, 1):
            ids[side].extend(kept[side])
            numbers[side].extend([number] * len(kept[side]))
        alone.append(align([kept[0]], [kept[1]]))
    pads = ([0, 0], [0])
    options = {}
    whole = []
    for side, name in enumerate(("student", "teacher")):
        pad, gone = pads[side], [-1] * len(pads[side])
        whole.append([pad + ids[side] if left else ids[side] + pad])
        options[f"{name}_segments"] = [gone + numbers[side] if left else numbers[side] + gone]
    spans = align(np.array(whole[0]), whole[1], **options)
    base, expected, weights = 0, ([], []), []
    for one in alone:
        for side, own in enumerate(chunk_rows(one)):
            expected[side].extend(number + base if number >= 0 else -1 for number in own)
        base += int(one.count[0])
        weights += one.weight[0].tolist()
    assert chunk_rows(spans) == expected
    assert spans.count.tolist() == [base]
    assert spans.weight[0].tolist() == weights
    assert spans.student_segments.tolist() == options["student_segments"]
    assert spans.teacher_segments.tolist() == options["teacher_segments"]


def test_what_only_one_side_keeps_of_a_cut_text_is_in_no_chunk() -> None:
    unique = vocab([bytes([byte]) for byte in range(97, 123)])
    double = vocab([bytes([byte, byte + 1]) for byte in range(97, 122)])
    letters, pairs = list(range(26)), list(range(0, 26, 2))
    for cut in range(27):
        right = chunk_rows(align_ids([letters[:cut]], [pairs], student=unique, teacher=double))
        whole = cut // 2
        assert right[0] == [at // 2 if at < whole * 2 else -1 for at in range(cut)]
        assert right[1] == [at if at < whole else -1 for at in range(13)]
        left = chunk_rows(align_ids([letters[cut:]], [pairs], student=unique, teacher=double))
        gone = (cut + 1) // 2
        assert left[0] == [-1] * (cut % 2) + [at // 2 for at in range(26 - gone * 2)]
        assert left[1] == [-1] * gone + list(range(13 - gone))


@given(one=any_text(), other=any_text())
def test_two_texts_of_which_none_begins_the_other_never_make_a_wrong_pair(one: str, other: str) -> None:
    letters = vocab([bytes([byte]) for byte in range(256)])
    words = vocab([bytes([byte]) for byte in range(256)] + [b"th", b"he", b" t", b"\xf0\x9f", b"aa", b"aaa", b"  "])
    ids = (
        letters.encode_batch([one.encode("utf-8", "replace").decode()]),
        words.encode_batch([other.encode("utf-8", "replace").decode()]),
    )
    chunks = chunk_rows(align_ids(*ids, student=letters, teacher=words))
    check((ids[0][0], ids[1][0]), chunks, letters, words)


@pytest.mark.parametrize(("student", "teacher"), [("llama-3", "qwen3"), ("mistral-v1", "j2"), ("j2", "deepseek")])
def test_texts_that_differ_in_the_middle_keep_what_they_share(real: Real, student: str, teacher: str) -> None:
    ours, theirs = real(student), real(teacher)
    ids = ours.encode_batch(["The quick brown fox jumps over the lazy dog, again and again until dawn."])
    their_ids = theirs.encode_batch(["The quick brown fox leaps across the lazy dog, again and again until dawn."])
    chunks = chunk_rows(align_ids(ids, their_ids, student=ours, teacher=theirs))
    check((ids[0], their_ids[0]), chunks, ours, theirs)
    shared = b"".join(said for said, number in zip(surfaces_of(ours, ids[0]), chunks[0], strict=True) if number >= 0)
    assert shared.strip().startswith(b"The quick brown fox")
    assert b"lazy dog, again and again until dawn." in shared


# The dummy prefix and unknown tokens, as the tokenizers themselves write them.


def test_a_dummy_prefix_is_no_text_unless_both_sides_begin_with_a_space() -> None:
    prefixed = vocab(["a", " a", " ", "b"], dummy_prefix=True)
    plain = vocab(["a", " a", "b", " "])
    pairs = {
        # " a" of the one is "a" of the other.
        ((1, 3), (0, 2)): ([0, 1], [0, 1]),
        ((2, 0, 3), (0, 2)): ([-1, 0, 1], [0, 1]),
        ((1, 3), (1, 2)): ([0, 1], [0, 1]),
        ((2, 0, 3), (1, 2)): ([0, 0, 1], [0, 1]),
        ((0, 3), (1, 2)): ([-1, 0], [-1, 0]),
        # The prefix before a text that begins with a space itself.
        ((2, 1, 3), (1, 2)): ([-1, 0, 1], [0, 1]),
    }
    for (ours, theirs), expected in pairs.items():
        assert chunk_rows(align_ids([ours], [theirs], student=prefixed, teacher=plain)) == expected
        assert chunk_rows(align_ids([theirs], [ours], student=plain, teacher=prefixed)) == expected[::-1]
    assert chunk_rows(align_ids([[1, 3]], [[2, 0, 3]], student=prefixed, teacher=prefixed)) == ([0, 1], [0, 0, 1])


def test_unknown_tokens_cost_themselves_and_what_they_stand_for() -> None:
    unknown = vocab(["ab", "cd", "<unk>"], roles={"unk": [2]})
    plain = vocab(["ab", "é", "cd", "<unk>"], roles={"unk": [3]})
    assert chunk_rows(align_ids([[0, 2, 1]], [[0, 1, 2]], student=unknown, teacher=plain)) == ([0, -1, 1], [0, -1, 1])
    assert chunk_rows(align_ids([[0, 2, 1]], [[0, 3, 2]], student=unknown, teacher=plain)) == ([0, -1, 1], [0, -1, 1])


# What is refused.

_CASES: list[tuple[dict[str, Any], str]] = [
    ({"student_ids": "ab"}, "student ids"),
    ({"student_ids": ["ab", "c"]}, "student ids"),
    ({"student_ids": [[1.5, 0]]}, "student ids"),
    ({"student_ids": [[0.0, 1.0]]}, "student ids"),
    ({"student_ids": [0, 1]}, "student ids"),
    ({"teacher_ids": [None]}, "teacher ids"),
    ({"teacher_ids": np.zeros((1, 1, 1), dtype=int)}, "teacher ids have 3 dimensions"),
    ({"teacher_ids": np.zeros((1, 2))}, "teacher ids are whole numbers, got float64"),
    ({"student_ids": [0, 1], "student_mask": [1, 1]}, "student ids have 1 dimensions"),
    ({"student_ids": [[0], [1]]}, "student ids have 2 rows, teacher ids 1"),
    ({"student_ids": [[8]]}, "a student id is 8, but ids go from 0 to 7.*student_mask"),
    ({"teacher_ids": [[0, -100]]}, "a teacher id is -100.*teacher_mask"),
    ({"student_mask": [[1]]}, "student_mask has shape"),
    ({"teacher_mask": [[1.0, 1.0]]}, "teacher_mask are whole numbers"),
    ({"student_loss_mask": [[1]]}, "student_loss_mask has shape"),
    ({"teacher_loss_mask": np.ones((2, 1), dtype=bool)}, "teacher_loss_mask has shape"),
    ({"student_segments": [[0, 0]]}, "teacher_segments are missing"),
    ({"teacher_segments": [[0, 0]]}, "student_segments are missing"),
    ({"student_segments": [[1, 0]], "teacher_segments": [[0, 1]]}, "student_segments.*ascending"),
    ({"student_segments": [[0, 1]], "teacher_segments": [[1, 0]]}, "teacher_segments.*ascending"),
    ({"student_segments": [[0]], "teacher_segments": [[0, 0]]}, "student_segments has shape"),
    ({"student_segments": [[0, 2**40]], "teacher_segments": [[0, 0]]}, "student_segments go up to"),
]


@pytest.mark.parametrize(("options", "words"), _CASES)
def test_what_does_not_fit_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        align_ids(**{"student_ids": [[A, B]], "teacher_ids": [[T_A, T_B]], **options}, student=STUDENT, teacher=TEACHER)


def test_a_mask_with_its_values_shifted_between_rows_is_refused() -> None:
    with pytest.raises(OptionError, match="student_loss_mask"):
        align([[A, B, A], [A]], [[T_A], [T_A]], student_loss_mask=[[1], [1, 1, 1]])


def test_rows_of_different_lengths_with_a_mask_are_refused() -> None:
    with pytest.raises(OptionError, match="student ids: rows of different lengths"):
        align([[A, B], [A]], [[T_A], [T_A]], student_mask=[[1, 1], [1]])


def test_spans_keep_their_ids_when_the_caller_overwrites_its_own() -> None:
    ids = torch.tensor([[A, B]])
    spans = align(ids, [[T_A, T_B]])
    ids[:] = PAD
    assert spans.student_ids.tolist() == [[A, B]]


def test_arrays_that_cannot_be_written_to_become_tensors_without_a_warning() -> None:
    ids = np.array([[A, B]])
    ids.flags.writeable = False
    assert align(ids, ids).torch().student_ids.tolist() == [[A, B]]


def test_no_chunk_reaches_over_what_differs() -> None:
    one, other = vocab(["he", "yXf", "oo", "!"]), vocab(["h", "eyYfo", "o", "!"])
    # Both sides have a boundary before "hey" and after "foo", and none between that compares.
    spans = align_ids([[0, 1, 2, 3]], [[0, 1, 2, 3]], student=one, teacher=other)
    assert chunk_rows(spans) == ([-1, -1, -1, 0], [-1, -1, -1, 0])


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("7", "0", "in 1977 he"),
        ("’", "'", "don’t"),
        ("“", '"', "“so”"),
        ("~", "-", "a~b"),
        ("…", ".", "so…"),
        ("ß", "z", "groß"),
    ],
)
def test_a_replacement_of_any_character_counts_from_ids_as_from_texts(old: str, new: str, text: str) -> None:
    letters = [*sorted({*text} | {new, old})]
    student, teacher = vocab(letters, change=lambda given: given.replace(old, new)), vocab(letters)
    from_texts = align_texts([text], student=student, teacher=teacher)
    from_ids = align_ids(student.encode_batch([text]), teacher.encode_batch([text]), student=student, teacher=teacher)
    assert chunk_rows(from_ids) == chunk_rows(from_texts)
    assert from_ids.statistics().student_gaps == 0
