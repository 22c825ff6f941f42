"""What a call of a loss is refused for, in one sentence each, before anything is planned: the wrong object, tokenizer,
shape, type, device or number.

Checks cost little: arrays of positions are looked at where they are planned, on the host. What lies on a GPU is judged
by its type and shape, since its numbers would have to be waited for; ids and labels are fetched by the loss anyway.
"""

from __future__ import annotations

import os
from collections.abc import Mapping as Table
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import MismatchError, OptionError
from ..mapping.mapping import Mapping
from ..spans.spans import IGNORED, Spans
from .inputs import Hidden, Logits, Student, Teacher, TopK
from .options import check_integers, check_shape, shown

Ids = NDArray[np.int64]


def check_mapping(mapping: object) -> None:
    """Refuses what is no `Mapping`."""
    if not isinstance(mapping, Mapping):
        hint = "; load it first: xtoken_align.load(...)" if isinstance(mapping, (str, os.PathLike)) else ""
        raise OptionError(
            f"mapping must be a Mapping, as `build`, `load` and `get_or_build` give, but it is {shown(mapping)}{hint}"
        )


def check_sides(student: Student, teacher: Teacher, mapping: Mapping, device: torch.device | None) -> None:
    """Refuses a student or a teacher that is nothing to compare, of another width, or elsewhere.

    Args:
        student: what the student hands in.
        teacher: what the teacher hands in.
        mapping: of the loss.
        device: where the loss has its tables; None where it has none.

    Raises:
        OptionError: a side is of no form that losses read, or has another width, type or device.
    """
    if isinstance(student, TopK):
        raise OptionError(
            "the student must be logits or Hidden, since its whole distribution is trained, but it is a TopK; a TopK "
            "is what a teacher may hand in"
        )
    scores = scores_of("the student", student), scores_of("the teacher", teacher)
    widths = tuple(_width(side) for side in (student, teacher))
    for name, width, expected in zip(("student", "teacher"), widths, mapping.matrix.shape, strict=True):
        if width != expected:
            exchanged = widths == mapping.matrix.shape[::-1]
            raise OptionError(
                f"the {name}'s logits must have the mapping's width of {expected}, but they have {width}: "
                + (
                    "student and teacher are exchanged"
                    if exchanged
                    else "the mapping is of another tokenizer or another size of the model's head"
                )
            )
    here, there = (one.device for one in scores)
    if here != there:
        raise OptionError(f"student and teacher must be on one device, but they are on {here} and {there}")
    if device is not None and device != here:
        raise OptionError(
            f"the loss is on {device}, but what the student hands in is on {here}: move it there once, "
            f"loss_fn.to({str(here)!r})"
        )


def scores_of(name: str, side: object) -> torch.Tensor:
    """The tensor (B, T, ...) that a side is made of.

    Args:
        name: of the side.
        side: what it hands in.

    Raises:
        OptionError: it is of no form that losses read.
    """
    if isinstance(side, TopK):
        return side.ids
    if isinstance(side, Hidden):
        return side.states
    logits = side.logits if isinstance(side, Logits) else side
    if not isinstance(logits, torch.Tensor):
        raise OptionError(
            f"{name} must be a tensor of logits (B, T, V), Hidden{' or TopK' if 'teacher' in name else ''}, but it "
            f"is {shown(side)}{_advice(side)}"
        )
    if not logits.is_floating_point():
        raise OptionError(f"{name}'s logits must be floats, but they are {shown(logits)}")
    if logits.dim() != 3:
        raise OptionError(f"{name}'s logits must have shape (B, T, V), but they have shape {tuple(logits.shape)}")
    return logits


def _width(side: Student | Teacher) -> int:
    if isinstance(side, TopK):
        return side.width
    if isinstance(side, Hidden):
        return len(side.weight)
    return int((side.logits if isinstance(side, Logits) else side).shape[-1])


def _advice(side: object) -> str:
    """What to do with an object that is in the place of logits."""
    advice = (
        (isinstance(side, torch.nn.Module), "call the model and pass the `.logits` that it gives"),
        (hasattr(side, "logits"), "pass its `.logits`"),
        (isinstance(side, Table) and "logits" in side, 'pass its `["logits"]`'),
        (isinstance(side, np.ndarray), "make a tensor of it with torch.from_numpy"),
        (
            isinstance(side, (list, tuple)),
            "a model's tuple has the logits first; several teachers need MultiTeacherLoss",
        ),
        (isinstance(side, Spans), "the order is student, teacher, spans"),
        (isinstance(side, (str, os.PathLike)), "pass what the model gives, not where it is stored"),
    )
    return next((f"; {sentence}" for applies, sentence in advice if applies), "")


def check_spans(spans: Spans, student: Student, teacher: Teacher, mapping: Mapping) -> Spans:
    """Refuses spans that are none, of other tokenizers, of another batch, or that contradict themselves.

    Args:
        spans: of the call.
        student: what the student hands in.
        teacher: what the teacher hands in.
        mapping: of the loss.

    Returns:
        The spans as numpy arrays.

    Raises:
        OptionError: they are no spans, do not fit the sides' positions, or hold impossible numbers.
        MismatchError: they were made with other tokenizers than the mapping.
    """
    if not isinstance(spans, Spans):
        hint = ""
        if isinstance(spans, Table) and "spans" in spans:
            hint = '; pass its `["spans"]`'
        elif hasattr(spans, "spans"):
            hint = "; pass its `.spans`"
        elif isinstance(spans, (list, tuple)):
            hint = "; several teachers need MultiTeacherLoss"
        raise OptionError(
            f"spans must be Spans, as SpanCollator and align_texts give, but they are {shown(spans)}{hint}"
        )
    check_tokenizers(spans, mapping)
    host = spans.numpy()
    for name, side in (("student", student), ("teacher", teacher)):
        chunk, ids = getattr(host, name), getattr(host, f"{name}_ids")
        check_shape(f"{name}_ids of the spans", ids, chunk.shape, "that of their chunks")
        check_positions(f"the {name}", side, chunk.shape)
        width = mapping.matrix.shape[0 if name == "student" else 1]
        if ids.size and not 0 <= ids.min() <= ids.max() < width:
            raise OptionError(
                f"the spans' {name} ids must lie between 0 and {width - 1}, one less than the mapping's width, but "
                f"they run from {ids.min()} to {ids.max()}: the spans are of another tokenizer"
            )
        if chunk.size and not (chunk < host.count[:, None]).all():
            raise OptionError(f"the spans' {name} tokens must be in chunks below the row's count, but one is not")
    if not (np.isfinite(host.weight) & (host.weight >= 0)).all():
        worst = host.weight[~(np.isfinite(host.weight) & (host.weight >= 0))][0]
        raise OptionError(f"the weights of chunks must be finite numbers of at least 0, but one is {worst}")
    return host


def check_positions(name: str, side: Student | Teacher, expected: Sequence[int]) -> None:
    """Refuses a side of another batch size or length than the spans': its rows would be read at wrong places.

    Args:
        name: of the side.
        side: what it hands in.
        expected: B and T of the spans.

    Raises:
        OptionError: it is of no form that losses read, or the positions are others.
    """
    positions = tuple(scores_of(name, side).shape[:2])
    if positions != tuple(expected):
        raise OptionError(
            f"{name} must have the spans' positions (B, T) = {tuple(expected)}, but has {positions}; give every "
            "position of the sequences that were aligned, padding included"
        )


def check_tokenizers(spans: Spans, mapping: Mapping) -> None:
    """Refuses spans of other tokenizers than the mapping's, where they say whose they are.

    Raises:
        MismatchError: the tokenizers are others; names both, and says where student and teacher are exchanged.
    """
    if spans.tokenizers is None:
        return
    aligned = [identity.rpartition("@") for identity in spans.tokenizers]
    sides = mapping.student, mapping.teacher
    if any(side.parts is None for side in sides):
        # A mapping of version 0.2 has fingerprints of another form than spans have today.
        return
    noted, mapped = [fingerprint for _, _, fingerprint in aligned], [side.fingerprint for side in sides]
    if noted == mapped:
        return
    if noted == mapped[::-1]:
        raise MismatchError(
            f"the mapping is from {sides[0].name} as student to {sides[1].name} as teacher, but in the spans student "
            "and teacher are exchanged: build the mapping, or align the texts, the other way round"
        )
    different = [
        f"the {name} of the spans is {own} ({fingerprint[:12]}), that of the mapping {side.name} "
        f"({side.fingerprint[:12]})"
        for name, (own, _, fingerprint), side in zip(("student", "teacher"), aligned, sides, strict=True)
        if fingerprint != side.fingerprint
    ]
    raise MismatchError(
        f"the mapping is of other tokenizers than the spans: {' and '.join(different)}; build or load the mapping of "
        "those that the texts were aligned with"
    )


def check_ids(name: str, ids: torch.Tensor | None, spans: Spans) -> None:
    """Refuses ids that a model read where they are not those that were aligned.

    Args:
        name: "student" or "teacher".
        ids: integers (B, T), or None.
        spans: numpy arrays.

    Raises:
        OptionError: they are no integers, have another shape, or are other ids at some token.
    """
    if ids is None:
        return
    own, mask = getattr(spans, f"{name}_ids"), getattr(spans, f"{name}_mask")
    check_integers(f"{name}_ids", ids)
    check_shape(f"{name}_ids", ids, own.shape, "that of the spans")
    differs = (ids.numpy(force=True) != own) & mask
    if differs.any():
        row, at = (int(place[0]) for place in differs.nonzero())
        raise OptionError(
            f"{name}_ids must be the ids that were aligned, but at {differs.sum()} of {mask.sum()} tokens they are "
            f"others, first at row {row}, position {at}, id {int(ids[row, at])} where the spans have {own[row, at]}: "
            "the spans are of another batch"
        )


def check_labels(labels: torch.Tensor | None, spans: Spans, width: int, *, read: bool) -> Ids | None:
    """Refuses labels that are not the student's own ids where they stand.

    Args:
        labels: integers (B, T_s), or None.
        spans: numpy arrays.
        width: of the student's logits.
        read: whether the loss reads labels; of those on a GPU that it does not read, only type and shape are checked.

    Returns:
        The labels on the host, None where there are none or none are read.

    Raises:
        OptionError: they are no integers, have another shape, are no ids, are shifted, or are other ids.
    """
    if labels is None:
        return None
    check_integers("labels", labels)
    check_shape("labels", labels, spans.student.shape, "(B, T_s)")
    if not read and labels.device.type != "cpu":
        return None
    host: Ids = labels.numpy(force=True)
    is_label = host != IGNORED
    outside = is_label & ((host < 0) | (host >= width))
    if outside.any():
        raise OptionError(
            f"labels must be ids from 0 to {width - 1}, one less than the width of the student's logits, or {IGNORED} "
            f"where there is none, but one is {host[outside][0]}"
        )
    differs = is_label & ((host != spans.student_ids) | ~spans.student_mask)
    if differs.any():
        raise OptionError(_differing_labels(host, is_label, differs, spans))
    return host if read else None


def _differing_labels(labels: Ids, is_label: NDArray[np.bool_], differs: NDArray[np.bool_], spans: Spans) -> str:
    """Says what is wrong with labels that are not the spans' ids.

    Of the ids 5 6 7 the labels are 5 6 7; labels 6 7 -100 are shifted already.
    """
    ids, mask = spans.student_ids, spans.student_mask
    followed = is_label[:, :-1] & mask[:, 1:]
    if followed.any() and (labels[:, :-1] == ids[:, 1:])[followed].all():
        return (
            "labels must be the student's ids at their own positions, but these are shifted by one already, labels[t] "
            "being the id at t + 1: pass them unshifted, as to transformers' models"
        )
    row, at = (int(place[0]) for place in differs.nonzero())
    there = f"the id {ids[row, at]}" if mask[row, at] else "padding"
    return (
        f"labels must be the student's ids at their own positions, or {IGNORED}, but {differs.sum()} of "
        f"{is_label.sum()} are others, first at row {row}, position {at}, label {labels[row, at]} where the spans have "
        f"{there}: the spans are of another batch, or padding is labelled"
    )


def check_several(name: str, values: object, count: int) -> None:
    """Refuses what is no list with one entry per teacher."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise OptionError(f"{name} must be a list with one entry per teacher, but they are {shown(values)}")
    if len(values) != count:
        raise OptionError(f"expected {count} {name}, one per teacher, got {len(values)}")


def check_losses(losses: Sequence[Any], expected: type) -> None:
    """Refuses losses of several teachers that are no losses, or of several students."""
    if not isinstance(losses, Sequence):
        raise OptionError(f"losses must be a list with one XTokenLoss per teacher, but they are {shown(losses)}")
    if not losses:
        raise OptionError("expected at least one loss, one per teacher, got none")
    for number, loss in enumerate(losses):
        if not isinstance(loss, expected):
            raise OptionError(f"losses must hold one XTokenLoss per teacher, but losses[{number}] is {shown(loss)}")
    # Mappings of version 0.2 have fingerprints of another form, and are compared with each other alone.
    students: dict[str, str] = {}
    for earlier in (True, False):
        sides = [loss.mapping.student for loss in losses if (loss.mapping.student.parts is None) == earlier]
        students = max(students, {side.fingerprint: side.name for side in sides}, key=len)
    if len(students) > 1:
        raise MismatchError(
            f"all teachers need one student, but the mappings are of the students {' and '.join(students.values())}"
        )
