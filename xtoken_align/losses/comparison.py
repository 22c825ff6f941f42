"""Level one of most losses: both sides' predictions grouped into common outcomes and compared, block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .divergence import divergence
from .grouping import VOID, Grouping, log_masses, log_outside, scores_gradient
from .merging import Owners, having_mass, mean_rows, rows_gradient


@dataclass(frozen=True, eq=False)
class Links:
    """Weighted links from tokens to groups, for projections that are no partition.

    Attributes:
        token: int64 (L,), the student token of each link.
        log_weight: floats (L,), float64 unless they are learnt.
    """

    token: torch.Tensor
    log_weight: torch.Tensor


@dataclass(frozen=True, eq=False)
class Comparison:
    """How two vocabularies are made comparable.

    Attributes:
        student: groups of the student's tokens, or of `links` where there are any.
        teacher: groups of the teacher's tokens; as many as the student's.
        links: weighted links, None where every token has weight 1 in its group.
        weigh_by_kept: multiply a chunk's value by the teacher's mass that has a group.
    """

    student: Grouping
    teacher: Grouping
    links: Links | None
    weigh_by_kept: bool


@dataclass(frozen=True, eq=False)
class Block:
    """Values and gradients of some chunks.

    Attributes:
        value: floats (c,).
        gradient: floats (r, V_s), of the student's logits; None unless asked for.
        link_gradient: floats (L,), of the links' log weights; None unless asked for.
        agrees: bool (c,).
        dropped: floats (c,), the teacher's mass that was not compared.
        empty: floats (c,), the student's mass on tokens in no group.
        compared: bool (c,).
    """

    value: torch.Tensor
    gradient: torch.Tensor | None
    link_gradient: torch.Tensor | None
    agrees: torch.Tensor
    dropped: torch.Tensor
    empty: torch.Tensor
    compared: torch.Tensor


def compare(
    student: torch.Tensor,
    teacher: torch.Tensor,
    comparison: Comparison,
    *,
    temperature: float,
    top_k: int | None = None,
    student_owners: Owners | None = None,
    teacher_owners: Owners | None = None,
    log_rest: torch.Tensor | None = None,
    coefficient: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> Block:
    """Compares the rows of a block.

    Args:
        student: floats (r_s, V_s), logits; not changed.
        teacher: floats (r_t, V_t), logits; of a cached teacher log-probabilities, -inf where unknown.
        comparison: the groups.
        temperature: T.
        top_k: see `divergence`.
        student_owners: the chunk of each row, where chunks have several.
        teacher_owners: the teacher's.
        log_rest: floats (r_t,), a cached teacher's mass on the unknown tokens.
        coefficient: floats (c,), what each chunk's value is multiplied by in the loss; the gradient is made where this
            is given.
        out: floats (r_s, V_s), where to put the gradient.
    """
    scores = student
    if comparison.links is not None:
        scores = student.index_select(1, comparison.links.token) + comparison.links.log_weight.to(student.dtype)
    masses = log_masses(scores, comparison.student)
    log_student_rows = _normalised(masses)
    defined = having_mass(log_student_rows, student_owners)
    log_student = mean_rows(log_student_rows, defined)
    log_teacher, kept, rest = _teacher(teacher, comparison, teacher_owners, log_rest)
    factor = kept if comparison.weigh_by_kept else torch.ones_like(kept)
    direct = out if student_owners is None and comparison.student.head is None and comparison.links is None else None
    found = divergence(
        log_teacher,
        log_student,
        temperature=temperature,
        top_k=top_k,
        log_rest=rest,
        weight=None if coefficient is None else coefficient * factor,
        out=direct,
    )
    gradient = link_gradient = None
    if found.gradient is not None:
        grouped = rows_gradient(found.gradient, log_student_rows, log_student, defined)
        shared = masses.index_select(1, comparison.student.shared)
        gradient = scores_gradient(grouped, scores, shared, comparison.student)
        if comparison.links is not None:
            link_gradient = gradient.sum(dim=0)
            token = comparison.links.token.expand(gradient.shape)
            gradient = torch.zeros_like(student).scatter_add_(1, token, gradient)
        if out is not None and gradient is not out:
            gradient = out.copy_(gradient)
    empty = _mass_outside(student, masses, log_student_rows, comparison, student_owners)
    dropped = 1 - kept * (1 - found.dropped)
    return Block(found.value * factor, gradient, link_gradient, found.agrees, dropped, empty, found.compared)


def _normalised(masses: torch.Tensor) -> torch.Tensor:
    """log_softmax; a row without any mass is at -inf."""
    rows = masses.log_softmax(dim=1)
    if not masses.shape[1]:
        return rows
    undefined = masses.amax(dim=1, keepdim=True) < VOID / 2
    if rows.device.type == "cpu" and not bool(undefined.any()):
        return rows
    return rows.masked_fill_(undefined, -math.inf)


def _teacher(
    logits: torch.Tensor, comparison: Comparison, owners: Owners | None, log_rest: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The chunks' log-probabilities (c, K), their mass (c,) before it was normalised, and the rest's part of it."""
    grouping = comparison.teacher
    masses = log_masses(logits, grouping)
    if log_rest is not None:
        masses = torch.cat([masses, log_rest.to(masses.dtype).unsqueeze(1)], dim=1)
    outside = log_outside(logits, grouping)
    rows = _normalised(masses)
    kept = torch.ones(len(rows), dtype=rows.dtype, device=rows.device)
    if outside is not None:
        log_kept = -torch.nn.functional.softplus(outside - _total(masses, rows)).nan_to_num_(nan=math.inf)
        kept = log_kept.exp()
        if owners is not None and comparison.weigh_by_kept:
            # A position counts by what of it can be compared.
            rows = rows + log_kept.unsqueeze(1)
    elif owners is not None:
        # A position without a distribution has nothing that could be compared.
        kept = (rows > -math.inf).any(dim=1).to(rows.dtype)
    chunks = mean_rows(rows, owners)
    if owners is not None:
        kept = kept.new_zeros(len(chunks)).index_add_(0, owners.chunk, kept) / owners.size
        chunks = _normalised(chunks)
    if log_rest is None:
        return chunks, kept, None
    return chunks[:, :-1].contiguous(), kept, chunks[:, -1].contiguous()


def _total(masses: torch.Tensor, normalised: torch.Tensor) -> torch.Tensor:
    """(n,), log of the sum of the masses, from what normalising took away from the largest."""
    if not masses.shape[1]:
        return masses.new_full((len(masses),), -math.inf)
    top = normalised.amax(dim=1)
    return masses.amax(dim=1) - top.clamp_min(torch.finfo(top.dtype).min)


def _mass_outside(
    student: torch.Tensor, masses: torch.Tensor, rows: torch.Tensor, comparison: Comparison, owners: Owners | None
) -> torch.Tensor:
    """(c,), the student's mass on tokens outside of every group, averaged over a chunk's rows."""
    outside = log_outside(student, comparison.student)
    if outside is None:
        return student.new_zeros(len(student) if owners is None else len(owners.size))
    share = torch.sigmoid(outside - _total(masses, rows)).nan_to_num_(nan=0.0)
    if owners is None:
        return share
    return share.new_zeros(len(owners.size)).index_add_(0, owners.chunk, share) / owners.size
