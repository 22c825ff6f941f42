"""SentencePiece `.model` files: their pieces, and the library as encoder for text in mid-sequence."""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, SourceError, VocabularyError
from ..limits import read_tokenizer_file
from .parsed import Declared, Encoder, Parsed, RowEncoder, RowTokens, SegmentEncoder, Stated
from .spelling import ByteFallback, Replace, Spelling, Suffix

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
        as_it_is: whether to encode as the model itself does, its dummy prefix included.
    """

    def __init__(self, proto: Any, speakable: NDArray[np.bool_], *, name: str, as_it_is: bool = False) -> None:
        self._proto = proto
        self._as_it_is = as_it_is
        self._speakable = speakable
        self._name = name
        self._size = len(proto.pieces)
        # Without a piece of the unknown type the library writes id 0 for what it cannot spell, whatever id 0 is.
        self._lacks_unknown = all(piece.type != PieceType.UNKNOWN for piece in proto.pieces)
        self._strips = bool(proto.normalizer_spec.remove_extra_whitespaces) and not as_it_is
        self._mark = (SPACE_MARK if proto.normalizer_spec.escape_whitespaces else " ").encode()
        self._effects: dict[str, bytes] = {}
        # With white space as suffix the library puts its space behind the text.
        as_suffix = bool(proto.trainer_spec.treat_whitespace_as_suffix)
        self.dummy_prefix = bool(proto.normalizer_spec.add_dummy_prefix) and not as_suffix

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns one list of ids per text.

        Where the normaliser strips a text's outer spaces, leading spaces become one space, as they do in mid-sequence,
        and so does a text of spaces alone. A text that the vocabulary cannot spell holds its unknown token, or becomes
        [] if there is none.
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
        normalized: bytes = self._normalizer.normalize(text.encode("utf-8", "surrogatepass"))
        return normalized.decode().replace(SPACE_MARK, " ")

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
        """The model's normaliser alone. It needs no pieces but the user-defined ones, which it leaves alone."""
        copy = self._text_only()
        needed = [piece for piece in copy.pieces if piece.type in (PieceType.UNKNOWN, PieceType.USER_DEFINED)]
        del copy.pieces[:]
        copy.pieces.extend(needed)
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
        copy.normalizer_spec.add_dummy_prefix &= self._as_it_is
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


def read_sentencepiece(path: Path, *, prefix_everywhere: bool = False) -> Parsed:
    """Reads a `.model` or `.spm` file.

    Args:
        path: the file.
        prefix_everywhere: whether rows have the dummy prefix behind special tokens too (transformers' `legacy`).

    Returns:
        Its facts.

    Raises:
        MissingExtraError: sentencepiece is not installed.
        SourceError: the file cannot be read, or is no whole SentencePiece model.
        VocabularyError: its pieces contradict each other.
    """
    proto = model_proto_class()()
    decode_error: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError
    data = read_tokenizer_file(path)
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
    return parse_model_proto(proto, name=path.name, prefix_everywhere=prefix_everywhere)


def parse_model_proto(
    proto: Any,
    *,
    format: str = "sentencepiece",  # noqa: A002 - the field's name in Parsed
    name: str = "the model",
    roles: Mapping[str, tuple[str, ...]] | None = None,
    width: int | None = None,
    width_source: str = "",
    warnings: tuple[str, ...] = (),
    prefix_everywhere: bool = True,
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
        prefix_everywhere: whether a dummy prefix stands behind every special token too, or at a text's beginning alone.

    Raises:
        VocabularyError: there are no pieces, or they contradict each other. What sentencepiece alone can judge (a
            damaged normaliser) is raised by the encoder when it is first used.
    """
    raw = [piece.piece for piece in proto.pieces]
    broken = next((token_id for token_id, text in enumerate(raw) if not isinstance(text, str)), None)
    if broken is not None:  # protobuf hands out as bytes what is not UTF-8
        raise VocabularyError(f"piece {broken} of {name} is {raw[broken]!r:.80}: expected a string in UTF-8")
    types = np.fromiter((piece.type for piece in proto.pieces), dtype=np.uint8, count=len(raw))
    _refuse_contradictions(raw, types, byte_fallback=proto.trainer_spec.byte_fallback, name=name)
    declared = np.zeros(len(raw), dtype=np.uint8)
    for piece_type, declaration in _DECLARED.items():
        declared[types == piece_type] = declaration

    def make_encoder(speakable: NDArray[np.bool_]) -> Encoder:
        return SentencePieceEncoder(proto, speakable[: len(raw)], name=name)

    def make_row_encoder(tokens: RowTokens) -> RowEncoder:
        in_texts = tokens.speakable[: len(raw)].copy()
        in_texts[[token_id for token_id in tokens.literal.values() if token_id < len(raw)]] = True
        return SegmentEncoder(
            SentencePieceEncoder(proto, in_texts, name=name, as_it_is=True),
            replace(tokens, literal={text: at for text, at in tokens.literal.items() if at >= len(raw)}),
            later=None if prefix_everywhere else SentencePieceEncoder(proto, in_texts, name=name),
        )

    def state(text: NDArray[np.bool_]) -> Stated:
        pieces = text[: len(raw)] & (declared == Declared.NORMAL)
        return _stated_parts(proto, pieces, normalizer=format == "sentencepiece")

    return Parsed(
        format=format,
        raw=raw,
        declared=declared,
        in_base=np.ones(len(raw), dtype=np.bool_),
        base_size=len(raw),
        spelling=Spelling(tuple(_steps(proto))),
        make_encoder=make_encoder,
        make_row_encoder=make_row_encoder,
        state=state,
        roles=dict(_trainer_roles(proto)) if roles is None else roles,
        width=width,
        width_source=width_source,
        warnings=warnings,
    )


def _stated_parts(proto: Any, pieces: NDArray[np.bool_], *, normalizer: bool) -> Stated:
    """The scores of the marked pieces, and what the normaliser does."""
    scores = np.fromiter((piece.score for piece in proto.pieces), dtype="<f4", count=len(pieces))
    model = {1: "unigram", 2: "bpe"}.get(proto.trainer_spec.model_type, "other")
    parts: dict[str, tuple[str, Any]] = {"scores": (model, (scores[pieces] + np.float32(0)).tobytes())}
    if normalizer:
        spec = proto.normalizer_spec
        settings = [spec.add_dummy_prefix, spec.remove_extra_whitespaces, spec.escape_whitespaces]
        charsmap = hashlib.sha256(spec.precompiled_charsmap).hexdigest()
        parts["normalizer"] = ("sentencepiece", [charsmap, *map(bool, settings)])
    return parts


def _steps(proto: Any) -> Iterator[Replace | ByteFallback | Suffix]:
    if proto.normalizer_spec.escape_whitespaces:
        if proto.trainer_spec.treat_whitespace_as_suffix:
            yield Suffix(SPACE_MARK)
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
    """The roles in the trainer's settings whose ids exist and are no ordinary pieces: settings may be wrong."""
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
