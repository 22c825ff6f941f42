"""Per-chunk signals for policy gradients, as loops: how much better the teacher likes what the student wrote."""

from __future__ import annotations

from math import isfinite
from typing import Literal

import torch
from slow_parts import chunks_of, live_ids, log_probabilities
from torch import Tensor

from xtoken_align.losses import options as checks
from xtoken_align.mapping.mapping import Mapping
from xtoken_align.spans.spans import Spans

Spread = Literal["share", "whole"]


def slow_chunk_advantages(
    student: Tensor,
    teacher: Tensor,
    spans: Spans,
    *,
    mapping: Mapping | None = None,
    student_reference: Tensor | None = None,
    teacher_reference: Tensor | None = None,
    spread: Spread = "share",
) -> tuple[Tensor, Tensor]:
    """Log-likelihood ratios of teacher and student per chunk, spread over the student's tokens.

        A_c = (l_T(c) - l_T'(c)) - (l_S(c) - l_S'(c))

    l(c) is the sum of a side's log-probabilities of its own tokens of the chunk, at T = 1; T' and S' are reference
    models, each with its side's tokenizer, and l' = 0 without one. Without references, minus the mean of A_c over text
    that the student writes is the chunks' part of KL(p_S || p_T). A teacher's reference takes away how likely its
    tokens are for any model: what is left is what the teacher learnt beyond it (an implicit reward).

    Args:
        student: logits (B, T_s, V_s), or (B, T_s), the log-probability of the token at each position.
        teacher: logits (B, T_t, V_t), or (B, T_t).
        spans: the batch's chunks; a chunk's weight multiplies its advantage.
        mapping: says which ids are tokens, of logits.
        student_reference: as `student`.
        teacher_reference: as `teacher`.
        spread: `share` gives each of a chunk's n student tokens A_c / n, so that a row's tokens sum to the row's ratio:
            a reward per token. `whole` gives each token A_c: an advantage, for the gradient of a chunk's
            log-probability is the sum of its tokens' gradients.

    Returns:
        float64 (B, T_s), the advantage of the token at each position, without a graph, 0 outside of the chunks in use;
        and bool (B, T_s), which positions those are. A chunk without a finite ratio, as one that a side cannot say, is
        not in use.
    """
    checks.check_one_of("spread", spread, ("share", "whole"))
    advantages = torch.zeros(student.shape[:2], dtype=torch.float64)
    used = torch.zeros(student.shape[:2], dtype=torch.bool)
    live = {} if mapping is None else {"student": live_ids(mapping.student), "teacher": live_ids(mapping.teacher)}

    def likelihood(values: Tensor | None, side: str, positions: list[int], tokens: list[int]) -> float:
        if values is None:
            return 0.0
        if values.dim() == 2:
            # The token at one position is predicted at the one before.
            return sum(float(values.detach().double().flatten()[at + 1]) for at in positions)
        rows = values.detach().double().flatten(0, 1)
        return sum(
            float(log_probabilities(rows[at], live[side])[token]) for at, token in zip(positions, tokens, strict=True)
        )

    for chunk in chunks_of(spans):
        own, its = (chunk.student, chunk.student_tokens), (chunk.teacher, chunk.teacher_tokens)
        ratio = likelihood(teacher, "teacher", *its) - likelihood(teacher_reference, "teacher", *its)
        ratio -= likelihood(student, "student", *own) - likelihood(student_reference, "student", *own)
        if not isfinite(ratio):
            continue
        for at in chunk.student:
            # The logits at one position predict the token at the next.
            advantages.view(-1)[at + 1] = chunk.weight * ratio / (len(chunk.student) if spread == "share" else 1)
            used.view(-1)[at + 1] = True
    return advantages, used
