"""Chunk starts: how often the first tokens of a stretch that both tokenizers delimit lie in one bin.

A chunk is the run between two neighbouring byte boundaries that both tokenisations of a text have. Partition-KL
compares predictions by bins, so a chunk whose two first tokens lie in different bins cannot be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ..vocab.vocab import Vocab
from .pieces import pieces

SAMPLE_BYTES = 2_000_000
"""Enough text for a share to three digits; the teacher encodes no more than that."""

_STRETCH = 1 << 13
"""Characters compared at a time: one accent that a normaliser composes costs so much of the sample, not a document."""

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
        rows = zip(student.encode_batch(chosen), teacher.encode_batch(chosen), strict=True)
        counted = [_count(np.asarray(ours), np.asarray(theirs), student, teacher, bins) for ours, theirs in rows]
        kept = [pair for pair in counted if pair is not None]
        return Starts(
            chunks=self.chunks + sum(chunks for chunks, _ in kept),
            together=self.together + sum(together for _, together in kept),
            bytes=size,
            skipped=self.skipped + len(counted) - len(kept),
        )


def _count(
    student_ids: NDArray[np.int64], teacher_ids: NDArray[np.int64], student: Vocab, teacher: Vocab, bins: Bins
) -> tuple[int, int] | None:
    """Chunks, and those that start in one bin; None where the two sides' surfaces are not the same bytes."""
    if not len(student_ids) or not len(teacher_ids):
        return (0, 0) if len(student_ids) == len(teacher_ids) else None
    sides = ((student_ids, student), (teacher_ids, teacher))
    said = [b"".join([vocab.surfaces.list[token_id] for token_id in ids.tolist()]) for ids, vocab in sides]
    if said[0] != said[1]:
        return None
    begins = [np.cumsum(lengths) - lengths for lengths in (vocab.surfaces.lengths[ids] for ids, vocab in sides)]
    shared = np.intersect1d(begins[0], begins[1])
    first = [ids[np.searchsorted(at, shared)] for at, (ids, _) in zip(begins, sides, strict=True)]
    student_bin, teacher_bin = bins[0][first[0]], bins[1][first[1]]
    return len(shared), int(((student_bin == teacher_bin) & (student_bin >= 0)).sum())
