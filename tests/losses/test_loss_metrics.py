"""The metrics of a loss are numerators and denominators that anyone can count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from loss_calls import KINDS, case_of
from random_batches import FEATURES, Case, top_k_of
from small_vocabs import make_vocab

from xtoken_align import Mapping, Spans, align_ids, build
from xtoken_align.losses import XTokenLoss
from xtoken_align.vocab.kinds import Kind

NAMES = {"kd", "ce", "scale", "agreement", "chunks_used", "misfits", "dropped_mass", "empty_mass"}


def counted(case: Case, weights: np.ndarray) -> dict[str, tuple[float, float]]:
    """Partition-KL's metrics, chunk by chunk with numpy."""
    made = case.spans.predictions()
    bins = [side.astype(int) for side in case.mapping.bins()]
    live = [side.kinds < Kind.PADDING for side in (case.student, case.teacher)]
    names = set(bins[0][live[0]]) & set(bins[1][live[1]])
    agreeing = used = compared = misfits = dropped = empty = 0.0
    for number, weight in enumerate(weights.tolist()):
        rows = made.student[made.student_offsets[number]], made.teacher[made.teacher_offsets[number]]
        firsts = (
            bins[0][made.student_tokens[made.student_offsets[number]]],
            bins[1][made.teacher_tokens[made.teacher_offsets[number]]],
        )
        if firsts[0] != firsts[1] or firsts[0] not in names:
            misfits += 1
            continue
        masses = []
        for side in range(2):
            logits = (case.student_logits, case.teacher_logits)[side].flatten(0, 1)[rows[side]].numpy()
            probability = np.exp(logits) * live[side] / (np.exp(logits) * live[side]).sum()
            masses.append(np.array([probability[bins[side] == name].sum() for name in sorted(names)]))
        agreeing += weight * (masses[0].argmax() == masses[1].argmax())
        used += weight
        compared += 1
        empty += weight * (1 - masses[0].sum())
        dropped += weight * (1 - masses[1].sum())
    return {
        "agreement": (agreeing, used),
        "chunks_used": (compared, len(weights)),
        "misfits": (misfits, len(weights)),
        "dropped_mass": (dropped, used),
        "empty_mass": (empty, used),
    }


def test_partition_kl_counts_what_numpy_counts() -> None:
    seen = dict.fromkeys(("agreement", "misfits", "dropped_mass", "empty_mass"), 0)
    for seed in [*range(2 * len(FEATURES)), 38]:
        case = case_of(seed)
        spans = replace(case.spans, weight=case.spans.weight * np.float32(0.5))
        spans.weight[:, ::2] *= 4
        case = replace(case, spans=spans)
        out = XTokenLoss(case.mapping, "partition-kl")(case.student_logits, case.teacher_logits, case.spans)
        for name, pair in counted(case, spans.predictions().weight).items():
            found = tuple(part.item() for part in out.metrics[name])
            assert found == pytest.approx(pair, rel=1e-9, abs=1e-9), name
            if name in seen:
                seen[name] += 0 < found[0] < found[1]
    assert all(seen.values()), seen


@pytest.mark.parametrize("kind", KINDS)
def test_parts_and_counts_stand_among_the_metrics(kind: str) -> None:
    case = case_of(38)
    out = XTokenLoss(case.mapping, kind)(
        case.student_logits.requires_grad_(), case.teacher_logits, case.spans, labels=case.labels
    )
    assert set(out.metrics) == NAMES - ({"agreement"} if kind in {"uld", "alm"} else set())
    for pair in out.metrics.values():
        assert all(part.dim() == 0 and not part.requires_grad for part in pair)
    (kd, chunks), (ce, labels), scale = (out.metrics[name] for name in ("kd", "ce", "scale"))
    assert chunks == len(case.spans.predictions())
    assert labels == (case.labels[:, 1:] != -100).sum()
    torch.testing.assert_close(kd / chunks, out.kd)
    torch.testing.assert_close(ce / labels, out.ce)
    torch.testing.assert_close(kd / chunks + ce / labels, out.loss.detach())
    assert [part.item() for part in scale] == [1, 1]
    assert (out.metrics["misfits"][0] > 0) == (kind in {"partition-kl", "c-kl", "strict"})


def test_c_kl_has_the_metrics_of_its_first_level() -> None:
    case = case_of(38)
    both = [
        XTokenLoss(case.mapping, **options)(case.student_logits, case.teacher_logits, case.spans).metrics
        for options in ({"kind": "partition-kl"}, {"kind": "c-kl", "end": False})
    ]
    for name in NAMES - {"kd", "ce", "scale"}:
        assert both[0][name] == both[1][name]


@pytest.fixture(scope="module")
def pair() -> tuple[Mapping, Spans]:
    """Two tokens that both have, and of either side's others none that stands for anything."""
    student = make_vocab(["a", "b", "12", "ж", (b"<s>", Kind.SPECIAL)], roles={"bos": [4]})
    teacher = make_vocab(["a", "b", "1", "щ", (b"<s>", Kind.SPECIAL)], name="teacher", roles={"bos": [4]})
    spans = align_ids([[4, 0, 1]], [[4, 0, 1]], student=student, teacher=teacher)
    return build(student=student, teacher=teacher), spans


STUDENT = torch.tensor([[[0.5, 0.2, 0.2, 0.1, 0], [0.1, 0.3, 0.2, 0.4, 0], [1, 0, 0, 0, 0]]], dtype=torch.float64)
TEACHER = torch.tensor([[[0.4, 0.2, 0.1, 0.3, 0], [0.7, 0.1, 0.1, 0.1, 0], [1, 0, 0, 0, 0]]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "dropped", "empty", "agreeing"),
    [
        ({"kind": "p-kl"}, 0.3 + 0.1, 0.1 + 0.4, 1),
        ({"kind": "p-kl", "unreached": "drop"}, 0.3 + 0.1, 0.1 + 0.4, 1),
        ({"kind": "p-kl", "merge": "mean"}, 0.3 + 0.1, 0.1 + 0.4, 1),
        ({"kind": "gold"}, 0.0, 0.0, 1),
        ({"kind": "gold", "normalize": "none"}, 0.0, 0.0, 1),
        ({"kind": "uld"}, 0.0, 0.0, None),
        ({"kind": "alm"}, 0.0, 0.0, None),
    ],
)
def test_what_is_not_compared_is_counted(
    pair: tuple[Mapping, Spans], options: dict[str, Any], dropped: float, empty: float, agreeing: int | None
) -> None:
    mapping, spans = pair
    metrics = XTokenLoss(mapping, **options)(STUDENT.log(), TEACHER.log(), spans).metrics
    assert [part.item() for part in metrics["dropped_mass"]] == pytest.approx([dropped, 2])
    assert [part.item() for part in metrics["empty_mass"]] == pytest.approx([empty, 2])
    assert [part.item() for part in metrics["chunks_used"]] == [2, 2]
    if agreeing is not None:
        assert [part.item() for part in metrics["agreement"]] == [agreeing, 2]


def test_a_chunk_that_cannot_be_compared_is_not_used(pair: tuple[Mapping, Spans]) -> None:
    mapping, spans = pair
    teacher = TEACHER.log()
    teacher[0, 0] = -torch.inf
    for kind in ("partition-kl", "p-kl", "uld", "alm"):
        metrics = XTokenLoss(mapping, kind)(STUDENT.log(), teacher, spans).metrics
        assert [part.item() for part in metrics["chunks_used"]] == [1, 2]
        assert metrics["kd"][1] == 2
    # A student that cannot say the chunk has no likelihood of it.
    student = STUDENT.log()
    student[0, 0, 0] = -torch.inf
    assert XTokenLoss(mapping, "alm")(student, TEACHER.log(), spans).metrics["chunks_used"][0] == 1


@pytest.mark.parametrize("kind", ["partition-kl", "p-kl"])
def test_agreement_is_of_the_likeliest_outcomes_whatever_is_kept_of_the_others(kind: str) -> None:
    # The rest of what is left over is no outcome that two sides could agree on.
    agreeing = 0
    for seed in (2, 4, 10, 38):
        case = case_of(seed)
        given = (case.student_logits, case.teacher_logits, case.spans)
        truth = XTokenLoss(case.mapping, kind)(*given).metrics["agreement"]
        agreeing += truth[0].item()
        known = XTokenLoss(case.mapping, kind)(case.student_logits, top_k_of(case, 12), case.spans)
        assert known.metrics["agreement"] == truth
        if kind == "p-kl":
            for options in ({"top_k": 1}, {"top_k": 1, "temperature": 2.0}):
                assert XTokenLoss(case.mapping, kind, **options)(*given).metrics["agreement"] == truth
    assert agreeing > 3
