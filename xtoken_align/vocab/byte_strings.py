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
        unpacked = list(strings)
        lengths = np.fromiter(map(len, unpacked), dtype=np.int32, count=len(unpacked))
        packed = cls(np.frombuffer(b"".join(unpacked), dtype=np.uint8), lengths)
        packed.__dict__["list"] = unpacked
        return packed

    @cached_property
    def list(self) -> list[bytes]:
        """All strings as Python objects, unpacked once."""
        data, ends = self.blob.tobytes(), self.offsets.tolist()
        return [data[start:end] for start, end in pairwise(ends)]

    @cached_property
    def codes(self) -> NDArray[np.uint64]:
        """uint64 (count,), a number per string: equal strings have equal numbers, others almost never.

        Comparing vocabularies by these takes less time than unpacking hundreds of thousands of strings.
        """
        # The code of `ab` is 98 * F + 99 * F**2 modulo 2**64, each byte one more so that no zero byte vanishes. F is
        # odd, so its powers are odd and no factor loses a bit.
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
