"""GGUF files: the header, without the tensors, and the tokenizer in it as its converter found it.

Source of the conversions undone here: llama.cpp, convert_hf_to_gguf.py and src/llama-vocab.cpp.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError, VocabularyError
from ..sources.presets import AddedToken
from .configs import template_of
from .parsed import Parsed
from .sentencepiece_model import BYTE_PIECES, SPACE_MARK, PieceType

_ADDED = (PieceType.CONTROL, PieceType.USER_DEFINED)
_FALLBACK_PRE = "gpt-2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """What a GGUF file says of its tokenizer.

    Attributes:
        name: the file's name, for messages.
        settings: the metadata under `tokenizer.ggml.`, without that prefix.
        tokens: the token strings by id.
        types: uint8 (ids,), values of `PieceType`.
        typed: whether the file states the types; else only roles have marked some.
        repeats: ids whose string a lower id has, with that id; their entry in `tokens` is a stand-in.
        roles: role -> token strings.
        width: logit width, None where the file is silent, and `width_source` where it comes from.
        warnings: sentences the user should read.
        more_added: added tokens that configuration files beside it list.
    """

    name: str
    settings: Mapping[str, Any]
    tokens: Sequence[str]
    types: NDArray[np.uint8]
    typed: bool
    repeats: Mapping[int, int]
    roles: Mapping[str, tuple[str, ...]]
    width: int | None
    width_source: str
    warnings: tuple[str, ...]
    more_added: tuple[AddedToken, ...] = ()

    def parse_json(self, data: dict[str, Any], *warnings: str) -> Parsed:
        """Hands a description in the form of a `tokenizer.json` to its reader."""
        from .tokenizer_json import parse_tokenizer_json

        return parse_tokenizer_json(
            data,
            format="gguf",
            name=self.name,
            roles=self.roles,
            more_added=self.more_added,
            width=self.width,
            width_source=self.width_source,
            warnings=(*self.warnings, *warnings),
        )

    def first_of(self, piece_type: PieceType) -> str | None:
        """The first token of a type."""
        ids = np.flatnonzero(self.types == piece_type)
        return self.tokens[ids[0]] if len(ids) else None


def sentence_pieces(tokenizer: Tokenizer, *, unigram: bool) -> Parsed:
    """`llama` (BPE with scores) and `t5` (Unigram): a SentencePiece model again.

    Raises:
        MissingExtraError: sentencepiece is not installed.
        VocabularyError: the scores are missing, or the pieces contradict each other.
    """
    from .sentencepiece_model import model_proto_class, parse_model_proto

    scores = tokenizer.settings.get("scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokenizer.tokens):
        count = "none" if scores is None else len(scores) if hasattr(scores, "__len__") else repr(scores)
        raise VocabularyError(
            f"{tokenizer.name} has {len(tokenizer.tokens)} tokens but {count} of the scores that its type needs: "
            "convert the model again"
        )
    proto = model_proto_class()()
    for text, score, piece_type in zip(_marked(tokenizer), scores.tolist(), _one_unknown(tokenizer), strict=True):
        proto.pieces.add(piece=text, score=score, type=piece_type)
    settings = tokenizer.settings
    proto.trainer_spec.model_type = 1 if unigram else 2
    proto.trainer_spec.byte_fallback = bool(np.any(tokenizer.types == PieceType.BYTE))
    normalizer = proto.normalizer_spec
    normalizer.escape_whitespaces = True
    normalizer.add_dummy_prefix = bool(settings.get("add_space_prefix", True))
    # llama.cpp reads the other two for Unigram models only.
    normalizer.remove_extra_whitespaces = unigram and bool(settings.get("remove_extra_whitespaces", False))
    charsmap = settings.get("precompiled_charsmap")
    if unigram and isinstance(charsmap, np.ndarray):
        normalizer.precompiled_charsmap = charsmap.astype(np.uint8).tobytes()
    return parse_model_proto(
        proto,
        format="gguf",
        name=tokenizer.name,
        roles=tokenizer.roles,
        width=tokenizer.width,
        width_source=tokenizer.width_source,
        warnings=tokenizer.warnings,
    )


def _one_unknown(tokenizer: Tokenizer) -> list[int]:
    """The pieces' types with one unknown piece: converters give unused ids that type too, and a model has one."""
    types = tokenizer.types.copy()
    unknown = np.flatnonzero(types == PieceType.UNKNOWN)
    stated = [at for at in unknown.tolist() if tokenizer.tokens[at] in tokenizer.roles.get("unk", ())]
    types[unknown[unknown != (stated or unknown.tolist() or [-1])[0]]] = PieceType.CONTROL
    listed: list[int] = types.tolist()
    return listed


def _marked(tokenizer: Tokenizer) -> Iterator[str]:
    """The pieces as SentencePiece writes them: the converter turns the marks of user-defined ones into spaces."""
    known = set(tokenizer.tokens)
    for text, piece_type in zip(tokenizer.tokens, tokenizer.types.tolist(), strict=True):
        marked = text.replace(" ", SPACE_MARK) if piece_type == PieceType.USER_DEFINED else text
        yield text if marked in known else marked


def byte_level(tokenizer: Tokenizer) -> Parsed:
    """`gpt2`: byte-level BPE, whose split pattern GGUF only names.

    Raises:
        SourceError: the name of the split pattern is unknown.
        VocabularyError: merges are missing or malformed.
    """
    from ..sources.patterns import pattern_for_pre

    pre = tokenizer.settings.get("pre")
    pattern = pattern_for_pre(str(pre or _FALLBACK_PRE))
    if pattern is None:
        raise SourceError(
            f"{tokenizer.name} names the split pattern {pre!r}, which is unknown here: read the model's tokenizer.json"
        )
    assumed = f"{tokenizer.name} names no split pattern: GPT-2's is assumed, which may split text badly"
    merges = _merges(tokenizer)
    types = tokenizer.types if tokenizer.typed else _types_by_merges(tokenizer, merges)
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    data = {
        "added_tokens": list(_added_tokens(tokenizer.tokens, types)),
        "normalizer": {"type": pattern.normalizer} if pattern.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*map(_split, pattern.patterns), by_bytes]},
        "post_processor": None,
        "decoder": by_bytes,
        "model": {
            "type": "BPE",
            "unk_token": tokenizer.first_of(PieceType.UNKNOWN),
            "ignore_merges": pattern.ignore_merges,
            "vocab": {
                text: token_id
                for token_id, (text, piece_type) in enumerate(zip(tokenizer.tokens, types.tolist(), strict=True))
                if piece_type not in _ADDED
            },
            "merges": merges,
        },
    }
    return tokenizer.parse_json(data, *(() if pre else (assumed,)))


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    lines = tokenizer.settings.get("merges")
    if not isinstance(lines, list) or not lines:
        raise VocabularyError(
            f"{tokenizer.name} is byte-level BPE without merges (tokenizer.ggml.merges): convert the model again"
        )
    pairs = [line.split(" ") if isinstance(line, str) else [] for line in lines]
    broken = next((position for position, pair in enumerate(pairs) if len(pair) != 2), None)
    if broken is not None:
        raise VocabularyError(f"merge {broken} of {tokenizer.name} is {lines[broken]!r}: expected two pieces")
    return pairs


def _types_by_merges(tokenizer: Tokenizer, merges: Sequence[Sequence[str]]) -> NDArray[np.uint8]:
    """Where the file states no types: a token of several characters that no merge makes was added beside the model."""
    merged = {"".join(pair) for pair in merges}
    types = tokenizer.types.copy()
    for token_id, text in enumerate(tokenizer.tokens):
        if types[token_id] == PieceType.NORMAL and len(text) > 1 and text not in merged:
            types[token_id] = PieceType.USER_DEFINED
    return types


def _added_tokens(tokens: Sequence[str], types: NDArray[np.uint8]) -> Iterator[dict[str, Any]]:
    for token_id in np.flatnonzero(np.isin(types, _ADDED)).tolist():
        yield {
            "id": token_id,
            "content": tokens[token_id],
            "special": bool(types[token_id] == PieceType.CONTROL),
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }


def word_pieces(tokenizer: Tokenizer) -> Parsed:
    """`bert`: WordPiece, whose marks the converter moved from the pieces that continue a word to those that start one.

    Raises:
        VocabularyError: there is no unknown token, without which WordPiece cannot encode.
    """
    tokens = [
        _word_piece(text, piece_type)
        for text, piece_type in zip(tokenizer.tokens, tokenizer.types.tolist(), strict=True)
    ]
    named = (*tokenizer.roles.get("unk", ()), tokenizer.first_of(PieceType.UNKNOWN), "[UNK]", "<unk>")
    unknown = next((text for text in named if text in set(tokens)), None)
    if unknown is None:
        raise VocabularyError(f"{tokenizer.name} is WordPiece without an unknown token: state its unknown_token_id")
    data = {
        "added_tokens": list(_added_tokens(tokens, tokenizer.types)),
        "normalizer": _bert_normalizer(tokenizer, tokens),
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {text: token_id for token_id, text in enumerate(tokens)},
        },
    }
    return tokenizer.parse_json(data)


def _bert_normalizer(tokenizer: Tokenizer, tokens: Sequence[str]) -> dict[str, Any]:
    # Files made before the key existed do not say; a cased vocabulary shows in its pieces.
    uncased = not any(
        text != text.lower()
        for text, piece_type in zip(tokens, tokenizer.types.tolist(), strict=True)
        if piece_type == PieceType.NORMAL and not _bracketed(text)
    )
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": tokenizer.settings.get("normalizer.strip_accents"),
        "lowercase": bool(tokenizer.settings.get("normalizer.lowercase", uncased)),
    }


def _word_piece(text: str, piece_type: int) -> str:
    if piece_type in (PieceType.CONTROL, PieceType.UNKNOWN):
        return text
    # A lone mark is `##` + mark: no piece that starts a word is empty.
    if text.startswith(SPACE_MARK) and text != SPACE_MARK:
        return text.removeprefix(SPACE_MARK)
    return text if _bracketed(text) else "##" + text


def _bracketed(text: str) -> bool:
    """Whether it is `[NAME]`; BERT splits at brackets, so no piece of a word is."""
    return len(text) > 2 and text.startswith("[") and text.endswith("]")


MAGIC = b"GGUF"
_VERSIONS = (2, 3)

# Value types by their number in the file; 8 is a string, 9 an array.
_SCALARS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8"}
_STRING = 8
_ARRAY = 9
_MOST_NESTED = 4
_MOST_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Attributes:
    metadata: key -> value; arrays of numbers are numpy arrays, arrays of strings lists, bytes that are no UTF-8 stay
        bytes.
    shapes: tensor name -> sizes in the file's order, the fastest-moving dimension first.
    """

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def read_header(path: Path) -> GgufHeader:
    """Reads the header.

    Args:
        path: the file.

    Raises:
        SourceError: the file cannot be read, is no GGUF file, has a version that is not known, or is cut short.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise SourceError(f"{path.name} is no GGUF file: it does not begin with {MAGIC.decode()}")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(data, path.name).header()
    except OSError as error:
        raise SourceError(f"cannot read {path.name}: {error.strerror or error}") from error


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self._data = data
        self._name = name
        self._position = len(MAGIC)
        self._order = self._byte_order()
        self._length_at: Callable[[mmap.mmap, int], tuple[int]] = struct.Struct(f"{self._order}Q").unpack_from

    def _byte_order(self) -> Literal["<", ">"]:
        (version,) = struct.unpack("<I", self._take(4))
        # Versions are small: one with empty low bytes was written the other way round.
        order: Literal["<", ">"] = "<" if version & 0xFFFF else ">"
        version = version if order == "<" else version >> 24
        if version not in _VERSIONS:
            raise SourceError(f"{self._name} is GGUF version {version}: expected 2 or 3; convert the model again")
        return order

    def header(self) -> GgufHeader:
        tensors, pairs = self._number("u8"), self._number("u8")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._text()
            if key in metadata:
                raise SourceError(f"{self._name} has the key {key!r} twice: expected one value for it")
            metadata[key] = self._value(self._number("u4"), depth=0)
        return GgufHeader(metadata, dict(self._shape() for _ in range(tensors)))

    def _shape(self) -> tuple[str, tuple[int, ...]]:
        name = self._text()
        dimensions = self._number("u4")
        if dimensions > _MOST_DIMENSIONS:
            raise SourceError(f"tensor {name!r} of {self._name} has {dimensions} dimensions: the file is damaged")
        shape = tuple(self._number("u8") for _ in range(dimensions))
        self._take(4 + 8)  # the tensor's number type and offset
        return name, shape

    def _take(self, count: int) -> bytes:
        start, end = self._position, self._position + count
        if end > len(self._data):
            raise self._cut_short()
        self._position = end
        return self._data[start:end]

    def _cut_short(self) -> SourceError:
        return SourceError(f"{self._name} is cut short or damaged: its header runs past its end; fetch it again")

    def _number(self, code: str) -> int:
        return int(self._numbers(code, 1)[0])

    def _numbers(self, code: str, count: int) -> np.ndarray[Any, Any]:
        dtype = np.dtype(code).newbyteorder(self._order)
        return np.frombuffer(self._take(count * dtype.itemsize), dtype=dtype)

    def _text(self) -> str:
        text = self._strings(1)[0]
        if isinstance(text, bytes):
            raise SourceError(f"{self._name} has a name that is not UTF-8 ({text[:40]!r}): the file is damaged")
        return text

    def _strings(self, count: int) -> list[str | bytes]:
        data, position, size, length_at = self._data, self._position, len(self._data), self._length_at
        strings: list[str | bytes] = []
        for _ in range(count):
            start = position + 8
            if start > size:
                raise self._cut_short()
            position = start + length_at(data, position)[0]
            if position > size:
                raise self._cut_short()
            content = data[start:position]
            try:
                strings.append(content.decode())
            except UnicodeDecodeError:
                strings.append(content)
        self._position = position
        return strings

    def _value(self, kind: int, *, depth: int) -> Any:
        if kind == _STRING:
            return self._strings(1)[0]
        if kind in _SCALARS:
            return self._numbers(_SCALARS[kind], 1)[0].item()
        if kind != _ARRAY or depth == _MOST_NESTED:
            raise SourceError(f"{self._name} has a value of the unknown type {kind}: the file is damaged or too new")
        element, count = self._number("u4"), self._number("u8")
        if element == _STRING:
            return self._strings(count)
        if element in _SCALARS:
            return self._numbers(_SCALARS[element], count)
        return [self._value(element, depth=depth + 1) for _ in range(count)]


_PREFIX = "tokenizer.ggml."

# The key `<name>_token_id` -> the role. GGUF's own spelling of `separator` is the first of the two.
_ROLE_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "eot": "eot",
    "eom": "eom",
    "unknown": "unk",
    "padding": "pad",
    "seperator": "sep",
    "separator": "sep",
    "cls": "cls",
    "mask": "mask",
    "fim_pre": "fim_prefix",
    "fim_suf": "fim_suffix",
    "fim_mid": "fim_middle",
    "fim_pad": "fim_pad",
    "fim_rep": "repo_name",
    "fim_sep": "file_sep",
    "prefix": "fim_prefix",
    "suffix": "fim_suffix",
    "middle": "fim_middle",
}

# A model's logits come from its output head; one without a head of its own uses the embedding.
_VOCABULARY_TENSORS = ("output.weight", "token_embd.weight")

_SETTINGS = {"pre": str} | dict.fromkeys(
    ("add_space_prefix", "remove_extra_whitespaces", "normalizer.strip_accents", "normalizer.lowercase"), int | bool
)
"""The settings that are one value each, and of which type; flags may be written as numbers."""

_MODELS: dict[str, Callable[[Tokenizer], Parsed]] = {
    "gpt2": byte_level,
    "llama": partial(sentence_pieces, unigram=False),
    "t5": partial(sentence_pieces, unigram=True),
    "bert": word_pieces,
}


def read_gguf(path: Path, *, more_added: tuple[AddedToken, ...] = ()) -> Parsed:
    """Reads a `.gguf` file; its tensors are not read.

    Args:
        path: the file.
        more_added: added tokens that configuration files beside it list.

    Returns:
        Its facts.

    Raises:
        MissingExtraError: a SentencePiece-like tokenizer, and sentencepiece is not installed.
        SourceError: the file is damaged, or its tokenizer is of a type that is not supported.
        VocabularyError: the tokenizer contradicts itself.
    """
    header = read_header(path)
    model = header.metadata.get(_PREFIX + "model")
    if model is None:
        raise SourceError(
            f"{path.name} has no tokenizer (no {_PREFIX}model): expected a model's GGUF with its vocabulary"
        )
    read = _MODELS.get(model) if isinstance(model, str) else None
    if read is None:
        raise SourceError(
            f"{path.name} has a tokenizer of the type {model!r}: expected one of {', '.join(_MODELS)}; "
            "read the model's own tokenizer files"
        )
    tokenizer = replace(_tokenizer(header, path.name), more_added=more_added)
    parsed = replace(read(tokenizer), chat_template=template_of(header.metadata.get("tokenizer.chat_template")))
    if not tokenizer.repeats:
        return parsed
    raw = list(parsed.raw)
    for again, lowest in tokenizer.repeats.items():
        raw[again] = raw[lowest]
    return replace(parsed, raw=raw)


def _tokenizer(header: GgufHeader, name: str) -> Tokenizer:
    settings = {key.removeprefix(_PREFIX): value for key, value in header.metadata.items() if key.startswith(_PREFIX)}
    for key, kind in _SETTINGS.items():
        if not isinstance(settings.get(key), kind | None):
            expected = "a string" if kind is str else "true or false"
            raise SourceError(
                f"{name} has {_PREFIX}{key} of a wrong type: expected {expected}; convert the model again"
            )
    tokens, fillers = _tokens(settings, name)
    role_ids = dict(_role_ids(settings, len(tokens)))
    types, typed = _types(settings, tokens, role_ids, name)
    types[fillers] = PieceType.UNUSED
    repeats = _repeats(tokens)
    for again in repeats:
        # Encoders take a string once; text could not become the second of two equal tokens anyway.
        tokens[again] = f"\uffff{again}\uffff"
        types[again] = PieceType.UNUSED
    roles: dict[str, tuple[str, ...]] = {}
    for key, token_id in role_ids.items():
        known = roles.get(_ROLE_KEYS[key], ())
        if tokens[token_id] not in known:
            roles[_ROLE_KEYS[key]] = (*known, tokens[token_id])
    width, width_source = _width(header)
    untyped = f"{name} states no token types: only tokens with a role are known to be special"
    return Tokenizer(
        name=name,
        settings=settings,
        tokens=tokens,
        types=types,
        typed=typed,
        repeats=repeats,
        roles=roles,
        width=width,
        width_source=width_source,
        warnings=() if typed else (untyped,),
    )


def _tokens(settings: dict[str, Any], name: str) -> tuple[list[str], list[int]]:
    """The token strings, and the ids of the empty ones, which get the name of a filler."""
    listed = settings.get("tokens")
    if not isinstance(listed, list) or not listed:
        raise VocabularyError(
            f"{name} has no list of tokens ({_PREFIX}tokens): convert the model again, with its vocabulary"
        )
    fillers = [token_id for token_id, text in enumerate(listed) if not text]
    tokens = [text or f"[PAD{token_id}]" for token_id, text in enumerate(listed)]
    broken = next((token_id for token_id, text in enumerate(tokens) if not isinstance(text, str)), None)
    if broken is not None:
        raise VocabularyError(f"token {broken} of {name} is {tokens[broken]!r}: expected a string in UTF-8")
    return tokens, fillers


def _repeats(tokens: Sequence[str]) -> dict[int, int]:
    """The ids whose string a lower id has already, with that id."""
    first: dict[str, int] = {}
    return {at: lowest for at, text in enumerate(tokens) if (lowest := first.setdefault(text, at)) != at}


def _role_ids(settings: dict[str, Any], count: int) -> Iterator[tuple[str, int]]:
    for key in _ROLE_KEYS:
        token_id = settings.get(f"{key}_token_id")
        if type(token_id) is int and 0 <= token_id < count:
            yield key, token_id


def _types(
    settings: dict[str, Any], tokens: Sequence[str], role_ids: dict[str, int], name: str
) -> tuple[NDArray[np.uint8], bool]:
    """The token types and whether the file states them; where it does not, roles and the names of the bytes do."""
    stated = settings.get("token_type")
    if stated is None:
        types = np.full(len(tokens), PieceType.NORMAL, dtype=np.uint8)
        if BYTE_PIECES.issubset(tokens):
            types[[token_id for token_id, text in enumerate(tokens) if text in BYTE_PIECES]] = PieceType.BYTE
        for key, token_id in role_ids.items():
            types[token_id] = PieceType.UNKNOWN if _ROLE_KEYS[key] == "unk" else PieceType.CONTROL
        return types, False
    if not isinstance(stated, np.ndarray) or len(stated) != len(tokens):
        count = len(stated) if isinstance(stated, (list, np.ndarray)) else repr(stated)
        raise VocabularyError(f"{name} has {len(tokens)} tokens but {count} token types: expected one for each token")
    # 0 is llama.cpp's "undefined", which it treats as an ordinary token.
    types = np.where(stated == 0, PieceType.NORMAL, stated).astype(np.int64)
    wrong = np.flatnonzero(~np.isin(types, list(PieceType)))
    if len(wrong):
        raise VocabularyError(
            f"token {wrong[0]} of {name} has the type {stated[wrong[0]]}: expected 1 to {max(PieceType)}"
        )
    return types.astype(np.uint8), True


def _width(header: GgufHeader) -> tuple[int | None, str]:
    for tensor in _VOCABULARY_TENSORS:
        shape = header.shapes.get(tensor, ())
        if len(shape) == 2:
            return shape[1], f"the GGUF tensor {tensor}"
    width = header.metadata.get(f"{header.metadata.get('general.architecture')}.vocab_size")
    return (width, "the GGUF key vocab_size") if type(width) is int and width > 0 else (None, "")
