"""The encoder of a SentencePiece model: the library itself, on a copy of the model made for text in mid-sequence.

The library has no switch for its dummy prefix, nor one for pieces that text must not become, so the copy is patched.
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

_SPACE_INSIDE = f"x{SPACE_MARK}x".encode()


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

    def __init__(self, proto: Any, speakable: NDArray[np.bool_], *, name: str) -> None:  # noqa: ANN401 - protobuf
        self._proto = proto
        self._speakable = speakable
        self._name = name
        self._size = len(proto.pieces)
        # Without a piece of the unknown type the library writes id 0 for what it cannot spell, whatever id 0 is.
        self._lacks_unknown = all(piece.type != PieceType.UNKNOWN for piece in proto.pieces)
        self._strips = bool(proto.normalizer_spec.remove_extra_whitespaces and proto.normalizer_spec.escape_whitespaces)
        self._spaces = {" ": True}

    @cached_property
    def _processor(self) -> Any:  # noqa: ANN401 - an optional library's class
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise MissingExtraError("encoding with SentencePiece models", "sentencepiece") from error
        try:
            return SentencePieceProcessor(model_proto=self._text_only().SerializeToString())
        except (RuntimeError, OSError) as error:
            raise VocabularyError(f"sentencepiece cannot load {self._name}: {error}") from error

    def _text_only(self) -> Any:  # noqa: ANN401 - protobuf
        copy = type(self._proto)()
        copy.CopyFrom(self._proto)
        for position in np.flatnonzero(~self._speakable).tolist():
            piece = copy.pieces[position]
            if piece.type in (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED):
                piece.type = PieceType.CONTROL
        if self._lacks_unknown:
            copy.pieces.add(piece=_NEVER, score=0.0, type=PieceType.UNKNOWN)
        copy.normalizer_spec.add_dummy_prefix = False
        # Models that write spaces as spaces cannot be told which one to keep (see `_marked`): they keep all.
        copy.normalizer_spec.remove_extra_whitespaces = self._strips
        if "self_test_data" in copy.DESCRIPTOR.fields_by_name:
            # Older releases check these samples on loading, dummy prefix and all.
            copy.ClearField("self_test_data")
        return copy

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns one list of ids per text.

        Where the normaliser strips a text's outer spaces, the leading ones count as one, as they do in mid-sequence;
        the same holds for a text of nothing but spaces. A text that the vocabulary cannot spell has its unknown token
        in it, or becomes [] if it has none.
        """
        marked = [self._marked(text) for text in texts] if self._strips else texts
        # Bytes, since strings with lone surrogates are refused; the library reads their bytes as U+FFFD.
        rows: list[list[int]] = self._processor.encode(
            [text.encode("utf-8", "surrogatepass") for text in marked], out_type=int
        )
        if self._strips:
            rows = [[self._space] if text == SPACE_MARK else row for text, row in zip(marked, rows, strict=True)]
        if self._lacks_unknown:
            rows = [[] if self._size in row else row for row in rows]
        return rows

    def encode_bytes(self, data: bytes) -> list[int] | None:
        """Returns None: the model has no merges over bytes."""
        del data
        return None

    def _marked(self, text: str) -> str:
        """The text with its leading spaces, which would vanish, written as one mark, which stays."""
        first = next((position for position, character in enumerate(text) if not self._is_space(character)), len(text))
        return SPACE_MARK + text[first:] if first else text

    def _is_space(self, character: str) -> bool:
        """Whether the normaliser makes a space of it."""
        known = self._spaces.get(character)
        if known is None:
            inside = f"x{character}x".encode("utf-8", "surrogatepass")
            known = self._spaces[character] = self._processor.normalize(inside) in _SPACE_INSIDE
        return known

    @cached_property
    def _space(self) -> int:
        # The library strips trailing marks too, so a lone one is looked up.
        return int(self._processor.piece_to_id(SPACE_MARK))
