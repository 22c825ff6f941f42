"""NeMo-RL's P-KL, gold and H-KL against loops, and at their edges."""

from __future__ import annotations

import pytest
import slow_peers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_batches import Batch, batches
from peer_cases import agrees

from xtoken_align.errors import OptionError
from xtoken_align.losses.peers.nemo_rl import GoldLoss, Pairs, PKLLoss, find_pairs, gold, p_kl

temperatures = st.sampled_from([0.7, 1.0, 2.0])


def fast_p_kl(batch: Batch, **options) -> PKLLoss:
    return p_kl(
        batch.student,
        batch.teacher,
        batch.student_chunks,
        batch.teacher_chunks,
        rows=batch.rows,
        columns=batch.columns,
        weights=batch.weights,
        pair_valid=batch.pair_valid,
        pair_is_correct=batch.pair_is_correct,
        sample_mask=batch.sample_mask,
        **options,
    )


def fast_gold(batch: Batch, *, xtoken_loss: bool = False, **options) -> GoldLoss:
    shape = (batch.student.shape[2], batch.teacher.shape[2])
    return gold(
        batch.student,
        batch.teacher,
        batch.student_chunks,
        batch.teacher_chunks,
        pairs=find_pairs(batch.rows, batch.columns, batch.weights, shape, xtoken_loss=xtoken_loss),
        pair_valid=batch.pair_valid,
        sample_mask=batch.sample_mask,
        **options,
    )


def assert_the_same(fast: torch.Tensor, slow: torch.Tensor, logits: torch.Tensor) -> None:
    assert agrees(fast.detach(), slow.detach(), torch.float64)
    slopes = [torch.autograd.grad(loss, logits)[0] for loss in (fast, slow)]
    assert agrees(*slopes, torch.float64)


@settings(max_examples=40)
@given(batches(), temperatures, st.booleans(), st.integers(0, 8), st.booleans())
def test_p_kl_is_its_formula(batch: Batch, temperature: float, reverse: bool, kept: int, exact: bool) -> None:
    options = {
        "temperature": temperature,
        "reverse_kl": reverse,
        "vocab_topk": kept,
        "exact_token_match_only": exact,
    }
    assert_the_same(fast_p_kl(batch, **options).loss, slow_peers.p_kl(batch, **options), batch.student)


@settings(max_examples=40)
@given(batches(), temperatures, st.booleans(), st.integers(0, 8), st.booleans())
def test_gold_is_its_formula(batch: Batch, temperature: float, reverse: bool, kept: int, relaxed: bool) -> None:
    options = {
        "temperature": temperature,
        "reverse_kl": reverse,
        "uncommon_topk": kept,
        "xtoken_loss": relaxed,
    }
    assert_the_same(fast_gold(batch, **options).loss, slow_peers.gold(batch, **options), batch.student)


@settings(max_examples=40)
@given(batches(), st.booleans())
def test_pairs_are_their_rule(batch: Batch, relaxed: bool) -> None:
    widths = (batch.student.shape[2], batch.teacher.shape[2])
    pairs = find_pairs(batch.rows, batch.columns, batch.weights, widths, xtoken_loss=relaxed)
    assert [tuple(pair) for pair in pairs.common.tolist()] == slow_peers.pairs(batch, xtoken_loss=relaxed)
    ours, theirs = pairs.common[:, 0].tolist(), pairs.common[:, 1].tolist()
    assert sorted(ours + pairs.uncommon_student.tolist()) == list(range(widths[0]))
    assert sorted(theirs + pairs.uncommon_teacher.tolist()) == list(range(widths[1]))


@settings(max_examples=30)
@given(batches(), temperatures, st.booleans())
def test_uncommon_logits_are_pushed_down_by_the_teachers_common_mass(
    batch: Batch, temperature: float, relaxed: bool
) -> None:
    out = fast_gold(batch, temperature=temperature, uncommon_topk=0, xtoken_loss=relaxed)
    (slope,) = torch.autograd.grad(out.loss, batch.student)
    expected = torch.zeros_like(batch.student)
    found = slow_peers.chunks_that_count(batch, batch.pair_valid)
    for (b, _, here, _), mass in zip(found, out.teacher_common_mass, strict=True):
        for t in here:
            share = temperature * mass / (len(found) * len(here))
            expected[b, t] = (batch.student[b, t] / temperature).softmax(0).detach() * share
    common = slow_peers.pairs(batch, xtoken_loss=relaxed)
    uncommon = [i for i in range(batch.student.shape[2]) if i not in {i for i, _ in common}]
    assert agrees(slope[..., uncommon], expected[..., uncommon], torch.float64)


def two_tokens(width: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, 2, width, dtype=dtype), torch.tensor([[-1, 0]])


def test_the_common_kl_of_a_subset_is_negative_where_the_student_has_more_mass_in_it() -> None:
    _, chunks = two_tokens(3)
    teacher = torch.tensor([0.3, 0.2, 0.5]).log().expand(1, 2, 3)
    student = torch.tensor([0.5, 0.4, 0.1]).log().expand(1, 2, 3)
    pairs = Pairs(torch.tensor([[0, 0], [1, 1]]), torch.tensor([2]), torch.tensor([2]))
    assert float(gold(student, teacher, chunks, chunks, pairs=pairs).kl_common) == pytest.approx(-0.2919, abs=5e-5)


@pytest.mark.parametrize("masked", ["samples", "pairs", "tokens", "first tokens"])
def test_without_a_valid_chunk_the_loss_is_0_and_so_is_its_slope(masked: str) -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64)
    chunks = {"tokens": [-1, -1, -1], "first tokens": [0, -1, -1]}.get(masked, [-1, 0, 1])
    ids = torch.tensor([chunks, chunks])
    links = torch.arange(4)
    pair_valid = torch.zeros(2, 2) if masked == "pairs" else torch.ones(2, 2)
    masks = {"pair_valid": pair_valid, "sample_mask": torch.tensor([0, 0]) if masked == "samples" else None}
    student = logits.clone().requires_grad_()
    pairs = find_pairs(links, links, torch.ones(4), (4, 4))
    mapping = {"rows": links, "columns": links, "weights": torch.ones(4)}
    for out in (
        p_kl(student, logits, ids, ids, **mapping, **masks),
        gold(student, logits, ids, ids, pairs=pairs, **masks),
    ):
        assert out.num_valid_chunks == 0
        assert float(out.loss.detach()) == 0
        assert torch.equal(torch.autograd.grad(out.loss, student)[0], torch.zeros_like(student))


def test_a_mapping_without_links_compares_nothing_common() -> None:
    logits, chunks = two_tokens(3)
    nothing = torch.tensor([], dtype=torch.int64)
    pairs = find_pairs(nothing, nothing, torch.tensor([]), (3, 3))
    out = gold(logits, logits, chunks, chunks, pairs=pairs)
    assert float(out.kl_common) == float(out.l1_uncommon) == 0
    out = p_kl(logits, logits, chunks, chunks, rows=nothing, columns=nothing, weights=torch.tensor([]))
    assert bool(out.loss.isfinite())


def test_ids_that_are_masked_with_minus_infinity_make_no_nan() -> None:
    logits, chunks = two_tokens(4)
    logits = logits.index_fill(2, torch.tensor([3]), -torch.inf)
    student = torch.randn(1, 2, 4).index_fill(2, torch.tensor([3]), -torch.inf).requires_grad_()
    same = torch.arange(4)
    pairs = find_pairs(same, same, torch.ones(4), (4, 4))
    losses = [
        p_kl(student, logits, chunks, chunks, rows=same, columns=same, weights=torch.ones(4)).loss,
        gold(student, logits, chunks, chunks, pairs=pairs).loss,
    ]
    for loss in losses:
        assert bool(loss.isfinite())
        assert bool(torch.autograd.grad(loss, student)[0].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    logits, chunks = two_tokens(4, dtype)
    student = torch.randn(1, 2, 4).to(dtype).requires_grad_()
    same = torch.arange(4)
    out = p_kl(student, logits, chunks, chunks, rows=same, columns=same, weights=torch.ones(4))
    assert out.loss.dtype == torch.float32
    assert torch.autograd.grad(out.loss, student)[0].dtype == dtype


def test_the_teacher_gets_no_gradient() -> None:
    logits, chunks = two_tokens(4)
    student, teacher = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    same = torch.arange(4)
    p_kl(student, teacher, chunks, chunks, rows=same, columns=same, weights=torch.ones(4)).loss.backward()
    pairs = find_pairs(same, same, torch.ones(4), (4, 4))
    gold(student, teacher, chunks, chunks, pairs=pairs).loss.backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_the_columns_of_top_k_depend_on_the_whole_batch() -> None:
    logits, ids = torch.zeros(2, 2, 3), torch.tensor([[-1, 0], [-1, 0]])
    teacher = torch.tensor([[[1.0, 0, 0]] * 2, [[0, 0, 9.0]] * 2])
    same = torch.arange(3)
    mapping = {"rows": same, "columns": same, "weights": torch.ones(3), "vocab_topk": 1}
    whole = p_kl(logits, teacher, ids, ids, **mapping, sample_mask=torch.tensor([1, 0]))
    alone = p_kl(logits[:1], teacher[:1], ids[:1], ids[:1], **mapping)
    assert (whole.topk_teacher_ids.tolist(), alone.topk_teacher_ids.tolist()) == ([2], [0])


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("temperature", 0.0, "temperature must be a finite number above 0"),
        ("temperature", float("nan"), "temperature must be a finite number above 0"),
        ("vocab_topk", -1, "vocab_topk must be an integer of at least 0"),
        ("vocab_topk", 2.0, "vocab_topk must be an integer of at least 0"),
        ("rows", torch.tensor([0, 4]), "rows must lie between 0 and 3"),
        ("columns", torch.tensor([-1, 0]), "columns must lie between 0 and 3"),
        ("weights", torch.ones(3), "weights must have shape"),
        ("pair_valid", torch.ones(2, 1), "pair_valid must have shape"),
        ("pair_valid", torch.ones(1, 0), "chunk ids must be below the width of pair_valid"),
        ("sample_mask", torch.ones(2), "sample_mask must have shape"),
        ("exact_token_match_only", True, "exact_token_match_only needs pair_is_correct"),
    ],
)
def test_an_option_out_of_range_is_refused(option: str, value: object, sentence: str) -> None:
    logits, chunks = two_tokens(4)
    options = {"rows": torch.tensor([0, 1]), "columns": torch.tensor([0, 1]), "weights": torch.ones(2), option: value}
    with pytest.raises(OptionError, match=sentence):
        p_kl(logits, logits, chunks, chunks, **options)


def test_pairs_of_other_vocabularies_are_refused() -> None:
    logits, chunks = two_tokens(4)
    same = torch.arange(4)
    with pytest.raises(OptionError, match="pairs must split vocabularies"):
        gold(logits, logits, chunks, chunks, pairs=find_pairs(same, same, torch.ones(4), (4, 5)))
    with pytest.raises(OptionError, match="uncommon_topk must be"):
        gold(logits, logits, chunks, chunks, pairs=find_pairs(same, same, torch.ones(4), (4, 4)), uncommon_topk=-1)


def test_logits_and_chunk_ids_of_other_shapes_are_refused() -> None:
    logits, chunks = two_tokens(4)
    same = {"rows": torch.arange(4), "columns": torch.arange(4), "weights": torch.ones(4)}
    with pytest.raises(OptionError, match="teacher_chunks must have shape"):
        p_kl(logits, logits, chunks, chunks[:, 1:], **same)
    with pytest.raises(OptionError, match="student_logits and teacher_logits must have shapes"):
        p_kl(logits[0], logits, chunks, chunks, **same)
