"""Decompositions: every token of one side as the other side writes it, for the two vocabularies of a build."""

from __future__ import annotations

from collections.abc import Sequence
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

    @classmethod
    def of(cls, width: int, owners: NDArray[np.int64], ids: NDArray[np.int32], lossy: Sequence[int] = ()) -> Pieces:
        """Puts pieces in the order of their tokens; each token's own stay in the order given.

        >>> pieces = Pieces.of(3, np.array([2, 0, 0]), np.array([9, 4, 5], np.int32))
        >>> [pieces[token] for token in range(3)]
        [[4, 5], [], [9]]

        Args:
            width: how many tokens there are.
            owners: int64 (total,), the token of each piece.
            ids: int32 (total,), the pieces.
            lossy: the tokens whose pieces spell another text.
        """
        lengths = np.bincount(owners, minlength=width).astype(np.int32)
        return cls(lengths, ids[np.argsort(owners, kind="stable")], np.array(sorted(lossy), dtype=np.int32))

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """int64 (width + 1,), where each token's pieces begin."""
        offsets = np.zeros(len(self.lengths) + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        return offsets

    @cached_property
    def first(self) -> NDArray[np.int32]:
        """int32 (width,), the first piece of each token, -1 where it has none."""
        first = np.full(len(self.lengths), -1, dtype=np.int32)
        some = self.lengths > 0
        first[some] = self.ids[self.offsets[:-1][some]]
        return first

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

        >>> pieces = Pieces.of(3, np.array([0, 1, 1, 2]), np.array([7, 2, 0, 5], np.int32))
        >>> known = Pieces.of(3, np.array([0, 1, 1]), np.array([7, 2, 9], np.int32))
        >>> stored = pieces.differing_from(known)
        >>> [stored[token] for token in range(3)]
        [[], [2, 0], [5]]
        >>> [stored.completed_by(known)[token] for token in range(3)]
        [[7], [2, 0], [5]]

        A token without pieces of which `known` has some would come back with those; a build makes no such token.
        """
        # First by length; where lengths agree, piece by piece, each piece's token told by `repeat`.
        different = self.lengths != known.lengths
        same_length = np.flatnonzero(~different & (self.lengths > 0))
        unequal = self.of_tokens(same_length) != known.of_tokens(same_length)
        different[np.repeat(same_length, self.lengths[same_length])[unequal]] = True
        lengths = np.where(different, self.lengths, 0).astype(np.int32)
        return Pieces(lengths, self.of_tokens(np.flatnonzero(different)), self.lossy)

    def completed_by(self, known: Pieces) -> Pieces:
        """These pieces, and those of `known` for every token that has none here."""
        # Own [], [2, 0], [5] and known [7], [2], []: the result is 7 | 2 0 | 5, of which all but the 7 are own.
        own = self.lengths > 0
        lengths = np.where(own, self.lengths, known.lengths).astype(np.int32)
        is_own = np.repeat(own, lengths)
        ids = np.empty(len(is_own), dtype=np.int32)
        ids[is_own] = self.ids
        ids[~is_own] = known.of_tokens(np.flatnonzero(~own))
        return Pieces(lengths, ids, self.lossy)


@dataclass(frozen=True, eq=False)
class Pair:
    """A student and a teacher, with what the rules ask of both.

    Attributes:
        student: the student's vocabulary.
        teacher: the teacher's vocabulary.
        identical: whether both mean and produce the same text ids.
        student_equal: int32 (student width,), the lowest teacher id of the same kind with an equal surface, -1 for
            none.
        student_pieces: every student token as the teacher writes it.
        teacher_pieces: every teacher token as the student writes it.
    """

    student: Vocab
    teacher: Vocab
    identical: bool
    student_equal: NDArray[np.int32]
    student_pieces: Pieces
    teacher_pieces: Pieces

    @classmethod
    def of(cls, student: Vocab, teacher: Vocab) -> Pair:
        """Compares two vocabularies and writes the tokens of each in the other."""
        student_equal = equal_surfaces(student, teacher)
        if student.fingerprint == teacher.fingerprint:
            # Each token is its own piece, also where the encoder would never produce it.
            student_pieces, teacher_pieces = (
                Pieces.of(len(vocab), vocab.speakable_ids, vocab.speakable_ids.astype(np.int32))
                for vocab in (student, teacher)
            )
            return cls(student, teacher, True, student_equal, student_pieces, teacher_pieces)  # noqa: FBT003
        student_pieces = decompose(student, teacher, student_equal)
        teacher_pieces = decompose(teacher, student, _the_other_way(student_equal, student, teacher))
        return cls(student, teacher, False, student_equal, student_pieces, teacher_pieces)  # noqa: FBT003


def equal_surfaces(tokens: Vocab, by: Vocab) -> NDArray[np.int32]:
    """For each text and byte token the id of the same kind in `by` with an equal surface, -1 for none.

    Of several text ids that is the one which the encoder of `by` writes, of several byte ids the lowest.
    """
    equal = np.full(len(tokens), -1, dtype=np.int32)
    surfaces = tokens.surfaces.list
    # Kind by kind: the byte token `<0x41>` and the text `A` have one surface, and only bytes match bytes here.
    for kind, id_of in ((Kind.TEXT, by.written_text_id), (Kind.BYTE, by.lowest_byte_id)):
        ids = tokens.ids_of(kind)
        equal[ids] = [id_of.get(surfaces[token_id], -1) for token_id in ids.tolist()]
    return equal


def _the_other_way(student_equal: NDArray[np.int32], student: Vocab, teacher: Vocab) -> NDArray[np.int32]:
    """`equal_surfaces(teacher, student)`, read off the other direction where no surface of either has two ids."""
    if student.repeated_surfaces or teacher.repeated_surfaces:
        return equal_surfaces(teacher, student)
    # The students 0, 1, 2 with the teachers 4, none, 3: the teachers 3 and 4 have the students 2 and 0.
    equal = np.full(len(teacher), -1, dtype=np.int32)
    matched = np.flatnonzero(student_equal >= 0)
    equal[student_equal[matched]] = matched
    return equal


def decompose(tokens: Vocab, by: Vocab, equal: NDArray[np.int32]) -> Pieces:
    """Writes every text and byte token of one vocabulary in the other.

    A token with an equal surface of its kind is written as that one token. Every other token is
    encoded: looking pieces up by string would give tokens that the encoder never produces.

    Args:
        tokens: whose tokens are written.
        by: who writes them.
        equal: from `equal_surfaces`.

    Returns:
        Pieces over the ids of `tokens`. A token has none if encoding gave nothing, or an unknown or special token.
    """
    surfaces = tokens.surfaces.list
    texts: dict[int, str] = {}
    written: dict[int, Sequence[int]] = {}
    for token_id in np.flatnonzero((equal < 0) & (tokens.kinds == Kind.TEXT)).tolist():
        try:
            texts[token_id] = surfaces[token_id].decode()
        except UnicodeDecodeError:
            written[token_id] = _spell_bytes(surfaces[token_id], by, is_byte=False)
    for token_id in np.flatnonzero((equal < 0) & (tokens.kinds == Kind.BYTE)).tolist():
        written[token_id] = _spell_bytes(surfaces[token_id], by, is_byte=True)
    written.update(zip(texts, by.encode_batch(list(texts.values())), strict=True))
    # All texts in one call: encoders written in Rust work on a batch with all cores.
    # {4: [9, 8], 6: [7]} becomes owners 4 4 6 and ids 9 8 7.
    counts = np.fromiter(map(len, written.values()), dtype=np.int64, count=len(written))
    owners = np.repeat(np.fromiter(written, dtype=np.int64, count=len(written)), counts)
    ids = np.fromiter(chain.from_iterable(written.values()), dtype=np.int32, count=int(counts.sum()))
    # An id above the width, or one that is no text, makes the other pieces of its token worthless.
    no_text = ids >= len(by)
    no_text[~no_text] = by.kinds[ids[~no_text]] > Kind.BYTE
    unwritable = np.zeros(len(tokens), dtype=np.bool_)
    unwritable[owners[no_text]] = True
    owners, ids = owners[~unwritable[owners]], ids[~unwritable[owners]]
    matched = np.flatnonzero(equal >= 0)
    return Pieces.of(
        len(tokens),
        np.concatenate([matched, owners]),
        np.concatenate([equal[matched], ids]),
        lossy=_lossy(owners, ids, tokens, by),
    )


def _lossy(owners: NDArray[np.int64], ids: NDArray[np.int32], tokens: Vocab, by: Vocab) -> list[int]:
    """The tokens whose pieces do not spell their surface.

    Args:
        owners: int64 (total,), the token of each piece; a token's pieces stand together.
        ids: int32 (total,), the pieces, ids of `by`.
        tokens: whose tokens are written.
        by: who writes them.
    """
    # `20` as `2`, `0` spells 2 bytes of 2; Å as Å composed by NFC spells 2 bytes of 3. Where lengths agree, all bytes
    # are compared in one stretch: `20` and `ab` against `2`, `0`, `a`, `c` differ in the last byte, which is `ab`'s.
    spelled_lengths = np.bincount(owners, by.surfaces.lengths[ids], minlength=len(tokens)).astype(np.int64)
    same_length = spelled_lengths[owners] == tokens.surfaces.lengths[owners]
    lossy = set(owners[~same_length].tolist())
    their_surfaces, surfaces = by.surfaces.list, tokens.surfaces.list
    comparable = np.unique(owners[same_length])
    # The pieces in the order of their tokens, like the surfaces that they are compared with.
    compared_ids = ids[same_length][np.argsort(owners[same_length], kind="stable")]
    spelled = b"".join([their_surfaces[piece] for piece in compared_ids.tolist()])
    meant = b"".join([surfaces[token_id] for token_id in comparable.tolist()])
    different = np.frombuffer(spelled, dtype=np.uint8) != np.frombuffer(meant, dtype=np.uint8)
    byte_owners = np.repeat(comparable, tokens.surfaces.lengths[comparable])
    lossy.update(byte_owners[different].tolist())
    if by.joins_words or by.ends_words:
        pieces = Pieces.of(len(tokens), owners, ids)
        return [token_id for token_id in lossy if not spells(by, pieces[token_id], surfaces[token_id])]
    return list(lossy)


def spells(by: Vocab, ids: Sequence[int], surface: bytes) -> bool:
    """Whether ids spell a surface, up to the one space that word starts or word ends bring along."""
    spelled = b"".join([by.surfaces[token_id] for token_id in ids])
    if spelled == surface:
        return True
    if by.joins_words and spelled.removeprefix(b" ") == surface.removeprefix(b" "):
        return True
    return by.ends_words and spelled.removesuffix(b" ") == surface.removesuffix(b" ")


def is_utf8(data: bytes) -> bool:
    """Whether the bytes are whole UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _spell_bytes(data: bytes, by: Vocab, *, is_byte: bool) -> list[int]:
    """Writes bytes that need not be UTF-8, or a byte token's one byte.

    An equal surface of the other kind comes first, then the model's own merges over the bytes. Else the stretches that
    are UTF-8 are encoded and each byte between them is its byte token: `ab` and the byte E4 become `ab`, `<0xE4>`.

    Args:
        data: the surface.
        by: who writes it.
        is_byte: whether `data` is a byte token's (then the other kind is text).

    Returns:
        The ids, [] where `by` cannot spell the bytes.
    """
    equal = by.lowest_text_id.get(data) if is_byte else by.lowest_byte_id.get(data)
    if equal is not None:
        return [equal]
    merged = by.encoder.encode_bytes(data)
    if merged and _all_text(by, merged) and spells(by, merged, data):
        return merged
    ids: list[int] = []
    for stretch, valid in _stretches(data):
        if valid:
            part = by.encode_batch([stretch.decode()])[0]
            if not _all_text(by, part):
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


def _all_text(by: Vocab, ids: Sequence[int]) -> bool:
    """Whether there are pieces and all of them are text or bytes."""
    return bool(ids) and max(ids) < len(by) and bool((by.kinds[ids] <= Kind.BYTE).all())


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
