"""The kinds of 2026 - strict, BPM, ESCD, SimCT - as loops, and one call for every kind by any divergence and option.

All four were published with text that the student wrote itself; here they read any text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from slow_chain import Before, ChainKL, LevelWeight, chunks_before
from slow_divergence import CommonBy, Divergence, Measure, PartitionBy, ProjectionBy
from slow_loss import SlowOutput, common_pairs, cross_entropy
from slow_parts import (
    Batch,
    Chunk,
    SlowOptions,
    TeacherRow,
    Value,
    chunks_of,
    log_mass,
    log_sum,
    minus_infinity,
    stack,
    zero,
)
from torch import Tensor

from xtoken_align.errors import OptionError
from xtoken_align.losses import TopK
from xtoken_align.losses import options as checks
from xtoken_align.mapping.mapping import Mapping, Side, SideName
from xtoken_align.matrix import Matrix
from xtoken_align.spans.spans import Spans
from xtoken_align.vocab.kinds import Kind

Units = Literal["text", "path"]

STOPS = ("eot", "eos", "eom", "stop")
"""The roles that end a turn."""

OWN_DIVERGENCE: dict[str, Divergence] = {"strict": "reverse", "bpm": "jsd", "escd": "forward", "simct": "reverse"}
"""What each kind was published with; the others are forward KLs."""


class Strict:
    """D(t || s) on the exact pairs, where both sides wrote one token and those two are a pair; nothing elsewhere.

    t and s are both sides' probabilities of the tokens in exact pairs, each renormalised. Published with the reverse
    KL, and with the student's 16 best alone (`Measure.student_top_k`). arXiv:2610.08448 (2026).

    Decided here: exact pairs are those of rules `identity`, `exact` and `special`, as for GOLD. Of a `TopK` teacher
    only pairs that it lists are compared, both sides renormalised on them: nothing is known of the others.

    Args:
        pairs: student and teacher ids.
        measure: how they are compared.
    """

    def __init__(self, pairs: list[tuple[int, int]], measure: Measure) -> None:
        self.pairs, self.measure = pairs, measure

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value; a chunk that is no exact pair is a misfit."""
        if (chunk.student_tokens, chunk.teacher_tokens) not in [([ours], [theirs]) for ours, theirs in self.pairs]:
            return Value(misfit=True)
        student, teacher = batch.student(chunk.student[0]), batch.teacher(chunk.teacher[0])
        listed = [pair for pair in self.pairs if pair[1] in teacher.listed]
        log_teacher = stack(teacher.log_probs[theirs] for _, theirs in listed)
        log_student = stack(student[ours] for ours, _ in listed)
        return Value(self.measure(log_teacher, log_student), kept=float(log_teacher.exp().sum()))


class Prefixes:
    """phi(v): the student's longest content token whose surface is a prefix of some bytes, or none.

    Content tokens are those of kinds text and byte. Student tokens with equal surfaces cannot be told apart by bytes:
    together they are one outcome, named by its surface.

    >>> phi = Prefixes({b"Br": [0], b"Cat": [1], b"ead": [2]})
    >>> phi(b"Bread"), phi(b"Dog")
    (b'Br', None)
    """

    def __init__(self, tokens: dict[bytes, list[int]]) -> None:
        self.tokens = tokens

    def __call__(self, data: bytes) -> bytes | None:
        """The outcome of some bytes."""
        return next((data[:size] for size in range(len(data), 0, -1) if data[:size] in self.tokens), None)


def content(side: Side) -> dict[int, bytes]:
    """The surfaces of the tokens of kinds text and byte; an empty surface says nothing."""
    return {
        token: bytes(side.surfaces[token])
        for token, kind in enumerate(side.kinds.tolist())
        if kind in {Kind.TEXT, Kind.BYTE} and side.surfaces[token]
    }


def by_surface(tokens: dict[int, bytes]) -> dict[bytes, list[int]]:
    """The tokens of each surface."""
    found: dict[bytes, list[int]] = {}
    for token, surface in tokens.items():
        found.setdefault(surface, []).append(token)
    return found


@dataclass
class Projected:
    """A teacher's row over the student's tokens.

    Attributes:
        outcomes: student tokens by surface, with the logarithms of the teacher's masses.
        rest: logarithms of what has no outcome.
    """

    outcomes: dict[bytes, list[Tensor]] = field(default_factory=dict)
    rest: list[Tensor] = field(default_factory=list)

    def add(self, outcome: bytes | None, log_prob: Tensor) -> None:
        """Adds a teacher token's probability."""
        (self.rest if outcome is None else self.outcomes.setdefault(outcome, [])).append(log_prob)


class BPM:
    """Byte-prefix marginalisation: at every student position the teacher's row, told over the student's tokens.

    Let c be the bytes that the student has written since the teacher's last token ended before this position, q the
    teacher's row there, restricted to the tokens that begin with c (all tokens, if c is empty) and renormalised, and
    phi_c(v) the longest student token that is a prefix of v's bytes after c. Then

        t(u) = sum of q(v) with phi_c(v) = u
        t(rest) = sum of q(v) without phi_c, v = c among them, against the student's other tokens

    and the value is the sum over the chunk's student positions of D(t || s). Where the student's written token u* runs
    past the end of the teacher's token v_1, the bound on the text's path

        Q = q(v_1) q(v_2 | v_1) .. sum of q(v | v_1 ..) with v beginning with what is left of u*

    is moved from phi_c(v_1), or the rest, to u*: so much of the teacher's mass is known to begin with u*.
    Published with the generalised JSD. arXiv:2607.22334 (2026).

    Decided here, where no text of ours says it: student tokens that are no phi_c of this row are in the rest, not
    outcomes with target 0 each; special tokens are in the rest (`stop_bridge` takes the stops out of it); of a `TopK`
    teacher's unlisted tokens none begins with c, and at c = empty they are in the rest; a chunk whose two sides differ
    in bytes (lossy rows) has its first position alone.

    Args:
        mapping: both sides' surfaces.
        measure: how they are compared.
        bridge: the stops' student and teacher id, or None: an outcome of their own at c = empty.
    """

    def __init__(self, mapping: Mapping, measure: Measure, bridge: tuple[int, int] | None = None) -> None:
        self.student, self.teacher = content(mapping.student), content(mapping.teacher)
        self.phi = Prefixes(by_surface(self.student))
        self.surfaces = mapping.student.surfaces, mapping.teacher.surfaces
        self.measure, self.bridge = measure, bridge

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value: the sum over its student positions."""
        ours = [bytes(self.surfaces[0][token]) for token in chunk.student_tokens]
        theirs = [bytes(self.surfaces[1][token]) for token in chunk.teacher_tokens]
        if b"".join(ours) != b"".join(theirs) or not set(chunk.student_tokens) <= set(self.student):
            ours, theirs = ours[:1], theirs[:1]
            return Value(self._compare(batch, chunk.student[0], self.root(batch.teacher(chunk.teacher[0]))))
        total, at = zero(), 0
        for position, token in zip(chunk.student, ours, strict=True):
            number = max(k for k in range(len(theirs)) if len(b"".join(theirs[:k])) <= at)
            written = b"".join(theirs)[len(b"".join(theirs[:number])) : at]
            projected = self.inside(batch.teacher(chunk.teacher[number]), written)
            if len(written) + len(token) > len(theirs[number]):
                source = self.phi(theirs[number][len(written) :])
                move(projected, source, token, self._bound(batch, chunk, written + token, number))
            total = total + self._compare(batch, position, projected)
            at += len(token)
        return Value(total)

    def root(self, teacher: TeacherRow) -> Projected:
        """The projection at a boundary of both sides."""
        return self.inside(teacher, b"")

    def inside(self, teacher: TeacherRow, written: bytes) -> Projected:
        """The projection after some bytes; what compares it renormalises it."""
        made = Projected()
        for token in sorted(teacher.listed):
            surface = self.teacher.get(token, b"")
            if not written and self.bridge and token == self.bridge[1]:
                made.add(b"", teacher.log_probs[token])
            elif not written or surface.startswith(written):
                made.add(self.phi(surface[len(written) :]), teacher.log_probs[token])
        if not written:
            made.rest.append(teacher.log_rest)
        return made

    def _bound(self, batch: Batch, chunk: Chunk, needed: bytes, number: int) -> Tensor:
        """log Q: the teacher's tokens of the text as far as they go, then all that begin with what is left."""
        log_way = zero()
        while len(needed) > (size := len(self.surfaces[1][chunk.teacher_tokens[number]])):
            log_way = log_way + batch.teacher(chunk.teacher[number]).log_probs[chunk.teacher_tokens[number]]
            needed = needed[size:]
            number += 1
        row = batch.teacher(chunk.teacher[number])
        fitting = [token for token in sorted(row.listed) if self.teacher.get(token, b"").startswith(needed)]
        return log_way + log_mass(row.log_probs, fitting)

    def _compare(self, batch: Batch, position: int, made: Projected) -> Tensor:
        student = batch.student(position)
        names = list(made.outcomes)
        members = [[self.bridge[0]] if name == b"" and self.bridge else self.phi.tokens[name] for name in names]
        taken = {token for ids in members for token in ids}
        others = [token for token in batch.student_live if token not in taken]
        return self.measure(
            stack([*(log_sum(made.outcomes[name]) for name in names), log_sum(made.rest)]),
            stack([*(log_mass(student, ids) for ids in members), log_mass(student, others)]),
        )


def move(made: Projected, source: bytes | None, target: bytes, bound: Tensor) -> None:
    """Moves a mass from an outcome, or from the rest, to another one."""
    if bound == -torch.inf:
        return
    masses = made.rest if source is None else made.outcomes[source]
    left = log_sum(masses).exp() - bound.exp()
    masses[:] = [left.log() if left > 0 else minus_infinity()]
    made.outcomes.setdefault(target, []).append(bound)


class ESCD:
    """BPM's root by a forward KL, and a child term for what the teacher writes in one token and the student cannot.

    Teacher content tokens without an equal student token are grouped: two are connected if one's surface is a prefix
    of the other's, so every group has one shortest token y_g, with which all others begin. M_g is the group's
    probability at the chunk's first position. If the student's first token a is a strict prefix of y_g, with the
    residual r = y_g without a, the value has also

        -M_g log sum of p_S(u | x, a) over the student's content tokens u that begin with r

    read at the position after a; both probabilities are at T = 1 over the whole vocabulary, whatever the temperature.
    Groups for which no u begins with r give nothing. Other positions are not supervised. The child is a cross-entropy:
    it is 0 only for a student that is certain to complete. arXiv:2609.34738 (2026).

    Decided here: root as `BPM.root` (its rest is the complement outcome); only the root follows `divergence` and the
    temperature; M_g of a `TopK` teacher is what it lists.

    Args:
        mapping: both sides' surfaces.
        measure: how the root is compared.
        bridge: as for `BPM`.
    """

    def __init__(self, mapping: Mapping, measure: Measure, bridge: tuple[int, int] | None = None) -> None:
        self.bpm = BPM(mapping, measure, bridge)
        own = self.bpm.phi.tokens
        unshared = {token: surface for token, surface in self.bpm.teacher.items() if surface not in own}
        self.groups: dict[bytes, list[int]] = {}
        for token, surface in sorted(unshared.items(), key=lambda item: len(item[1])):
            sizes = range(1, len(surface) + 1)
            shortest = next((surface[:size] for size in sizes if surface[:size] in self.groups), surface)
            self.groups.setdefault(shortest, []).append(token)

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value."""
        teacher = batch.teacher(chunk.teacher[0])
        total = self.bpm._compare(batch, chunk.student[0], self.bpm.root(teacher))
        written = self.bpm.student.get(chunk.student_tokens[0])
        if written is None:
            return Value(total)
        after = batch.student(chunk.student[0] + 1)
        for shortest, tokens in self.groups.items():
            if len(written) < len(shortest) and shortest.startswith(written):
                residual = shortest[len(written) :]
                completing = [token for token, surface in self.bpm.student.items() if surface.startswith(residual)]
                log_student = log_mass(after, completing)
                if log_student > -torch.inf:
                    total = total - log_mass(teacher.log_probs, tokens).exp() * log_student
        return Value(total)


class SimCT:
    """D between softmaxes of scores over candidates: the shared tokens, and units that take several tokens to write.

    A candidate's score is the mean over its tokens of their log-probabilities. A shared token is scored at the chunk's
    first position. Published with the reverse KL. arXiv:2605.07711 (2026).

    `units="text"` has one unit, the chunk itself, where it is no shared token: what the authors' code does.
    `units="path"` has every unit whose last token alone differs from the text's, on both sides: the student's last
    token u and the teacher's last token v for which both sides spell the same bytes. These are all units that rows on
    the text's path can score, and with them the worked number of arXiv:2609.34738 (B.5) comes out.

    Decided here: scores are of log-probabilities, as in the paper (the code takes raw logits, whose offsets differ from
    position to position); shared tokens are the exact pairs; a candidate that either side cannot give is dropped; of a
    `TopK` teacher candidates with an unlisted token are.

    Args:
        mapping: both sides' surfaces.
        pairs: the shared tokens.
        measure: how the candidates are compared; the temperature divides the scores.
        units: which units there are.
    """

    def __init__(self, mapping: Mapping, pairs: list[tuple[int, int]], measure: Measure, units: Units = "text") -> None:
        checks.check_one_of("units", units, ("text", "path"))
        self.surfaces = mapping.student.surfaces, mapping.teacher.surfaces
        self.student, self.teacher = by_surface(content(mapping.student)), by_surface(content(mapping.teacher))
        self.pairs, self.measure, self.units = pairs, measure, units

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value."""
        student = [batch.student(at) for at in chunk.student]
        teacher = [batch.teacher(at) for at in chunk.teacher]
        scores = [
            (teacher[0].log_probs[theirs], student[0][ours])
            for ours, theirs in self.pairs
            if theirs in teacher[0].listed
        ]
        for ours, theirs in self.unit_tokens(chunk):
            log_teacher = [row.log_probs[token] for row, token in zip(teacher, theirs, strict=True)]
            log_student = [row[token] for row, token in zip(student, ours, strict=True)]
            scores.append((torch.stack(log_teacher).mean(), torch.stack(log_student).mean()))
        possible = [pair for pair in scores if pair[0] > -torch.inf and pair[1] > -torch.inf]
        return Value(self.measure(stack(one for one, _ in possible), stack(other for _, other in possible)))

    def unit_tokens(self, chunk: Chunk) -> list[tuple[list[int], list[int]]]:
        """The units of a chunk: the student's and the teacher's tokens."""
        own = chunk.student_tokens, chunk.teacher_tokens
        units = [] if own in [([ours], [theirs]) for ours, theirs in self.pairs] else [own]
        if self.units == "path" and max(map(len, own)) > 1:
            ours, theirs = (
                b"".join(bytes(surfaces[token]) for token in tokens[:-1])
                for surfaces, tokens in zip(self.surfaces, own, strict=True)
            )
            for last, tokens in self.student.items():
                for surface, others in self.teacher.items():
                    made = [*own[0][:-1], tokens[0]], [*own[1][:-1], others[0]]
                    if ours + last == theirs + surface and made != own:
                        units.append(made)
        return units


@dataclass(frozen=True)
class BridgedMapping:
    """A mapping in which one student and one teacher token, that stand for all stops of their side, are one outcome.

    Attributes:
        mapping: what it is otherwise.
        pair: the two ids.
        stops: all stops of both sides.
    """

    mapping: Mapping
    pair: tuple[int, int]
    stops: tuple[set[int], set[int]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mapping, name)

    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """The bins, the stops of both sides in one of their own."""
        made = tuple(side.copy() for side in self.mapping.bins())
        number = max(int(side.max(initial=-1)) for side in made) + 1
        for side, stops in zip(made, self.stops, strict=True):
            side[list(stops)] = number
        return made

    @property
    def matrix(self) -> Matrix:
        """W, in which the student's stops are linked to the teacher's first stop alone, and so are links to others."""
        matrix, (ours, theirs) = self.mapping.matrix, self.stops
        kept = np.flatnonzero(~np.isin(matrix.rows, list(ours)))
        links = [(int(matrix.rows[link]), link) for link in kept.tolist()]
        links = sorted([*links, *((stop, -1) for stop in ours)])
        rows, link = (np.array(side) for side in zip(*links, strict=True))
        columns = np.where(np.isin(matrix.indices, list(theirs)), self.pair[1], matrix.indices)
        # What a stop's own link has stands behind the last one.
        appended = {"indices": self.pair[1], "data": 1.0, "position": 0, "rule": 0}
        arrays = {
            name: np.append(columns if name == "indices" else getattr(matrix, name), value)[link]
            for name, value in appended.items()
        }
        count = np.bincount(rows, minlength=matrix.shape[0])
        return replace(matrix, indptr=np.concatenate([[0], np.cumsum(count)]), **arrays)

    def first_pieces(self, side: SideName) -> np.ndarray:
        """The first pieces; those of stops, and those that are stops, are the other side's first stop."""
        first, number = self.mapping.first_pieces(side).copy(), 0 if side == "student" else 1
        first[np.isin(first, list(self.stops[1 - number]))] = self.pair[1 - number]
        first[list(self.stops[number])] = self.pair[1 - number]
        return first


def bridged(mapping: Mapping) -> BridgedMapping | None:
    """A mapping whose stops are one outcome; None unless both sides have stops.

    A side's stops are its tokens of roles eot, eos, eom and stop. The first of them stands for all.
    """
    stops = [
        [token for role in STOPS for token in side.roles.get(role, ())] for side in (mapping.student, mapping.teacher)
    ]
    if not all(stops):
        return None
    return BridgedMapping(mapping, (stops[0][0], stops[1][0]), (set(stops[0]), set(stops[1])))


@dataclass(frozen=True, eq=False)
class BridgedBatch(Batch):
    """Rows in which a side's first stop has the probability of all its stops, and the others none."""

    bridge: BridgedMapping

    def student(self, position: int, live: list[int] | None = None) -> Tensor:
        return merged(super().student(position, live), self.bridge.pair[0], self.bridge.stops[0])

    def teacher(self, position: int) -> TeacherRow:
        row = super().teacher(position)
        if row.listed.isdisjoint(self.bridge.stops[1]):
            return row
        log_probs = merged(row.log_probs, self.bridge.pair[1], self.bridge.stops[1])
        return TeacherRow(log_probs, row.listed | self.bridge.stops[1], row.log_rest)


def merged(log_probs: Tensor, first: int, tokens: set[int]) -> Tensor:
    """A row in which one token has the probability of several.

    >>> merged(torch.tensor([0.5, 0.25, 0.25]).log(), 1, {1, 2}).exp().tolist()
    [0.5, 0.5, 0.0]
    """
    total = log_mass(log_probs, sorted(tokens))
    gone = torch.zeros(len(log_probs), dtype=torch.bool)
    gone[list(tokens)] = True
    return log_probs.masked_fill(gone, -torch.inf).index_put((torch.tensor(first),), total)


def bridged_chunk(chunk: Chunk, bridge: BridgedMapping) -> Chunk:
    """A chunk whose stops are their side's first."""
    sides = [
        [first if token in stops else token for token in tokens]
        for tokens, first, stops in zip(
            (chunk.student_tokens, chunk.teacher_tokens), bridge.pair, bridge.stops, strict=True
        )
    ]
    return replace(chunk, student_tokens=sides[0], teacher_tokens=sides[1])


def exact_pairs(mapping: Mapping | BridgedMapping, kind: str, threshold: float = 0.6) -> list[tuple[int, int]]:
    """Common pairs, by student id; of a bridged mapping the stops are one pair."""
    built = mapping.mapping if isinstance(mapping, BridgedMapping) else mapping
    pairs = common_pairs(built, SlowOptions(kind="h-kl" if kind == "h-kl" else "gold", threshold=threshold))
    if not isinstance(mapping, BridgedMapping):
        return pairs
    ours, theirs = mapping.stops
    return sorted([mapping.pair, *(pair for pair in pairs if pair[0] not in ours and pair[1] not in theirs)])


def is_white_space(mapping: Mapping, chunk: Chunk) -> bool:
    """Whether the student wrote nothing but ASCII white space, in tokens of kinds text and byte."""
    kinds = {int(mapping.student.kinds[token]) for token in chunk.student_tokens}
    data = b"".join(bytes(mapping.student.surfaces[token]) for token in chunk.student_tokens)
    return kinds <= {Kind.TEXT, Kind.BYTE} and data.isspace()


def slow_kind(
    mapping: Mapping,
    student_logits: Tensor,
    teacher_logits: Tensor | TopK,
    spans: Spans,
    *,
    kind: str,
    divergence: Divergence | None = None,
    beta: float = 0.5,
    temperature: float = 1.0,
    student_top_k: int | None = None,
    level_weight: LevelWeight = "plausible",
    end: bool = True,
    units: Units = "text",
    stop_bridge: bool = False,
    skip_white_space: bool = False,
    merge: str = "first",
    top_k: int | None = None,
    unreached: str = "reroute",
    threshold: float = 0.6,
    uncommon_top_k: int = 8192,
    labels: Tensor | None = None,
    kd_weight: float = 1.0,
    ce_weight: float = 1.0,
    num_chunks_in_batch: float | None = None,
    num_items_in_batch: float | None = None,
) -> SlowOutput:
    """A loss from its definition, differentiable by ordinary autograd; `slow_loss` with this year's kinds and options.

    Args:
        mapping: what stands for what.
        student_logits: floats (B, T_s, V_s).
        teacher_logits: floats (B, T_t, V_t), or the teacher's best tokens.
        spans: the batch's chunks.
        kind: `partition-kl`, `c-kl`, `p-kl`, `h-kl`, `gold`, `strict`, `bpm`, `escd` or `simct`.
        divergence: by default what the kind was published with.
        beta: of `jsd`.
        temperature: T.
        student_top_k: the student's best outcomes that are compared, on each level and position by itself.
        level_weight: C-KL: how much a level counts.
        end: C-KL: whether level 1 knows of the chunk before.
        units: SimCT: which units are candidates.
        stop_bridge: compare the tokens of roles eot, eos, eom and stop as one outcome, at every position. Nothing
            changes if one side has none.
        skip_white_space: chunks in which the student wrote nothing but white space have the value 0; they still count
            in the divisor.
        merge: as for `slow_loss`; it, and the following, for the kinds that read it there.
        top_k: P-KL's columns.
        unreached: of P-KL.
        threshold: of H-KL.
        uncommon_top_k: of H-KL and GOLD.
        labels: integers (B, T_s).
        kd_weight: factor of the distillation loss.
        ce_weight: factor of the cross-entropy.
        num_chunks_in_batch: the divisor in place of this batch's number of chunks.
        num_items_in_batch: in place of this batch's number of labels.

    Returns:
        The loss and its parts.
    """
    measure = Measure(
        divergence=OWN_DIVERGENCE.get(kind, "forward") if divergence is None else divergence,
        beta=beta,
        temperature=temperature,
        student_top_k=student_top_k,
    )
    batch, chunks, befores = Batch.of(mapping, student_logits, teacher_logits), chunks_of(spans), chunks_before(spans)
    seen: Mapping | BridgedMapping = mapping
    bridge = bridged(mapping) if stop_bridge else None
    if bridge is not None:
        seen = bridge
        batch = BridgedBatch(**vars(batch), bridge=bridge)
        chunks = [bridged_chunk(chunk, bridge) for chunk in chunks]
    options = SlowOptions(
        kind=kind if kind in {"partition-kl", "c-kl", "p-kl", "h-kl", "gold"} else "partition-kl",
        merge=merge,
        top_k=top_k,
        unreached=unreached,
        threshold=threshold,
        uncommon_top_k=uncommon_top_k,
    )
    value_of = _family(kind, seen, measure, options, level_weight=level_weight, end=end, units=units)
    values = [
        Value() if skip_white_space and is_white_space(mapping, chunk) else value_of(batch, chunk, before)
        for chunk, before in zip(chunks, befores, strict=True)
    ]
    total = sum((chunk.weight * value.kd for chunk, value in zip(chunks, values, strict=True)), zero())
    divisor = len(chunks) if num_chunks_in_batch is None else num_chunks_in_batch
    kd = total / max(divisor, 1) + 0 * torch.where(student_logits.isfinite(), student_logits, 0.0).sum()
    ce = zero() if labels is None else cross_entropy(student_logits, labels, num_items_in_batch)
    return SlowOutput(
        loss=kd_weight * kd + ce_weight * ce,
        kd=kd,
        ce=ce,
        chunk_kd=stack(value.kd for value in values),
        misfits=torch.tensor([value.misfit for value in values], dtype=torch.bool),
        kept=torch.tensor([value.kept for value in values], dtype=torch.float64),
    )


def _family(kind: str, mapping: Any, measure: Measure, options: SlowOptions, *, level_weight, end, units):
    """A kind's value of a chunk, given the batch, the chunk and the chunk before it."""
    if kind == "c-kl":
        return ChainKL(mapping, measure, level_weight=level_weight, end=end)
    bridge = mapping.pair if isinstance(mapping, BridgedMapping) else None
    makers = {
        "partition-kl": lambda: PartitionBy(mapping, options, measure),
        "p-kl": lambda: ProjectionBy(mapping, options, measure),
        "h-kl": lambda: CommonBy(mapping, options, measure, exact_pairs(mapping, kind, options.threshold)),
        "gold": lambda: CommonBy(mapping, options, measure, exact_pairs(mapping, kind)),
        "strict": lambda: Strict(exact_pairs(mapping, kind), measure),
        "bpm": lambda: BPM(mapping, measure, bridge),
        "escd": lambda: ESCD(mapping, measure, bridge),
        "simct": lambda: SimCT(mapping, exact_pairs(mapping, kind), measure, units),
    }
    if kind not in makers:
        raise OptionError(f"{kind} compares no distributions of one space: give one of {', '.join(makers)} or c-kl")
    value_of = makers[kind]()

    def without_before(batch: Batch, chunk: Chunk, before: Before | None) -> Value:
        return value_of(batch, chunk)

    return without_before
