"""Small vocabularies for tests: made by hand, or drawn at random, with an encoder that anyone can follow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from hypothesis import strategies as st

from xtoken_align.vocab.byte_strings import ByteStrings
from xtoken_align.vocab.kinds import Kind
from xtoken_align.vocab.roles import ROLES
from xtoken_align.vocab.vocab import Sizes, Vocab

Token = tuple[bytes, Kind]


@dataclass(frozen=True)
class LongestMatch:
    """Takes the longest token that the rest of the text begins with; what none begins becomes `unknown`, if any."""

    table: Mapping[bytes, int]
    unknown: int | None = None
    normalise: Mapping[str, str] = field(default_factory=dict)
    merges_bytes: bool = True
    dummy_prefix: bool = False

    def normalize(self, text: str) -> str:
        return self._normalised(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._ids(self._pieces(self._normalised(text).encode())) for text in texts]

    def encode_bytes(self, data: bytes) -> list[int] | None:
        if not self.merges_bytes:
            return None
        pieces = self._pieces(data)
        whole = self.table.keys() >= set(pieces) and sum(map(len, pieces)) == len(data)
        return self._ids(pieces) if whole else []

    def _normalised(self, text: str) -> str:
        for old, new in self.normalise.items():
            text = text.replace(old, new)
        return text

    @cached_property
    def _pieces(self) -> Callable[[bytes], list[bytes]]:
        # A fingerprint takes thousands of lines, so what is no token is passed over where that is allowed.
        longest_first = map(re.escape, sorted(filter(None, self.table), key=len, reverse=True))
        anything = b"(?!)" if self.unknown is None else b"."
        return re.compile(b"|".join([*longest_first, anything]), re.DOTALL).findall

    def _ids(self, pieces: Sequence[bytes]) -> list[int]:
        ids = map(self.table.get, pieces)
        return list(ids) if self.unknown is None else [self.unknown if token is None else token for token in ids]


def make_vocab(
    tokens: Sequence[bytes | str | Token],
    *,
    name: str = "small",
    roles: Mapping[str, Sequence[int]] | None = None,
    raw: Sequence[str] | None = None,
    normalise: Mapping[str, str] | None = None,
    unknown: int | None = None,
    merges_bytes: bool = True,
    source: str | None = None,
) -> Vocab:
    """A vocabulary from surfaces (kind text) or (surface, kind) pairs."""
    pairs = [token if isinstance(token, tuple) else (token, Kind.TEXT) for token in tokens]
    surfaces = [surface.encode() if isinstance(surface, str) else surface for surface, _ in pairs]
    kinds = np.array([kind for _, kind in pairs], dtype=np.uint8)
    speakable = {
        kind: {
            surface: token_id
            for token_id, (surface, its) in reversed(list(enumerate(zip(surfaces, kinds, strict=True))))
            if its == kind and surface
        }
        for kind in (Kind.BYTE, Kind.TEXT)
    }
    table = {**speakable[Kind.BYTE], **speakable[Kind.TEXT]}
    encoder = LongestMatch(table, unknown, normalise or {}, merges_bytes)
    real = int((kinds < Kind.PADDING).sum())
    return Vocab(
        name=name,
        source=source or f"{name}.json",
        raw=tuple(raw) if raw is not None else tuple(surface.decode("utf-8", "replace") for surface in surfaces),
        surfaces=ByteStrings.of(surfaces),
        kinds=kinds,
        roles={role: tuple(ids) for role, ids in (roles or {}).items()},
        sizes=Sizes(base=real, with_added=real, ids=len(pairs), logits=len(pairs)),
        make_encoder=lambda: encoder,
    )


_SURFACES = [
    *(b"a", b"b", b"ab", b" a", b" ab", b"  a", b" ", b"  ", b"A", b"AB", b"aa", b"ba"),
    *(b"1", b"2", b"0", b"12", b"200", b" 1", b" 12", b"x1"),
    *(
        "é".encode(),
        b"\xc3",
        b"\xa9",
        b"\xa9a",
        "ﬁ".encode(),
        b"fi",
        b"f",
        b"i",
        "１".encode(),
        "éa".encode(),
        b" \xc3",
    ),
]
_SPECIALS = [b"<s>", b"</s>", b"<pad>", b"<x>", b"<y>"]


@st.composite
def vocabs(draw: st.DrawFn, name: str = "drawn") -> Vocab:
    """Any small vocabulary: duplicates, byte tokens, specials with roles, fillers, holes and padding in any order."""
    text = st.tuples(st.sampled_from(_SURFACES), st.just(Kind.TEXT))
    byte = st.tuples(st.sampled_from([bytes([value]) for value in b"ab1 \xc3\xa9"]), st.just(Kind.BYTE))
    special = st.tuples(st.sampled_from(_SPECIALS), st.just(Kind.SPECIAL))
    filler = st.tuples(st.sampled_from([b"<unused0>", b"<unused1>"]), st.just(Kind.RESERVED))
    nothing = st.tuples(st.just(b""), st.sampled_from([Kind.PADDING, Kind.HOLE]))
    one = st.one_of(text, text, text, text, byte, special, filler, nothing)
    tokens = [draw(text), *draw(st.lists(one, max_size=16))]
    specials = [token_id for token_id, (_, kind) in enumerate(tokens) if kind == Kind.SPECIAL]
    roles: dict[str, list[int]] = {}
    if specials:
        for role in draw(st.lists(st.sampled_from(ROLES[:4]), unique=True, max_size=3)):
            roles[role] = sorted(draw(st.lists(st.sampled_from(specials), min_size=1, unique=True)))
    return make_vocab(
        tokens,
        name=name,
        roles=roles,
        unknown=draw(st.sampled_from([None, *specials])),
        normalise=draw(st.sampled_from([{}, {}, {"é": "e"}, {"A": "a"}])),
        merges_bytes=draw(st.booleans()),
    )
