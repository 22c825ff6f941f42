"""`diff`: nothing for a mapping and itself, exactly the edit for an edited one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_vocabs import make_vocab

from xtoken_align import Mapping, Vocab, build, diff
from xtoken_align.vocab.kinds import Kind

TEACHER = ["a", "b", "c", " a", "ab", "1", "2"]
STUDENT = ["a", "b", "c", "ab", "abc", "12", (b"<eos>", Kind.SPECIAL)]


def small(student: list | None = None, teacher: list | None = None, **options: object) -> Mapping:
    return build(
        student=make_vocab(student or STUDENT, name="student"),
        teacher=make_vocab(teacher or TEACHER, name="teacher"),
        **options,
    )


def counts(mapping: Mapping) -> int:
    return int((mapping.matrix.owner > 0).sum())


def test_a_mapping_and_itself_do_not_differ() -> None:
    mapping = small()
    found = diff(mapping, mapping)
    assert not found.differs
    assert asdict(found.rows) == {"same": counts(mapping), "rule": 0, "weights": 0, "added": 0, "removed": 0}
    assert found.l1 == 0
    assert not found.classes
    assert not found.options


def test_other_weights_are_exactly_the_rows_whose_weights_are_others() -> None:
    found = diff(small(), small(decay=0.5))
    # `abc` is ab, c; `12` is 1, 2: the only rows with two pieces.
    assert asdict(found.rows) == {"same": counts(small()) - 2, "rule": 0, "weights": 2, "added": 0, "removed": 0}
    assert found.options == {"decay": (0.1, 0.5)}
    # Two pieces: (10/11, 1/11) before, (2/3, 1/3) after, in each of two rows.
    assert found.l1 == pytest.approx(2 * 2 * (10 / 11 - 2 / 3), abs=1e-6)


def test_an_override_is_the_one_row_that_another_rule_owns() -> None:
    found = diff(small(), small(overrides=[{"student": "c", "teacher": ["b"]}]))
    assert asdict(found.rows) == {"same": counts(small()) - 1, "rule": 1, "weights": 0, "added": 0, "removed": 0}
    (row,) = found.changes()["rows"]["rule"]
    assert (row["surface"], row["rule"], row["l1"]) == ("c", ["exact", "override"], 2.0)


def test_a_row_that_appears_and_one_that_disappears_are_told_apart() -> None:
    without = small(teacher=["a", "b", "ab", "1", "2"])
    found = diff(without, small(teacher=["a", "b", "c", "ab"]))
    assert {entry["surface"] for entry in found.changes()["rows"]["added"]} == {"c"}
    assert {entry["surface"] for entry in found.changes()["rows"]["removed"]} == {"12"}


def test_other_ids_alone_change_no_row() -> None:
    found = diff(small(), small(teacher=TEACHER[::-1]))
    assert found.rows.same == counts(small())
    assert found.teacher.moved == len(TEACHER) - 1
    assert found.teacher.repurposed == len(TEACHER) - 1
    assert found.l1 == 0


def test_tokens_of_the_student_are_compared_by_surface() -> None:
    moved = [STUDENT[1], STUDENT[0], *STUDENT[2:]]
    found = diff(small(), small(student=moved))
    assert (found.student.moved, found.student.repurposed, found.rows.same) == (2, 2, counts(small()))


def test_renamed_moved_and_repurposed_tokens_are_told_apart() -> None:
    old = small(student=["a", "b", "c", (b"<one>", Kind.SPECIAL)])
    new = small(student=["a", "ab", "b", (b"<two>", Kind.SPECIAL)])
    found = diff(old, new)
    assert asdict(found.student) == {"added": 1, "removed": 1, "moved": 1, "repurposed": 2, "renamed": 1}
    lists = found.changes()["student"]
    assert lists["renamed"] == [{"id": 3, "before": "<one>", "after": "<two>"}]
    assert lists["moved"] == [{"id": 1, "surface": "b", "to": 2}]
    assert [entry["id"] for entry in lists["repurposed"]] == [1, 2]
    assert [entry["surface"] for entry in lists["added"]] == ["ab"]
    assert [entry["surface"] for entry in lists["removed"]] == ["c"]


def test_a_teacher_that_encodes_otherwise_is_said_to() -> None:
    teachers = [make_vocab(TEACHER, name="t", normalise=table) for table in ({}, {"Q": "a", "I": "b", "h": "c"})]
    student = make_vocab(STUDENT, name="s")
    old, new = (build(student=student, teacher=teacher) for teacher in teachers)
    assert old.teacher.fingerprint != new.teacher.fingerprint
    assert diff(old, new).otherwise_encoded == ("teacher",)
    assert diff(old, new).differs


def test_lists_are_cut_to_the_limit_and_rows_come_by_distance() -> None:
    found = diff(small(), small(decay=0.5, overrides=[{"student": "a", "teacher": ["b"]}]))
    assert found.to_dict(limit=0)["changes"]["rows"]["weights"] == []
    assert len(found.to_dict(limit=1)["changes"]["rows"]["weights"]) == 1
    distances = [row["l1"] for row in found.changes()["rows"]["weights"]]
    assert distances == sorted(distances, reverse=True)


alphabet = st.sampled_from(["a", "b", "c", "ab", "bc", "abc", " a", " ab", "1", "12", "123", "é"])
sides = st.lists(alphabet, min_size=1, max_size=8)


def slow_distance(old: Mapping, new: Mapping, old_id: int, new_id: int) -> float:
    weights: dict[bytes, float] = {}
    for mapping, token_id, sign in ((old, old_id, 1), (new, new_id, -1)):
        for link in mapping.row(token_id).links:
            weights[link.surface] = weights.get(link.surface, 0) + sign * link.weight
    return sum(map(abs, weights.values()))


@given(sides.map(lambda side: list(dict.fromkeys(side))), *[sides.map(lambda side: list(dict.fromkeys(side)))] * 2)
def test_distances_equal_those_of_a_plain_comparison(student: list, first: list, second: list) -> None:
    old, new = small(student=student, teacher=first), small(student=student, teacher=second)
    found = diff(old, new)
    expected = [slow_distance(old, new, i, i) for i in range(len(student))]
    np.testing.assert_allclose(found.comparison.distance, expected, atol=1e-6)
    rows = found.rows
    either = sum(bool(old.row(i).links or new.row(i).links) for i in range(len(student)))
    assert rows.same + rows.rule + rows.weights + rows.added + rows.removed == either


def test_llama_3_from_qwen_3_6_instead_of_qwen_3(llama_qwen: Mapping, real: Callable[[str], Vocab]) -> None:
    found = diff(llama_qwen, build(student=real("llama-3"), teacher=real("qwen3.6")))
    assert not any(asdict(found.student).values())
    assert found.teacher.added == 248_077 - (131_586 + 26) - 0
    assert found.teacher.moved == 131_586 + 26 - 281
    before, after = found.classes["greek"]
    assert (before.exact, after.exact) == (90, 1027)
    assert found.rows.added == found.rows.removed == 0


def test_mistral_v3_as_teacher_instead_of_v1_moves_every_token_and_changes_no_text_row(
    real: Callable[[str], Vocab],
) -> None:
    student = real("llama-3")
    found = diff(*(build(student=student, teacher=real(name)) for name in ("mistral-v1", "mistral-v3")))
    assert found.teacher.moved == 31_997
    assert found.teacher.removed == 0
    assert found.rows.rule == found.rows.weights == 0
    assert found.l1 == 0


def test_between_the_two_tekken_files_no_ordinary_token_changed(real: Callable[[str], Vocab]) -> None:
    student = real("llama-3")
    old, new = (build(student=student, teacher=real(f"mistral-tekken-{date}")) for date in ("240718", "240911"))
    assert not diff(old, new).differs
