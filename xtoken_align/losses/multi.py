"""Several teachers: a weighted sum of losses, each with its own mapping, and one cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from ..errors import OptionError
from ..spans.spans import Spans
from .checks import check_losses, check_several
from .inputs import Student, Teacher
from .loss import Count, LossOutput, XTokenLoss
from .options import check_weight


class MultiTeacherLoss(torch.nn.Module):
    """sum over teachers m of alpha_m * KD_m + CE.

    KD_m is the mean over that teacher's own chunks. The cross-entropy is that of the first loss, with its weight; the
    others' is not computed. A teacher with the student's own tokenizer is a loss whose mapping is the identity.

    Args:
        losses: one per teacher, with its own mapping, kind and options.
        weights: alpha, one per teacher; 1 divided by their number by default.

    Raises:
        OptionError: no loss, or not as many weights as losses.
        MismatchError: the losses' mappings are of several students.
    """

    def __init__(self, losses: Sequence[XTokenLoss], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        check_losses(losses, XTokenLoss)
        given = [1 / len(losses)] * len(losses) if weights is None else list(weights)
        if len(given) != len(losses):
            raise OptionError(f"expected one weight per teacher, {len(losses)}, got {len(given)}")
        self.losses = torch.nn.ModuleList(losses)
        self.weights = tuple(check_weight(f"weights[{number}]", value) for number, value in enumerate(given))

    def forward(
        self,
        student: Student,
        teachers: Sequence[Teacher],
        spans: Sequence[Spans],
        labels: torch.Tensor | None = None,
        student_ids: torch.Tensor | None = None,
        teacher_ids: Sequence[torch.Tensor | None] | None = None,
        num_chunks_in_batch: Sequence[Count | None] | None = None,
        num_items_in_batch: Count | None = None,
    ) -> LossOutput:
        """One batch; arguments as for `XTokenLoss`, those of the teachers as lists.

        Raises:
            OptionError: not as many teachers, spans or counts as losses.
        """
        count = len(self.losses)
        ids = [None] * count if teacher_ids is None else teacher_ids
        chunks = [None] * count if num_chunks_in_batch is None else num_chunks_in_batch
        for name, given in (
            ("teachers", teachers),
            ("spans", spans),
            ("teacher_ids", ids),
            ("num_chunks_in_batch", chunks),
        ):
            check_several(name, given, count)
        cast("XTokenLoss", self.losses[0]).check_labels_given(labels)
        outputs = [
            loss(
                student,
                teachers[number],
                spans[number],
                labels=labels if number == 0 else None,
                student_ids=student_ids,
                teacher_ids=ids[number],
                num_chunks_in_batch=chunks[number],
                num_items_in_batch=num_items_in_batch,
                share=self.weights[number],
            )
            for number, loss in enumerate(self.losses)
        ]
        ce = outputs[0].metrics.get("ce")
        for other in self.losses[1:]:
            # The labels went to the first loss alone, but every dynamic scale compares with their cross-entropy.
            if isinstance(other, XTokenLoss) and other.scale is not None and other.training and ce is not None:
                nothing = torch.zeros_like(ce[0])
                other.scale.add((nothing, nothing), ce)
        return self._sum(outputs)

    def _sum(self, outputs: Sequence[LossOutput]) -> LossOutput:
        """One output of those of all teachers."""
        metrics = {
            f"{name}/{number}": value
            for number, out in enumerate(outputs)
            for name, value in out.metrics.items()
            if name != "ce"
        }
        kd = torch.stack([alpha * out.kd for alpha, out in zip(self.weights, outputs, strict=True)]).sum()
        metrics |= {
            "kd": (kd, torch.ones_like(kd)),
            "ce": outputs[0].metrics.get("ce", (outputs[0].ce, torch.ones_like(kd))),
        }
        loss = outputs[0].loss
        for out in outputs[1:]:
            loss = loss + out.loss
        return LossOutput(loss, kd, outputs[0].ce, metrics)

    def step_scale(self) -> None:
        """As `XTokenLoss.step_scale`, for every teacher."""
        for loss in self.losses:
            cast("XTokenLoss", loss).step_scale()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Calls `step_scale` after every step of the optimiser."""
        optimizer.register_step_post_hook(lambda *_: self.step_scale())
