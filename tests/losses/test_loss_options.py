"""Options that mean nothing, and inputs of other shapes, are refused in a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_calls import KINDS, case_of
from random_batches import top_k_of

from xtoken_align.errors import OptionError
from xtoken_align.losses import Hidden, Logits, LossOptions, MultiTeacherLoss, TopK, XTokenLoss

NAN, INF = float("nan"), float("inf")

CASE = case_of(4)
Z, T, SPANS, LABELS = CASE.student_logits, CASE.teacher_logits, CASE.spans, CASE.labels
ROWS, LENGTH, WIDTH = Z.shape

VALUES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "kl"}, "kind must be one of auto, partition-kl, .*, but it is 'kl'"),
    ({"temperature": 0.0}, "temperature must be a finite number above 0, but it is 0.0"),
    ({"temperature": -1.0}, "temperature must be"),
    ({"temperature": NAN}, "temperature must be"),
    ({"temperature": INF}, "temperature must be"),
    ({"merge": "last"}, "merge must be one of first, mean, but it is 'last'"),
    ({"kd_weight": -0.1}, "kd_weight must be a finite number of at least 0, but it is -0.1"),
    ({"kd_weight": NAN}, "kd_weight must be"),
    ({"ce_weight": INF}, "ce_weight must be"),
    ({"scale": "auto"}, "scale must be one of fixed, dynamic"),
    ({"kind": "p-kl", "top_k": 0}, "top_k must be at least 1, or None for all columns"),
    ({"kind": "p-kl", "top_k": -3}, "top_k must be an integer of at least 0, but it is -3"),
    ({"kind": "p-kl", "top_k": 2.0}, "top_k must be an integer"),
    ({"kind": "p-kl", "top_k": True}, "top_k must be an integer"),
    ({"unreached": "rest"}, "unreached must be one of reroute, drop"),
    ({"normalize": "paper"}, "normalize must be one of rest, none"),
    ({"threshold": 1.1}, "threshold must lie between 0 and 1, but it is 1.1"),
    ({"threshold": NAN}, "threshold must lie between 0 and 1"),
    ({"uncommon_top_k": -1}, "uncommon_top_k must be an integer of at least 0"),
    ({"compat": "verl"}, "compat must be one of nemo-rl, trl, tokenkit"),
    ({"divergence": "backward"}, "divergence must be one of forward, reverse, jsd, but it is 'backward'"),
    ({"divergence": "jsd", "beta": 1.5}, "beta must lie between 0 and 1, but it is 1.5"),
    (
        {"divergence": "reverse", "beta": 0.3},
        "beta is the teacher's share in divergence='jsd'.*'reverse'; leave it out",
    ),
    ({"student_top_k": 0}, "student_top_k must be at least 1, or None for all columns"),
]

TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"kind": "c-kl", "merge": "mean"}, "c-kl reads every position of a chunk by itself, so merge must be 'first'"),
    ({"kind": "alm", "merge": "mean"}, "alm reads every position"),
    ({"kind": "partition-kl", "top_k": 8}, "top_k belongs to p-kl, but the kind is 'partition-kl'; leave it out"),
    ({"kind": "gold", "top_k": 8}, "top_k belongs to p-kl"),
    ({"kind": "c-kl", "unreached": "drop"}, "unreached belongs to p-kl, but the kind is 'c-kl'; leave it out"),
    ({"kind": "p-kl", "normalize": "none"}, "normalize belongs to h-kl and gold, but the kind is 'p-kl'"),
    ({"kind": "gold", "threshold": 0.5}, "threshold belongs to h-kl, but the kind is 'gold'"),
    ({"kind": "uld", "uncommon_top_k": 9}, "uncommon_top_k belongs to h-kl and gold, but the kind is 'uld'"),
    ({"kind": "p-kl", "learn_w": True}, "learn_w needs kind='p-kl' with merge='mean'.*merge 'first'"),
    ({"kind": "h-kl", "merge": "mean", "learn_w": True}, "learn_w needs kind='p-kl'.*'h-kl'"),
    ({"kind": "p-kl", "merge": "mean", "learn_w": True, "compat": "nemo-rl"}, "learn_w needs"),
    ({"kind": "partition-kl", "compat": "nemo-rl"}, "compat='nemo-rl' needs kind p-kl or h-kl or gold"),
    ({"kind": "p-kl", "compat": "trl"}, "compat='trl' needs kind uld or gold, but the kind is 'p-kl'"),
    ({"kind": "uld", "compat": "tokenkit"}, "compat='tokenkit' needs kind alm"),
    ({"kind": "c-kl", "beta": 0.3}, "beta is the teacher's share in divergence='jsd', but the divergence is 'forward'"),
    ({"kind": "uld", "divergence": "forward"}, "divergence says how .*, which uld does not do; leave it out"),
    ({"kind": "alm", "student_top_k": 16}, "student_top_k says how .*, which alm does not do"),
    ({"kind": "gold", "normalize": "none", "divergence": "jsd"}, "divergence says how .*, which normalize='none' does"),
    ({"kind": "p-kl", "compat": "nemo-rl", "divergence": "reverse"}, "divergence says how .*, which compat='nemo-rl'"),
]


@pytest.mark.parametrize(("options", "message"), VALUES)
def test_a_value_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LossOptions(**{"kind": "partition-kl", **options})
    with pytest.raises(OptionError, match=message):
        XTokenLoss(CASE.mapping, **options)


@pytest.mark.parametrize(("options", "message"), TOGETHER)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LossOptions(**options).check_together()
    with pytest.raises(OptionError, match=message):
        XTokenLoss(CASE.mapping, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stands_by_itself_and_says_what_it_is(kind: str) -> None:
    loss = XTokenLoss(CASE.mapping, kind, temperature=2.0)
    assert loss.kind == kind
    assert repr(loss) == f"XTokenLoss({kind}, student <- teacher, temperature=2.0)"


def test_auto_takes_the_mappings_recommendation_and_checks_it() -> None:
    loss = XTokenLoss(CASE.mapping)
    assert loss.kind == CASE.mapping.coverage().recommendation.loss
    assert loss.kind in KINDS
    if loss.kind != "p-kl":
        with pytest.raises(OptionError, match="top_k belongs to p-kl"):
            XTokenLoss(CASE.mapping, top_k=8)


def call(*given: Any, kind: str = "partition-kl", **named: Any) -> Callable[[], Any]:
    """The loss with these sides, and the case's own for what is missing."""
    return lambda: XTokenLoss(CASE.mapping, kind)(*given, *(Z, T, SPANS)[len(given) :], **named)


NARROW = Hidden(torch.ones(ROWS, LENGTH, 3), torch.ones(WIDTH - 1, 3))

INPUTS: list[tuple[Callable[[], Any], str]] = [
    (call(Z[..., :-1]), f"student's logits must have the mapping's width of {WIDTH}, but they have {WIDTH - 1}"),
    (call(Z, T[..., :-1]), f"teacher's logits must have the mapping's width of {T.shape[2]}, .*of another tokenizer"),
    (call(NARROW), "student's logits must have the mapping's width"),
    (call(Z, replace(top_k_of(CASE, 3), width=3)), "teacher's logits must have the mapping's width .* they have 3"),
    (call(Z[0]), r"the student's logits must have shape \(B, T, V\), but they have shape \(\d+, \d+\)"),
    (call(Z, T[0]), r"the teacher's logits must have shape \(B, T, V\)"),
    (lambda: Logits(Z[0]), r"logits must have shape \(B, T, V\)"),
    (lambda: Hidden(Z[0], Z[0]), r"states must have shape \(B, T, D\)"),
    (lambda: Hidden(Z, torch.ones(4, 3)), rf"weight must have shape \(V, D\) with D = {WIDTH}"),
    (lambda: Hidden(Z, torch.ones(4, WIDTH), torch.ones(5)), r"bias must have shape \(V,\) = \(4,\)"),
    (lambda: Hidden(Z, torch.ones(4, WIDTH), softcap=0.0), "softcap must be above 0 or None, but it is 0.0"),
    (lambda: TopK(torch.zeros(1, 2, 3), torch.zeros(1, 2, 2), torch.zeros(1, 2), 9), "must have the shape of ids"),
    (lambda: TopK(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(2), 9), "must have the shape of ids"),
    (call(student_ids=torch.zeros(1, 2, dtype=torch.int64)), r"student_ids must have the shape of the spans'"),
    (call(teacher_ids=torch.zeros(1, 2, dtype=torch.int64)), r"teacher_ids must have the shape of the spans'"),
    (call(Z, top_k_of(CASE, 3), kind="h-kl"), "h-kl needs the teacher's whole"),
    (call(Z, top_k_of(CASE, 3), kind="gold"), "gold needs the teacher's whole distribution, but the teacher is a TopK"),
    (call(Z, top_k_of(CASE, 3), kind="uld"), "use partition-kl, c-kl or p-kl"),
    (call(Z, top_k_of(CASE, 3), kind="alm"), "alm needs the teacher's whole"),
    (lambda: XTokenLoss(CASE.mapping, "uld").learned_mapping(), "make it with learn_w=True"),
    (lambda: MultiTeacherLoss([]), "at least one loss"),
    (lambda: MultiTeacherLoss([XTokenLoss(CASE.mapping)], [0.5, 0.5]), "one weight per teacher, 1, got 2"),
    (lambda: MultiTeacherLoss([XTokenLoss(CASE.mapping)], [-1.0]), r"weights\[0\] must be a finite number"),
    (lambda: MultiTeacherLoss([XTokenLoss(CASE.mapping)])(Z, [T, T], [SPANS]), "expected 1 teachers.*got 2"),
    (lambda: MultiTeacherLoss([XTokenLoss(CASE.mapping)])(Z, [T], [SPANS, SPANS]), "expected 1 spans.*got 2"),
    (lambda: MultiTeacherLoss([XTokenLoss(CASE.mapping)])(Z, [T], [SPANS], num_chunks_in_batch=[1, 2]), "got 2"),
    (lambda: MultiTeacherLoss([XTokenLoss(CASE.mapping)])(Z, [T], [SPANS], teacher_ids=[]), "got 0"),
    (lambda: XTokenLoss(CASE.mapping, "uld", compat="trl")(NARROW, T, SPANS), "peers' forms read logits.*student"),
]


@pytest.mark.parametrize(("refused", "message"), INPUTS)
def test_inputs_that_do_not_belong_together_are_refused(refused: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        refused()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_labels_of_another_length_or_batch_are_refused(kind: str) -> None:
    # A position read from the wrong row would be a wrong loss without a word.
    loss = XTokenLoss(CASE.mapping, kind)
    longer = torch.cat([Z, Z[:, :1]], dim=1)
    for student, teacher, labels in (
        (longer, T, None),
        (Z[:, :-1], T, None),
        (Z[:-1], T, None),
        (Z, torch.cat([T, T[:, :1]], dim=1), None),
        (Z, T[:-1], None),
        (Hidden(torch.ones(ROWS, LENGTH + 1, 3), torch.ones(WIDTH, 3)), T, None),
        (Z, T, LABELS[:, :-1]),
        (Z, T, LABELS[:1]),
        (Z, T, LABELS.flatten()),
    ):
        with pytest.raises(OptionError, match=r"positions \(B, T\)|labels must have shape"):
            loss(student, teacher, SPANS, labels=labels)


def test_labels_outside_of_the_vocabulary_are_refused() -> None:
    for label in (WIDTH, -1):
        labels = LABELS.clone()
        labels[0, 3] = label
        with pytest.raises((OptionError, IndexError, RuntimeError)):
            XTokenLoss(CASE.mapping, "partition-kl")(Z, T, SPANS, labels=labels)


def test_spans_whose_ids_are_of_another_vocabulary_are_refused() -> None:
    ids = SPANS.student_ids + 1000
    for kind in ("partition-kl", "c-kl", "alm"):
        with pytest.raises((OptionError, IndexError, RuntimeError)):
            XTokenLoss(CASE.mapping, kind)(Z, T, replace(SPANS, _predictions=None, student_ids=ids))
