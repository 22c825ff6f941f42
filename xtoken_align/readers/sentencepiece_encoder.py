"""The encoder of a SentencePiece model: the library itself, on a copy of the model made for text in mid-sequence.

The library has no switch for its dummy prefix, nor one for pieces that text must not become, so the copy is patched.
Where its normaliser strips outer spaces it runs apart from the model, so that a space before the text can be put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, VocabularyError

SPACE_MARK = "\u2581"
"""What the normaliser writes for a space (sentencepiece, src/normalizer.cc)."""

BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
"""The names under which SentencePiece's trainer adds the bytes."""

# A noncharacter: no text has it, so a piece of this name is never met.
_NEVER = "\uffff"


class PieceType(IntEnum):
    """ModelProto.SentencePiece.Type of sentencepiece_model.proto; GGUF's token types have the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class SentencePieceEncoder:
    """Encodes ordinary text without a dummy prefix.

    Args:
        proto: the `ModelProto`; it is not changed.
        speakable: bool (pieces,), which ids text may become.
        name: the file's name, for messages.
    """

    def __init__(self, proto: Any, speakable: NDArray[np.bool_], *, name: str) -> None:
        self._proto = proto
        self._speakable = speakable
        self._name = name
        self._size = len(proto.pieces)
        # Without a piece of the unknown type the library writes id 0 for what it cannot spell, whatever id 0 is.
        self._lacks_unknown = all(piece.type != PieceType.UNKNOWN for piece in proto.pieces)
        self._strips = bool(proto.normalizer_spec.remove_extra_whitespaces)
        self._mark = (SPACE_MARK if proto.normalizer_spec.escape_whitespaces else " ").encode()
        self._effects: dict[str, bytes] = {}
        self.dummy_prefix = bool(proto.normalizer_spec.add_dummy_prefix)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns one list of ids per text.

        Where the normaliser strips a text's outer spaces, the leading ones count as one, as they do in mid-sequence;
        the same holds for a text of nothing but spaces. A text that the vocabulary cannot spell has its unknown token
        in it, or becomes [] if there is none.
        """
        # Bytes, since strings with lone surrogates are refused; the library reads their bytes as U+FFFD.
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        if self._strips:
            stripped: list[bytes] = self._normalizer.normalize(encoded) if encoded else []
            encoded = [
                self._mark + rest if self._begins_with_space(text) else rest
                for text, rest in zip(texts, stripped, strict=True)
            ]
        rows: list[list[int]] = self._processor.encode(encoded, out_type=int)
        return [[] if self._size in row else row for row in rows] if self._lacks_unknown else rows

    def normalize(self, text: str) -> str:
        """Returns what the model's normaliser makes of a stretch of text without spaces."""
        made: bytes = self._normalizer.normalize(text.encode("utf-8", "surrogatepass"))
        return made.decode().replace(SPACE_MARK, " ")

    def encode_bytes(self, data: bytes) -> list[int] | None:
        """Returns None: the model has no merges over bytes."""
        del data
        return None

    def _begins_with_space(self, text: str) -> bool:
        """Whether the text's first character that does not vanish becomes a space."""
        effects = (self._effect(character) for character in text)
        return next((effect.startswith(self._mark) for effect in effects if effect), False)

    def _effect(self, character: str) -> bytes:
        """What the normaliser makes of a character inside a word."""
        known = self._effects.get(character)
        if known is None:
            inside: bytes = self._normalizer.normalize(b"x" + character.encode("utf-8", "surrogatepass") + b"x")
            known = self._effects[character] = inside.removeprefix(b"x").removesuffix(b"x")
        return known

    @cached_property
    def _processor(self) -> Any:
        copy = self._text_only()
        if self._strips:
            copy.normalizer_spec.remove_extra_whitespaces = False
            copy.normalizer_spec.precompiled_charsmap = b""
        return self._load(copy)

    @cached_property
    def _normalizer(self) -> Any:
        """The model's normaliser alone: of the pieces it needs the user-defined ones, which it leaves as they are."""
        copy = self._text_only()
        kept = [piece for piece in copy.pieces if piece.type in (PieceType.UNKNOWN, PieceType.USER_DEFINED)]
        del copy.pieces[:]
        copy.pieces.extend(kept)
        copy.pieces.add(piece=_NEVER * 2, score=0.0, type=PieceType.NORMAL)
        copy.trainer_spec.byte_fallback = False
        return self._load(copy)

    def _text_only(self) -> Any:
        copy = type(self._proto)()
        copy.CopyFrom(self._proto)
        for position in np.flatnonzero(~self._speakable).tolist():
            piece = copy.pieces[position]
            if piece.type in (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED):
                piece.type = PieceType.CONTROL
        if self._lacks_unknown:
            copy.pieces.add(piece=_NEVER, score=0.0, type=PieceType.UNKNOWN)
        copy.normalizer_spec.add_dummy_prefix = False
        if "self_test_data" in copy.DESCRIPTOR.fields_by_name:
            # Older releases check these samples on loading, dummy prefix and all.
            copy.ClearField("self_test_data")
        return copy

    def _load(self, proto: Any) -> Any:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise MissingExtraError("encoding with SentencePiece models", "sentencepiece") from error
        try:
            return SentencePieceProcessor(model_proto=proto.SerializeToString())
        except (RuntimeError, OSError) as error:
            raise VocabularyError(f"sentencepiece cannot load {self._name}: {error}") from error
