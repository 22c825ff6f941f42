"""The tokenizer types of GGUF, each turned back into the description that its converter started from.

Source of the conversions undone here: llama.cpp, convert_hf_to_gguf.py and src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError, VocabularyError
from .parsed import Parsed
from .sentencepiece_model import SPACE_MARK, PieceType

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

    def parse_json(self, data: dict[str, Any], *warnings: str) -> Parsed:
        """Hands a description in the form of a `tokenizer.json` to its reader."""
        from .tokenizer_json import parse_tokenizer_json

        return parse_tokenizer_json(
            data,
            format="gguf",
            name=self.name,
            roles=self.roles,
            width=self.width,
            width_source=self.width_source,
            warnings=(*self.warnings, *warnings),
        )

    def first_of(self, piece_type: PieceType) -> str | None:
        """The first token of a type."""
        found = np.flatnonzero(self.types == piece_type)
        return self.tokens[found[0]] if len(found) else None


def sentence_pieces(tokenizer: Tokenizer, *, unigram: bool) -> Parsed:
    """`llama` (BPE with scores) and `t5` (Unigram): a SentencePiece model again.

    Raises:
        MissingExtraError: sentencepiece is not installed.
        VocabularyError: the scores are missing, or the pieces contradict each other.
    """
    from .sentencepiece_model import model_proto_class, parse_model_proto

    scores = tokenizer.settings.get("scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokenizer.tokens):
        found = "none" if scores is None else len(scores) if hasattr(scores, "__len__") else repr(scores)
        raise VocabularyError(
            f"{tokenizer.name} has {len(tokenizer.tokens)} tokens but {found} of the scores that its type needs: "
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
    made = {"".join(pair) for pair in merges}
    types = tokenizer.types.copy()
    for token_id, text in enumerate(tokenizer.tokens):
        if types[token_id] == PieceType.NORMAL and len(text) > 1 and text not in made:
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
