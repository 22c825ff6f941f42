"""verl: on-policy distillation from a teacher with another tokenizer.

verl asks its teacher servers about the student's ids, and computes a loss at each of them. Two functions change here:
the servers are asked about the teacher's ids of the same text, and what they say is compared at the positions at which
both models have read the same bytes. With this file on PYTHONPATH:

    export XTOKEN_STUDENT=Qwen/Qwen3-4B XTOKEN_TEACHER=meta-llama/Llama-3.1-8B-Instruct
    python -m verl.trainer.main_ppo actor_rollout_ref.model.external_lib=verl_distillation \
        distillation.enabled=True distillation.distillation_loss.loss_mode=forward_kl_topk \
        distillation.distillation_loss.topk=64 ...  # the rest as for any distillation; without tensor parallelism

Student ` 12` in one token, teacher in three: what stands for the student's position is the teacher's row before ` `.

    student   <s>  the   ·12         row 1 of the student is compared with row 1 of the teacher, which both predict
    teacher   <s>  the  ·  1  2      what follows `the`; the teacher's rows 2 and 3 have no position of the student's
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from transformers import AutoTokenizer

import xtoken_align
from xtoken_align.losses import TopK, XTokenLoss


class Pair:
    """Both tokenizers, and the loss between them.

    Args:
        student: the student's folder or Hub id.
        teacher: the teacher's.
    """

    def __init__(self, student: str, teacher: str) -> None:
        # Partition-KL reads one row of a chunk, that before its first token, which is all that verl can hand on.
        self.loss = XTokenLoss(xtoken_align.get_or_build(student=student, teacher=teacher), "partition-kl")
        self.aligner = xtoken_align.Aligner(student=student, teacher=teacher)
        self.tokenizers = AutoTokenizer.from_pretrained(student), AutoTokenizer.from_pretrained(teacher)

    def heard(self, ids: list[int]) -> list[int]:
        """The teacher's ids of the text that the student's ids say, control tokens left out."""
        mine, its = self.tokenizers
        teacher_ids: list[int] = its(mine.decode(ids, skip_special_tokens=True))["input_ids"]
        return teacher_ids

    def spans(self, ids: list[int], counts: list[bool] | None = None) -> xtoken_align.Spans:
        """The chunks of a row."""
        return self.aligner.ids([ids], [self.heard(ids)], student_loss_mask=None if counts is None else [counts])

    def rows(self, spans: xtoken_align.Spans) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 (chunks,): the positions of both sides that predict a chunk's first token."""
        chunks = spans.torch().predictions()
        return chunks.student[chunks.student_offsets[:-1]], chunks.teacher[chunks.teacher_offsets[:-1]]


@cache
def pair() -> Pair:
    """Made once in each process."""
    return Pair(os.environ["XTOKEN_STUDENT"], os.environ["XTOKEN_TEACHER"])


async def teacher_rows(ask: Any, sequence_ids: list[int], **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What verl's `compute_teacher_logprobs_single` returns: ids and log-probabilities (T_s, K), by student position.

    Args:
        ask: the same function of verl's, which answers (T_t, K) for the teacher's ids. Row t is of the token after t.
        sequence_ids: the student's ids, prompt and answer.
        **more: is handed on.
    """
    both = pair()
    ids, log_probs = await ask(sequence_ids=both.heard(sequence_ids), **more)
    mine, its = both.rows(both.spans(sequence_ids))
    by_position = ids.new_full((len(sequence_ids), ids.shape[1]), -1)
    values = log_probs.new_zeros(by_position.shape)
    by_position[mine], values[mine] = ids[its], log_probs[its]
    return by_position, values


def row_loss(
    logits: torch.Tensor, ids: torch.Tensor, counts: torch.Tensor, best: torch.Tensor, log_probs: torch.Tensor
) -> torch.Tensor:
    """Scalar: the mean over the chunks of the answer.

    Args:
        logits: (T, V).
        ids: int64 (T,).
        counts: bool (T,), the answer's tokens.
        best: integers (T, K), of `teacher_rows`.
        log_probs: floats (T, K), likewise.
    """
    both = pair()
    spans = both.spans(ids.tolist(), counts.tolist())
    mine, its = (rows.to(logits.device) for rows in both.rows(spans))
    shape = (1, spans.teacher.shape[1], best.shape[1])
    teacher = TopK(
        # Where the teacher said nothing, nothing is compared.
        best.new_full(shape, -1, dtype=torch.int64).index_copy(1, its, best[None, mine].long()),
        log_probs.new_full(shape, -torch.inf).index_copy(1, its, log_probs[None, mine]),
        log_probs.new_ones(shape[:2]).index_copy(1, its, (1 - log_probs[None, mine].exp().sum(-1)).clamp(0, 1)),
        width=both.loss.mapping.W.shape[1],
    )
    result: torch.Tensor = both.loss.to(logits.device)(logits[None], teacher, spans).loss
    return result


def token_losses(
    config: Any, distillation_config: Any, data: Mapping[str, Any], student_logits: torch.Tensor, data_format: str
) -> dict[str, torch.Tensor]:
    """What verl's `compute_topk_loss` returns: a loss and two probabilities for each token, (1, tokens).

    A row's mean stands at each of its tokens, so verl's own reduction gives the row the weight of its setting.

    Args:
        config: the actor's.
        distillation_config: the distillation's.
        data: jagged tensors `input_ids`, `teacher_ids` and `teacher_logprobs`, a row for each sample, and the
            `response_mask`, jagged too or padded.
        student_logits: (1, tokens, V).
        data_format: how they are laid out; rows one after another are "thd".
    """
    del config, distillation_config
    if data_format != "thd":
        raise NotImplementedError(f"rows one after another (thd) are read, not {data_format}: set use_remove_padding")
    rows = zip(*(data[name].unbind() for name in ("input_ids", "teacher_ids", "teacher_logprobs")), strict=True)
    losses, masses, begin = [], [], 0
    for (ids, best, log_probs), answer in zip(rows, answer_masks(data), strict=True):
        counts = torch.zeros_like(ids, dtype=torch.bool)
        counts[len(ids) - len(answer) :] = answer.bool()
        own = student_logits[0, begin : begin + len(ids)]
        losses.append(row_loss(own, ids, counts, best, log_probs.float()).expand(len(ids)))
        masses.append(log_probs.exp().sum(-1) * (best[:, 0] >= 0))
        begin += len(ids)
    mass = torch.cat(masses)[None]
    # verl logs both masses. That of the student on the teacher's ids would mean nothing.
    return {"distillation_losses": torch.cat(losses)[None], "student_mass": mass, "teacher_mass": mass}


def answer_masks(data: Mapping[str, Any]) -> list[torch.Tensor]:
    """For each row, which tokens of its answer count."""
    masks = data["response_mask"]
    if masks.is_nested:
        return list(masks.unbind())
    lengths = data["attention_mask"][:, -masks.shape[1] :].sum(1).tolist()
    return [mask[:length] for mask, length in zip(masks, lengths, strict=True)]


def install() -> None:
    """Puts both functions in the place of verl's; verl imports this file in each of its processes."""
    from verl.experimental.teacher_loop.teacher_manager import AsyncTeacherLLMServerManager as Manager
    from verl.trainer.distillation import losses

    ask = Manager.compute_teacher_logprobs_single

    async def asked(self: Any, sequence_ids: list[int], **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return await teacher_rows(ask.__get__(self), sequence_ids, **more)

    Manager.compute_teacher_logprobs_single = asked
    losses.compute_topk_loss = token_losses


install()
