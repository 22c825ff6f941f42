"""GGUF files of llama.cpp: the tokenizer in their metadata, handed to the reader of the format that it was made from.

Source of the keys and of what the token types mean: ggml, docs/gguf.md, and llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError, VocabularyError
from .configs import template_of
from .gguf_header import GgufHeader, read_header
from .gguf_models import Tokenizer, byte_level, sentence_pieces, word_pieces
from .parsed import Parsed
from .sentencepiece_encoder import BYTE_PIECES, PieceType

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

_MODELS: dict[str, Callable[[Tokenizer], Parsed]] = {
    "gpt2": byte_level,
    "llama": partial(sentence_pieces, unigram=False),
    "t5": partial(sentence_pieces, unigram=True),
    "bert": word_pieces,
}


def read_gguf(path: Path) -> Parsed:
    """Reads a `.gguf` file; its tensors are not read.

    Args:
        path: the file.

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
    read = _MODELS.get(str(model))
    if read is None:
        raise SourceError(
            f"{path.name} has a tokenizer of the type {model!r}: expected one of {', '.join(_MODELS)}; "
            "read the model's own tokenizer files"
        )
    tokenizer = _tokenizer(header, path.name)
    parsed = replace(read(tokenizer), chat_template=template_of(header.metadata.get("tokenizer.chat_template")))
    if not tokenizer.repeats:
        return parsed
    raw = list(parsed.raw)
    for again, lowest in tokenizer.repeats.items():
        raw[again] = raw[lowest]
    return replace(parsed, raw=raw)


def _tokenizer(header: GgufHeader, name: str) -> Tokenizer:
    settings = {key.removeprefix(_PREFIX): value for key, value in header.metadata.items() if key.startswith(_PREFIX)}
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
        found = len(stated) if isinstance(stated, (list, np.ndarray)) else repr(stated)
        raise VocabularyError(f"{name} has {len(tokens)} tokens but {found} token types: expected one for each token")
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
