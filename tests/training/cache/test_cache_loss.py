"""Training from a cache: the losses say what they say with the teacher in memory, up to what the cache leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cache_models import WIDTH, Causal, small_vocab
from small_vocabs import make_vocab

from xtoken_align import build
from xtoken_align.losses import XTokenLoss
from xtoken_align.mapping.mapping import Mapping
from xtoken_align.spans.batch import SpanCollator
from xtoken_align.training import TeacherCache, write_teacher_cache
from xtoken_align.training.cache.format import loss_bound
from xtoken_align.training.teachers import CACHED_KINDS
from xtoken_align.vocab.kinds import Kind
from xtoken_align.vocab.vocab import Vocab

TEXTS = ["abcab cde", "xyxy zab", "a", "mnopq rst uvw", "babbab"]


@pytest.fixture(scope="module")
def student() -> Vocab:
    tokens: list[Any] = [*"abcdefghijklmnopqrstuvwxyz ", "abc", "ab", "xy", "st", (b"<s>", Kind.SPECIAL)]
    return make_vocab(tokens, name="student", roles={"bos": [len(tokens) - 1]})


@pytest.fixture(scope="module")
def mapping(student: Vocab) -> Mapping:
    return build(student=student, teacher=small_vocab())


def step(mapping: Mapping, kind: str, logits: torch.Tensor, teacher: Any, batch: dict[str, Any]) -> tuple[float, Any]:
    loss_fn = XTokenLoss(mapping, kind=kind)
    made = loss_fn(
        logits,
        teacher,
        batch["spans"],
        student_ids=batch["student_input_ids"],
        teacher_ids=batch["teacher_input_ids"],
    )
    made.loss.backward()
    gradient, logits.grad = logits.grad, None
    return float(made.kd), gradient


@pytest.mark.parametrize("kind", CACHED_KINDS)
@pytest.mark.parametrize("pack", [False, True])
def test_a_cache_gives_the_losses_and_gradients_of_the_teacher_itself(
    tmp_path: Path, student: Vocab, vocab: Vocab, mapping: Mapping, model: Causal, kind: str, *, pack: bool
) -> None:
    collate = SpanCollator(student=student, teacher=vocab, pack=pack, max_student_tokens=30, max_teacher_tokens=30)
    batch = collate([{"text": text} for text in TEXTS])
    shape = (*batch["student_input_ids"].shape, len(student))
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()

    ids, mask, segments = batch["teacher_input_ids"], batch["teacher_attention_mask"], batch["spans"].teacher_segments
    live = torch.zeros(*ids.shape, WIDTH)
    for row in range(len(ids)):
        for segment in range(int(segments[row].max()) + 1):
            at = segments[row] == segment
            live[row, at] = model(ids[row, at][None], torch.ones(1, int(at.sum()), dtype=torch.int64))[0].detach()
    expected, gradient = step(mapping, kind, logits, live, batch)

    least = float(logits.detach().log_softmax(-1).min())
    away = []
    for top_k in (WIDTH, 16, 4):
        folder = tmp_path / str(top_k)
        rows = [{"text": text} for text in TEXTS]
        report = write_teacher_cache(
            model, rows, folder, teacher=vocab, top_k=top_k, dtype="float32", max_teacher_tokens=30
        )
        cached = TeacherCache(folder, teacher=vocab).top_k(ids=ids, mask=mask, segments=segments)
        found, its = step(mapping, kind, logits, cached, batch)
        away.append(abs(found - expected))
        if top_k == WIDTH:
            assert found == pytest.approx(expected, rel=1e-4)
            torch.testing.assert_close(its, gradient, rtol=1e-3, atol=1e-6)
        elif kind == "partition-kl":
            bound = loss_bound(report.max_rest, bins=WIDTH, least_log_prob=least)
            assert 0 < away[-1] <= bound
            assert float((its - gradient).abs().sum()) <= 2 * report.max_rest
    assert away[0] <= away[1] <= away[2]
