"""Caches of hidden states: every loss says what it says with the teacher in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cache_models import WIDTH, small_vocab
from small_vocabs import make_vocab

from xtoken_align import build
from xtoken_align.losses import XTokenLoss
from xtoken_align.losses.kinds import KINDS
from xtoken_align.mapping.mapping import Mapping
from xtoken_align.spans.batch import SpanCollator
from xtoken_align.training import TeacherCache, write_teacher_cache
from xtoken_align.training.teachers import LiveTeacher
from xtoken_align.vocab.kinds import Kind
from xtoken_align.vocab.vocab import Vocab

TEXTS = ["abcab cde", "xyxy zab", "a", "mnopq rst uvw", "babbab"]
FAMILIES = {
    "Llama": {},
    "Gemma2": {"final_logit_softcapping": 5.0, "head_dim": 8},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
    "Phi": {},
}
"""Heads that are a matrix alone, have a softcap, a factor, a divisor, a bias."""


def tiny(family: str, width: int = WIDTH, **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(vocab_size=width, **{**sizes, **FAMILIES[family], **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    if family == "Phi":
        torch.nn.init.normal_(model.lm_head.bias)
    return model


@pytest.fixture(scope="module")
def student() -> Vocab:
    tokens: list[Any] = [*"abcdefghijklmnopqrstuvwxyz ", "abc", "ab", "xy", "st"]
    tokens += [(b"<s>", Kind.SPECIAL), (b"</s>", Kind.SPECIAL)]
    return make_vocab(tokens, name="student", roles={"bos": [len(tokens) - 2], "eos": [len(tokens) - 1]})


@pytest.fixture(scope="module")
def mapping(student: Vocab, vocab: Vocab) -> Mapping:
    return build(student=student, teacher=vocab)


def losses_of(mapping: Mapping, vocabs: tuple[Vocab, Vocab], teacher: Any, batch: dict[str, Any]) -> dict[str, tuple[float, torch.Tensor]]:
    """Of every kind the loss, and its gradient for the student's logits."""
    shape = (*batch["student_input_ids"].shape, mapping.matrix.shape[0])
    out = {}
    for kind in KINDS:
        if kind == "exact" and int(batch["spans"].student_segments.max()):
            # It reads rows of one document.
            continue
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        made = XTokenLoss(mapping, kind=kind, vocabs=vocabs if kind == "exact" else None)(logits, teacher, batch["spans"])
        made.loss.backward()
        out[kind] = float(made.kd), logits.grad
    return out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pack", [False, True])
def test_every_loss_from_hidden_states_is_that_of_the_teacher_itself(
    tmp_path: Path, student: Vocab, vocab: Vocab, mapping: Mapping, family: str, *, pack: bool
) -> None:
    model = tiny(family)
    collate = SpanCollator(
        student=student, teacher=vocab, pack=pack, max_student_tokens=30, max_teacher_tokens=30
    )
    batch = collate([{"text": text} for text in TEXTS])
    asked = {"ids": batch["teacher_input_ids"], "mask": batch["teacher_attention_mask"]}
    asked["segments"] = batch["spans"].teacher_segments
    caches = {}
    for dtype in ("float32", "bfloat16"):
        write_teacher_cache(
            model,
            [{"text": text} for text in TEXTS],
            tmp_path / dtype,
            teacher=vocab,
            keep="hidden",
            dtype=dtype,
            max_teacher_tokens=30,
            batch_size=2,
        )
        caches[dtype] = TeacherCache(tmp_path / dtype, teacher=vocab)
    side = {name: batch[f"teacher_{name}"] for name in ("input_ids", "attention_mask", "position_ids")}
    live = LiveTeacher(model).answer(side, batch["spans"].teacher_segments if pack else None)
    expected = losses_of(mapping, (student, vocab), live, batch)
    for dtype, cache in caches.items():
        found = losses_of(mapping, (student, vocab), cache.hidden(**asked), batch)
        for kind in expected:
            off=abs(found[kind][0]-expected[kind][0]); g=float((found[kind][1]-expected[kind][1]).abs().max())
            print(family,pack,dtype,kind,f"{expected[kind][0]:.4f} {off:.2e} {g:.2e} {float(expected[kind][1].abs().max()):.3f}")
