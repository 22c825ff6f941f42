"""`compat` through the module is the peer's function on the same batch, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from loss_calls import case_of
from random_batches import Case, top_k_of

from xtoken_align.errors import OptionError
from xtoken_align.losses import Hidden, Logits, XTokenLoss
from xtoken_align.losses.peers import nemo_rl, tokenkit
from xtoken_align.losses.peers.nemo_rl import find_pairs, total
from xtoken_align.losses.peers.trl import Groups, Runs, uld_on_groups

SEEDS = (2, 4, 10, 38)

FORMS: list[dict[str, Any]] = [
    {"kind": "p-kl", "compat": "nemo-rl"},
    {"kind": "p-kl", "compat": "nemo-rl", "top_k": 3, "temperature": 2.0},
    {"kind": "h-kl", "compat": "nemo-rl", "uncommon_top_k": 2},
    {"kind": "gold", "compat": "nemo-rl", "temperature": 2.0},
    {"kind": "uld", "compat": "trl"},
    {"kind": "uld", "compat": "trl", "merge": "mean", "temperature": 2.0},
    {"kind": "gold", "compat": "trl"},
    {"kind": "gold", "compat": "trl", "merge": "mean"},
    {"kind": "alm", "compat": "tokenkit"},
]
each = pytest.mark.parametrize("options", FORMS, ids=lambda options: " ".join(map(str, options.values())))


def peers_own(case: Case, student: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """The peer's function, called by hand."""
    teacher, spans = case.teacher_logits, case.spans.torch()
    matrix, temperature = case.mapping.matrix, options.get("temperature", 1.0)
    links = [torch.from_numpy(one) for one in (matrix.rows, matrix.indices, matrix.data)]
    valid = spans.weight > 0
    chunks = (spans.student, spans.teacher)
    ids = {"student_ids": spans.student_ids, "teacher_ids": spans.teacher_ids}
    if options["compat"] == "tokenkit":
        return tokenkit.alm(student, teacher, *chunks, **ids, pair_valid=valid).loss
    strict = find_pairs(*links, matrix.shape)
    if options["compat"] == "trl":
        return uld_on_groups(
            student,
            teacher,
            groups_of(case),
            **ids,
            matched=strict.common if options["kind"] == "gold" else None,
            merge="bayesian" if options.get("merge") == "mean" else "observed",
            student_temperature=temperature,
            teacher_temperature=temperature,
        ).loss
    if options["kind"] == "p-kl":
        return nemo_rl.p_kl(
            student,
            teacher,
            *chunks,
            rows=links[0],
            columns=links[1],
            weights=links[2],
            pair_valid=valid,
            temperature=temperature,
            vocab_topk=options.get("top_k", 8192),
        ).loss
    pairs = find_pairs(*links, matrix.shape, xtoken_loss=True) if options["kind"] == "h-kl" else strict
    return nemo_rl.gold(
        student,
        teacher,
        *chunks,
        pairs=pairs,
        pair_valid=valid,
        temperature=temperature,
        uncommon_topk=options.get("uncommon_top_k", 8192),
    ).loss


def groups_of(case: Case) -> Groups:
    """TRL's groups are the chunks with a weight: their tokens' positions in the flattened batch, row by row."""
    spans = case.spans
    samples: list[int] = []
    tokens: tuple[list[int], list[int]] = ([], [])
    starts: tuple[list[int], list[int]] = ([0], [0])
    for row, count in enumerate(spans.count.tolist()):
        for chunk in range(count):
            if not spans.weight[row, chunk]:
                continue
            samples.append(row)
            for side, ids in enumerate((spans.student, spans.teacher)):
                tokens[side].extend((row * ids.shape[1] + np.flatnonzero(ids[row] == chunk)).tolist())
                starts[side].append(len(tokens[side]))
    runs = [Runs(torch.tensor(tokens[side]), torch.tensor(starts[side])) for side in range(2)]
    return Groups(torch.tensor(samples), *runs)


@each
def test_the_module_is_the_peers_function(options: dict[str, Any]) -> None:
    for seed in SEEDS:
        case = case_of(seed)
        student = case.student_logits.clone().requires_grad_()
        loss = XTokenLoss(case.mapping, kd_weight=0.5, **options)
        truth = peers_own(case, student, options)
        assert truth != 0
        for form, spans in ((student, case.spans), (Logits(student), case.spans.torch())):
            out = loss(form, case.teacher_logits, spans)
            torch.testing.assert_close(out.kd, truth.detach(), rtol=1e-12, atol=0)
            torch.testing.assert_close(out.loss, 0.5 * truth, rtol=1e-12, atol=0)
        slopes = [torch.autograd.grad(one, student)[0] for one in (out.loss, 0.5 * truth)]
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", ["fixed", "dynamic"])
@each
def test_with_labels_it_is_nemo_rls_sum(options: dict[str, Any], scale: str) -> None:
    case = case_of(4)
    student = case.student_logits.clone().requires_grad_()
    loss = XTokenLoss(case.mapping, kd_weight=0.5, ce_weight=2.0, scale=scale, **options)
    out = loss(student, case.teacher_logits, case.spans, labels=case.labels)
    truth = total(
        peers_own(case, student, options),
        student,
        case.labels.clamp_min(0),
        token_mask=case.labels >= 0,
        kl_loss_weight=0.5,
        ce_loss_scale=2.0,
        dynamic_loss_scaling=scale == "dynamic",
    )
    for made, right in zip(
        (out.loss, out.kd, out.ce, out.metrics["scale"][0]),
        (truth.loss, truth.kd, truth.ce, truth.kl_scale),
        strict=True,
    ):
        torch.testing.assert_close(made, right)
    assert loss.state_dict() == {}


@each
def test_without_chunks_it_is_zero_with_a_graph(options: dict[str, Any]) -> None:
    case = case_of(8)
    student = case.student_logits.clone().requires_grad_()
    out = XTokenLoss(case.mapping, **options)(student, case.teacher_logits, case.spans)
    out.loss.backward()
    assert out.loss == 0
    assert (student.grad == 0).all()


@each
def test_other_forms_of_a_side_are_refused(options: dict[str, Any]) -> None:
    case = case_of(4)
    loss = XTokenLoss(case.mapping, **options)
    hidden = Hidden(torch.ones(*case.student_logits.shape[:2], 2), torch.ones(case.student_logits.shape[2], 2))
    with pytest.raises(OptionError, match="the peers' forms read logits, but the student is a Hidden"):
        loss(hidden, case.teacher_logits, case.spans)
    with pytest.raises(OptionError, match="the teacher is a TopK"):
        loss(case.student_logits, top_k_of(case, 2), case.spans)
