"""Several teachers are a weighted sum with one cross-entropy; one with the student's tokenizer is an ordinary KL."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from loss_calls import case_of
from small_vocabs import make_vocab
from tiny import Tiny, kl

from xtoken_align import Mapping, Spans, align_ids, build
from xtoken_align.errors import MismatchError, OptionError
from xtoken_align.losses import Hidden, Logits, MultiTeacherLoss, TopK, XTokenLoss, average_logits
from xtoken_align.losses.multi import row_scores
from xtoken_align.vocab.kinds import Kind

CASE = case_of(4)


def own_tokenizer() -> tuple[Mapping, Spans, torch.Tensor]:
    """The case's student as its own teacher."""
    spans = CASE.spans
    own = align_ids(
        spans.student_ids,
        spans.student_ids,
        student=CASE.student,
        teacher=CASE.student,
        student_segments=spans.student_segments,
        teacher_segments=spans.student_segments,
    )
    logits = torch.randn(CASE.student_logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return build(student=CASE.student, teacher=CASE.student), own, logits


@pytest.mark.parametrize("weights", [None, [0.2, 0.8], [1.0, 0.0]])
@pytest.mark.parametrize("hidden", [False, True])
def test_the_loss_is_the_sum_by_hand(weights: list[float] | None, hidden: bool) -> None:
    mapping, spans, teacher = own_tokenizer()
    settings: list[tuple[Mapping, dict[str, Any], torch.Tensor, Spans]] = [
        (CASE.mapping, {"kind": "c-kl", "temperature": 2.0}, CASE.teacher_logits, CASE.spans),
        (mapping, {"kind": "partition-kl", "kd_weight": 0.5}, teacher, spans),
    ]
    losses = [XTokenLoss(one, ce_weight=3.0, **options) for one, options, _, _ in settings]
    alone = [XTokenLoss(one, **options) for one, options, _, _ in settings]
    many = MultiTeacherLoss(losses, weights)
    alphas = weights or [0.5, 0.5]
    if hidden:
        source = torch.Generator().manual_seed(0)
        states = torch.randn(*CASE.student_logits.shape[:2], 4, generator=source, dtype=torch.float64)
        head = torch.randn(CASE.student_logits.shape[2], 4, generator=source, dtype=torch.float64)
        leaves = [states.requires_grad_(), head.requires_grad_()]
        student: Any = Hidden(*leaves)
    else:
        leaves = [CASE.student_logits.clone().requires_grad_()]
        student = leaves[0]
    out = many(student, [CASE.teacher_logits, teacher], [CASE.spans, spans], labels=CASE.labels)
    parts = [loss(student, t, s) for loss, (_, _, t, s) in zip(alone, settings, strict=True)]
    ce = XTokenLoss(CASE.mapping, "uld", kd_weight=0.0)(student, CASE.teacher_logits, CASE.spans, labels=CASE.labels)
    by_hand = alphas[0] * parts[0].loss + alphas[1] * parts[1].loss + 3 * ce.loss
    torch.testing.assert_close(out.loss, by_hand)
    torch.testing.assert_close(out.kd, alphas[0] * parts[0].kd + alphas[1] * parts[1].kd)
    torch.testing.assert_close(out.ce, ce.ce)
    for made, right in zip(torch.autograd.grad(out.loss, leaves), torch.autograd.grad(by_hand, leaves), strict=True):
        torch.testing.assert_close(made, right, rtol=1e-9, atol=1e-12)
    assert set(out.metrics) >= {"kd", "ce", "kd/0", "kd/1", "agreement/0", "misfits/1", "scale/1"}
    assert "ce/1" not in out.metrics
    for number, part in enumerate(parts):
        torch.testing.assert_close(out.metrics[f"kd/{number}"], part.metrics["kd"])
    numerator, denominator = out.metrics["ce"]
    torch.testing.assert_close(numerator / denominator, out.ce)


def test_divisors_are_given_by_teacher() -> None:
    mapping, spans, teacher = own_tokenizer()
    many = MultiTeacherLoss([XTokenLoss(CASE.mapping, "p-kl"), XTokenLoss(mapping, "p-kl")], [1.0, 1.0])
    given = (CASE.student_logits, [CASE.teacher_logits, teacher], [CASE.spans, spans])
    kds = [
        loss(CASE.student_logits, t, s).metrics["kd"][0]
        for loss, t, s in zip(many.losses, given[1], given[2], strict=True)
    ]
    out = many(*given, labels=CASE.labels, num_chunks_in_batch=[100, 7], num_items_in_batch=50)
    torch.testing.assert_close(out.kd, kds[0] / 100 + kds[1] / 7)
    torch.testing.assert_close(out.ce, out.metrics["ce"][0] / 50)
    ids = [torch.from_numpy(CASE.spans.teacher_ids), None]
    again = many(*given, teacher_ids=ids, num_chunks_in_batch=[100, 7])
    torch.testing.assert_close(again.kd, out.kd)
    with pytest.raises(OptionError, match="teacher_ids must be the ids that were aligned"):
        many(*given, teacher_ids=[torch.zeros_like(ids[0]), None])


@pytest.mark.parametrize("merge", ["first", "mean"])
def test_a_teacher_with_the_students_tokenizer_is_an_ordinary_kl(merge: str) -> None:
    vocab = make_vocab(["a", "b", "ab", "ba", "12", "1", (b"<s>", Kind.SPECIAL)], roles={"bos": [6]})
    ids = [[6, 0, 2, 3, 4], [6, 5, 1, 0, 0]]
    spans = align_ids(ids, ids, student=vocab, teacher=vocab)
    loss = XTokenLoss(build(student=vocab, teacher=vocab), "p-kl", merge=merge)
    source = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 7, generator=source, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    labels = torch.tensor(ids)
    out = MultiTeacherLoss([loss])(student, [teacher], [spans], labels=labels)
    log_q, log_p = (side[:, :-1].flatten(0, 1).log_softmax(1) for side in (student, teacher))
    kl = torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    plain = kl + torch.nn.functional.nll_loss(log_q, labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(out.loss, student)[0], torch.autograd.grad(plain, student)[0], rtol=1e-9, atol=1e-12
    )


def test_peers_forms_are_weighted_too() -> None:
    losses = [XTokenLoss(CASE.mapping, "gold", compat="trl"), XTokenLoss(CASE.mapping, "alm", compat="tokenkit")]
    given = (CASE.student_logits, CASE.teacher_logits, CASE.spans)
    out = MultiTeacherLoss(losses, [0.2, 0.8])(given[0], [given[1]] * 2, [given[2]] * 2)
    kds = [loss(*given).kd for loss in losses]
    torch.testing.assert_close(out.loss, 0.2 * kds[0] + 0.8 * kds[1])
    torch.testing.assert_close(out.kd, out.loss)


# Two rows of two tokens after `<s>`, and two teachers, all with the tokens a and b. What the probabilities are:
#
#                row 0: a b          row 1: b b
#     student    [.5 .5] [.5 .5]     [.5 .5] [.5 .5]
#     teacher 0  [.8 .2] [.2 .8]     [.8 .2] [.8 .2]      knows row 0
#     teacher 1  [.6 .4] [.6 .4]     [.1 .9] [.1 .9]      knows row 1
PAIR = Tiny(["a", "b"], ["a", "b"])
IDS = [[2, 0, 1], [2, 1, 1]]
SAID = [
    [[[0.8, 0.2], [0.2, 0.8]], [[0.8, 0.2], [0.8, 0.2]]],
    [[[0.6, 0.4], [0.6, 0.4]], [[0.1, 0.9], [0.1, 0.9]]],
]
DIVERGENCES = torch.tensor([[2 * kl(row[0], [0.5, 0.5]) for row in teacher] for teacher in SAID], dtype=torch.float64)
"""[teacher][row], the sum over the row's two chunks."""


def said_by(number: int) -> torch.Tensor:
    """A teacher's logits (2, 3, 3)."""
    table = torch.full((2, 3, 3), -torch.inf, dtype=torch.float64)
    # What comes after the last token is read by nobody.
    table[:, 2] = 0.0
    table[:, :2, :2] = torch.tensor(SAID[number], dtype=torch.float64).log()
    return table


def of_pair(**options: Any) -> tuple[MultiTeacherLoss, tuple[Any, ...]]:
    """Two losses weighed in some way, and what they are called with."""
    spans = align_ids(IDS, IDS, student=PAIR.student, teacher=PAIR.teacher)
    student = torch.zeros(2, 3, 3, dtype=torch.float64)
    student[:, :, 2] = -torch.inf
    losses = [XTokenLoss(PAIR.mapping, "partition-kl"), XTokenLoss(PAIR.mapping, "partition-kl")]
    many = MultiTeacherLoss(losses, **options)
    return many, (student.requires_grad_(), [said_by(0), said_by(1)], [spans, spans])


def shares(left: list[float]) -> torch.Tensor:
    """Weights [teacher][row] of two teachers, from the first one's share of each row."""
    first = torch.tensor(left, dtype=torch.float64)
    return torch.stack([first, 1 - first])


# exp(-CE) of a row, CE per token of the student: the geometric mean of its tokens' probabilities.
GEOMETRIC = [[0.8, 0.2], [(0.6 * 0.4) ** 0.5, 0.9]]
ENTROPY = [[0.5004024, 0.5004024], [0.6730117, 0.3250830]]
HIGHEST = [[0.8, 0.8], [0.6, 0.9]]


def ratio(pair: list[list[float]], row: int) -> float:
    return pair[0][row] / (pair[0][row] + pair[1][row])


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"weigh_by": "cross-entropy"}, [ratio(GEOMETRIC, 0), ratio(GEOMETRIC, 1)]),
        ({"weigh_by": "cross-entropy", "weight_temperature": 0.5}, [0.64 / (0.64 + 0.24), 0.04 / (0.04 + 0.81)]),
        ({"weigh_by": "cross-entropy", "select": True}, [1.0, 0.0]),
        ({"weigh_by": "entropy"}, [1 / (1 + math.exp(ENTROPY[0][row] - ENTROPY[1][row])) for row in (0, 1)]),
        ({"weigh_by": "confidence"}, [ratio(HIGHEST, 0), ratio(HIGHEST, 1)]),
        ({"weigh_by": "confidence", "weights": [0.25, 0.75]}, [0.2 / (0.2 + 0.45), 0.2 / (0.2 + 0.675)]),
    ],
)
def test_rows_are_weighed_by_what_the_teachers_know_of_them(options: dict[str, Any], left: list[float]) -> None:
    many, given = of_pair(**options)
    expected = shares(left)
    torch.testing.assert_close(many.row_weights(given[1], given[2]), expected, atol=1e-6, rtol=0)
    out = many(*given)
    # There are four chunks in the batch, and each teacher's part is divided by all four.
    torch.testing.assert_close(out.loss, (expected * DIVERGENCES).sum() / 4, atol=1e-6, rtol=0)
    torch.testing.assert_close(out.kd, out.loss.detach())
    assert out.value("weight/0") == pytest.approx(sum(left) / 2, abs=1e-6)
    parts = [many.weights[number] * out.value(f"kd/{number}") for number in (0, 1)]
    assert parts == pytest.approx(((expected * DIVERGENCES).sum(1) / 4).tolist(), abs=1e-6)
    # The gradient too is that of the weighed sum: of a chunk, weight / 4 times (student - teacher).
    (gradient,) = torch.autograd.grad(out.loss, given[0])
    for row in (0, 1):
        away = sum(expected[number, row] * (0.5 - torch.tensor(SAID[number][row][0])) for number in (0, 1))
        torch.testing.assert_close(gradient[row, 0, :2], away / 4, atol=1e-6, rtol=0, check_dtype=False)


def test_rows_learn_from_the_teacher_that_they_name() -> None:
    many, given = of_pair(weights=[0.5, 1.5])
    for routes, weights in (([1, 0], [[0.0, 2.0], [2.0, 0.0]]), ([-1, 1], [[0.5, 0.0], [1.5, 2.0]])):
        out = many(*given, routes=torch.tensor(routes))
        expected = torch.tensor(weights, dtype=torch.float64)
        torch.testing.assert_close(out.loss, (expected * DIVERGENCES).sum() / 4)
    same = many(*given, routes=torch.tensor([-1, -1]))
    torch.testing.assert_close(same.loss, many(*given).loss)
    for wrong in ([0, 2], [-2, 0], [0]):
        with pytest.raises(OptionError, match=r"routes must be one number per row, from 0 to 1, or -1"):
            many(*given, routes=torch.tensor(wrong))


def test_best_tokens_weigh_as_all_do_where_what_they_leave_out_is_even() -> None:
    _, (_, teachers, spans) = of_pair()
    table = said_by(0).log_softmax(-1)
    # Of three tokens the best is listed, and the two others share the rest: of 0.8 they have 0.1 each.
    even = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64).log().expand(2, 3, 3)
    cut = TopK(torch.zeros(2, 3, 1, dtype=torch.long), even[..., :1], torch.full((2, 3), 0.2).double(), 3)
    for measure in ("cross-entropy", "entropy", "confidence"):
        torch.testing.assert_close(row_scores(cut, spans[0], measure), row_scores(even, spans[0], measure))
        whole = TopK(torch.arange(3).expand(2, 3, 3), table, torch.zeros(2, 3).double(), 3)
        torch.testing.assert_close(row_scores(whole, spans[0], measure), row_scores(teachers[0], spans[0], measure))


def test_teachers_of_other_tokenizers_are_compared_per_token_of_the_student() -> None:
    # The student reads `a b` as two tokens, one teacher as one: 1/2 is as likely as 1/4 and 2.
    pair = Tiny(["a", "b"], ["a", "b", "ab"])
    one = align_ids([[2, 0, 1]], [[3, 2]], student=pair.student, teacher=pair.teacher)
    two = align_ids([[2, 0, 1]], [[3, 0, 1]], student=pair.student, teacher=pair.teacher)
    logits = torch.tensor([0.25, 0.25, 0.5, 0.0]).log()
    assert row_scores(logits.expand(1, 2, 4), one, "cross-entropy").item() == pytest.approx(math.log(0.5) / 2)
    assert row_scores(logits.expand(1, 3, 4), two, "cross-entropy").item() == pytest.approx(math.log(0.25))


def test_teachers_with_one_tokenizer_are_averaged_by_their_logits() -> None:
    many, given = of_pair(average=True, weights=[1.0, 3.0])
    out = many(*given)
    expected = 0.0
    for row in (0, 1):
        for place in (0, 1):
            mean = [SAID[0][row][place][token] ** 0.25 * SAID[1][row][place][token] ** 0.75 for token in (0, 1)]
            expected += kl(mean, [0.5, 0.5])
    assert out.loss.item() == out.kd.item() == pytest.approx(4.0 * expected / 4)
    states, head = torch.randn(1, 2, 3), torch.randn(5, 3)
    mean = average_logits([Hidden(states, head), Logits(torch.ones(1, 2, 5))])
    torch.testing.assert_close(mean.logits, (states @ head.T + 1) / 2)
    with pytest.raises(OptionError, match="needs whole logits"):
        average_logits([TopK(torch.zeros(1, 1, 1).long(), torch.zeros(1, 1, 1), torch.zeros(1, 1), 3)])
    with pytest.raises(OptionError, match=r"needs one shape \(B, T, V\)"):
        average_logits([torch.zeros(1, 1, 2), torch.zeros(1, 1, 3)])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weigh_by": "entropi"}, "weigh_by is one of static, cross-entropy, entropy, confidence"),
        ({"select": True}, "weigh_by has to say what is better"),
        ({"average": True, "weigh_by": "entropy"}, "weigh_by is static"),
        ({"weigh_by": "entropy", "weight_temperature": 0.0}, "weight_temperature must be a finite number above 0"),
    ],
)
def test_weighings_that_contradict_each_other_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        of_pair(**options)


def test_what_undoes_weights_by_row_is_refused() -> None:
    loss = XTokenLoss(PAIR.mapping, "partition-kl", scale="dynamic")
    with pytest.raises(OptionError, match=r"losses\[0\] cannot be weighed by row"):
        MultiTeacherLoss([loss], weigh_by="entropy")
    other = Tiny(["a", "b"], ["a", "b", "ab"])
    with pytest.raises(MismatchError, match="average needs teachers with one tokenizer"):
        MultiTeacherLoss([XTokenLoss(PAIR.mapping, "p-kl"), XTokenLoss(other.mapping, "p-kl")], average=True)
