"""The projection of P-KL: student tokens onto teacher columns, and where unreached columns go."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .bins import MASKED
from .comparison import Comparison, Links
from .grouping import in_place, make_grouping


@dataclass(frozen=True, eq=False)
class Projection:
    """W as links, with the teacher's tokens outside of its columns.

    Attributes:
        rows: integers (links,), student ids.
        columns: integers (links,), teacher ids.
        weights: floats (links,), above 0; those of a row sum to 1.
        target: integers (V_t,): for a column that no link reaches the column to which the teacher's mass there moves;
            -1 where it is dropped, -2 for tokens without a probability. Reached columns keep theirs.
        student_live: bool (V_s,), False for the student's tokens without a probability.
        weighted: whether a student token may have several links; else each row's only link has weight 1.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    weights: torch.Tensor
    target: torch.Tensor
    student_live: torch.Tensor
    weighted: bool

    def resolved(self) -> Comparison:
        """The groups: one for each column that is reached."""
        rows, columns, target = self.rows.long(), self.columns.long(), self.target.long()
        usable = (target[columns] != MASKED) & self.student_live[rows]
        rows, columns = rows[usable], columns[usable]
        reached = torch.zeros(len(target), dtype=torch.bool, device=target.device)
        reached[columns] = True
        number = torch.where(reached, reached.cumsum(0) - 1, -1)
        count = int(reached.sum())
        moved = torch.where(target >= 0, number[target.clamp_min(0)], -1)
        teacher = torch.where(reached, number, moved)
        group = torch.full((len(self.student_live),), -1, dtype=torch.int64, device=rows.device)
        group[rows] = number[columns]
        empty = self.student_live & (group < 0)
        if not self.weighted or (bool((torch.bincount(rows) <= 1).all()) and bool((self.weights[usable] == 1).all())):
            group, teacher, count = in_place(group, teacher, count)
            teacher_grouping = make_grouping(teacher, count, target != MASKED)
            return Comparison(make_grouping(group, count, empty), teacher_grouping, None, weigh_by_kept=True)
        teacher_grouping = make_grouping(teacher, count, target != MASKED)
        links = make_grouping(number[columns], count)
        # `outside` counts tokens, all else of this grouping counts links.
        student = type(links)(**{**vars(links), "outside": empty.nonzero().squeeze(1)})
        return Comparison(
            student, teacher_grouping, Links(rows, self.weights[usable].double().log()), weigh_by_kept=True
        )
