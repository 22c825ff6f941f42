"""An immutable sequence of byte strings kept as one block of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

_FACTOR = 0x9E3779B97F4A7C15
"""The golden ratio's fraction in 64 bits (Knuth, The Art of Computer Programming, volume 3, 6.4)."""


class ByteStrings(Sequence[bytes]):
    """Byte strings by index, as a blob and offsets: what a mapping file stores, usable without unpacking it.

    Args:
        blob: uint8 (total,), the strings one after another.
        lengths: int (count,), the length of each.
    """

    def __init__(self, blob: NDArray[np.uint8], lengths: NDArray[np.int32]) -> None:
        self.blob = blob
        self.lengths = lengths.astype(np.int32, copy=False)
        self.offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=self.offsets[1:])

    @classmethod
    def of(cls, strings: Iterable[bytes]) -> ByteStrings:
        """Packs strings."""
        kept = list(strings)
        lengths = np.fromiter(map(len, kept), dtype=np.int32, count=len(kept))
        made = cls(np.frombuffer(b"".join(kept), dtype=np.uint8), lengths)
        made.__dict__["list"] = kept
        return made

    @cached_property
    def list(self) -> list[bytes]:
        """All strings as Python objects, unpacked once."""
        data, ends = self.blob.tobytes(), self.offsets.tolist()
        return [data[start:end] for start, end in pairwise(ends)]

    @cached_property
    def codes(self) -> NDArray[np.uint64]:
        """uint64 (count,), a code per string: equal strings have equal codes, others almost never.

        Unpacking hundreds of thousands of strings to compare them takes longer than everything else in a comparison.
        """
        # An odd factor's powers are all odd: modulo 2**64 no byte's share vanishes.
        powers = np.cumprod(np.full(int(self.lengths.max(initial=0)) + 1, _FACTOR, dtype=np.uint64))
        within = np.arange(len(self.blob)) - np.repeat(self.offsets[:-1], self.lengths)
        totals = np.zeros(len(self.blob) + 1, dtype=np.uint64)
        np.cumsum((self.blob + np.uint64(1)) * powers[within], out=totals[1:])
        return np.asarray(totals[self.offsets[1:]] - totals[self.offsets[:-1]])

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return self.list[index]
        if "list" in self.__dict__:
            return self.list[index]
        position = range(len(self))[index]
        return self.blob[self.offsets[position] : self.offsets[position + 1]].tobytes()
