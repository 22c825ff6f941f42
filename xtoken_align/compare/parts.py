"""What two tokenizers are made of, compared part by part, and how often a difference shows in text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..mapping.find import json_surface
from ..visible import printable
from ..vocab.byte_strings import ByteStrings
from ..vocab.canary import canary, common_lines
from ..vocab.fingerprint import BESIDE, ENCODING, PART_WORDS, Parts, compare_stated
from ..vocab.kinds import Kind
from ..vocab.roles import in_order
from ..vocab.vocab import Vocab
from .tokens import Match, Vocabulary

_UNKNOWN_OLD = (
    "it was written by an earlier version, which kept no parts of its tokenizers: merges, pre-tokeniser, normaliser, "
    "decoder, flags of added tokens, post-processor and chat template are not known"
)

_OF_SOME_KIND = "another split pattern, normaliser or merges"


@dataclass(frozen=True, eq=False)
class PartsMatch:
    """The parts of two tokenizers, or of two sides of mappings.

    Attributes:
        old: the one.
        new: the other.
    """

    old: Vocabulary
    new: Vocabulary

    @cached_property
    def _both(self) -> tuple[Parts, Parts] | None:
        """The parts of both sides, None where one does not know its own."""
        return None if self.old.parts is None or self.new.parts is None else (self.old.parts, self.new.parts)

    @property
    def known(self) -> bool:
        """Whether both sides know their parts; a mapping written before files had them knows its fingerprint alone."""
        return self._both is not None

    @cached_property
    def same_tokens(self) -> bool:
        """Whether the text and byte tokens are the same, id by id."""
        if self._both is not None:
            return self._both[0].text == self._both[1].text
        match = Match(self.old, self.new, Kind.BYTE)
        return not (len(match.added) or len(match.removed) or len(match.moved) or len(match.repurposed))

    @cached_property
    def same_ids(self) -> bool | None:
        """Whether the canary's ids are the same, or what an earlier version had for one; None where nobody knows."""
        if self._both is not None:
            return self._both[0].encoding == self._both[1].encoding
        if self.old.has_fingerprint(self.new.fingerprint) or self.new.has_fingerprint(self.old.fingerprint):
            return True
        # Two of an earlier version, or a tokenizer in hand, say that they differ; a file of each version does not.
        decided = self.old.parts is self.new.parts or isinstance(self.old, Vocab) or isinstance(self.new, Vocab)
        return False if decided else None

    @cached_property
    def states(self) -> dict[str, bool | None]:
        """Part -> whether it is equal, None where only the canary can say; parts of the encoding come first."""
        if self._both is None:
            return {}
        return compare_stated(self._both[0].stated, self._both[1].stated, (*ENCODING, *BESIDE))

    @cached_property
    def encoding(self) -> tuple[str, ...]:
        """Parts of the encoding that differ by value."""
        return tuple(name for name in ENCODING if self.states.get(name) is False)

    @cached_property
    def beside(self) -> tuple[str, ...]:
        """Other parts that differ by value."""
        return tuple(name for name in BESIDE if self.states.get(name) is False)

    @cached_property
    def one_template(self) -> Literal["old", "new"] | None:
        """`old` or `new`, whichever side alone has a chat template."""
        if self._both is None:
            return None
        has = [bool(parts.stated.get("chat_template")) for parts in self._both]
        return None if has[0] == has[1] else "old" if has[0] else "new"

    @cached_property
    def same_encoding(self) -> bool | None:
        """Whether text becomes the same ids: by the canary, and by value; None where nobody knows."""
        return False if self.encoding else self.same_ids

    @property
    def same_text(self) -> bool:
        """Whether text means and becomes the same ids, which is what the rows of a mapping depend on."""
        return self.same_tokens and self.same_encoding is True

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Roles that stand for other ids."""
        old, new = self.old.roles, self.new.roles
        return tuple(role for role in in_order({*old, *new}) if tuple(old.get(role, ())) != tuple(new.get(role, ())))

    @cached_property
    def lines(self) -> tuple[int, int]:
        """How many of the canary's lines become other ids, and how many there are.

        Where the tokens differ, only the lines that all vocabularies have are compared.
        """
        return len(self._differing), self._compared

    @property
    def _compared(self) -> int:
        if self._both is None:
            return 0
        return len(self._both[0].lines) if self.same_tokens else len(common_lines())

    @cached_property
    def _differing(self) -> NDArray[np.int64]:
        if self._both is None:
            return np.zeros(0, dtype=np.int64)
        old, new = (parts.lines[: self._compared] for parts in self._both)
        count = min(len(old), len(new))
        return np.flatnonzero(old[:count] != new[:count])

    @cached_property
    def example(self) -> str | None:
        """The shortest line that becomes other ids."""
        if not len(self._differing):
            return None
        lines = canary(np.flatnonzero(self.old.kinds == Kind.TEXT), self.old.surfaces)
        places: list[int] = self._differing.tolist()
        return min((lines[at] for at in places), key=len)

    def encoding_words(self) -> str:
        """How often text is encoded otherwise, with an example and the parts that differ by value; "" if it is not.

        Where the tokens differ, ids may differ for that alone: then only what is stated by value and the lines that all
        vocabularies have are looked at.
        """
        named = ", ".join(f"another {PART_WORDS[name]}" for name in self.encoding)
        if self.same_encoding is not False:
            return ""
        if not self.known:
            return _OF_SOME_KIND
        count, total = self.lines
        if count:
            words = f"{share(count, total)} of {total:,} lines differ, e.g. {quoted(self.example or '')}"
            return f"{words}: {named or _OF_SOME_KIND}" if self.same_tokens or named else words
        return f"{named}, which shows in none of {total:,} lines" if named else ""

    def beside_words(self, old: str | None = None, new: str | None = None) -> list[str]:
        """What differs beside tokens and encoding, each in a few words.

        Args:
            old: how the one side is called, by default by its name.
            new: how the other is.
        """
        names = old or f"in {self.old.name}", new or f"in {self.new.name}"
        words = [f"other roles: {self._role_words(names)}"] if self.roles else []
        words += [f"another {PART_WORDS[name]}" for name in self.beside]
        if self.one_template is not None:
            words.append(f"a chat template {names[0 if self.one_template == 'old' else 1]} alone")
        return words

    def _role_words(self, names: tuple[str, str]) -> str:
        sides = self.old.roles, self.new.roles
        told = []
        for role in self.roles[:_MOST_ROLES]:
            was, now = (_ids(roles.get(role, ())) for roles in sides)
            told.append(printable(f"{role} is {was} {names[0]} and {now} {names[1]}", one_line=True))
        rest = len(self.roles) - len(told)
        return ", ".join(told) + (f" and {rest} more" if rest > 0 else "")


def _ids(ids: Iterable[int]) -> str:
    return " and ".join(map(str, ids)) or "none"


def earlier_note(name: str) -> str:
    """What a user is told of a mapping that knows less than those that are written today."""
    return f"{name} knows less than a mapping that is built now: {_UNKNOWN_OLD}; build it anew to have them checked"


def share(count: int, total: int) -> str:
    """A share in percent; a few of many are not none.

    >>> share(13, 1034), share(1, 100_000)
    ('1.3%', '<0.1%')
    """
    return f"{count / total:.1%}" if count / total >= 0.001 else "<0.1%"


def quoted(text: str, longest: int = 40) -> str:
    """A text on one line, cut where it is long."""
    return repr(text) if len(text) <= longest else f"{text[:longest]!r}..."


@dataclass(frozen=True, slots=True)
class CorpusDifference:
    """How two tokenizers encode the lines of a corpus.

    Attributes:
        lines: how many there are; a line goes on over empty and indented ones.
        differing: how many become other tokens.
        tokens: how many tokens they are, by A and by B.
        examples: text, its tokens by A and by B, of the first differences.
    """

    lines: int
    differing: int
    tokens: tuple[int, int]
    examples: tuple[tuple[str, tuple[bytes, ...], tuple[bytes, ...]], ...]

    def __str__(self) -> str:
        if not self.lines:
            return "no line is in the corpus"
        if not self.differing:
            return f"all {self.lines:,} lines of the corpus are encoded alike"
        return (
            f"{share(self.differing, self.lines)} of {self.lines:,} lines of the corpus are encoded otherwise; "
            f"{self.tokens[0]:,} tokens by the one, {self.tokens[1]:,} by the other"
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `compat --corpus`."""
        return {
            "lines": self.lines,
            "differing": self.differing,
            "tokens": list(self.tokens),
            "examples": [
                {"text": text, "a": [json_surface(one) for one in a], "b": [json_surface(one) for one in b]}
                for text, a, b in self.examples
            ],
        }


_LINE_STARTS = re.compile(r"(?<=\n)(?=\S)")
_EXAMPLES = 5
_MOST_ROLES = 3
_MOST_TOKENS = 12


def compare_corpus(a: Vocab, b: Vocab, texts: Iterable[str]) -> CorpusDifference:
    """Encodes texts with both tokenizers; equal are tokens with equal text, whatever their ids.

    Args:
        a: the one.
        b: the other.
        texts: any number of texts; they are read once.
    """
    of_a = Match(a, b).old_of_new
    lines = differing = 0
    tokens = [0, 0]
    examples: list[tuple[str, tuple[bytes, ...], tuple[bytes, ...]]] = []
    for text in texts:
        batch = [line for line in _LINE_STARTS.split(text) if line]
        lines += len(batch)
        for line, left, right in zip(batch, a.encode_batch(batch), b.encode_batch(batch), strict=True):
            tokens[0] += len(left)
            tokens[1] += len(right)
            mapped = of_a[right].tolist()
            if left != mapped:
                differing += 1
                if len(examples) < _EXAMPLES:
                    examples.append((line, *_around_difference(left, right, a.surfaces, b.surfaces, mapped)))
    return CorpusDifference(lines, differing, (tokens[0], tokens[1]), tuple(examples))


def _around_difference(
    left: Sequence[int], right: Sequence[int], ours: ByteStrings, theirs: ByteStrings, mapped: Sequence[int]
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The tokens of both sides from the first difference on, up to where both have spelled equally many bytes."""
    # a | bc | d beside a | b | c | d: from the second token on, `bc` and `b`, `c`, which end after two bytes each.
    first = next(at for at, (x, y) in enumerate(zip_longest(left, mapped)) if x != y)
    sides = [ours[token_id] for token_id in left[first:]], [theirs[token_id] for token_id in right[first:]]
    ends = [np.cumsum([len(surface) for surface in surfaces]) for surfaces in sides]
    shared = np.intersect1d(ends[0], ends[1])
    until = [int(np.searchsorted(at, shared[0])) + 1 if len(shared) else len(at) for at in ends]
    one, other = (tuple(surfaces[: min(count, _MOST_TOKENS)]) for surfaces, count in zip(sides, until, strict=True))
    return one, other
