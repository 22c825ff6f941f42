"""Weighing a mapping by a corpus: how often its rows are used, and how often both sides start a chunk in one bin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..coverage.classes import CLASSES, classify
from ..errors import MismatchError
from ..mapping.find import REASON_OF_KIND, json_surface
from ..mapping.mapping import Mapping as TokenMapping
from ..rules.links import EXACT_RULES, NEAR_RULES, RULE_NUMBER, RULES, SPLIT_RULES, WAYS
from ..spans.chunks import chunks_of
from ..spans.tables import pair_tables
from ..spans.units import units_of
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .texts import pieces

SAMPLE_BYTES = 2_000_000
"""Enough text for a share to three digits; the teacher encodes no more than that."""

_STRETCH = 1 << 13
"""Characters compared at a time: where a normaliser changes an accent, so much text is left out, and not a document."""

Bins = tuple[NDArray[np.int32], NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Starts:
    """What has been counted so far.

    Attributes:
        chunks: chunks looked at.
        together: those whose first tokens lie in one bin.
        bytes: bytes of text looked at.
        skipped: stretches of text left out, since the two sides' surfaces are different bytes (a normaliser's doing).
    """

    chunks: int
    together: int
    bytes: int
    skipped: int

    @classmethod
    def none(cls) -> Starts:
        """Nothing counted yet."""
        return cls(0, 0, 0, 0)

    @property
    def share(self) -> float | None:
        """The share of chunks whose first tokens lie in one bin, None without chunks."""
        return self.together / self.chunks if self.chunks else None

    @property
    def enough(self) -> bool:
        """Whether the sample is large enough."""
        return self.bytes >= SAMPLE_BYTES

    def extended(self, texts: Sequence[str], student: Vocab, teacher: Vocab, bins: Bins) -> Starts:
        """The counts with more texts, until the sample is large enough.

        Args:
            texts: the texts; both sides encode them in stretches of some thousand characters.
            student: the student.
            teacher: the teacher.
            bins: the bin of each student and of each teacher token.
        """
        chosen: list[str] = []
        size = self.bytes
        for stretch in chain.from_iterable(pieces(text, _STRETCH) for text in texts):
            if size >= SAMPLE_BYTES:
                break
            chosen.append(stretch)
            size += len(stretch.encode("utf-8", "surrogatepass"))
        student_units = units_of(student.encode_batch(chosen), width=len(student), side="student")
        teacher_units = units_of(teacher.encode_batch(chosen), width=len(teacher), side="teacher")
        counts = student_units.counts, teacher_units.counts
        chunks = chunks_of(student_units.ids, counts[0], teacher_units.ids, counts[1], pair_tables(student, teacher))
        student_bin = bins[0][_first(chunks.student, student_units.ids)]
        teacher_bin = bins[1][_first(chunks.teacher, teacher_units.ids)]
        return Starts(
            chunks=self.chunks + len(student_bin),
            together=self.together + int(((student_bin == teacher_bin) & (student_bin >= 0)).sum()),
            bytes=size,
            skipped=self.skipped + int(chunks.differs.sum()),
        )


def _first(chunk: NDArray[np.int32], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first token of every chunk."""
    # Chunks 0 0 1 -1 2 of the ids 5 6 7 8 9 begin with 5, 7 and 9; -1 is a token in no chunk.
    inside = chunk >= 0
    _, at = np.unique(chunk[inside], return_index=True)
    return ids[inside][at]


_BATCH_CHARACTERS = 1 << 20
# Added to the length of every text, so that a batch of millions of empty texts ends too.
_CHARACTERS_PER_TEXT = 64


@dataclass(frozen=True, slots=True)
class Frequent:
    """A token that is not exact, and how often the corpus uses it."""

    id: int
    surface: bytes
    count: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `inspect --corpus`."""
        surface = json_surface(self.surface)
        return {"id": self.id, "surface": surface, "count": self.count, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class CorpusCoverage:
    """A mapping weighed by a corpus.

    Attributes:
        texts: texts read.
        unspelled: texts of which a piece (up to 262,144 characters, not only spaces) got no token: an encoder without
            an unknown token gives up a whole piece for one character that it cannot spell.
        tokens: student tokens in them.
        bytes: bytes that those tokens stand for.
        ways: way of matching -> tokens.
        way_bytes: way of matching -> bytes.
        classes: class -> tokens in all and by way; classes that do not occur are left out.
        rules: owning rule -> tokens, `none` for empty rows; rules that do not occur are left out.
        frequent: the most frequent tokens that are not exact.
        starts: share of chunks whose first tokens lie in one bin, with how many chunks were looked at; None where the
            teacher's tokenizer is not at hand.
    """

    texts: int
    unspelled: int
    tokens: int
    bytes: int
    ways: Mapping[str, int]
    way_bytes: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    rules: Mapping[str, int]
    frequent: tuple[Frequent, ...]
    starts: Starts | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `inspect --corpus`."""
        return {
            "texts": self.texts,
            "unspelled": self.unspelled,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "ways": dict(self.ways),
            "way_bytes": dict(self.way_bytes),
            "classes": {name: dict(row) for name, row in self.classes.items()},
            "rules": dict(self.rules),
            "frequent": [entry.to_dict() for entry in self.frequent],
            "chunk_starts": None if self.starts is None else {**asdict(self.starts), "share": self.starts.share},
        }


def weigh(
    mapping: TokenMapping, student: Vocab, texts: Iterable[str], *, teacher: Vocab | None = None, top: int = 20
) -> CorpusCoverage:
    """Counts the tokens that a student makes of texts, by how the mapping matches them.

    Args:
        mapping: the mapping.
        student: the tokenizer of its student.
        texts: any number of texts; they are read once, and not kept.
        teacher: the tokenizer of its teacher, for the chunk starts.
        top: how many of the most frequent tokens that are not exact are named.

    Returns:
        The counts.

    Raises:
        MismatchError: a tokenizer's text is not that of the mapping's side.
    """
    for side, vocab, role in ((mapping.student, student, "student"), (mapping.teacher, teacher, "teacher")):
        if vocab is not None and not vocab.has_fingerprint(side.fingerprint):
            raise MismatchError(
                f"the mapping's {role} is {side.name}, and {vocab.name} does not read text as it does: weigh with the "
                "tokenizer that the mapping was built from"
            )
    # Equal text may come with another logit width; the ids of text lie below both.
    counts = np.zeros(mapping.student.sizes.logits, dtype=np.int64)
    seen = unspelled = 0
    starts = None if teacher is None else Starts.none()
    bins = None if teacher is None else mapping.bins()
    for batch in batches(texts):
        seen += len(batch)
        cut = [(number, piece) for number, text in enumerate(batch) for piece in pieces(text)]
        encoded = student.encode_batch([piece for _, piece in cut])
        unspelled += len(
            {number for (number, piece), ids in zip(cut, encoded, strict=True) if not ids and not piece.isspace()}
        )
        flat = np.fromiter(chain.from_iterable(encoded), dtype=np.int64, count=sum(map(len, encoded)))
        counts += np.bincount(flat, minlength=len(counts))
        if teacher is not None and starts is not None and bins is not None and not starts.enough:
            starts = starts.extended(batch, student, teacher, bins)
    return _table(mapping, counts, (seen, unspelled), starts, top)


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists of about a million characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text) + _CHARACTERS_PER_TEXT
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def ways_of(mapping: TokenMapping) -> NDArray[np.int8]:
    """int8 (student logits,), the position in `WAYS` of how each token is matched."""
    owner = mapping.matrix.owner
    way = np.full(len(owner), WAYS.index("empty"), dtype=np.int8)
    for name, rules in (("exact", EXACT_RULES), ("near", NEAR_RULES), ("split", SPLIT_RULES)):
        way[np.isin(owner, [RULE_NUMBER[rule] for rule in rules])] = WAYS.index(name)
    overridden = owner == RULE_NUMBER["override"]
    single = np.diff(mapping.matrix.indptr) <= 1
    way[overridden & single] = WAYS.index("near")
    way[overridden & ~single] = WAYS.index("split")
    return way


def _table(
    mapping: TokenMapping, counts: NDArray[np.int64], read: tuple[int, int], starts: Starts | None, top: int
) -> CorpusCoverage:
    student = mapping.student
    way = ways_of(mapping)
    used = np.flatnonzero(counts)
    lengths = student.surfaces.lengths.astype(np.int64)
    # cells[class, way] counts uses; `add.at` adds up where several tokens have one class and way.
    cells = np.zeros((len(CLASSES), len(WAYS)), dtype=np.int64)
    class_of = classify(student.kinds[used], [student.surfaces[token_id] for token_id in used.tolist()])
    np.add.at(cells, (class_of, way[used]), counts[used])
    by_rule = np.bincount(mapping.matrix.owner, counts, minlength=len(RULES)).astype(np.int64)
    return CorpusCoverage(
        texts=read[0],
        unspelled=read[1],
        tokens=int(counts.sum()),
        bytes=int((counts * lengths).sum()),
        ways=_by_way(way, counts),
        way_bytes=_by_way(way, counts * lengths),
        classes={
            CLASSES[at]: {"tokens": int(row.sum()), **dict(zip(WAYS, row.tolist(), strict=True))}
            for at, row in enumerate(cells)
            if row.any()
        },
        rules={rule: int(count) for rule, count in zip(RULES, by_rule.tolist(), strict=True) if count},
        frequent=_frequent(mapping, counts, way, top),
        starts=starts,
    )


def _by_way(way: NDArray[np.int8], weights: NDArray[np.int64]) -> dict[str, int]:
    sums = np.bincount(way, weights, minlength=len(WAYS))
    return {name: int(count) for name, count in zip(WAYS, sums.tolist(), strict=True)}


def _frequent(
    mapping: TokenMapping, counts: NDArray[np.int64], way: NDArray[np.int8], top: int
) -> tuple[Frequent, ...]:
    candidates = np.flatnonzero((counts > 0) & (way != WAYS.index("exact")))
    order = candidates[np.argsort(-counts[candidates], kind="stable")][:top]
    owner = mapping.matrix.owner
    frequent = []
    for token_id in order.tolist():
        rule = RULES[owner[token_id]]
        verb = WAYS[way[token_id]]
        reason = REASON_OF_KIND[Kind(mapping.student.kinds[token_id])] if verb == "empty" else f"{verb} by {rule}"
        frequent.append(Frequent(token_id, mapping.student.surfaces[token_id], int(counts[token_id]), reason))
    return tuple(frequent)
