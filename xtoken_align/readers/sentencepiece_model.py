"""SentencePiece's `.model` and `.spm` files: one protobuf message that holds pieces, types and normaliser.

Source of the fields' meaning: sentencepiece, src/sentencepiece_model.proto (Kudo and Richardson, 2018).
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, SourceError, VocabularyError
from .parsed import Declared, Encoder, Parsed
from .sentencepiece_encoder import BYTE_PIECES, SPACE_MARK, PieceType, SentencePieceEncoder
from .spelling import ByteFallback, Replace, Spelling

_DECLARED = {
    PieceType.NORMAL: Declared.NORMAL,
    PieceType.UNKNOWN: Declared.UNKNOWN,
    PieceType.CONTROL: Declared.SPECIAL,
    PieceType.USER_DEFINED: Declared.ADDED,
    PieceType.UNUSED: Declared.NORMAL,
    PieceType.BYTE: Declared.BYTE,
}
_ROLES = ("bos", "eos", "pad")

# Protobuf's wire format: a tag byte is the number * 8 + the wire type (0 varint, 2 with a length, 5 four bytes).
_PIECES_TAG = _PIECE_TAG = 0x0A
_SCORE_TAG = 0x15
_TYPE_TAG = 0x18
_SNIFFED_PIECES = 8


def model_proto_class() -> Any:
    """The class of SentencePiece's message.

    Raises:
        MissingExtraError: sentencepiece or protobuf is not installed.
    """
    try:
        return importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto
    except ImportError as error:
        raise MissingExtraError("reading SentencePiece models", "sentencepiece") from error
    except TypeError:
        # Protobuf registers a schema once per process, and other packages (transformers) bring a copy of this one.
        schemas = importlib.import_module("google.protobuf.descriptor_pool").Default()
        known = schemas.FindMessageTypeByName("sentencepiece.ModelProto")
        return importlib.import_module("google.protobuf.message_factory").GetMessageClass(known)


def looks_like_sentencepiece(head: bytes) -> bool:
    """Whether a file that begins with `head` is a SentencePiece model, judged from its first pieces.

    Args:
        head: the file's first bytes; a few hundred are enough.
    """
    position, seen = 0, 0
    while seen < _SNIFFED_PIECES and position < len(head) and head[position] == _PIECES_TAG:
        length, start = _varint(head, position + 1)
        position = start + length
        if position > len(head):
            break
        if not _is_piece(head[start:position]):
            return False
        seen += 1
    return seen > 0


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position` and where it ends; a number that never ends is larger than any file."""
    value = 0
    for shift, byte in enumerate(data[position : position + 5]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    return 1 << 62, position


def _is_piece(message: bytes) -> bool:
    """Whether a whole message is a piece: its text, then a score, then at most one small type."""
    if message[:1] != bytes([_PIECE_TAG]):
        return False
    length, start = _varint(message, 1)
    rest = message[start + length :]
    if length == 0 or start + length > len(message):
        return False
    try:
        message[start : start + length].decode()
    except UnicodeDecodeError:
        return False
    if rest[:1] == bytes([_SCORE_TAG]) and len(rest) >= 5:
        rest = rest[5:]
    return not rest or (len(rest) == 2 and rest[0] == _TYPE_TAG and rest[1] in list(PieceType))


def read_sentencepiece(path: Path) -> Parsed:
    """Reads a `.model` or `.spm` file.

    Args:
        path: the file.

    Returns:
        Its facts.

    Raises:
        MissingExtraError: sentencepiece is not installed.
        SourceError: the file cannot be read, or is no whole SentencePiece model.
        VocabularyError: its pieces contradict each other.
    """
    proto = model_proto_class()()
    decode_error: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path.name}: {error.strerror or error}") from error
    if not data:
        raise SourceError(f"{path.name} is empty: expected a SentencePiece model")
    try:
        proto.ParseFromString(data)
    except decode_error as error:
        raise SourceError(
            f"{path.name} is damaged, cut short or no SentencePiece model (protobuf cannot decode it): fetch it again"
        ) from error
    if not proto.pieces:
        raise VocabularyError(f"{path.name} is no SentencePiece model with a vocabulary: it holds no pieces")
    # Every trainer writes both after the pieces, so a file cut between two fields decodes but lacks them.
    for part in ("trainer_spec", "normalizer_spec"):
        if not proto.HasField(part):
            raise SourceError(f"{path.name} is cut short: a SentencePiece model ends with a {part}; fetch it again")
    return parse_model_proto(proto, name=path.name)


def parse_model_proto(
    proto: Any,
    *,
    format: str = "sentencepiece",  # noqa: A002 - the field's name in Parsed
    name: str = "the model",
    roles: Mapping[str, tuple[str, ...]] | None = None,
    width: int | None = None,
    width_source: str = "",
    warnings: tuple[str, ...] = (),
) -> Parsed:
    """Turns a decoded model into facts.

    Args:
        proto: a `ModelProto`; the encoder keeps it, so it must not be changed afterwards.
        format: the name of the reader that made `proto`.
        name: the file's name, for messages.
        roles: role -> token strings; None takes them from the trainer's settings.
        width: logit width, where the source states one.
        width_source: where it does.
        warnings: passed on.

    Raises:
        VocabularyError: there are no pieces, or they contradict each other. What sentencepiece alone can judge (a
            damaged normaliser) is raised by the encoder when it is first used.
    """
    raw = [piece.piece for piece in proto.pieces]
    types = np.fromiter((piece.type for piece in proto.pieces), dtype=np.uint8, count=len(raw))
    _refuse_contradictions(raw, types, byte_fallback=proto.trainer_spec.byte_fallback, name=name)
    declared = np.zeros(len(raw), dtype=np.uint8)
    for piece_type, declaration in _DECLARED.items():
        declared[types == piece_type] = declaration

    def make_encoder(speakable: NDArray[np.bool_]) -> Encoder:
        return SentencePieceEncoder(proto, speakable, name=name)

    return Parsed(
        format=format,
        raw=raw,
        declared=declared,
        in_base=np.ones(len(raw), dtype=np.bool_),
        base_size=len(raw),
        spelling=Spelling(tuple(_steps(proto))),
        make_encoder=make_encoder,
        roles=dict(_trainer_roles(proto)) if roles is None else roles,
        width=width,
        width_source=width_source,
        warnings=warnings,
    )


def _steps(proto: Any) -> Iterator[Replace | ByteFallback]:
    if proto.normalizer_spec.escape_whitespaces:
        yield Replace(SPACE_MARK, " ")
    if proto.trainer_spec.byte_fallback:
        yield ByteFallback()


def _refuse_contradictions(raw: list[str], types: NDArray[np.uint8], *, byte_fallback: bool, name: str) -> None:
    """The conditions under which sentencepiece loads a model, told in terms of the file."""
    if not raw:
        raise VocabularyError(f"{name} has an empty vocabulary: there is nothing to map")
    if "" in raw:
        raise VocabularyError(f"piece {raw.index('')} of {name} is an empty string: every piece needs a text")
    if len(set(raw)) < len(raw):
        text = Counter(raw).most_common(1)[0][0]
        first = raw.index(text)
        second = raw.index(text, first + 1)
        raise VocabularyError(f"{name} has the piece {text!r} twice, as ids {first} and {second}: a piece is one id")
    if np.count_nonzero(types == PieceType.UNKNOWN) > 1:
        raise VocabularyError(f"{name} has several pieces of the type unknown: a model has one")
    of_type = np.flatnonzero(types == PieceType.BYTE).tolist()
    if byte_fallback and (len(of_type) != len(BYTE_PIECES) or any(raw[at] not in BYTE_PIECES for at in of_type)):
        raise VocabularyError(
            f"{name} falls back to bytes but has {len(of_type)} byte pieces, not the 256 from <0x00> to <0xFF>"
        )
    if of_type and not byte_fallback:
        raise VocabularyError(f"{name} has {len(of_type)} byte pieces but its byte_fallback is off: they contradict")


def _trainer_roles(proto: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The roles whose id exists and is no ordinary piece: the trainer's settings may name ids that were never made."""
    spec = proto.trainer_spec
    for role in _ROLES:
        position = getattr(spec, f"{role}_id")
        if not 0 <= position < len(proto.pieces):
            continue
        piece = proto.pieces[position]
        named = piece.type == PieceType.USER_DEFINED and piece.piece == getattr(spec, f"{role}_piece")
        if piece.type == PieceType.CONTROL or named:
            yield role, (piece.piece,)
    yield from (("unk", (piece.piece,)) for piece in proto.pieces if piece.type == PieceType.UNKNOWN)
