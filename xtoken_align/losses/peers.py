"""The peers' forms of the losses on this library's batches, for reproducing their numbers."""

from __future__ import annotations

import torch

from ..errors import OptionError
from ..mapping.mapping import Mapping
from ..spans.spans import Spans
from .compat.nemo_pairs import find_pairs
from .compat.nemo_rl import gold, p_kl
from .compat.nemo_total import total
from .compat.tokenkit_alm import alm
from .compat.trl_groups import Groups, Runs
from .compat.trl_uld import uld_on_groups
from .forms import Logits, Student, Teacher
from .options import LossOptions
from .outputs import LossOutput


def peer_loss(
    mapping: Mapping,
    options: LossOptions,
    student: Student,
    teacher: Teacher,
    spans: Spans,
    labels: torch.Tensor | None,
) -> LossOutput:
    """A peer's loss, its sum with the cross-entropy as NeMo-RL makes it: counts are those of the call.

    Raises:
        OptionError: a side is not logits.
    """
    sides = [_logits(side, name) for side, name in ((student, "student"), (teacher, "teacher"))]
    spans = spans.to(sides[0].device)
    kd = {"nemo-rl": _nemo_rl, "trl": _trl, "tokenkit": _tokenkit}[options.compat or ""](
        mapping, options, sides[0], sides[1], spans
    )
    if labels is None:
        return LossOutput(options.kd_weight * kd, kd.detach(), torch.zeros_like(kd.detach()))
    out = total(
        kd,
        sides[0],
        labels.clamp_min(0),
        token_mask=labels >= 0,
        kl_loss_weight=options.kd_weight,
        ce_loss_scale=options.ce_weight,
        dynamic_loss_scaling=options.scale == "dynamic",
    )
    one = torch.ones_like(out.kd)
    metrics = {"kd": (out.kd, one), "ce": (out.ce, one), "scale": (out.kl_scale, one)}
    return LossOutput(out.loss, out.kd, out.ce, metrics)


def _logits(side: Student | Teacher, name: str) -> torch.Tensor:
    logits = side.logits if isinstance(side, Logits) else side
    if not isinstance(logits, torch.Tensor):
        raise OptionError(f"the peers' forms read logits, but the {name} is a {type(side).__name__}")
    return logits


def _nemo_rl(
    mapping: Mapping, options: LossOptions, student: torch.Tensor, teacher: torch.Tensor, spans: Spans
) -> torch.Tensor:
    links = [
        torch.from_numpy(array).to(student.device)
        for array in (mapping.matrix.rows, mapping.matrix.indices, mapping.matrix.data)
    ]
    chunks = (spans.student, spans.teacher)
    valid = spans.weight > 0
    if options.kind == "p-kl":
        return p_kl(
            student,
            teacher,
            *chunks,
            rows=links[0],
            columns=links[1],
            weights=links[2],
            pair_valid=valid,
            temperature=options.temperature,
            vocab_topk=8192 if options.top_k is None else options.top_k,
        ).loss
    pairs = find_pairs(links[0], links[1], links[2], mapping.matrix.shape, xtoken_loss=options.kind == "h-kl")
    return gold(
        student,
        teacher,
        *chunks,
        pairs=pairs,
        pair_valid=valid,
        temperature=options.temperature,
        uncommon_topk=options.uncommon_top_k,
    ).loss


def _trl(
    mapping: Mapping, options: LossOptions, student: torch.Tensor, teacher: torch.Tensor, spans: Spans
) -> torch.Tensor:
    """Groups are the chunks; matched tokens those with equal surfaces."""
    found = spans.predictions()
    matched = None
    if options.kind == "gold":
        links = [
            torch.from_numpy(array) for array in (mapping.matrix.rows, mapping.matrix.indices, mapping.matrix.data)
        ]
        matched = find_pairs(links[0], links[1], links[2], mapping.matrix.shape).common.to(student.device)
    return uld_on_groups(
        student,
        teacher,
        Groups(
            sample=found.student[found.student_offsets[:-1]] // student.shape[1],
            student=Runs(tokens=found.student + 1, starts=found.student_offsets),
            teacher=Runs(tokens=found.teacher + 1, starts=found.teacher_offsets),
        ),
        student_ids=spans.student_ids,
        teacher_ids=spans.teacher_ids,
        matched=matched,
        merge="bayesian" if options.merge == "mean" else "observed",
        student_temperature=options.temperature,
        teacher_temperature=options.temperature,
    ).loss


def _tokenkit(
    mapping: Mapping, options: LossOptions, student: torch.Tensor, teacher: torch.Tensor, spans: Spans
) -> torch.Tensor:
    del mapping, options
    return alm(
        student,
        teacher,
        spans.student,
        spans.teacher,
        student_ids=spans.student_ids,
        teacher_ids=spans.teacher_ids,
        pair_valid=spans.weight > 0,
    ).loss
