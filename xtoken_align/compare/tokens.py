"""Matching the tokens of two vocabularies by kind and surface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..vocab.byte_strings import ByteStrings
from ..vocab.fingerprint import Parts
from ..vocab.kinds import Kind
from ..vocab.vocab import Sizes


class Vocabulary(Protocol):
    """What comparing needs of a vocabulary: a `Vocab`, or one side of a mapping."""

    @property
    def name(self) -> str:
        """Short name."""
        ...

    @property
    def kinds(self) -> NDArray[np.uint8]:
        """uint8 (logits,)."""
        ...

    @property
    def surfaces(self) -> ByteStrings:
        """Bytes per id."""
        ...

    @property
    def sizes(self) -> Sizes:
        """The four sizes."""
        ...

    @property
    def roles(self) -> Mapping[str, tuple[int, ...]]:
        """Role -> ids."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the text vocabulary."""
        ...

    @property
    def parts(self) -> Parts | None:
        """What it is made of; None for a side of a mapping that was written before files had it."""
        ...

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether a fingerprint is its own, in today's form or in an earlier one."""
        ...


@dataclass(frozen=True, eq=False)
class Match:
    """Which tokens of two vocabularies are the same: equal kind and surface, duplicates by their order.

    Attributes:
        old: the one vocabulary.
        new: the other.
        highest: the last kind that takes part; reserved fillers, padding and holes are no tokens.
    """

    old: Vocabulary
    new: Vocabulary
    highest: Kind = Kind.SPECIAL

    @cached_property
    def used_old(self) -> NDArray[np.bool_]:
        """Bool (old logits,), the ids that take part."""
        return np.asarray(self.old.kinds <= self.highest)

    @cached_property
    def used_new(self) -> NDArray[np.bool_]:
        """Bool (new logits,), the ids that take part."""
        return np.asarray(self.new.kinds <= self.highest)

    @cached_property
    def in_place(self) -> NDArray[np.bool_]:
        """Bool (min(logits),), ids used on both sides for the same token."""
        shared = min(len(self.old.kinds), len(self.new.kinds))
        alike = self.used_old[:shared] & self.used_new[:shared]
        alike &= self.old.kinds[:shared] == self.new.kinds[:shared]
        if not self._same_surfaces:
            alike &= equal_strings(self.old.surfaces, self.new.surfaces, shared)
        return alike

    @cached_property
    def _same_surfaces(self) -> bool:
        # Two mappings of one student have equal surfaces, and comparing whole blobs is fastest.
        old, new = self.old.surfaces, self.new.surfaces
        return np.array_equal(old.lengths, new.lengths) and np.array_equal(old.blob, new.blob)

    @cached_property
    def new_of_old(self) -> NDArray[np.int32]:
        """int32 (old logits,), the new id of each old token, -1 where it is gone."""
        # Most tokens keep their id; only the others are looked up, kind by kind.
        new_ids = np.full(len(self.old.kinds), -1, dtype=np.int32)
        places = np.flatnonzero(self.in_place)
        new_ids[places] = places
        taken = np.zeros(len(self.new.kinds), dtype=np.bool_)
        taken[places] = True
        for kind in range(self.highest + 1):
            left = np.flatnonzero(self.used_old & (new_ids < 0) & (self.old.kinds == kind))
            candidates = np.flatnonzero(self.used_new & ~taken & (self.new.kinds == kind))
            if len(left) and len(candidates):
                new_ids[left] = _find(self.old.surfaces, left, self.new.surfaces, candidates)
        return new_ids

    @cached_property
    def old_of_new(self) -> NDArray[np.int32]:
        """int32 (new logits,), the old id of each new token, -1 where it is new."""
        old_ids = np.full(len(self.new.kinds), -1, dtype=np.int32)
        matched = np.flatnonzero(self.new_of_old >= 0)
        old_ids[self.new_of_old[matched]] = matched
        return old_ids

    @property
    def removed(self) -> NDArray[np.int64]:
        """Old ids whose token the new vocabulary does not have."""
        return np.flatnonzero(self.used_old & (self.new_of_old < 0))

    @property
    def added(self) -> NDArray[np.int64]:
        """New ids whose token the old vocabulary did not have."""
        return np.flatnonzero(self.used_new & (self.old_of_new < 0))

    @property
    def moved(self) -> NDArray[np.int64]:
        """Old ids whose token has another id now."""
        ids = np.arange(len(self.new_of_old))
        return np.flatnonzero((self.new_of_old >= 0) & (self.new_of_old != ids))

    @property
    def repurposed(self) -> NDArray[np.int64]:
        """Ids that stand for one token in the old and for another in the new vocabulary."""
        shared = len(self.in_place)
        both = self.used_old[:shared] & self.used_new[:shared] & ~self.in_place
        both[self.renamed] = False
        return np.flatnonzero(both)

    @cached_property
    def renamed(self) -> NDArray[np.int64]:
        """Ids of special tokens with another name now, where neither name occurs on the other side.

        A special token's name is no text: the id may well mean what it meant.
        """
        shared = len(self.in_place)
        special = (self.old.kinds[:shared] == Kind.SPECIAL) & (self.new.kinds[:shared] == Kind.SPECIAL)
        unmatched = (self.new_of_old[:shared] < 0) & (self.old_of_new[:shared] < 0)
        return np.flatnonzero(special & unmatched)


def _find(
    old: ByteStrings, wanted: NDArray[np.int64], new: ByteStrings, candidates: NDArray[np.int64]
) -> NDArray[np.int32]:
    """For each wanted string the candidate with that string, -1 where there is none.

    The strings are looked up by their codes: wanted `b`, `x` among the candidates 4 `a`, 7 `b` gives 7, -1. If a string
    stands several times, the first wanted takes the first candidate, the second the second.
    """
    wanted_codes, codes = old.codes[wanted], new.codes[candidates]
    order = np.argsort(codes)
    ordered = codes[order]
    at = np.minimum(np.searchsorted(ordered, wanted_codes), len(ordered) - 1)
    hit = ordered[at] == wanted_codes
    nearest = candidates[order[at]]
    hit[hit] = equal_at(old, wanted[hit], new, nearest[hit])
    repeated = (ordered[1:] == ordered[:-1]).any() or np.bincount(nearest[hit], minlength=1).max() > 1
    if repeated:
        return _find_repeated([old[i] for i in wanted.tolist()], [new[i] for i in candidates.tolist()], candidates)
    return np.where(hit, nearest, -1).astype(np.int32)


def _find_repeated(wanted: list[bytes], strings: list[bytes], candidates: NDArray[np.int64]) -> NDArray[np.int32]:
    """`_find` where a string stands several times, or two strings share a code."""
    waiting: dict[bytes, list[int]] = {}
    for string, token_id in zip(reversed(strings), reversed(candidates.tolist()), strict=True):
        waiting.setdefault(string, []).append(token_id)
    new_ids = [ids.pop() if (ids := waiting.get(string)) else -1 for string in wanted]
    return np.array(new_ids, dtype=np.int32)


def equal_strings(left: ByteStrings, right: ByteStrings, count: int) -> NDArray[np.bool_]:
    """Bool (count,), which of the first `count` strings are equal, without unpacking them."""
    places = np.arange(count)
    return equal_at(left, places, right, places)


def equal_at(
    left: ByteStrings, left_ids: NDArray[np.int64], right: ByteStrings, right_ids: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """bool, whether the strings at paired ids are equal, without unpacking them."""
    # Pairs of equal length are compared byte by byte in one stretch: `ab`, `c` with `ax`, `c` are abc and axc, whose
    # second byte differs and belongs to the first pair.
    lengths = left.lengths[left_ids].astype(np.int64)
    same = lengths == right.lengths[right_ids]
    lengths = lengths[same]
    owners = np.repeat(np.flatnonzero(same), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    left_bytes = left.blob[np.repeat(left.offsets[left_ids[same]], lengths) + within]
    different = left_bytes != right.blob[np.repeat(right.offsets[right_ids[same]], lengths) + within]
    same[owners[different]] = False
    return np.asarray(same)
