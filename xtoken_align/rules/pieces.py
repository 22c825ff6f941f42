"""Every token of one side as the other side writes it, for the two vocabularies of a build."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab


@dataclass(frozen=True, eq=False)
class Pieces:
    """A list of ids per token, as one array.

    Attributes:
        lengths: int32 (width,), how many pieces each token has; 0 where it has none.
        ids: int32 (total,), the pieces one token after another.
        lossy: int32, ascending ids of the tokens whose pieces spell another text (a normaliser's doing).
    """

    lengths: NDArray[np.int32]
    ids: NDArray[np.int32]
    lossy: NDArray[np.int32]

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """int64 (width + 1,), where each token's pieces begin."""
        offsets = np.zeros(len(self.lengths) + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        return offsets

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, token_id: int) -> list[int]:
        ids: list[int] = self.ids[self.offsets[token_id] : self.offsets[token_id + 1]].tolist()
        return ids

    def of_tokens(self, tokens: NDArray[np.int64]) -> NDArray[np.int32]:
        """The pieces of some tokens, one token after another."""
        counts = self.lengths[tokens].astype(np.int64)
        # Tokens with 2, 1, 3 pieces at offsets 10, 40, 70: 0 1 2 3 4 5 becomes 10 11 40 70 71 72.
        shift = self.offsets[:-1][tokens] - (np.cumsum(counts) - counts)
        taken: NDArray[np.int32] = self.ids[np.arange(counts.sum()) + np.repeat(shift, counts)]
        return taken

    def differing_from(self, known: Pieces) -> Pieces:
        """These pieces without those of tokens that have the same ones in `known`; `completed_by` brings them back.

        >>> lossy = np.zeros(0, np.int32)
        >>> pieces = Pieces(np.array([1, 2, 1], np.int32), np.array([7, 2, 0, 5], np.int32), lossy)
        >>> known = Pieces(np.array([1, 2, 0], np.int32), np.array([7, 2, 9], np.int32), lossy)
        >>> stored = pieces.differing_from(known)
        >>> [stored[token] for token in range(3)]
        [[], [2, 0], [5]]
        >>> [stored.completed_by(known)[token] for token in range(3)]
        [[7], [2, 0], [5]]

        A token without pieces of which `known` has some would come back with those; a build makes no such token.
        """
        different = self.lengths != known.lengths
        same_length = np.flatnonzero(~different & (self.lengths > 0))
        unequal = self.of_tokens(same_length) != known.of_tokens(same_length)
        different[np.repeat(same_length, self.lengths[same_length])[unequal]] = True
        lengths = np.where(different, self.lengths, 0).astype(np.int32)
        return Pieces(lengths, self.of_tokens(np.flatnonzero(different)), self.lossy)

    def completed_by(self, known: Pieces) -> Pieces:
        """These pieces, and those of `known` for every token that has none here."""
        own = self.lengths > 0
        lengths = np.where(own, self.lengths, known.lengths).astype(np.int32)
        is_own = np.repeat(own, lengths)
        ids = np.empty(len(is_own), dtype=np.int32)
        ids[is_own] = self.ids
        ids[~is_own] = known.of_tokens(np.flatnonzero(~own))
        return Pieces(lengths, ids, self.lossy)

    @cached_property
    def first(self) -> NDArray[np.int32]:
        """int32 (width,), the first piece of each token, -1 where it has none."""
        first = np.full(len(self.lengths), -1, dtype=np.int32)
        some = self.lengths > 0
        first[some] = self.ids[self.offsets[:-1][some]]
        return first

    @classmethod
    def of(cls, width: int, parts: Sequence[_Written], lossy: NDArray[np.int32]) -> Pieces:
        """Puts parts, of which no two have a token in common, in the order of their tokens."""
        lengths = np.zeros(width, dtype=np.int32)
        for part in parts:
            lengths[part.tokens] = part.lengths
        made = cls(lengths, np.empty(int(lengths.sum()), dtype=np.int32), lossy)
        for part in parts:
            made.ids[np.repeat(made.offsets[part.tokens], part.lengths) + part.within] = part.ids
        return made

    @classmethod
    def of_table(cls, width: int, table: Mapping[int, Sequence[int]], lossy: Iterable[int]) -> Pieces:
        """Packs a table token id -> pieces."""
        part = _Written.of(list(table), list(table.values()))
        return cls.of(width, [part], np.array(sorted(lossy), dtype=np.int32))


@dataclass(frozen=True, eq=False)
class _Written:
    """Some tokens and their pieces: int64 tokens, int32 lengths, int32 ids one token after another."""

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int32]
    ids: NDArray[np.int32]

    @classmethod
    def of(cls, tokens: Sequence[int], pieces: Sequence[Sequence[int]]) -> _Written:
        lengths = np.fromiter(map(len, pieces), dtype=np.int32, count=len(pieces))
        ids = np.fromiter(chain.from_iterable(pieces), dtype=np.int32, count=int(lengths.sum()))
        return cls(np.asarray(tokens, dtype=np.int64), lengths, ids)

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """int64 (ids,), the position in `tokens` of each piece's token."""
        return np.repeat(np.arange(len(self.tokens)), self.lengths)

    @property
    def within(self) -> NDArray[np.int64]:
        """int64 (ids,), each piece's position among its token's pieces."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.arange(len(self.ids)) - np.repeat(starts, self.lengths)

    def only(self, chosen: NDArray[np.bool_]) -> _Written:
        """The tokens where `chosen` (bool, one per token) is True."""
        return _Written(self.tokens[chosen], self.lengths[chosen], self.ids[chosen[self.owners]])


def is_utf8(data: bytes) -> bool:
    """Whether the bytes are whole UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def equal_surfaces(tokens: Vocab, by: Vocab) -> NDArray[np.int32]:
    """For each text or byte token, the lowest id of the same kind with an equal surface.

    Args:
        tokens: whose tokens are looked up.
        by: where.

    Returns:
        int32 (tokens' width,), -1 where there is none.
    """
    equal = np.full(len(tokens), -1, dtype=np.int32)
    surfaces = tokens.surfaces.list
    for kind, table in ((Kind.TEXT, by.lowest_text_id), (Kind.BYTE, by.lowest_byte_id)):
        ids = tokens.ids_of(kind)
        find = table.get
        equal[ids] = [find(surfaces[token_id], -1) for token_id in ids.tolist()]
    return equal


def decompose(tokens: Vocab, by: Vocab, equal: NDArray[np.int32]) -> Pieces:
    """Writes every text and byte token of one vocabulary in the other.

    An equal surface of the same kind is its own only piece (the lowest id). Everything else comes from encoding:
    looking pieces up by string would give tokens that the encoder never produces.

    Args:
        tokens: whose tokens are written.
        by: who writes them.
        equal: from `equal_surfaces`.

    Returns:
        Pieces over `tokens`' ids. A token that cannot be written has none: nothing was produced, or an unknown token.
    """
    matched = np.flatnonzero(equal >= 0)
    matches = _Written(matched, np.ones(len(matched), dtype=np.int32), equal[matched])
    surfaces = tokens.surfaces.list
    speller = Speller(by)
    to_encode: list[int] = []
    strings: list[str] = []
    raw = [(token_id, True) for token_id in np.flatnonzero((tokens.kinds == Kind.BYTE) & (equal < 0)).tolist()]
    for token_id in np.flatnonzero((tokens.kinds == Kind.TEXT) & (equal < 0)).tolist():
        try:
            strings.append(surfaces[token_id].decode())
        except UnicodeDecodeError:
            raw.append((token_id, False))
        else:
            to_encode.append(token_id)
    encoded = _Written.of(to_encode, by.encode_batch(strings))
    spelled = _Written.of(
        [token_id for token_id, _ in raw],
        [_spell_bytes(surfaces[token_id], by, speller, is_byte=is_byte) for token_id, is_byte in raw],
    )
    parts = [part.only(speller.speakable(part)) for part in (encoded, spelled)]
    lossy = [part.tokens[~speller.spelled(part, tokens)] for part in parts]
    return Pieces.of(len(tokens), [matches, *parts], np.sort(np.concatenate(lossy)).astype(np.int32))


class Speller:
    """What a vocabulary's ids say, for comparing it with what they were to say."""

    def __init__(self, vocab: Vocab) -> None:
        self._surfaces = vocab.surfaces.list
        self._lengths = vocab.surfaces.lengths
        self._speaks = vocab.kinds <= Kind.BYTE
        self._joins, self._ends = vocab.joins_words, vocab.ends_words

    def speakable(self, written: _Written) -> NDArray[np.bool_]:
        """Which tokens have pieces, all of them text: an unknown token among them makes the rest worthless."""
        inside = written.ids < len(self._speaks)
        bad = ~inside
        bad[inside] = ~self._speaks[written.ids[inside]]
        whole: NDArray[np.bool_] = np.bincount(written.owners[bad], minlength=len(written.tokens)) == 0
        return whole & (written.lengths > 0)

    def spelled(self, written: _Written, tokens: Vocab) -> NDArray[np.bool_]:
        """Which tokens' pieces spell their surfaces; `written` holds speakable pieces only."""
        said_lengths = np.bincount(written.owners, self._lengths[written.ids], minlength=len(written.tokens)).astype(
            np.int64
        )
        same_length = said_lengths == tokens.surfaces.lengths[written.tokens]
        right = np.zeros(len(written.tokens), dtype=np.bool_)
        right[same_length] = self._same_bytes(written.only(same_length), tokens, said_lengths[same_length])
        if self._joins or self._ends:
            ends = np.cumsum(written.lengths)
            surfaces = tokens.surfaces.list
            for at in np.flatnonzero(~right).tolist():
                ids = written.ids[ends[at] - written.lengths[at] : ends[at]].tolist()
                right[at] = self.equals(ids, surfaces[written.tokens[at]])
        return right

    def _same_bytes(self, written: _Written, tokens: Vocab, lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        surfaces = tokens.surfaces.list
        said = b"".join([self._surfaces[token_id] for token_id in written.ids.tolist()])
        meant = b"".join([surfaces[token_id] for token_id in written.tokens.tolist()])
        different = np.frombuffer(said, dtype=np.uint8) != np.frombuffer(meant, dtype=np.uint8)
        owners = np.repeat(np.arange(len(written.tokens)), lengths)
        equal: NDArray[np.bool_] = np.bincount(owners[different], minlength=len(written.tokens)) == 0
        return equal

    def all_speak(self, ids: Sequence[int]) -> bool:
        """`speakable` for one token's pieces."""
        return bool(self.speakable(_Written.of([0], [ids]))[0])

    def equals(self, ids: Sequence[int], surface: bytes) -> bool:
        """Whether ids spell the surface, up to the one space that word starts or word ends bring along."""
        said = b"".join([self._surfaces[token_id] for token_id in ids])
        if said == surface:
            return True
        if self._joins and said.removeprefix(b" ") == surface.removeprefix(b" "):
            return True
        return self._ends and said.removesuffix(b" ") == surface.removesuffix(b" ")


def _spell_bytes(data: bytes, by: Vocab, speller: Speller, *, is_byte: bool) -> list[int]:
    """Writes bytes that need not be UTF-8, or a byte token's one byte.

    An equal surface of the other kind comes first, then the model's own merges over the bytes, then its encoding of the
    stretches that are UTF-8 with byte tokens for the rest.

    Args:
        data: the surface.
        by: who writes it.
        speller: what `by`'s ids say.
        is_byte: whether `data` is a byte token's (then the other kind is text).

    Returns:
        The ids, [] where `by` cannot spell the bytes.
    """
    other = by.lowest_text_id.get(data) if is_byte else by.lowest_byte_id.get(data)
    if other is not None:
        return [other]
    merged = by.encoder.encode_bytes(data)
    if merged and speller.all_speak(merged) and speller.equals(merged, data):
        return merged
    return _spell_stretches(data, by, speller)


def _spell_stretches(data: bytes, by: Vocab, speller: Speller) -> list[int]:
    ids: list[int] = []
    for stretch, valid in _stretches(data):
        if valid:
            part = by.encode_batch([stretch.decode()])[0]
            if not speller.all_speak(part):
                return []
            ids += part
            continue
        for value in stretch:
            byte = bytes([value])
            single = by.lowest_byte_id.get(byte, by.lowest_text_id.get(byte))
            if single is None:
                return []
            ids.append(single)
    return ids


def _stretches(data: bytes) -> list[tuple[bytes, bool]]:
    """Cuts bytes into maximal stretches that are UTF-8 (True) and that are not (False)."""
    parts: list[tuple[bytes, bool]] = []
    while data:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            if error.start:
                parts.append((data[: error.start], True))
            parts.append((data[error.start : error.end], False))
            data = data[error.end :]
        else:
            parts.append((data, True))
            break
    return parts


@dataclass(frozen=True, eq=False)
class Pair:
    """A student and a teacher."""

    student: Vocab
    teacher: Vocab

    @cached_property
    def student_equal(self) -> NDArray[np.int32]:
        """int32 (student width,), the lowest teacher id of the same kind with an equal surface, -1 for none."""
        return equal_surfaces(self.student, self.teacher)

    @cached_property
    def student_pieces(self) -> Pieces:
        """Every student token as the teacher writes it."""
        if self.identical:
            return self._identity(self.student)
        return decompose(self.student, self.teacher, self.student_equal)

    @cached_property
    def teacher_pieces(self) -> Pieces:
        """Every teacher token as the student writes it."""
        if self.identical:
            return self._identity(self.teacher)
        return decompose(self.teacher, self.student, equal_surfaces(self.teacher, self.student))

    @cached_property
    def identical(self) -> bool:
        """Whether both mean and produce the same text ids."""
        return self.student.fingerprint == self.teacher.fingerprint

    @staticmethod
    def _identity(vocab: Vocab) -> Pieces:
        ids = vocab.speakable_ids.astype(np.int32)
        lengths = np.zeros(len(vocab), dtype=np.int32)
        lengths[ids] = 1
        return Pieces(lengths, ids, np.zeros(0, dtype=np.int32))

    def open_text(self, open_rows: NDArray[np.bool_]) -> list[int]:
        """Open student ids of kind text, ascending."""
        ids: list[int] = np.flatnonzero(open_rows & (self.student.kinds == Kind.TEXT)).tolist()
        return ids
