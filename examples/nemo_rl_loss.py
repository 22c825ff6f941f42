"""NeMo-RL's cross-tokenizer distillation with W and the losses of this library.

NeMo-RL's `x_token` algorithm aligns with a projection file and calls a loss with the student's and the teachers'
logits. Give it this library's W as that file, and this class as that loss:

    xtoken-align export llama-3--qwen3 --format nemo-rl -o projection.pt

    *policies, _, logger, checkpointer, state, config = setup(...)  # NeMo-RL's setup; `_` is NeMo-RL's own loss
    loss_fn = XTokenLossFn("meta-llama/Llama-3.2-1B", "Qwen/Qwen3-4B", "projection.pt", kind="c-kl")
    xtoken_off_policy_distillation_train(*policies, loss_fn, logger, checkpointer, state, config)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from nemo_rl.algorithms.loss.interfaces import LossInputType, LossType

import xtoken_align
from xtoken_align.losses import XTokenLoss


class XTokenLossFn:
    """A `LossFunction` of NeMo-RL for one teacher.

    Args:
        student: the student's folder, Hub id or alias.
        teacher: the teacher's.
        projection: the exported projection file; NeMo-RL's collator and workers look for it here.
        **options: of `XTokenLoss`.
    """

    loss_type = LossType.TOKEN_LEVEL
    input_type = LossInputType.DISTILLATION_CROSS_TOKENIZER

    def __init__(self, student: str, teacher: str, projection: str, **options: Any) -> None:
        self.sides = {"student": student, "teacher": teacher}
        self.projection_matrix_paths = [projection]
        self.teacher_ships_full = [True]
        self.options = options

    # NeMo-RL sends the loss to its workers before the first call, so each worker makes these two for itself.

    @cached_property
    def loss(self) -> XTokenLoss:
        """The loss, on the CPU at first."""
        return XTokenLoss(xtoken_align.get_or_build(**self.sides), **self.options)

    @cached_property
    def aligner(self) -> xtoken_align.Aligner:
        """Both vocabularies, with as many ids as the models have logits."""
        return xtoken_align.Aligner(**self.sides)

    def __call__(
        self,
        data: Mapping[str, torch.Tensor],
        global_valid_seqs: torch.Tensor,  # noqa: ARG002 - NeMo-RL's signature
        global_valid_toks: torch.Tensor,
        *,
        logits: torch.Tensor,
        teacher_full_logits_by_idx: Mapping[int, torch.Tensor],
        **_: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """The loss of a micro-batch and its metrics.

        Both parts are divided by the labels of the whole step, on all ranks. So it does not matter how a step is cut
        into micro-batches, and NeMo-RL may add their losses up.

        Args:
            data: `input_ids` and `token_mask` (B, T_s), `input_lengths` and `sample_mask` (B,), `teacher_0_input_ids`
                and `teacher_0_token_mask` (B, T_t). The masks say which tokens count; padding is on the right.
            global_valid_seqs: scalar, rows of the step.
            global_valid_toks: scalar, labels of the step.
            logits: (B, T_s, V_s).
            teacher_full_logits_by_idx: the first teacher's logits (B, T_t, V_t) under 0.
        """
        ids, counts = data["input_ids"], data["token_mask"].bool() & data["sample_mask"].bool()[:, None]
        teacher_counts = data["teacher_0_token_mask"].bool()
        spans = self.aligner.ids(
            ids.cpu(),
            data["teacher_0_input_ids"].cpu(),
            student_mask=(torch.arange(ids.shape[1]) < data["input_lengths"].cpu()[:, None]),
            # The teacher's length is not handed on: behind the last token that counts there is nothing to compare.
            teacher_mask=teacher_counts.cpu().flip(1).cummax(1).values.flip(1),
            student_loss_mask=counts.cpu(),
            teacher_loss_mask=teacher_counts.cpu(),
        )
        out = self.loss.to(logits.device)(
            logits,
            teacher_full_logits_by_idx[0],
            spans,
            labels=ids.masked_fill(~counts, -100),
            num_chunks_in_batch=global_valid_toks,
            num_items_in_batch=global_valid_toks,
        )
        metrics = {"loss": out.loss.item(), "kl_loss": out.kd.item(), "ce_loss": out.ce.item()}
        return out.loss, {**metrics, "num_valid_samples": len(ids)}
