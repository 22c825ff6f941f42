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

from ..spans.chunks import chunks_of
from ..spans.tables import pair_tables
from ..spans.units import units_of
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
        ours = units_of(student.encode_batch(chosen), width=len(student), side="student")
        theirs = units_of(teacher.encode_batch(chosen), width=len(teacher), side="teacher")
        chunks = chunks_of(ours.ids, ours.counts, theirs.ids, theirs.counts, pair_tables(student, teacher))
        firsts = [_first(chunk, side.ids) for chunk, side in ((chunks.student, ours), (chunks.teacher, theirs))]
        student_bin, teacher_bin = bins[0][firsts[0]], bins[1][firsts[1]]
        return Starts(
            chunks=self.chunks + len(student_bin),
            together=self.together + int(((student_bin == teacher_bin) & (student_bin >= 0)).sum()),
            bytes=size,
            skipped=self.skipped + int(chunks.differs.sum()),
        )


def _first(chunk: NDArray[np.int32], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first token of every chunk."""
    inside = chunk >= 0
    _, at = np.unique(chunk[inside], return_index=True)
    return ids[inside][at]
