"""Texts as normalisers leave them: what two sides say compares equal where only a normaliser makes them differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import NDArray

from ..vocab.vocab import Vocab

_CLUSTER = regex.compile(r"\X")
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
        clusters = _CLUSTER.findall(said.decode("utf-8", "surrogateescape"))
        sizes: list[int] = []
        folded: list[bytes] = []
        changed: list[bool] = []
        for cluster in clusters:
            original = cluster.encode("utf-8", "surrogateescape")
            made = self._known.get(cluster)
            if made is None:
                made = self._known[cluster] = self._fold(cluster, original)
            sizes.append(len(original))
            folded.append(made)
            changed.append(made != original)
        lengths = np.array(sizes, dtype=np.int64)
        made_lengths = np.fromiter(map(len, folded), dtype=np.int64, count=len(folded))
        ends, made_ends = lengths.cumsum(), made_lengths.cumsum()
        other = np.array(changed, dtype=np.bool_)
        at = np.zeros(len(said) + 1, dtype=np.int64)
        sharp = np.ones(len(said) + 1, dtype=np.bool_)
        inside = np.arange(len(said)) - (ends - lengths).repeat(lengths)
        # Positions inside a changed character count as its end, so that its first token has all of it.
        at[:-1] = (made_ends - made_lengths).repeat(lengths) + np.where(
            other.repeat(lengths), made_lengths.repeat(lengths) * (inside > 0), inside
        )
        at[-1] = made_ends[-1] if len(made_ends) else 0
        sharp[:-1] = (inside == 0) | ~other.repeat(lengths)
        return Folded(np.frombuffer(b"".join(folded), dtype=np.uint8), at, sharp)

    def _fold(self, cluster: str, original: bytes) -> bytes:
        if cluster.isspace():
            return b"" if self._drops_spaces else self._fold_space(cluster)
        if any("\udc80" <= character <= "\udcff" for character in cluster):
            return original
        for step in self._steps:
            cluster = step(cluster)
        return (
            cluster.replace(" ", "").encode("utf-8", "replace")
            if self._drops_spaces
            else cluster.encode("utf-8", "replace")
        )

    def _fold_space(self, cluster: str) -> bytes:
        for step in self._steps:
            # Between letters, since some normalisers strip a text's edges.
            cluster = step(f"x{cluster}x")[1:-1].replace("\u2581", " ")
        return cluster.encode("utf-8", "replace")
