"""Texts as normalisers leave them: what two sides say compares equal where only a normaliser makes them differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import regex
from numpy.typing import NDArray

from ..vocab.vocab import Vocab

_CLUSTER = regex.compile(r"\X")
_BEYOND_ASCII = regex.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")
"""What lies beyond ASCII, with the character before it, which it may modify."""

_ANYTHING = regex.compile(r".+", regex.DOTALL)
_NOT_UTF8 = regex.compile(r"[\udc80-\udcff]")
_SPACES = regex.compile(r"\s+")
_REMEMBERED = 16
"""Characters of a stretch whose folding is kept: user-perceived characters and short words come again."""

_PROBES = ("A", "\u00e9", "e\u0301", "\ufb01", "\u0130", "\u200b")
"""Case, an accent in one and in two characters, a compatibility form, a folding of two characters, a control."""


@dataclass(frozen=True, eq=False)
class Folded:
    """A folded text and where the original's bytes are in it.

    Attributes:
        text: uint8 (folded bytes,).
        at: int64 (original bytes + 1,), the folded position of every position between bytes.
        sharp: bool (original bytes + 1,), False inside a character that folding changed: no boundary there compares.
    """

    text: NDArray[np.uint8]
    at: NDArray[np.int64]
    sharp: NDArray[np.bool_]


class Folding:
    """Applies both sides' normalisers to each user-perceived character, and drops spaces where surfaces invent them.

    Args:
        student: the student.
        teacher: the teacher.
    """

    def __init__(self, student: Vocab, teacher: Vocab) -> None:
        self._steps: list[Callable[[str], str]] = [
            vocab.encoder.normalize
            for vocab in (student, teacher)
            if any(vocab.encoder.normalize(probe) != probe for probe in _PROBES)
        ]
        self._drops_spaces = any(vocab.joins_words or vocab.ends_words for vocab in (student, teacher))
        self._known: dict[str, bytes] = {}

    @property
    def changes(self) -> bool:
        """Whether folding changes any text at all."""
        return bool(self._steps) or self._drops_spaces

    def fold(self, said: bytes) -> Folded:
        """Folds a text.

        Args:
            said: what the tokens of a side say; need not be UTF-8.
        """
        text = said.decode("utf-8", "surrogateescape")
        cells = [_Cells.none()]
        done = 0
        for match in _BEYOND_ASCII.finditer(text) if self._ascii is not None else _ANYTHING.finditer(text):
            cells += [self._ascii_cells(text[done : match.start()]), self._cells(match[0])]
            done = match.end()
        cells.append(self._ascii_cells(text[done:]))
        return _joined(cells)

    @cached_property
    def _ascii(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """What each character of ASCII becomes, and in how many bytes (0 or 1); None where one becomes more."""
        made = [self._folded(chr(code)) for code in range(128)]
        if max(map(len, made)) > 1:
            return None
        return (
            np.frombuffer(b"".join(data or b"\0" for data in made), dtype=np.uint8),
            np.fromiter(map(len, made), dtype=np.int64, count=len(made)),
        )

    def _ascii_cells(self, text: str) -> _Cells:
        """Every character a cell of its own."""
        if not text:
            return _Cells.none()
        assert self._ascii is not None
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
        made, lengths = self._ascii[0][codes], self._ascii[1][codes]
        kept = lengths > 0
        return _Cells(np.ones_like(lengths), lengths, ~kept | (made != codes), made[kept])

    def _cells(self, text: str) -> _Cells:
        """One cell where nothing changes, else one for every user-perceived character."""
        original = text.encode("utf-8", "surrogateescape")
        # Half a character leaves itself as it is, not all around it.
        if not _NOT_UTF8.search(text) and self._folded(text) == original:
            size = np.array([len(original)], dtype=np.int64)
            return _Cells(size, size, np.zeros(1, dtype=np.bool_), np.frombuffer(original, dtype=np.uint8))
        clusters = _CLUSTER.findall(text)
        made = [self._folded(cluster) for cluster in clusters]
        pieces = [cluster.encode("utf-8", "surrogateescape") for cluster in clusters]
        return _Cells(
            np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces)),
            np.fromiter(map(len, made), dtype=np.int64, count=len(made)),
            np.array([one != other for one, other in zip(pieces, made, strict=True)], dtype=np.bool_),
            np.frombuffer(b"".join(made), dtype=np.uint8),
        )

    def _folded(self, text: str) -> bytes:
        made = self._known.get(text) if len(text) <= _REMEMBERED else None
        if made is None:
            made = self._fold(text)
            if len(text) <= _REMEMBERED:
                self._known[text] = made
        return made

    def _fold(self, text: str) -> bytes:
        original = text.encode("utf-8", "surrogateescape")
        if text.isspace():
            return b"" if self._drops_spaces else self._fold_space(text)
        if _NOT_UTF8.search(text):
            return original
        for step in self._steps:
            text = step(text)
        return (_SPACES.sub("", text) if self._drops_spaces else text).encode("utf-8", "replace")

    def _fold_space(self, text: str) -> bytes:
        for step in self._steps:
            # Between letters, since some normalisers strip a text's edges.
            text = step(f"x{text}x")[1:-1].replace("\u2581", " ")
        return text.encode("utf-8", "replace")


@dataclass(frozen=True, eq=False)
class _Cells:
    """Stretches of a text that fold on their own: bytes before and after, whether changed, and the folded bytes."""

    sizes: NDArray[np.int64]
    made: NDArray[np.int64]
    changed: NDArray[np.bool_]
    text: NDArray[np.uint8]

    @classmethod
    def none(cls) -> _Cells:
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, nothing, np.zeros(0, dtype=np.bool_), np.zeros(0, dtype=np.uint8))


def _joined(parts: list[_Cells]) -> Folded:
    sizes = np.concatenate([part.sizes for part in parts])
    made = np.concatenate([part.made for part in parts])
    changed = np.concatenate([part.changed for part in parts]).repeat(sizes)
    ends = made.cumsum()
    total = int(sizes.sum())
    inside = np.arange(total) - (sizes.cumsum() - sizes).repeat(sizes)
    at = np.empty(total + 1, dtype=np.int64)
    sharp = np.ones(total + 1, dtype=np.bool_)
    # Positions inside a changed character count as its end, so that its first token has all of it.
    at[:-1] = (ends - made).repeat(sizes) + np.where(changed, made.repeat(sizes) * (inside > 0), inside)
    at[-1] = ends[-1] if len(ends) else 0
    sharp[:-1] = (inside == 0) | ~changed
    return Folded(np.concatenate([part.text for part in parts]), at, sharp)
