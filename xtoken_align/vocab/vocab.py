"""The frozen value that everything after the readers works on: one tokenizer's ids, surfaces, kinds and roles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..cards import card
from ..readers.parsed import Encoder, RowEncoder, RowEncoderFactory, RowTokens, SegmentEncoder, Stated
from ..visible import printable
from .byte_strings import ByteStrings
from .canary import SHORT, canary
from .fingerprint import Parts, earlier_fingerprint, parts_of
from .kinds import Kind


@dataclass(frozen=True, slots=True)
class Sizes:
    """The four sizes of a vocabulary; they differ, and mixing them up is the commonest mistake of all.

    Attributes:
        base: tokens of the model's own vocabulary.
        with_added: the same with added tokens.
        ids: the highest id plus one.
        logits: the width of the model's output.
    """

    base: int
    with_added: int
    ids: int
    logits: int


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Vocab:
    """One tokenizer; sequences and arrays are indexed by id, 0 to the logit width.

    Attributes:
        name: short name, used in the names of mappings.
        source: what was read: an alias, a Hub id, a `pkg:` path or the last part of a local path.
        revision: commit hash of a Hub repository, else None.
        raw: token strings as the file writes them; "" for holes and padding.
        surfaces: the bytes each token contributes to decoded text in mid-sequence.
        kinds: uint8 (logits,), values of `Kind`.
        roles: role -> ids.
        sizes: the four sizes.
        row_tokens: what `row_encoder` needs to know of the ids; None takes every special for a control token.
        make_row_encoder: makes `row_encoder`; None makes one of `encoder`.
        state: reads what the tokenizer's file states of its parts; see `Stated`.
        disagreeing: ids whose decoder gives another text than their encoder consumes; the surface is the latter.
        joins_words: surfaces of word starts carry a space that the text may not have (WordPiece).
        ends_words: surfaces of word ends carry a space that the text may not have (CLIP's `</w>`).
        rewrites: regular expressions of several characters that the normaliser replaces at once.
        chat_template: the Jinja template that writes a chat as text, None where the source has none.
        warnings: sentences about the source that the user should read.
    """

    name: str
    source: str
    revision: str | None = None
    raw: Sequence[str]
    surfaces: ByteStrings
    kinds: NDArray[np.uint8]
    roles: Mapping[str, tuple[int, ...]]
    sizes: Sizes
    make_encoder: Callable[[], Encoder] = field(repr=False)
    row_tokens: RowTokens | None = field(default=None, repr=False)
    make_row_encoder: RowEncoderFactory | None = field(default=None, repr=False)
    state: Callable[[], Stated] | None = field(default=None, repr=False)
    disagreeing: tuple[int, ...] = ()
    joins_words: bool = False
    ends_words: bool = False
    rewrites: tuple[str, ...] = ()
    chat_template: str | None = None
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.sizes.logits

    def __repr__(self) -> str:
        facts = ", ".join(f"{count:,} {kind}" for kind, count in self._counts().items())
        return printable(f"Vocab({self.name!r} from {self.source!r}: {len(self):,} ids, {facts})", one_line=True)

    def _repr_html_(self) -> str:
        roles = ", ".join(f"{role} {', '.join(map(str, ids[:3]))}" for role, ids in self.roles.items())
        facts = {"source": self.source, **({"revision": self.revision} if self.revision else {}), **self._counts()}
        return card(f"Vocabulary {self.name}, {len(self):,} logits", {**facts, "roles": roles or "none"})

    def _counts(self) -> dict[str, int]:
        """Kind in words -> ids, kinds without ids left out."""
        counts = np.bincount(self.kinds, minlength=len(Kind)).tolist()
        return {kind.name.lower(): counts[kind] for kind in Kind if counts[kind]}

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, made when first needed."""
        return self.make_encoder()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes ordinary text: nothing is added, no special token is parsed, no dummy prefix is put before it.

        Args:
            texts: any number of texts.

        Returns:
            One list of ids per text.
        """
        return self.encoder.encode_batch(list(texts))

    @cached_property
    def row_encoder(self) -> RowEncoder:
        """What encodes rows for training, made when first needed: the ids that the tokenizer itself gives."""
        tokens = RowTokens(self.kinds <= Kind.BYTE, {}, self.controls) if self.row_tokens is None else self.row_tokens
        return self.make_row_encoder(tokens) if self.make_row_encoder else SegmentEncoder(self.encoder, tokens)

    @cached_property
    def controls(self) -> Mapping[str, int]:
        """Control tokens: string -> lowest id. A template writes them; what looks like one in a message is text."""
        if self.row_tokens is not None:
            return self.row_tokens.controls
        ids = ((self.kinds == Kind.SPECIAL) | (self.kinds == Kind.RESERVED)).nonzero()[0].tolist()
        return {self.raw[token_id]: token_id for token_id in reversed(ids) if self.raw[token_id]}

    @cached_property
    def parts(self) -> Parts:
        """What the tokenizer is made of, part by part; see `xtoken_align.vocab.fingerprint`."""
        stated = dict(self.state()) if self.state is not None else {}
        if self.row_tokens is not None:
            stated["literals"] = ("strings", sorted(self.row_tokens.literal))
        if self.chat_template is not None:
            # Jinja drops one line end at the end of a template.
            template = self.chat_template.replace("\r\n", "\n").removesuffix("\n")
            stated["chat_template"] = ("jinja", template)
        lines = canary(self.ids_of(Kind.TEXT), self.surfaces)
        return parts_of(self.speakable_ids, self.surfaces, lines, self.encode_batch, stated)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the text tokens and the ids of several thousand lines: what a mapping's text depends on."""
        return self.parts.fingerprint

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether a fingerprint is this vocabulary's, in today's form or in that of version 0.2."""
        return fingerprint in (self.fingerprint, self._earlier_fingerprint)

    @cached_property
    def _earlier_fingerprint(self) -> str:
        return earlier_fingerprint(self.speakable_ids, self.surfaces, self.encode_batch(SHORT))

    @property
    def identity(self) -> str:
        """`name@fingerprint`: what rows of ids keep, so that they are not read as another tokenizer's."""
        return f"{self.name}@{self.fingerprint}"

    @cached_property
    def speakable_ids(self) -> NDArray[np.int64]:
        """int64, ids of kind text and byte, ascending: those that text may become."""
        return np.flatnonzero(self.kinds <= Kind.BYTE)

    def ids_of(self, kind: Kind) -> NDArray[np.int64]:
        """int64, ids of one kind, ascending."""
        return np.flatnonzero(self.kinds == kind)

    @cached_property
    def lowest_text_id(self) -> dict[bytes, int]:
        """Surface -> lowest id of kind text; one surface may have several ids, the empty one has none."""
        return self._id_by_surface(self.ids_of(Kind.TEXT)[::-1])

    @cached_property
    def highest_text_id(self) -> dict[bytes, int]:
        """Surface -> highest id of kind text; equal to the lowest where the surface is unique."""
        ids = self.ids_of(Kind.TEXT)
        if len(self.lowest_text_id) == int((self.surfaces.lengths[ids] > 0).sum()):
            return self.lowest_text_id
        return self._id_by_surface(ids)

    @cached_property
    def written_text_id(self) -> dict[bytes, int]:
        """Surface -> the id of kind text that the encoder writes for it; where it writes no such id, the lowest.

        A model has learnt what its encoder writes. Another id with the same surface stands for nothing that it read.
        """
        if self.highest_text_id is self.lowest_text_id:
            return self.lowest_text_id
        table = dict(self.lowest_text_id)
        repeated = [surface for surface, token_id in self.highest_text_id.items() if table[surface] != token_id]
        texts = [surface.decode("utf-8", "ignore") for surface in repeated]
        for surface, ids in zip(repeated, self.encode_batch(texts) if texts else (), strict=True):
            if len(ids) == 1 and self.kinds[ids[0]] == Kind.TEXT and self.surfaces[ids[0]] == surface:
                table[surface] = ids[0]
        return table

    @cached_property
    def lowest_byte_id(self) -> dict[bytes, int]:
        """Surface -> lowest id of kind byte."""
        return self._id_by_surface(self.ids_of(Kind.BYTE)[::-1])

    def _id_by_surface(self, ids: NDArray[np.int64]) -> dict[bytes, int]:
        """Surface -> the last of the ids with that surface."""
        surfaces, numbers = self.surfaces.list, ids.tolist()
        table = dict(zip([surfaces[token_id] for token_id in numbers], numbers, strict=True))
        table.pop(b"", None)
        return table

    @cached_property
    def repeated_surfaces(self) -> int:
        """How many text and byte ids have a surface that a lower id has already."""
        return len(self.speakable_ids) - len(self.lowest_text_id.keys() | self.lowest_byte_id.keys())
