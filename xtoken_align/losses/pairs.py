"""Common pairs and two remainders: what H-KL and GOLD compare."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .bins import MASKED, Bins
from .comparison import Comparison
from .whole import Whole


@dataclass(frozen=True, eq=False)
class Pairs:
    """One-to-one pairs of tokens.

    Attributes:
        pairs: integers (M, 2), student and teacher ids; no id twice on one side.
        student_live: bool (V_s,), False for tokens without a probability.
        teacher_live: bool (V_t,).
    """

    pairs: torch.Tensor
    student_live: torch.Tensor
    teacher_live: torch.Tensor

    def resolved(self) -> Comparison:
        """The pairs as bins, all other tokens as the rest bin."""
        sides = []
        for column, live in enumerate((self.student_live, self.teacher_live)):
            bins = torch.where(live, -1, MASKED)
            bins[self.pairs[:, column].long()] = torch.arange(len(self.pairs), device=bins.device)
            sides.append(bins)
        return Bins(*sides).resolved()

    def remainders(self, limit: int, *, with_common: bool) -> Whole:
        """The tokens in no pair, to be compared in sorted order; the pairs too for the paper's form."""
        live, rest, common = [], [], []
        for column, mask in enumerate((self.student_live, self.teacher_live)):
            tokens = mask.nonzero().squeeze(1)
            ids = self.pairs[:, column].long()
            paired = torch.zeros_like(mask)
            paired[ids] = True
            live.append(tokens)
            rest.append((~paired[tokens]).nonzero().squeeze(1))
            common.append((mask.cumsum(0) - 1)[ids])
        return Whole(
            student_live=live[0],
            teacher_live=live[1],
            student_rest=rest[0],
            teacher_rest=rest[1],
            limit=limit,
            student_common=common[0] if with_common else None,
            teacher_common=common[1] if with_common else None,
        )


def everything(student_live: torch.Tensor, teacher_live: torch.Tensor) -> Whole:
    """Whole vocabularies in sorted order, the shorter filled up with zeros: ULD."""
    students, teachers = (live.nonzero().squeeze(1) for live in (student_live, teacher_live))
    places = [torch.arange(len(tokens), device=tokens.device) for tokens in (students, teachers)]
    return Whole(students, teachers, places[0], places[1], None, None, None)
