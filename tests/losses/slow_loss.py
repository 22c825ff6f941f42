"""The slow twins: every loss as loops over chunks, in float64, written from its formula. They define what is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from slow_parts import (
    Batch,
    Chunk,
    LossKind,
    Masses,
    Merge,
    Outcomes,
    SlowOptions,
    TeacherRow,
    Value,
    chunks_of,
    live_ids,
    log_mass,
    log_mean,
    log_sum,
    masses,
    positions,
    sorted_l1,
    stack,
    teacher_masses,
    tempered,
    tempered_kl,
    zero,
)
from torch import Tensor

from xtoken_align.errors import OptionError
from xtoken_align.losses import TopK
from xtoken_align.losses import options as checks
from xtoken_align.mapping.mapping import Mapping
from xtoken_align.matrix import relaxed_common, strict_common
from xtoken_align.spans.spans import Spans


class PartitionKL:
    """KL(bins of p_T || bins of p_S), with a rest bin where both sides have tokens in no bin.

    Args:
        mapping: its bins are the outcomes.
        options: `temperature` and `merge` are read.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions) -> None:
        self.options = options
        self.student_bin, self.teacher_bin = (side.tolist() for side in mapping.bins())
        student, teacher = live_ids(mapping.student), live_ids(mapping.teacher)
        names = sorted({self.student_bin[token] for token in student} & {self.teacher_bin[token] for token in teacher})
        # The number -1 of the tokens in no bin is there if both sides have such tokens: the rest bin.
        self.has_rest = -1 in names
        self.outcomes = Outcomes(
            student=[[token for token in student if self.student_bin[token] == name] for name in names],
            teacher=[[token for token in teacher if self.teacher_bin[token] == name] for name in names],
        )
        self.students = [token for ids in self.outcomes.student for token in ids]
        self.teachers = [token for ids in self.outcomes.teacher for token in ids]

    def is_misfit(self, chunk: Chunk) -> bool:
        """Whether the chunk's first tokens lie in different bins, or one in none that counts."""
        ours, theirs = self.student_bin[chunk.student_tokens[0]], self.teacher_bin[chunk.teacher_tokens[0]]
        return bool(ours != theirs or (ours == -1 and not self.has_rest))

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value."""
        if self.is_misfit(chunk):
            return Value(misfit=True)
        rows = [self._of_bins(batch.teacher(at)) for at in positions(chunk.teacher, self.options.merge)]
        made = masses(
            self.outcomes,
            [row for row, _ in rows],
            [batch.student(at, self.students) for at in positions(chunk.student, self.options.merge)],
        )
        return Value(made.divergence(self.options.temperature), kept=sum(kept for _, kept in rows) / len(rows))

    def _of_bins(self, row: TeacherRow) -> tuple[TeacherRow, float]:
        """A row in which only tokens in bins have a probability, and how much of it they had."""
        total = log_sum([log_mass(row.log_probs, self.teachers), row.log_rest])
        if total == -torch.inf:
            return row, 0.0
        return TeacherRow(row.log_probs - total, row.listed, row.log_rest - total), float(total.exp())


class CKL:
    """Partition-KL at the first position, plus the levels along the pieces.

    At a level the one side is restricted to A(h), its tokens whose decomposition begins with h, and grouped by their
    next piece; the other side says at its own position after h which piece comes next. END is: none of these.

    Args:
        mapping: its bins and both directions' decompositions.
        options: `temperature` is read.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions) -> None:
        self.options = options
        self.level_one = PartitionKL(mapping, options)
        student, teacher = mapping.decompositions("student"), mapping.decompositions("teacher")
        self.student_pieces = {token: student[token] for token in live_ids(mapping.student) if student[token]}
        self.teacher_pieces = {token: teacher[token] for token in live_ids(mapping.teacher) if teacher[token]}

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value: the sum of its levels."""
        first = self.level_one(batch, chunk)
        if first.misfit:
            return first
        total = first.kd
        if len(chunk.student) == 1 and self.student_pieces.get(chunk.student_tokens[0]) == chunk.teacher_tokens:
            restricted = batch.student(chunk.student[0])
            for history, position in levels(chunk.teacher_tokens, chunk.teacher):
                total = total + self._student_restricted(history, restricted, batch.teacher(position))
        if len(chunk.teacher) == 1 and self.teacher_pieces.get(chunk.teacher_tokens[0]) == chunk.student_tokens:
            known = batch.teacher(chunk.teacher[0])
            for history, position in levels(chunk.student_tokens, chunk.student):
                total = total + self._teacher_restricted(history, known, batch.student(position), batch)
        return Value(total, kept=first.kept)

    def _student_restricted(self, history: list[int], student: Tensor, teacher: TeacherRow) -> Tensor:
        """T^2 KL(p_T(next | h), END the rest || p_S on A(h) by next piece, END the tokens equal to h)."""
        children, ends = split(self.student_pieces, history)
        if not children:
            return teacher.log_rest.new_zeros(())
        listed = [child for child in children if child in teacher.listed]
        others = [token for token in teacher.listed if token not in children]
        # What the teacher does not list, children or not, cannot be told from its END.
        ends = ends + [token for child in children if child not in listed for token in children[child]]
        log_teacher = [teacher.log_probs[child] for child in listed]
        log_student = [log_mass(student, children[child]) for child in listed]
        log_teacher.append(log_sum([log_mass(teacher.log_probs, others), teacher.log_rest]))
        log_student.append(log_mass(student, ends))
        return tempered_kl(stack(log_teacher), stack(log_student), self.options.temperature)

    def _teacher_restricted(self, history: list[int], teacher: TeacherRow, student: Tensor, batch: Batch) -> Tensor:
        """T^2 KL(p_T on A_T(h) by next piece, END the tokens equal to h || p_S(next | h), END the rest)."""
        children, ends = split(self.teacher_pieces, history)
        if not children:
            return teacher.log_rest.new_zeros(())
        others = [token for token in batch.student_live if token not in children]
        log_teacher = [log_mass(teacher.log_probs, tokens) for tokens in children.values()]
        log_student = [student[child] for child in children]
        log_teacher.append(log_mass(teacher.log_probs, ends))
        log_student.append(log_mass(student, others))
        return tempered_kl(stack(log_teacher), stack(log_student), self.options.temperature)


def levels(pieces: Sequence[int], predicting: Sequence[int]) -> list[tuple[list[int], int]]:
    """For levels 2 to n + 1 the pieces before, and the position that predicts the next.

    >>> levels([7, 8], [20, 21])
    [([7], 21), ([7, 8], 22)]
    """
    after = [*predicting[1:], predicting[-1] + 1]
    return [(list(pieces[: number + 1]), position) for number, position in enumerate(after)]


def split(table: dict[int, list[int]], history: list[int]) -> tuple[dict[int, list[int]], list[int]]:
    """The tokens whose pieces begin with a history, by their next piece, and those that end there.

    >>> split({1: [5], 2: [5, 6], 3: [5, 6, 7], 4: [6]}, [5])
    ({6: [2, 3]}, [1])
    """
    size = len(history)
    children: dict[int, list[int]] = {}
    ends = []
    for token, pieces in table.items():
        if pieces[:size] == history:
            if len(pieces) == size:
                ends.append(token)
            else:
                children.setdefault(pieces[size], []).append(token)
    return children, ends


class HKL:
    """T^2 KL(p_T || p_S) on common pairs and a rest, plus T^2 * the sorted L1 distance of the uncommon tokens.

    Args:
        mapping: its strict pairs make GOLD, its relaxed ones H-KL.
        options: `kind`, `temperature`, `merge`, `normalize`, `threshold` and `uncommon_top_k` are read.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions) -> None:
        self.options = options
        student, teacher = live_ids(mapping.student), live_ids(mapping.teacher)
        self.pairs = common_pairs(mapping, options)
        self.student_rest = [token for token in student if token not in {pair[0] for pair in self.pairs}]
        self.teacher_rest = [token for token in teacher if token not in {pair[1] for pair in self.pairs}]
        ours, theirs = [[pair[0]] for pair in self.pairs], [[pair[1]] for pair in self.pairs]
        if self.student_rest and self.teacher_rest:
            ours, theirs = [*ours, self.student_rest], [*theirs, self.teacher_rest]
        self.outcomes = Outcomes(student=ours, teacher=theirs)

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value.

        Raises:
            OptionError: the teacher is a `TopK` and T is not 1.
        """
        check_top_k(batch, self.options.temperature)
        teacher = [batch.teacher(at) for at in positions(chunk.teacher, self.options.merge)]
        student = [batch.student(at) for at in positions(chunk.student, self.options.merge)]
        ours = tempered(student, self.options.temperature)
        theirs = self._whole(batch, teacher)
        if not ((ours > -torch.inf).any() and (theirs > -torch.inf).any()):
            return Value(kept=0.0)
        if self.options.normalize == "none":
            part, kept = self.options.temperature**2 * unnormalised_kl(self.pairs, ours, theirs), 1.0
        else:
            made = masses(self.outcomes, teacher, student)
            part, kept = made.divergence(self.options.temperature), made.kept
        listed = frozenset[int]().union(*(row.listed for row in teacher))
        left = [token for token in self.teacher_rest if token in listed]
        ranks = min(len(self.student_rest), len(left), self.options.uncommon_top_k)
        remainder = sorted_l1(ours, self.student_rest, theirs, left, ranks)
        return Value(part + self.options.temperature**2 * remainder, kept=kept)

    def _whole(self, batch: Batch, rows: list[TeacherRow]) -> Tensor:
        log_probs = [row.log_probs for row in rows]
        return tempered(log_probs, self.options.temperature) if batch.knows_all else as_listed(log_probs)


def common_pairs(mapping: Mapping, options: SlowOptions) -> list[tuple[int, int]]:
    """The pairs (student id, teacher id) that are compared by themselves, by student id."""
    column, weight = mapping.matrix.top
    if options.kind == "gold":
        marked = strict_common(mapping.matrix.owner, column)
    else:
        marked = relaxed_common(column, weight, options.threshold)
    return [(row, int(column[row])) for row in np.flatnonzero(marked).tolist()]


def unnormalised_kl(pairs: list[tuple[int, int]], student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over pairs of p_T (log p_T - log p_S); negative where the student has more mass on them than the teacher.

    Args:
        pairs: student and teacher ids. Pairs that the student cannot give are left out.
        student: float64 (V_s,) log-probabilities.
        teacher: float64 (V_t,).

    >>> p, q = torch.tensor([0.3, 0.2, 0.5]).log(), torch.tensor([0.5, 0.4, 0.1]).log()
    >>> round(unnormalised_kl([(0, 0), (1, 1)], q, p).item(), 4)
    -0.2919
    """
    terms = [
        teacher[theirs].exp() * (teacher[theirs] - student[ours])
        for ours, theirs in pairs
        if teacher[theirs] > -torch.inf and student[ours] > -torch.inf
    ]
    return sum(terms, zero())


Link = tuple[int, Tensor]
"""A student token and the logarithm of its weight on a column."""


class PKL:
    """kept * T^2 KL(p_T || W^T p_S) on the reached columns, each tempered and renormalised.

    Args:
        mapping: its W, or its first pieces with weight 1 under `merge="first"`.
        options: `temperature`, `merge`, `unreached` and `top_k` are read.
        link_weights: float (links of W,), in place of the stored weights; with a graph, if wanted.

    Raises:
        OptionError: weights are given for W, but `merge="first"` does not use W.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions, link_weights: Tensor | None = None) -> None:
        if link_weights is not None and options.merge == "first":
            raise OptionError(
                "link_weights take the place of W's weights, which merge='first' does not use: give 'mean'"
            )
        self.options = options
        teacher = live_ids(mapping.teacher)
        linked = set(mapping.matrix.rows.tolist())
        self.rows = [token for token in live_ids(mapping.student) if token in linked]
        first = mapping.first_pieces("student").tolist()
        found = self._first_links(first) if options.merge == "first" else self._links(mapping, link_weights)
        self.columns = sorted(column for column in found if column in set(teacher))
        self.links = [found[column] for column in self.columns]
        self.members: list[list[int]] = [[] for _ in self.columns]
        back = mapping.first_pieces("teacher").tolist()
        for token in teacher:
            column = token
            if token not in self.columns and options.unreached == "reroute":
                column = first[back[token]] if back[token] >= 0 else -1
            if column in self.columns:
                self.members[self.columns.index(column)].append(token)

    def _first_links(self, first: list[int]) -> dict[int, list[Link]]:
        found: dict[int, list[Link]] = {}
        for token in self.rows:
            if first[token] >= 0:
                found.setdefault(first[token], []).append((token, torch.zeros((), dtype=torch.float64)))
        return found

    def _links(self, mapping: Mapping, link_weights: Tensor | None) -> dict[int, list[Link]]:
        matrix = mapping.matrix
        weights = torch.from_numpy(matrix.data) if link_weights is None else link_weights
        found: dict[int, list[Link]] = {}
        for number, (token, column) in enumerate(zip(matrix.rows.tolist(), matrix.indices.tolist(), strict=True)):
            if token in self.rows:
                found.setdefault(column, []).append((token, weights[number].double().log()))
        return found

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value."""
        student = [batch.student(at, self.rows) for at in positions(chunk.student, self.options.merge)]
        made = teacher_masses(
            self.members,
            [batch.teacher(at) for at in positions(chunk.teacher, self.options.merge)],
            stack(log_mean([projected(row, links) for row in student]) for links in self.links),
        )
        kept = made.kept
        if self.options.top_k is not None:
            made = best_columns(made, self.options.top_k)
        return Value(kept * made.divergence(self.options.temperature), kept=kept)


def projected(log_probs: Tensor, links: Sequence[Link]) -> Tensor:
    """The logarithm of a column's mass, sum over its links of weight * probability."""
    return log_sum(log_probs[token] + log_weight for token, log_weight in links)


def best_columns(made: Masses, count: int) -> Masses:
    """The teacher's best columns of a chunk; all others fall to the rest, with what the teacher does not list.

    Args:
        made: masses per column, columns ascending.
        count: how many columns stay; of equal ones the lower.
    """
    listed = [column for column in range(len(made.teacher)) if made.touched[column]]
    best = sorted(listed, key=lambda column: (-float(made.teacher[column]), column))[:count]
    stays = torch.tensor([column in best for column in range(len(made.teacher))], dtype=torch.bool)
    rest = log_sum([made.rest, *made.teacher[~stays]])
    return Masses(teacher=made.teacher, touched=stays, rest=rest, student=made.student)


class ULD:
    """T^2 * sum_i |i-th largest of softmax(z_S / T) - i-th largest of softmax(z_T / T)|, over all tokens.

    The shorter list is padded with zeros. Of a `TopK` teacher no more ranks are compared than it lists tokens.

    Args:
        mapping: says which ids are tokens.
        options: `temperature` and `merge` are read.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions) -> None:
        self.options = options
        self.mapping = mapping

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value.

        Raises:
            OptionError: the teacher is a `TopK` and T is not 1.
        """
        temperature = self.options.temperature
        check_top_k(batch, temperature)
        rows = [batch.teacher(at) for at in positions(chunk.teacher, self.options.merge)]
        listed = frozenset[int]().union(*(row.listed for row in rows))
        student = tempered([batch.student(at) for at in positions(chunk.student, self.options.merge)], temperature)
        log_probs = [row.log_probs for row in rows]
        teacher = tempered(log_probs, temperature) if batch.knows_all else as_listed(log_probs)
        # Where every token is listed, the teacher's further ranks are known: they are zeros.
        ranks = len(listed) + (len(student) if listed.issuperset(batch.teacher_live) else 0)
        if not ((student > -torch.inf).any() and (teacher > -torch.inf).any()):
            return Value()
        return Value(temperature**2 * sorted_l1(student, batch.student_live, teacher, listed, ranks))


def as_listed(rows: list[torch.Tensor]) -> torch.Tensor:
    """The mean of the listed probabilities as they are, as logarithms."""
    return torch.stack(rows).exp().mean(0).log()


def check_top_k(batch: Batch, temperature: float) -> None:
    """Refuses to temper a distribution of which only the best tokens are known.

    Raises:
        OptionError: it is to be tempered.
    """
    if not batch.knows_all and temperature != 1:
        raise OptionError(
            "sorted probabilities of a TopK teacher are known at temperature=1 alone, but the temperature is "
            f"{temperature!r}: give the teacher's logits, or another kind"
        )


_TAU = 100.0
_OFFSET = 1e-6
"""tokenkit's `binary_ce`: likelihoods are raised to 1/100, and kept away from 1."""


class ALM:
    """-(e^a b + (1 - e^a) log(1 - e^b)), a = l_T / 100 - 1e-6, b = l_S / 100 - 1e-6; the temperature has no part.

    l is the log-likelihood of the chunk's own tokens, at most 0. This is a cross-entropy: at equal likelihoods it has
    no slope, but is not 0.

    Args:
        mapping: says which ids are tokens.
        options: none is read.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions) -> None:
        self.options = options
        self.mapping = mapping

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value; 0 where the student cannot write the chunk, or the teacher nothing.

        Raises:
            OptionError: the teacher is a `TopK`, which may not list the chunk's tokens.
        """
        if not batch.knows_all:
            raise OptionError("alm needs the teacher's probability of every token in the text: give its logits")
        teacher = [batch.teacher(at).log_probs for at in chunk.teacher]
        student = likelihood([batch.student(at) for at in chunk.student], chunk.student_tokens)
        if student == -torch.inf or not all((row > -torch.inf).any() for row in teacher):
            return Value()
        a = likelihood(teacher, chunk.teacher_tokens) / _TAU - _OFFSET
        b = student / _TAU - _OFFSET
        return Value(-(a.exp() * b + (1 - a.exp()) * torch.log(-torch.expm1(b))))


def likelihood(rows: list[Tensor], tokens: list[int]) -> Tensor:
    """The log-likelihood of tokens, each in its row; at most 0."""
    total = sum((row[token] for row, token in zip(rows, tokens, strict=True)), zero())
    return torch.clamp(total, max=0.0)


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
    kind: LossKind,
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
    checks.check_shape("student_logits", student, (*spans.student.shape, widths[0]), "(B, T_s, V_s)")
    if isinstance(teacher, Tensor):
        checks.check_shape("teacher_logits", teacher, (*spans.teacher.shape, widths[1]), "(B, T_t, V_t)")
    else:
        checks.check_shape("the ids of a TopK", teacher.ids[..., 0], spans.teacher.shape, "(B, T_t, K)")
