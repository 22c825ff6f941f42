"""W as parameters: gradients are the slow twin's, single links stay, and what was learnt is a mapping as any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loss_calls import case_of
from random_batches import Case
from slow_loss import slow_loss
from small_vocabs import make_vocab

from xtoken_align import Mapping, Spans, align_ids, build, load
from xtoken_align.errors import OptionError
from xtoken_align.losses import Hidden, XTokenLoss
from xtoken_align.vocab.kinds import Kind

SEEDS = (2, 4, 10, 38)


def learning(case: Case, **options: object) -> XTokenLoss:
    return XTokenLoss(case.mapping, "p-kl", merge="mean", learn_w=True, **options)  # type: ignore[arg-type]


def weights_of(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A softmax over each row's links, row by row."""
    weights = torch.zeros_like(scores)
    for row in rows.unique().tolist():
        here = rows == row
        weights = weights.index_put((here.nonzero().squeeze(1),), scores[here].softmax(0))
    return weights


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0}, {"top_k": 2}, {"unreached": "drop"}])
def test_gradients_of_the_weights_are_the_slow_twins(options: dict[str, object]) -> None:
    moved = 0
    for seed in SEEDS:
        case = case_of(seed)
        loss = learning(case, **options).double()
        scores = loss.links.scores
        with torch.no_grad():
            scores.add_(torch.randn(len(scores), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        student = case.student_logits.clone().requires_grad_()
        out = loss(student, case.teacher_logits, case.spans, labels=case.labels)
        found = torch.autograd.grad(out.loss, (student, scores))
        leaves = student.detach().requires_grad_(), scores.detach().requires_grad_()
        rows = torch.from_numpy(case.mapping.matrix.rows.astype(np.int64))
        truth = slow_loss(
            case.mapping,
            leaves[0],
            case.teacher_logits,
            case.spans,
            kind="p-kl",
            merge="mean",
            labels=case.labels,
            link_weights=weights_of(leaves[1], rows),
            **options,  # type: ignore[arg-type]
        )
        torch.testing.assert_close(out.loss, truth.loss, rtol=1e-9, atol=1e-10)
        for made, right in zip(found, torch.autograd.grad(truth.loss, leaves), strict=True):
            torch.testing.assert_close(made, right, rtol=1e-7, atol=1e-10)
        moved += bool((found[1].abs() > 1e-4).any())
    assert moved >= 2


def test_gradients_of_the_weights_are_those_of_finite_differences() -> None:
    case = case_of(2)
    loss = learning(case).double()

    def value(scores: torch.Tensor) -> torch.Tensor:
        given = {"links.scores": scores}
        inputs = (case.student_logits, case.teacher_logits, case.spans)
        return torch.func.functional_call(loss, given, inputs).loss

    assert torch.autograd.gradcheck(value, loss.links.scores.detach().clone().requires_grad_(), fast_mode=True)


def test_rows_of_one_link_have_nothing_to_learn() -> None:
    case = case_of(4)
    matrix = case.mapping.matrix
    alone = np.diff(matrix.indptr)[matrix.rows] == 1
    assert alone.any()
    assert not alone.all()
    loss = learning(case)
    before = loss.links.scores.detach().clone()
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-1)
    for _ in range(3):
        optimizer.zero_grad()
        loss(case.student_logits, case.teacher_logits, case.spans).loss.backward()
        assert (loss.links.scores.grad[torch.from_numpy(alone)] == 0).all()
        optimizer.step()
    still = (loss.links.scores == before).numpy()
    assert still[alone].all()
    assert not still[~alone].all()
    learnt = loss.learned_mapping()
    assert (learnt.matrix.data[alone] == 1).all()
    # Whatever their parameters say.
    with torch.no_grad():
        loss.links.scores[torch.from_numpy(alone)] += 3.0
    torch.testing.assert_close(
        torch.from_numpy(loss.learned_mapping().matrix.data), torch.from_numpy(learnt.matrix.data)
    )


def test_untrained_weights_are_the_mappings_own() -> None:
    for seed in SEEDS:
        case = case_of(seed)
        loss, plain = learning(case), XTokenLoss(case.mapping, "p-kl", merge="mean")
        assert np.allclose(loss.learned_mapping().matrix.data, case.mapping.matrix.data, rtol=1e-6, atol=0)
        values = [one(case.student_logits, case.teacher_logits, case.spans).kd for one in (loss, plain)]
        torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=1e-9)


def test_what_was_learnt_is_saved_loaded_and_used(tmp_path: Path) -> None:
    case = case_of(2)
    loss = learning(case)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-1)
    for _ in range(5):
        optimizer.zero_grad()
        loss(case.student_logits, case.teacher_logits, case.spans).loss.backward()
        optimizer.step()
    learnt = loss.learned_mapping()
    read = load(learnt.save(tmp_path / "learnt.npz"))
    assert read.provenance == learnt.provenance == "learned"
    assert read.content_hash == learnt.content_hash != case.mapping.content_hash
    assert np.array_equal(read.matrix.data, learnt.matrix.data)
    assert np.array_equal(read.matrix.indices, case.mapping.matrix.indices)
    sums = np.bincount(read.matrix.rows, read.matrix.data)
    assert np.allclose(sums[np.unique(read.matrix.rows)], 1, atol=1e-6)
    assert (np.abs(read.matrix.data - case.mapping.matrix.data) > 1e-3).any()
    before = loss(case.student_logits, case.teacher_logits, case.spans).kd
    after = XTokenLoss(read, "p-kl", merge="mean")(case.student_logits, case.teacher_logits, case.spans).kd
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-7)
    again = learning(case)
    again.load_state_dict(loss.state_dict())
    torch.testing.assert_close(again(case.student_logits, case.teacher_logits, case.spans).kd, before)


def test_training_w_lowers_the_loss_and_a_weight_of_nothing_stays_a_link() -> None:
    case = case_of(2)
    loss = learning(case)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.5)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        out = loss(case.student_logits, case.teacher_logits, case.spans)
        out.loss.backward()
        optimizer.step()
        values.append(out.kd.item())
    assert values[-1] < values[0] - 0.01
    with torch.no_grad():
        loss.links.scores[0] = -500.0
    assert (loss.learned_mapping().matrix.data > 0).all()


def test_weights_learn_from_hidden_states_and_by_themselves() -> None:
    case = case_of(2)
    source = torch.Generator().manual_seed(0)
    states = torch.randn(*case.student_logits.shape[:2], 4, generator=source)
    head = torch.randn(case.student_logits.shape[2], 4, generator=source)
    gradients = []
    for form in (Hidden(states, head), states @ head.T):
        loss = learning(case)
        # Nothing but W is trained.
        loss(form, case.teacher_logits, case.spans).loss.backward()
        gradients.append(loss.links.scores.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().max() > 0


def small_mapping(*, to_padding: bool, student_tokens: Sequence[str]) -> tuple[Mapping, Spans]:
    student = make_vocab([*student_tokens, (b"<s>", Kind.SPECIAL)], roles={"bos": [len(student_tokens)]})
    teacher = make_vocab(
        ["a", "1", "2", (b"<s>", Kind.SPECIAL), (b"", Kind.PADDING)], name="teacher", roles={"bos": [3]}
    )
    mapping = build(student=student, teacher=teacher)
    if to_padding:
        links = mapping.matrix
        indices = np.where(links.indices == 2, 4, links.indices).astype(links.indices.dtype)
        mapping = replace(mapping, matrix=replace(links, indices=indices))
    begin = len(student_tokens)
    return mapping, align_ids([[begin, 0]], [[3, 0]], student=student, teacher=teacher)


def test_links_to_padding_cannot_be_learnt_and_are_left_out_elsewhere() -> None:
    mapping, spans = small_mapping(to_padding=True, student_tokens=["a", "12"])
    with pytest.raises(OptionError, match="links to padding"):
        XTokenLoss(mapping, "p-kl", merge="mean", learn_w=True)
    out = XTokenLoss(mapping, "p-kl", merge="mean")(torch.zeros(1, 2, 3), torch.zeros(1, 2, 5), spans)
    assert out.kd.isfinite()


def test_without_a_row_of_several_links_there_is_nothing_to_learn() -> None:
    mapping, _ = small_mapping(to_padding=False, student_tokens=["a", "1"])
    with pytest.raises(OptionError, match=r"a row of several links.*leave learn_w out"):
        XTokenLoss(mapping, "p-kl", merge="mean", learn_w=True)
