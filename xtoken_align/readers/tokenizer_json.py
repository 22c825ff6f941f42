"""`tokenizer.json` of every family, read as the data it is.

The file is never taken through `AutoTokenizer`: transformers 5 rewrites the components of some files without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import VocabularyError
from ..limits import MAX_ID
from ..sources.presets import AddedToken
from .configs import FLAGS
from .json_shape import check_shape, fallback_bytes, model_type, rewrites_of, spelling_of, stated_model, stated_parts
from .parsed import Declared, Encoder, Parsed, RowEncoder, RowTokens, Stated
from .spelling import Spelling


def looks_like_tokenizer_json(data: object) -> bool:
    """Whether parsed JSON has a model with a vocabulary."""
    return isinstance(data, dict) and isinstance(data.get("model"), dict) and "vocab" in data["model"]


def parse_tokenizer_json(
    data: dict[str, Any],
    *,
    format: str = "tokenizer.json",  # noqa: A002 - the field's name in Parsed
    name: str = "tokenizer.json",
    roles: Mapping[str, tuple[str, ...]] | None = None,
    preset_roles: Mapping[str, tuple[str, ...]] | None = None,
    flagged: frozenset[str] = frozenset(),
    more_added: tuple[AddedToken, ...] = (),
    width: int | None = None,
    width_source: str = "",
    warnings: tuple[str, ...] = (),
) -> Parsed:
    """Turns the JSON of a tokenizer into facts.

    Args:
        data: the parsed file.
        format: the name of the reader that made `data`.
        name: the file's name, for messages.
        roles: role -> token strings from `tokenizer_config.json` and its kin.
        preset_roles: the same from an alias's table.
        flagged: strings that a configuration file declares special.
        more_added: added tokens that only a configuration file knows; ids that `data` has already are left alone, and
            so are ids that no tokenizer has.
        width: logit width by `config.json`, a GGUF tensor or an alias.
        width_source: which of them.
        warnings: passed on.

    Raises:
        VocabularyError: the vocabulary is absent, empty or contradicts itself.
    """
    check_shape(data, name)
    base = dict(_base_tokens(data, name))
    added = {token.id: token for token in _added_tokens(data, name)}
    notes = _add_more(base, added, more_added, name)
    _check_ids(base, added, name)
    size = max((*base, *added)) + 1
    raw: list[str | None] = [""] * size
    declared = np.zeros(size, dtype=np.uint8)
    in_base = np.zeros(size, dtype=np.bool_)
    spelling = spelling_of(data, model_type(data["model"]))
    for token_id, text in base.items():
        raw[token_id] = text
    in_base[list(base)] = True
    declared[in_base] = Declared.NORMAL
    _declare(declared, raw, added, spelling, data["model"])

    def make_encoder(speakable: NDArray[np.bool_]) -> Encoder:
        from .json_encoder import JsonEncoder

        return JsonEncoder(data, added, speakable, byte_level=spelling.byte_level)

    def make_row_encoder(tokens: RowTokens) -> RowEncoder:
        from .json_encoder import JsonRowEncoder

        return JsonRowEncoder(data, added, tokens)

    def state(text: NDArray[np.bool_]) -> Stated:
        if format == "gguf":
            # Of GGUF's own only the merges are in it: the rest is what its converter's names stand for.
            return stated_model(data["model"], text, added)
        return stated_parts(data, added, text, byte_level=spelling.byte_level)

    return Parsed(
        format=format,
        raw=raw,
        declared=declared,
        in_base=in_base,
        base_size=len(base),
        spelling=spelling,
        make_encoder=make_encoder,
        make_row_encoder=make_row_encoder,
        state=state,
        rewrites=rewrites_of(data.get("normalizer")),
        roles=roles or {},
        preset_roles=preset_roles or {},
        width=width,
        width_source=width_source,
        flagged=flagged,
        found=frozenset(added),
        warnings=(*warnings, *notes),
    )


def _check_ids(base: Mapping[int, str], added: Mapping[int, AddedToken], name: str) -> None:
    """Refuses an empty vocabulary, and an id that is two tokens."""
    if not base:
        raise VocabularyError(f"{name} has an empty vocabulary: there is nothing to map")
    for token_id, token in added.items():
        if base.get(token_id, token.text) != token.text:
            raise VocabularyError(
                f"id {token_id} of {name} is both {base[token_id]!r} and {token.text!r}: an id is one token"
            )


def contradiction(token: AddedToken, given: str | None, its_id: int | None, name: str) -> str:
    """A warning: a configuration lists an added token that the tokenizer's own file contradicts."""
    if its_id is not None and its_id != token.id:
        return (
            f"{token.text!r} is id {its_id} in {name} and id {token.id} in the files beside it: {name} holds, so check "
            "which of them the model was trained with"
        )
    return (
        f"id {token.id} is {given!r} in {name} and {token.text!r} in the files beside it: {name} holds, so check which "
        "of them the model was trained with"
    )


def _add_more(
    base: Mapping[int, str], added: dict[int, AddedToken], more: Sequence[AddedToken], name: str
) -> list[str]:
    """Adds tokens that a configuration alone knows and takes flags from it; returns contradictions as warnings."""
    if not more:
        return []
    known = {**{text: token_id for token_id, text in base.items()}, **{one.text: one.id for one in added.values()}}
    notes: list[str] = []
    for token in more:
        if token.id > MAX_ID:
            continue
        own = added.get(token.id)
        given = own.text if own is not None else base.get(token.id)
        if given is None and token.text not in known:
            added[token.id] = token
        elif given != token.text:
            notes.append(contradiction(token, given, known.get(token.text), name))
        elif own is not None and token.flags is not None:
            # As in transformers, the configuration's flags count.
            if own.flags is not None and own.flags != token.flags:
                differing = ", ".join(sorted(own.flags ^ token.flags))
                notes.append(
                    f"{token.text!r} has other flags ({differing}) in tokenizer_config.json than in {name}: rows "
                    "follow the former, as transformers does"
                )
            added[token.id] = replace(own, flags=token.flags)
    return notes


def _base_tokens(data: dict[str, Any], name: str) -> Iterator[tuple[int, str]]:
    vocab = data["model"]["vocab"]
    if isinstance(vocab, list):
        for token_id, entry in enumerate(vocab):
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
                raise VocabularyError(
                    f"entry {token_id} of the vocabulary of {name} is not a [piece, score] pair: {entry!r:.80}"
                )
            yield token_id, entry[0]
        return
    if not isinstance(vocab, dict):
        raise VocabularyError(f"the vocabulary of {name} is neither a table nor a list of pieces")
    ids = list(vocab.values())
    # All at once, and one by one only where a sentence must say which entry is wrong.
    if (
        set(map(type, ids)) <= {int}
        and len(set(ids)) == len(ids)
        and 0 <= min(ids, default=0) <= max(ids, default=0) <= MAX_ID
    ):
        yield from zip(ids, vocab, strict=True)
        return
    seen: dict[int, str] = {}
    for text, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id <= MAX_ID:
            raise VocabularyError(f"token {text!r} of {name} has the id {token_id!r}: ids lie between 0 and {MAX_ID}")
        if token_id in seen:
            raise VocabularyError(
                f"id {token_id} of {name} is both {seen[token_id]!r} and {text!r}: an id is one token"
            )
        seen[token_id] = text
        yield token_id, text


def _added_tokens(data: dict[str, Any], name: str) -> Iterator[AddedToken]:
    seen: dict[int, str] = {}
    for entry in data.get("added_tokens") or ():
        token = AddedToken(
            id=entry["id"],
            text=entry["content"],
            special=bool(entry.get("special", False)),
            flags=frozenset(flag for flag in FLAGS if entry.get(flag)),
        )
        if seen.setdefault(token.id, token.text) != token.text:
            raise VocabularyError(
                f"id {token.id} of {name} is both {seen[token.id]!r} and {token.text!r}: an id is one token"
            )
        yield token


def _declare(
    declared: NDArray[np.uint8],
    raw: list[str | None],
    added: Mapping[int, AddedToken],
    spelling: Spelling,
    model: Mapping[str, Any],
) -> None:
    if spelling.byte_fallback:
        escapes = fallback_bytes(raw)
        declared[[token_id for token_id in escapes if declared[token_id] == Declared.NORMAL]] = Declared.BYTE
    for token_id, token in added.items():
        raw[token_id] = token.text
        declared[token_id] = Declared.SPECIAL if token.special else Declared.ADDED
    unknown_id = model.get("unk_id")
    unknown_text = model.get("unk_token")
    if isinstance(unknown_id, int) and 0 <= unknown_id < len(raw):
        declared[unknown_id] = Declared.UNKNOWN
    elif isinstance(unknown_text, str) and unknown_text in raw:
        declared[raw.index(unknown_text)] = Declared.UNKNOWN
