"""Finding tokens by their text or by what became of them, and a row of W as people and programs read it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cards import data_frame
from ..coverage.classes import CLASSES, classify
from ..coverage.coverage import EMPTY_REASONS
from ..errors import OptionError
from ..matrix import Matrix
from ..readers.spelling import bytes_of
from ..rules.links import RULE_NUMBER, RULES, SPLIT_RULES
from ..visible import visible_bytes
from ..vocab.byte_strings import ByteStrings
from ..vocab.kinds import Kind


def json_surface(surface: bytes) -> str | dict[str, str]:
    """A surface as JSON holds it: a string where it is UTF-8, else its bytes in hexadecimal.

    >>> json_surface(b" the"), json_surface(bytes([0xE4, 0xB8]))
    (' the', {'hex': 'e4b8'})
    """
    try:
        return surface.decode()
    except UnicodeDecodeError:
        return {"hex": surface.hex()}


@dataclass(frozen=True, slots=True)
class Link:
    """One link of a row: a teacher token, its weight, which piece of the row it is, and the rule that made it."""

    teacher_id: int
    surface: bytes
    weight: float
    position: int
    rule: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `show`."""
        return {
            "teacher_id": self.teacher_id,
            "surface": json_surface(self.surface),
            "weight": round(self.weight, 7),
            "position": self.position,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """One student token's row, its links in the order of their positions.

    Attributes:
        id: student id.
        surface: its bytes.
        kind: its kind's name in lower case.
        rule: the rule that owns the row, `none` for an empty one.
        links: the row's entries.
        reason: why the row is empty, None where it is not.
        lossy: whether its pieces spell another text than the token.
    """

    id: int
    surface: bytes
    kind: str
    rule: str
    links: tuple[Link, ...]
    reason: str | None = None
    lossy: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `show`."""
        return {
            "id": self.id,
            "surface": json_surface(self.surface),
            "kind": self.kind,
            "rule": self.rule,
            "row": [link.to_dict() for link in self.links],
            **({"reason": self.reason} if self.reason is not None else {}),
            **({"lossy": True} if self.lossy else {}),
        }


_ESCAPE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def find_tokens(kinds: NDArray[np.uint8], surfaces: ByteStrings, token: str | bytes) -> list[int]:
    """The ids, ascending, of the tokens with a surface; where none has it, of those with a raw string.

    A mapping keeps no raw strings, so a raw string is read in each way in which tokenizers write one: by the byte table
    (`Ġthe`), with `▁` for a space, as a byte escape (`<0x0A>`), as the end of a word (`the</w>`) or as a continued word
    (`##ing`).

    Args:
        kinds: uint8 (ids,), values of `Kind`; holes and padding are never found.
        surfaces: the surface of each id.
        token: a surface, as text or bytes, or a raw string.
    """
    if isinstance(token, bytes):
        readings: Iterable[tuple[bytes, Kind | None]] = [(token, None)]
    else:
        readings = _readings(token)
    for surface, kind in readings:
        if not surface:
            continue
        # Of 128 thousand tokens some thousands have the right length; only their bytes are compared.
        candidates = np.flatnonzero((surfaces.lengths == len(surface)) & (kinds < Kind.PADDING))
        ids = [i for i in candidates.tolist() if surfaces[i] == surface and (kind is None or kinds[i] == kind)]
        if ids:
            return ids
    return []


def _readings(token: str) -> Iterator[tuple[bytes, Kind | None]]:
    """The surfaces that a string may mean, the likeliest first, with the kind that the token must have, if any."""
    yield token.encode("utf-8", "surrogatepass"), None
    escape = _ESCAPE.fullmatch(token)
    if escape:
        yield bytes([int(escape[1], 16)]), Kind.BYTE
    # GPT-2's byte table writes each byte as a visible character: `Ġthe` means ` the`, and `ä¸` the bytes E4 B8.
    by_table = bytes_of(token)
    if by_table is not None:
        yield by_table, None
    # The markers of the other families: SentencePiece's `▁the`, CLIP's `the</w>`, BERT's `##ing`.
    if "▁" in token:
        yield token.replace("▁", " ").encode(), None
    if token.endswith("</w>"):
        yield token.removesuffix("</w>").encode() + b" ", None
    if token.startswith("##"):
        yield token.removeprefix("##").encode(), None


REASON_OF_KIND = {kind: reason for reason, kinds in EMPTY_REASONS.items() for kind in kinds}
"""Why a row without links is empty, by the kind of its token."""

_LAST = ("special", "byte", "partial_utf8", "reserved")
_READING_ORDER = np.array(
    [0 if name.startswith("digits") else 2 + _LAST.index(name) if name in _LAST else 1 for name in CLASSES]
)
"""A number per class: numerals are listed first, since losing them costs most, and tokens that are no text last."""


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A student token that is neither exact nor near.

    Attributes:
        id: student id.
        surface: its bytes.
        reason: `split by RULE`, or why its row is empty.
        class_name: its class.
    """

    id: int
    surface: bytes
    reason: str
    class_name: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `inspect --unmatched`."""
        return {
            "id": self.id,
            "surface": json_surface(self.surface),
            "reason": self.reason,
            "class": self.class_name,
        }


class UnmatchedTokens(list[Unmatched]):
    """Tokens that are neither exact nor near, as a list that a notebook can show as a table."""

    def to_frame(self) -> Any:
        """A pandas table with the columns id, surface (as text, what is not seen written out), class, reason.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = [{**entry.to_dict(), "surface": visible_bytes(entry.surface)} for entry in self]
        return data_frame(rows, ("id", "surface", "class", "reason"))


def unmatched_tokens(
    kinds: NDArray[np.uint8],
    surfaces: Sequence[bytes],
    matrix: Matrix,
    *,
    classes: Sequence[str],
    reasons: Sequence[str],
    pattern: str | None,
    limit: int | None,
) -> UnmatchedTokens:
    """`Mapping.unmatched`, over the student's kinds and surfaces and W."""
    unknown = [name for name in classes if name not in CLASSES]
    if unknown:
        raise OptionError(f"no class is called {unknown[0]!r}: the classes are {', '.join(CLASSES)}")
    try:
        wanted = None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise OptionError(f"{pattern!r} is no regular expression: {error}") from error
    owner = matrix.owner
    split = np.isin(owner, [RULE_NUMBER[rule] for rule in SPLIT_RULES])
    split |= (owner == RULE_NUMBER["override"]) & (np.diff(matrix.indptr) > 1)
    candidates = np.flatnonzero(split | (owner == 0))
    # Classifying a whole vocabulary takes a while: only the tokens that are split or empty are classified.
    class_of = classify(kinds[candidates], [surfaces[token_id] for token_id in candidates.tolist()])
    # Ids 3 5 8 of the classes latin, digits_2, special have the reading orders 1 0 2: 5 3 8. Stable, so that ids ascend
    # within a class.
    order = np.argsort(_READING_ORDER[class_of], kind="stable")
    tokens = UnmatchedTokens()
    for at in order.tolist():
        # Counted after filtering: `limit` tokens that were asked for, not the first `limit` of all.
        if limit is not None and len(tokens) >= limit:
            break
        token_id, name = int(candidates[at]), CLASSES[class_of[at]]
        rule = RULES[owner[token_id]]
        reason = REASON_OF_KIND[Kind(kinds[token_id])] if rule == "none" else f"split by {rule}"
        if (
            (not classes or name in classes)
            and (not reasons or any(part in reason for part in reasons))
            and (wanted is None or wanted.search(surfaces[token_id].decode("utf-8", "backslashreplace")))
        ):
            tokens.append(Unmatched(token_id, surfaces[token_id], reason, name))
    return tokens
