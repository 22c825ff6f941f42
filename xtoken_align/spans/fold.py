"""What one side's tokens say, for the careful path: the text, and where in it each token begins and ends.

There are two ways to know it. The tokens' own surfaces, folded as both sides' normalisers fold: then what differs only
by a normaliser compares equal. Or, where an encoder tells which characters a token stands for, the original text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import regex
from numpy.typing import NDArray

from ..errors import VocabularyError
from ..limits import MAX_PATTERN_SECONDS
from ..readers.parsed import Run
from ..vocab.vocab import Vocab
from .tables import PairTables
from .units import Flags, Numbers, offsets_of, parts_of_text

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

_PLAIN = "".join(map(chr, range(0x21, 0x7F)))
"""What a rule of a tokenizer's own may replace: digits, quotes, signs."""

_SPACE = ord(" ")
_IS_ASCII_SPACE = np.array([code < 0x80 and chr(code).isspace() for code in range(256)])
_OTHER_SPACES = regex.compile(b"|".join(chr(code).encode() for code in range(0x80, 0x10000) if chr(code).isspace()))
_MARKS = regex.compile(r"[\p{M}\p{Cf}]*")


@dataclass(frozen=True, eq=False)
class SideText:
    """What one side's tokens say, on that side's own axis of bytes.

    A boundary is *sharp* where it may be compared with one of the other side. Inside of a character that folding
    changed, and between tokens that share a character, it is not.

    Attributes:
        text: uint8, what is compared.
        begin: int64 (tokens,), where each token begins in it.
        end: int64 (tokens,), where each ends.
        sharp_begin: bool (tokens,), whether the token's beginning is sharp.
        sharp_end: bool (tokens,), whether its end is.
        has_text: bool (tokens,), False for specials. A token inside a character that folding changed may cover
            nothing of the text and yet have text.
        specials: int32 (tokens,), rows or columns of the pair's table, -1 for others.
    """

    text: NDArray[np.uint8]
    begin: Numbers
    end: Numbers
    sharp_begin: Flags
    sharp_end: Flags
    has_text: Flags
    specials: NDArray[np.int32]


def text_by_surfaces(ids: Numbers, tables: PairTables, *, trim: bool, fold: bool = True) -> SideText:
    """What tokens say by their surfaces, folded as the pair's normalisers fold.

    Args:
        ids: int64 (tokens,), ids as `PairTables` counts them.
        tables: the pair's tables.
        trim: whether the first token has a dummy prefix, which is no text.
        fold: whether to fold at all.
    """
    lengths = tables.lengths[ids].astype(np.int64)
    specials = np.where(lengths == 0, tables.special[ids], -1).astype(np.int32)
    text = tables.surfaces(ids).tobytes()
    if trim and lengths.any():
        text = text[1:]
        lengths[(lengths > 0).argmax()] -= 1
    end = lengths.cumsum()
    begin = end - lengths
    folding = folding_of(tables)
    if not fold or not folding.changes:
        sharp = np.ones(len(ids), dtype=np.bool_)
        return SideText(np.frombuffer(text, dtype=np.uint8), begin, end, sharp, sharp, lengths > 0, specials)
    folded = folding.fold(text)
    sharp = folded.sharp
    return SideText(folded.text, folded.at[begin], folded.at[end], sharp[begin], sharp[end], lengths > 0, specials)


# Folding


@dataclass(frozen=True, eq=False)
class Folded:
    """A folded text and where the original's bytes are in it.

    "x" and the ligature "ﬁ", lower-cased and composed to "xfi"; the ligature has three bytes:

        original bytes  x  ef ac 81      at     0  1  3  3  3
        folded bytes    x  f  i          sharp  1  1  0  0  1

    Attributes:
        text: uint8 (folded bytes,).
        at: int64 (original bytes + 1,), the folded position of every position between bytes.
        sharp: bool (original bytes + 1,), False inside a character that folding changed: no boundary there compares.
    """

    text: NDArray[np.uint8]
    at: Numbers
    sharp: Flags


class Folding:
    """Applies both sides' normalisers to each user-perceived character, and drops spaces where surfaces invent them.

    What a normaliser replaces at once, such as two quotes, is folded as a whole, as if it were one character.

    Args:
        student: the student.
        teacher: the teacher.
    """

    def __init__(self, student: Vocab, teacher: Vocab) -> None:
        self._steps: list[Callable[[str], str]] = [
            vocab.encoder.normalize
            for vocab in (student, teacher)
            if vocab.rewrites
            or any(vocab.encoder.normalize(probe) != probe for probe in (*_PROBES, *_PLAIN, _all_characters(vocab)))
        ]
        self._at_once = _any_of([*student.rewrites, *teacher.rewrites])
        self._drops_spaces = any(vocab.joins_words or vocab.ends_words for vocab in (student, teacher))
        self._known: dict[str, bytes] = {}

    @property
    def changes(self) -> bool:
        """Whether folding changes any text at all."""
        return bool(self._steps) or self._drops_spaces

    def fold(self, surfaces: bytes) -> Folded:
        """Folds a text.

        Args:
            surfaces: what the tokens of a side say; need not be UTF-8.
        """
        text = surfaces.decode("utf-8", "surrogateescape")
        nothing = np.zeros(0, dtype=np.int64)
        cells = [_Cells(nothing, nothing, nothing == 1, nothing.astype(np.uint8))]
        done = 0
        for begin, end in self._rewritten(text):
            cells += [*self._one_by_one(text[done:begin]), self._as_a_whole(text[begin:end])]
            done = end
        return _joined([*cells, *self._one_by_one(text[done:])])

    def _rewritten(self, text: str) -> list[tuple[int, int]]:
        """Where several characters stand that a normaliser replaces at once."""
        if self._at_once is None:
            return []
        try:
            places = [match.span() for match in self._at_once.finditer(text, timeout=MAX_PATTERN_SECONDS)]
        except TimeoutError as error:
            raise VocabularyError(
                f"the normaliser's pattern {self._at_once.pattern!r:.80} takes over {MAX_PATTERN_SECONDS:g} seconds "
                "for a text: it backtracks without end"
            ) from error
        return [(begin, end) for begin, end in places if end - begin > 1]

    def _one_by_one(self, text: str) -> list[_Cells]:
        cells: list[_Cells] = []
        done = 0
        for match in _BEYOND_ASCII.finditer(text) if self._ascii is not None else _ANYTHING.finditer(text):
            cells += [*self._ascii_cells(text[done : match.start()]), self._cells(match[0])]
            done = match.end()
        return [*cells, *self._ascii_cells(text[done:])]

    def _as_a_whole(self, text: str) -> _Cells:
        folded, size = self._folded(text), len(text.encode("utf-8", "surrogateescape"))
        return _Cells(
            np.array([size]), np.array([len(folded)]), np.ones(1, dtype=np.bool_), np.frombuffer(folded, dtype=np.uint8)
        )

    @cached_property
    def _ascii(self) -> tuple[NDArray[np.uint8], Numbers] | None:
        """What each character of ASCII becomes, and in how many bytes (0 or 1); None where one becomes more."""
        folded = [self._folded(chr(code)) for code in range(128)]
        if max(map(len, folded)) > 1:
            return None
        return (
            np.frombuffer(b"".join(data or b"\0" for data in folded), dtype=np.uint8),
            np.fromiter(map(len, folded), dtype=np.int64, count=len(folded)),
        )

    def _ascii_cells(self, text: str) -> list[_Cells]:
        """Every character a cell of its own, by the table of ASCII."""
        if not text:
            return []
        assert self._ascii is not None
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
        folded, lengths = self._ascii[0][codes], self._ascii[1][codes]
        stays = lengths > 0
        return [_Cells(np.ones_like(lengths), lengths, ~stays | (folded != codes), folded[stays])]

    def _cells(self, text: str) -> _Cells:
        """One cell where nothing changes, else one for every user-perceived character."""
        original = text.encode("utf-8", "surrogateescape")
        # Half a character leaves itself as it is, not all around it.
        if not _NOT_UTF8.search(text) and self._folded(text) == original:
            size = np.array([len(original)], dtype=np.int64)
            return _Cells(size, size, np.zeros(1, dtype=np.bool_), np.frombuffer(original, dtype=np.uint8))
        characters = _CLUSTER.findall(text)
        folded = [self._folded(character) for character in characters]
        originals = [character.encode("utf-8", "surrogateescape") for character in characters]
        return _Cells(
            np.fromiter(map(len, originals), dtype=np.int64, count=len(originals)),
            np.fromiter(map(len, folded), dtype=np.int64, count=len(folded)),
            np.array([one != other for one, other in zip(originals, folded, strict=True)], dtype=np.bool_),
            np.frombuffer(b"".join(folded), dtype=np.uint8),
        )

    def _folded(self, text: str) -> bytes:
        known = self._known.get(text) if len(text) <= _REMEMBERED else None
        if known is not None:
            return known
        folded = self._fold(text)
        if len(text) <= _REMEMBERED:
            self._known[text] = folded
        return folded

    def _fold(self, text: str) -> bytes:
        if text.isspace():
            if self._drops_spaces:
                return b""
            for step in self._steps:
                # Between letters, since some normalisers strip a text's edges.
                text = step(f"x{text}x")[1:-1].replace("\u2581", " ")
            return text.encode("utf-8", "replace")
        if _NOT_UTF8.search(text):
            return text.encode("utf-8", "surrogateescape")
        for step in self._steps:
            text = step(text)
        return (_SPACES.sub("", text) if self._drops_spaces else text).encode("utf-8", "replace")


def _all_characters(vocab: Vocab) -> str:
    """Every character that a vocabulary's tokens have, between zeros, with which nothing composes."""
    characters = {*b"".join(vocab.surfaces.list).decode("utf-8", "ignore")} - {"\u2581"}
    return "0".join(sorted(character for character in characters if not character.isspace()))


def _any_of(patterns: Sequence[str]) -> regex.Pattern[str] | None:
    """One pattern that finds what any of them does; one that only `tokenizers` can read finds nothing."""
    readable = []
    for pattern in patterns:
        try:
            regex.compile(pattern)
        except (regex.error, RecursionError):
            continue
        readable.append(f"(?:{pattern})")
    return regex.compile("|".join(readable)) if readable else None


@lru_cache(maxsize=8)
def folding_of(tables: PairTables) -> Folding:
    """The pair's folding; kept for the characters it has met."""
    return Folding(tables.student, tables.teacher)


@dataclass(frozen=True, eq=False)
class _Cells:
    """Stretches of a text that fold on their own.

    Attributes:
        sizes: int64 (cells,), bytes of each before folding.
        folded_sizes: int64 (cells,), bytes of each after folding.
        changed: bool (cells,).
        text: uint8, the folded bytes of all.
    """

    sizes: Numbers
    folded_sizes: Numbers
    changed: Flags
    text: NDArray[np.uint8]


def _joined(parts: list[_Cells]) -> Folded:
    """Cells one after another; the example of `Folded` is a cell of 1 byte, and a changed one of 3 that become 2."""
    sizes = np.concatenate([part.sizes for part in parts])
    folded_sizes = np.concatenate([part.folded_sizes for part in parts])
    changed = np.concatenate([part.changed for part in parts]).repeat(sizes)
    ends = folded_sizes.cumsum()
    total = int(sizes.sum())
    inside = np.arange(total) - (sizes.cumsum() - sizes).repeat(sizes)
    at = np.empty(total + 1, dtype=np.int64)
    sharp = np.ones(total + 1, dtype=np.bool_)
    # Positions inside a changed character count as its end, so that its first token has all of it.
    at[:-1] = (ends - folded_sizes).repeat(sizes) + np.where(changed, folded_sizes.repeat(sizes) * (inside > 0), inside)
    at[-1] = ends[-1] if len(ends) else 0
    sharp[:-1] = (inside == 0) | ~changed
    return Folded(np.concatenate([part.text for part in parts]), at, sharp)


# Places in the original text


def text_by_offsets(
    text: str, ids: Numbers, vocab: Vocab, tables: PairTables, *, first_id: int, parse_special: bool = False
) -> SideText | None:
    """Places the tokens of a whole text on the text itself.

    Args:
        text: the text.
        ids: int64 (tokens,), what the vocabulary's `row_encoder` made of it.
        vocab: whose tokens they are.
        tables: the pair's tables.
        first_id: what `PairTables` adds to this side's ids.
        parse_special: whether what looks like a control token is one.

    Returns:
        The tokens on the axis of the text's bytes; None where their surfaces are not the text and the encoder does not
        say which characters they stand for, or says it wrongly.
    """
    whole = text_of_run(Run(text, ids.tolist()), vocab, tables, first_id=first_id)
    if whole is None:
        runs = vocab.row_encoder.encode_parts([parts_of_text(text, vocab, parse_special=parse_special)])[0]
        if [token for run in runs for token in run.ids] != ids.tolist():
            return None
        parts = [text_of_run(run, vocab, tables, first_id=first_id) for run in runs]
        whole = one_after_another([part for part in parts if part is not None])
        if any(part is None for part in parts):
            return None
    return _without_spaces(whole) if any(side.joins_words or side.ends_words for side in _sides(tables)) else whole


def _sides(tables: PairTables) -> tuple[Vocab, Vocab]:
    return tables.student, tables.teacher


def text_of_run(run: Run, vocab: Vocab, tables: PairTables, *, first_id: int) -> SideText | None:
    """What the tokens of a run say, on the axis of the run's bytes; None where nobody tells their places."""
    ids = np.array(run.ids, dtype=np.int64)
    pair_ids = ids + first_id
    data = run.text.encode("utf-8", "surrogatepass")
    lengths = tables.lengths[pair_ids].astype(np.int64)
    has_text = lengths > 0
    specials = np.where(has_text, -1, tables.special[pair_ids]).astype(np.int32)
    compared = np.frombuffer(data, dtype=np.uint8)
    sharp = np.ones(len(ids), dtype=np.bool_)
    if len(ids) == 1 and not has_text[0] and run.offsets is None and specials[0] >= 0:
        # White space that the special takes from its neighbours is not what it says.
        before = run.text.partition(vocab.raw[run.ids[0]])[0] if vocab.raw[run.ids[0]] in run.text else ""
        name = (before + vocab.raw[run.ids[0]]) if vocab.raw[run.ids[0]] in run.text else run.text
        begin, end = (np.array([len(text.encode("utf-8", "surrogatepass"))]) for text in (before, name))
        return SideText(compared, begin, end, sharp, sharp, has_text, specials)
    spare = int(lengths.sum()) - len(data)
    if 0 <= spare <= vocab.encoder.dummy_prefix:
        said = tables.surfaces(pair_ids).tobytes()
        if said[spare:] == data and said[:spare] == b" "[:spare]:
            lengths[has_text.nonzero()[0][:spare]] -= 1  # the dummy prefix is no text
            end = lengths.cumsum()
            return SideText(compared, end - lengths, end, sharp, sharp, has_text, specials)
    if run.offsets is None:
        return None
    byte_at = byte_positions(run.text)
    # Behind a `Precompiled` normaliser offsets may reach into the special that follows.
    offsets = np.minimum(np.array(run.offsets, dtype=np.int64).reshape(-1, 2), len(run.text))
    begin, end = byte_at[offsets[:, 0]], byte_at[offsets[:, 1]]
    if not _skips_nothing(data, begin, end, vocab):
        return None
    _take_spaces_and_marks(data, begin, end, pair_ids, tables)
    return SideText(compared, *_share_characters(begin, end), has_text, specials)


def _without_spaces(side: SideText) -> SideText:
    """The same on an axis without white space: where surfaces invent spaces, a space is no text."""
    is_text = ~_spaces(side.text.tobytes())
    at = offsets_of(is_text.astype(np.int64))
    return replace(side, text=side.text[is_text], begin=at[side.begin], end=at[side.end])


def one_after_another(parts: Sequence[SideText]) -> SideText:
    """Runs one after another on one axis."""
    starts = offsets_of(np.array([len(part.text) for part in parts], dtype=np.int64))[:-1]
    if not parts:
        nothing, none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
        return SideText(np.zeros(0, np.uint8), nothing, nothing, none, none, none, np.zeros(0, np.int32))
    return SideText(
        text=np.concatenate([part.text for part in parts]),
        begin=np.concatenate([part.begin + start for part, start in zip(parts, starts, strict=True)]),
        end=np.concatenate([part.end + start for part, start in zip(parts, starts, strict=True)]),
        sharp_begin=np.concatenate([part.sharp_begin for part in parts]),
        sharp_end=np.concatenate([part.sharp_end for part in parts]),
        has_text=np.concatenate([part.has_text for part in parts]),
        specials=np.concatenate([part.specials for part in parts]),
    )


def byte_positions(text: str) -> Numbers:
    """int64 (characters + 1,), where each character begins in UTF-8.

    >>> byte_positions("aé你").tolist()
    [0, 1, 3, 6]
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    at = np.zeros(len(codes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=at[1:])
    return at


def _skips_nothing(data: bytes, begin: Numbers, end: Numbers, vocab: Vocab) -> bool:
    """Whether the characters that no token stands for are nothing to the normaliser.

    Behind a character that a `Precompiled` normaliser removes, the offsets of tokenizers 0.23 are too low by one.
    """
    reached = np.maximum.accumulate(np.append(0, end))
    until = np.maximum(np.append(begin, len(data)), reached)
    letters = np.append(0, (~_spaces(data)).cumsum())
    return not any(
        vocab.encoder.normalize(data[reached[at] : until[at]].decode("utf-8", "replace").strip()).strip()
        for at in (letters[until] > letters[reached]).nonzero()[0].tolist()
    )


def _take_spaces_and_marks(data: bytes, begin: Numbers, end: Numbers, pair_ids: Numbers, tables: PairTables) -> None:
    """Moves `begin` and `end` over what a token's characters leave out beside it.

    That is a space that the token's surface has, as in "a b" where `▁b` is placed on "b" alone; and marks that modify
    the token's last character, which a normaliser strips.
    """
    text = np.frombuffer(data, dtype=np.uint8)
    before = np.append(0, end[:-1])
    lacks_space = (begin > before) & (begin < len(text)) & tables.spaced[pair_ids]
    lacks_space[lacks_space] = (text[begin[lacks_space] - 1] == _SPACE) & (text[begin[lacks_space]] != _SPACE)
    begin -= lacks_space
    after = np.append(begin[1:], len(data))
    before_other = after > end
    before_other[before_other] = text[end[before_other]] >= 0x80
    for at in before_other.nonzero()[0].tolist():
        marks = _MARKS.match(data[end[at] : after[at]].decode("utf-8", "replace"))
        end[at] += len(marks[0].encode()) if marks else 0
    last_byte = tables.begins[pair_ids] + tables.lengths[pair_ids] - 1
    lacks_space = (after > end) & (tables.lengths[pair_ids] > 0) & (tables.blob[last_byte] == _SPACE)
    lacks_space[lacks_space] = (text[end[lacks_space]] == _SPACE) & (text[end[lacks_space] - 1] != _SPACE)
    end += lacks_space


def _share_characters(begin: Numbers, end: Numbers) -> tuple[Numbers, Numbers, Flags, Flags]:
    """Lets tokens of the same characters share them: the first covers all, and only the outer edges are sharp.

    Three tokens placed on 0-1, 1-4, 1-4: the last two are bytes of one character.

        begin  0 1 4    sharp  1 1 0
        end    1 4 4    sharp  1 0 1
    """
    if not len(end):
        return begin, end, begin == 1, begin == 1
    reached = np.maximum.accumulate(np.append(0, end[:-1]))
    shared = begin < reached
    begin = np.where(shared, reached, begin)
    # Inside a shared run every token ends where the run reaches so far.
    return begin, np.maximum.accumulate(np.maximum(end, begin)), ~shared, np.append(~shared[1:], True)


def _spaces(data: bytes) -> Flags:
    """Bytes, bool (bytes,), that are white space."""
    is_space = _IS_ASCII_SPACE[np.frombuffer(data, dtype=np.uint8)]
    for match in _OTHER_SPACES.finditer(data) if not data.isascii() else ():
        is_space[match.start() : match.end()] = True
    return is_space
