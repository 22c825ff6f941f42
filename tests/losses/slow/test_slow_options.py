"""The stop bridge and the mask of white space, for every kind."""

from __future__ import annotations

import pytest
import torch
from slow_kinds import slow_kind
from small_vocabs import make_vocab
from tiny import kl

from xtoken_align import align_ids, build
from xtoken_align.vocab.kinds import Kind

KINDS = ("partition-kl", "c-kl", "p-kl", "h-kl", "gold", "strict", "bpm", "escd", "simct")

A, EOT, EOS, BOS = range(4)
STUDENT = make_vocab(
    ["a", (b"<turn>", Kind.SPECIAL), (b"</s>", Kind.SPECIAL), (b"<s>", Kind.SPECIAL)],
    roles={"bos": [BOS], "eot": [EOT], "eos": [EOS]},
)
TEACHER = make_vocab(
    ["a", (b"<end>", Kind.SPECIAL), (b"</s>", Kind.SPECIAL), (b"<s>", Kind.SPECIAL)],
    name="teacher",
    roles={"bos": [BOS], "eot": [EOT], "eos": [EOS]},
)
MAPPING = build(student=STUDENT, teacher=TEACHER)


def rows(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_stops_with_another_token_agrees_under_the_bridge(kind: str) -> None:
    # The teacher says `</s>` where the student says `<turn>`, and the texts do, too.
    spans = align_ids([[BOS, A, EOT]], [[BOS, A, EOS]], student=STUDENT, teacher=TEACHER)
    student = rows([0.6, 0.3, 0.1, 0.0], [0.2, 0.7, 0.1, 0.0], [1, 0, 0, 0]).requires_grad_()
    teacher = rows([0.6, 0.1, 0.3, 0.0], [0.2, 0.05, 0.75, 0.0], [1, 0, 0, 0])
    values = {
        bridge: slow_kind(MAPPING, student, teacher, spans, kind=kind, stop_bridge=bridge).chunk_kd
        for bridge in (False, True)
    }
    assert values[True].abs().max() < 1e-12
    if kind not in {"bpm", "escd"}:
        # For these all special tokens are one outcome anyway: the rest.
        assert values[False].abs().max() > 0.01


def test_under_the_bridge_stops_are_one_outcome_and_the_others_stay() -> None:
    spans = align_ids([[BOS, A]], [[BOS, A]], student=STUDENT, teacher=TEACHER)
    student, teacher = rows([0.5, 0.2, 0.2, 0.1], [1, 0, 0, 0]), rows([0.4, 0.1, 0.2, 0.3], [1, 0, 0, 0])
    for kind, found in (
        ("partition-kl", kl([0.4, 0.3, 0.3], [0.5, 0.4, 0.1])),
        ("strict", kl([0.5, 0.4, 0.1], [0.4, 0.3, 0.3])),
        ("escd", kl([0.4, 0.3, 0.3], [0.5, 0.4, 0.1])),
    ):
        out = slow_kind(MAPPING, student, teacher, spans, kind=kind, stop_bridge=True)
        assert out.kd.item() == pytest.approx(found), kind


def test_the_slope_of_a_stop_goes_to_all_of_them() -> None:
    spans = align_ids([[BOS, A]], [[BOS, A]], student=STUDENT, teacher=TEACHER)
    student = rows([0.5, 0.3, 0.1, 0.1], [1, 0, 0, 0]).clamp_min(-50).requires_grad_()
    teacher = rows([0.1, 0.1, 0.7, 0.1], [1, 0, 0, 0])
    slow_kind(MAPPING, student, teacher, spans, kind="c-kl", stop_bridge=True).loss.backward()
    slope = student.grad[0, 0]
    # Both stops rise, each by its share: together they are q = 0.4 and should be 0.8.
    assert slope.tolist() == pytest.approx([0.4, -0.3, -0.1, 0.0], abs=1e-12)


def test_a_side_without_stops_is_bridged_by_nothing() -> None:
    bare = make_vocab(["a", "b"], name="teacher")
    mapping = build(student=STUDENT, teacher=bare)
    spans = align_ids([[BOS, A]], [[0, 0]], student=STUDENT, teacher=bare)
    student, teacher = torch.randn(1, 2, 4, dtype=torch.float64), torch.randn(1, 2, 2, dtype=torch.float64)
    one, other = (
        slow_kind(mapping, student, teacher, spans, kind="c-kl", stop_bridge=bridge).chunk_kd
        for bridge in (False, True)
    )
    assert one.equal(other)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_white_space_have_the_value_zero_and_still_count(kind: str) -> None:
    vocab = make_vocab(["a", " ", "\n", " a", (b" ", Kind.SPECIAL), (b"<s>", Kind.SPECIAL)], roles={"bos": [5]})
    ids = [[5, 0, 1, 2, 3, 4]]
    spans = align_ids(ids, ids, student=vocab, teacher=vocab)
    source = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 6, 6, generator=source, dtype=torch.float64) for _ in range(2))
    mapping = build(student=vocab, teacher=vocab)
    plain, masked = (
        slow_kind(mapping, student, teacher, spans, kind=kind, skip_white_space=skip) for skip in (False, True)
    )
    # A space and a line break go; ` a` and a special token that looks like a space stay.
    assert (masked.chunk_kd == plain.chunk_kd).tolist() == [True, False, False, True, True]
    assert masked.chunk_kd[[1, 2]].tolist() == [0.0, 0.0]
    assert masked.kd.item() == pytest.approx(masked.chunk_kd.sum().item() / 5)
