"""Random batches for the compatibility forms: odd shapes, gaps, masks, samples and chunks with nothing in them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from hypothesis import strategies as st


@dataclass
class Batch:
    """What the forms on chunk ids take."""

    student: torch.Tensor
    teacher: torch.Tensor
    student_ids: torch.Tensor
    teacher_ids: torch.Tensor
    student_chunks: torch.Tensor
    teacher_chunks: torch.Tensor
    pair_valid: torch.Tensor
    pair_is_correct: torch.Tensor
    sample_mask: torch.Tensor
    token_mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    weights: torch.Tensor


@dataclass
class Answers:
    """What TRL's forms take."""

    student: torch.Tensor
    teacher: torch.Tensor
    student_ids: torch.Tensor
    teacher_ids: torch.Tensor
    student_labels: torch.Tensor
    teacher_labels: torch.Tensor
    student_byte_offsets: torch.Tensor
    teacher_byte_offsets: torch.Tensor
    matched: torch.Tensor | None


def integers(draw: st.DrawFn, low: int, high: int, *shape: int) -> torch.Tensor:
    if 0 in shape:
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) == 1:
        return torch.tensor(draw(st.lists(st.integers(low, high), min_size=shape[0], max_size=shape[0])))
    return torch.stack([integers(draw, low, high, *shape[1:]) for _ in range(shape[0])])


def logits(draw: st.DrawFn, *shape: int) -> torch.Tensor:
    """Normal numbers: with ties a sort's and a maximum's slopes have no one value."""
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    return 2 * torch.randn(*shape, generator=source, dtype=torch.float64)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    samples, slots = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    student_length, teacher_length = (draw(st.sampled_from([5, 6, 7, 4, 3, 2, 1])) for _ in range(2))
    student_width, teacher_width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    cells = st.sampled_from([(i, j) for i in range(student_width) for j in range(teacher_width)])
    links = draw(st.lists(cells, max_size=10, unique=True))
    weights = draw(st.lists(st.sampled_from([0.3, 0.6, 0.7, 1.0]), min_size=len(links), max_size=len(links)))
    return Batch(
        student=logits(draw, samples, student_length, student_width).requires_grad_(),
        teacher=logits(draw, samples, teacher_length, teacher_width),
        student_ids=integers(draw, 0, student_width - 1, samples, student_length),
        teacher_ids=integers(draw, 0, teacher_width - 1, samples, teacher_length),
        student_chunks=integers(draw, -1, slots - 1, samples, student_length).sort(dim=1).values,
        teacher_chunks=integers(draw, -1, slots - 1, samples, teacher_length).sort(dim=1).values,
        pair_valid=integers(draw, 0, 5, samples, slots) < 5,
        pair_is_correct=integers(draw, 0, 1, samples, slots) < 1,
        sample_mask=integers(draw, 0, 5, samples) < 5,
        token_mask=integers(draw, 0, 2, samples, student_length) < 2,
        rows=torch.tensor([i for i, _ in links], dtype=torch.int64),
        columns=torch.tensor([j for _, j in links], dtype=torch.int64),
        weights=torch.tensor(weights, dtype=torch.float64),
    )


def _side(draw: st.DrawFn, samples: int, length: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels and byte offsets; answers may be empty, begin at 0, or have a gap."""
    ids = integers(draw, 0, width - 1, samples, length)
    labels = torch.where(integers(draw, 0, 3, samples, length) < 3, ids, -100)
    begins = integers(draw, 0, length, samples)
    labels = torch.where(torch.arange(length) >= begins.unsqueeze(1), labels, -100)
    ends = [list(accumulate(row)) for row in integers(draw, 0, 3, samples, length).tolist()]
    offsets = torch.tensor([[[0, end] for end in row] for row in ends])
    return ids, labels, offsets


@st.composite
def answers(draw: st.DrawFn) -> Answers:
    samples, student_length, teacher_length = (draw(st.integers(1, high)) for high in (3, 6, 6))
    student_width, teacher_width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    both = min(student_width, teacher_width)
    count = draw(st.integers(0, both))
    ours = draw(st.permutations(range(student_width)))[:count]
    theirs = draw(st.permutations(range(teacher_width)))[:count]
    pairs = torch.tensor(list(zip(ours, theirs, strict=True)), dtype=torch.int64).reshape(-1, 2)
    student = _side(draw, samples, student_length, student_width)
    teacher = _side(draw, samples, teacher_length, teacher_width)
    return Answers(
        logits(draw, samples, student_length, student_width).requires_grad_(),
        logits(draw, samples, teacher_length, teacher_width),
        *(student[0], teacher[0], student[1], teacher[1], student[2], teacher[2]),
        matched=pairs if draw(st.booleans()) else None,
    )
