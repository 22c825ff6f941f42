"""The slow twin of `XTokenLoss`: every default loss as plain loops over chunks, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import OptionError
from ...mapping.mapping import Mapping
from ...spans.spans import Spans
from .. import options as checks
from ..forms import TopK
from .alm import ALM
from .batch import Batch, Chunk, chunks_of
from .c_kl import CKL
from .h_kl import HKL
from .numbers import zero
from .options import Kind, Merge, SlowOptions
from .p_kl import PKL
from .partition_kl import PartitionKL
from .uld import ULD
from .value import Value


@dataclass(frozen=True, eq=False)
class SlowOutput:
    """A slow loss and its parts.

    Attributes:
        loss: float64 scalar, kd_weight * kd + ce_weight * ce, with the student's graph.
        kd: float64 scalar with a graph, sum of weight * value over the chunks, divided by their number.
        ce: float64 scalar with a graph; 0 without labels.
        chunk_kd: float64 (N,) with a graph, each chunk's value, 0 for a misfit.
        misfits: bool (N,), chunks whose first tokens lie in different bins.
        kept: float64 (N,), the share of the teacher's probability that has a place in the common space.
    """

    loss: Tensor
    kd: Tensor
    ce: Tensor
    chunk_kd: Tensor
    misfits: Tensor
    kept: Tensor


def slow_loss(
    mapping: Mapping,
    student_logits: Tensor,
    teacher_logits: Tensor | TopK,
    spans: Spans,
    *,
    kind: Kind,
    temperature: float = 1.0,
    merge: Merge = "first",
    top_k: int | None = None,
    unreached: str = "reroute",
    normalize: str = "rest",
    threshold: float = 0.6,
    uncommon_top_k: int = 8192,
    labels: Tensor | None = None,
    kd_weight: float = 1.0,
    ce_weight: float = 1.0,
    num_chunks_in_batch: float | None = None,
    num_items_in_batch: float | None = None,
    link_weights: Tensor | None = None,
) -> SlowOutput:
    """A loss from its definition, differentiable by ordinary autograd.

    kd = sum_c weight_c * value_c / chunks, ce = sum_i -log softmax(z_i)[label_(i+1)] / labels

    Args:
        mapping: what stands for what.
        student_logits: floats (B, T_s, V_s).
        teacher_logits: floats (B, T_t, V_t), or the teacher's best tokens; no gradient goes there.
        spans: the batch's chunks.
        kind: the loss.
        temperature: T.
        merge: which of a chunk's positions are read: its first, or the mean of all.
        top_k: P-KL: the teacher's best columns of each chunk, the others closed by a rest.
        unreached: P-KL: whether a teacher token that no row reaches goes to the column of its first piece's first
            piece, or is dropped (`drop`).
        normalize: H-KL, GOLD: a rest makes the common part a KL, or the paper's form (`none`).
        threshold: H-KL: the least weight of a pair.
        uncommon_top_k: H-KL, GOLD: the most ranks of the uncommon tokens that are compared.
        labels: integers (B, T_s), -100 where there is none; the logits at i predict the label at i + 1.
        kd_weight: factor of the distillation loss.
        ce_weight: factor of the cross-entropy.
        num_chunks_in_batch: what to divide by in place of this batch's number of chunks.
        num_items_in_batch: what to divide by in place of this batch's number of labels.
        link_weights: P-KL with `merge="mean"`: floats (links of W,) in place of its weights.

    Returns:
        The loss and its parts.

    Raises:
        OptionError: an option has a value, or the logits have a shape, that the loss cannot use.

    >>> from tokenizers import Tokenizer
    >>> from tokenizers.models import WordLevel
    >>> from xtoken_align import align_ids, build, read_vocab
    >>> student = read_vocab(Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")))
    >>> teacher = read_vocab(Tokenizer(WordLevel({"b": 0, "a": 1, "?": 2}, unk_token="?")))
    >>> mapping = build(student=student, teacher=teacher)
    >>> spans = align_ids([[0, 1]], [[1, 0]], student=student, teacher=teacher)
    >>> z_student = torch.tensor([[[1.0, 2.0, -torch.inf], [0.0, 0.0, 0.0]]])
    >>> z_teacher = torch.tensor([[[2.0, 1.0, -torch.inf], [0.0, 0.0, 0.0]]])
    >>> slow_loss(mapping, z_student, z_teacher, spans, kind="partition-kl").loss.item()
    0.0
    """
    options = SlowOptions(
        kind=kind,
        temperature=temperature,
        merge=merge,
        top_k=top_k,
        unreached=unreached,
        normalize=normalize,
        threshold=threshold,
        uncommon_top_k=uncommon_top_k,
    )
    _check_shapes(mapping, student_logits, teacher_logits, spans)
    batch, chunks, value_of = (
        Batch.of(mapping, student_logits, teacher_logits),
        chunks_of(spans),
        _family(mapping, options, link_weights),
    )
    values = [value_of(batch, chunk) for chunk in chunks]
    total = sum((chunk.weight * value.kd for chunk, value in zip(chunks, values, strict=True)), zero())
    divisor = len(chunks) if num_chunks_in_batch is None else num_chunks_in_batch
    kd = total / max(divisor, 1) + _nothing(batch.student_logits)
    ce = zero() if labels is None else cross_entropy(student_logits, labels, num_items_in_batch)
    return SlowOutput(
        loss=kd_weight * kd + ce_weight * ce,
        kd=kd,
        ce=ce,
        chunk_kd=torch.stack([value.kd for value in values]) if values else torch.zeros(0, dtype=torch.float64),
        misfits=torch.tensor([value.misfit for value in values], dtype=torch.bool),
        kept=torch.tensor([value.kept for value in values], dtype=torch.float64),
    )


def cross_entropy(logits: Tensor, labels: Tensor, count: float | None) -> Tensor:
    """The mean of -log softmax(z_i)[label_(i+1)] over the labels that are not -100, over the whole logit width.

    Args:
        logits: floats (B, T, V).
        labels: integers (B, T).
        count: what to divide by in place of the number of labels.
    """
    total, number = zero(), 0
    for row, marks in zip(logits.double(), labels.tolist(), strict=True):
        for position, label in enumerate(marks[1:]):
            if label != -100:
                total = total - torch.log_softmax(row[position], 0)[label]
                number += 1
    return total / max(number if count is None else count, 1)


def _family(mapping: Mapping, options: SlowOptions, link_weights: Tensor | None) -> Callable[[Batch, Chunk], Value]:
    if options.kind == "p-kl":
        return PKL(mapping, options, link_weights)
    if link_weights is not None:
        raise OptionError(f"link_weights are for p-kl, which alone reads W, but kind is {options.kind!r}")
    if options.kind == "partition-kl":
        return PartitionKL(mapping, options)
    if options.kind == "c-kl":
        return CKL(mapping, options)
    if options.kind in {"h-kl", "gold"}:
        return HKL(mapping, options)
    return ULD(mapping, options) if options.kind == "uld" else ALM(mapping, options)


def _nothing(logits: Tensor) -> Tensor:
    """0 with the student's graph, so that a batch without a chunk can be differentiated."""
    return 0 * torch.where(logits.isfinite(), logits, 0.0).sum()


def _check_shapes(mapping: Mapping, student: Tensor, teacher: Tensor | TopK, spans: Spans) -> None:
    widths = mapping.matrix.shape
    checks.same_shape("student_logits", student, (*spans.student.shape, widths[0]), "(B, T_s, V_s)")
    if isinstance(teacher, Tensor):
        checks.same_shape("teacher_logits", teacher, (*spans.teacher.shape, widths[1]), "(B, T_t, V_t)")
    else:
        checks.same_shape("the ids of a TopK", teacher.ids[..., 0], spans.teacher.shape, "(B, T_t, K)")
