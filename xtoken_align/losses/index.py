"""A plan as tensors on a device."""

from __future__ import annotations

import numpy as np
import torch

from ..spans.units import offsets_of
from .passes import Index, LevelIndex
from .plan import IGNORED, Plan, PlannedLevels


def make_index(plan: Plan, device: torch.device) -> Index:
    """The plan's arrays; what only decides where a block begins stays on the CPU."""
    several = bool((plan.student_size != 1).any() or (plan.teacher_size != 1).any())
    rows = [offsets_of(size)[plan.edges[:, 2]] for size in (plan.student_size, plan.teacher_size)]
    firsts = [
        _first_of_runs(part, plan.edges[:, column])
        for column, part in enumerate((plan.student_rows, plan.teacher_rows))
    ]
    edges = np.concatenate([plan.edges[:, :3], np.stack([*rows, *firsts], axis=1)], axis=1)
    return Index(
        student_rows=_moved(plan.student_rows, device),
        teacher_rows=_moved(plan.teacher_rows, device),
        labels=_moved(plan.labels, device) if (plan.labels != IGNORED).any() else None,
        student_size=_moved(plan.student_size, device) if several else None,
        teacher_size=_moved(plan.teacher_size, device) if several else None,
        levels=tuple(_levels(levels, plan.edges[:, 3 + number], device) for number, levels in enumerate(plan.levels)),
        edges=torch.from_numpy(edges),
    )


def _first_of_runs(rows: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """int64 (blocks + 1,): a block's first row where its rows follow each other, -1 elsewhere or if any row repeats."""
    firsts = np.full(len(edges), -1, dtype=np.int64)
    if len(np.unique(rows)) != len(rows):
        return firsts
    for block, (begin, end) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        if end > begin and (np.diff(rows[begin:end]) == 1).all():
            firsts[block] = rows[begin]
    return firsts


def _levels(planned: PlannedLevels, edges: np.ndarray, device: torch.device) -> LevelIndex:
    outcomes = planned.outcomes
    bounds = np.stack([edges, outcomes.outcome_offsets[edges], outcomes.token_offsets[edges]], axis=1)
    return LevelIndex(
        chunk=_moved(planned.chunk, device),
        restricted_slot=_moved(planned.restricted_slot, device),
        spoken_slot=_moved(planned.spoken_slot, device),
        level=_moved(outcomes.level, device),
        piece=_moved(outcomes.piece, device),
        token=_moved(outcomes.token, device),
        outcome=_moved(outcomes.outcome, device),
        edges=torch.from_numpy(bounds),
    )


def _moved(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)
