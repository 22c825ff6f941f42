"""The encoder of a `tokenizer.json`: a copy of it from which everything but ordinary text has been taken away.

The copy knows no added token that is special, reserved or padding, hides such tokens of the base vocabulary behind
strings that no text contains, and puts no dummy prefix before the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..errors import VocabularyError
from .byte_table import characters_of
from .components import components, has_type
from .tokenizer_json import AddedToken, model_type

_ESCAPE = re.compile(r"(?<=<)(?=0x[0-9A-Fa-f]{2}>)")
_SPACE = re.compile(r"\s")


def _hidden(token_id: int) -> str:
    # U+FFFF is a noncharacter: no text has it, and no normaliser touches it.
    return f"\uffff{token_id}\uffff"


class JsonEncoder:
    """Encodes with the file's own model, normaliser and pre-tokenizer.

    Args:
        data: the file's JSON; it is not changed.
        added: its added tokens by id.
        speakable: bool (ids,), which ids text may become.
        byte_level: whether the base vocabulary is spelled by the byte table.

    Raises:
        VocabularyError: `tokenizers` refuses the components.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        added: Mapping[int, AddedToken],
        speakable: NDArray[np.bool_],
        *,
        byte_level: bool,
    ) -> None:
        copy = _text_only(data, added, speakable)
        self._byte_level = byte_level
        self._bare = _load(_without_prefix(copy))
        self._prefixed = self._bare
        self._ids = self._file_ids(copy["added_tokens"])
        self._split_escapes = model_type(data["model"]) == "Unigram" and bool(data["model"].get("byte_fallback"))
        self._leading_lost = self._inner_lost = False
        if _has_prefix(copy):
            self._leading_lost, self._inner_lost = self._loses("x", " x"), self._loses("xy", "x y")
            if self._leading_lost:
                self._prefixed = _load(copy)

    def _file_ids(self, kept: Sequence[Mapping[str, Any]]) -> dict[int, int]:
        # `tokenizers` numbers added tokens anew where the file's numbers leave gaps.
        given = {self._bare.token_to_id(entry["content"]): int(entry["id"]) for entry in kept}
        return {mine: theirs for mine, theirs in given.items() if mine is not None and mine != theirs}

    def _loses(self, without: str, with_space: str) -> bool:
        """Whether the pre-tokenizer cannot tell two texts that differ in a space."""

        def seen(text: str) -> str:
            normalizer, splitter = self._bare.normalizer, self._bare.pre_tokenizer
            text = text if normalizer is None else normalizer.normalize_str(text)
            return text if splitter is None else "".join(piece for piece, _ in splitter.pre_tokenize_str(text))

        return seen(without) == seen(with_space)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns one list of ids per text.

        Where the pre-tokenizer drops spaces, the words that follow one keep the dummy prefix (it is their space) and
        the word that begins the text goes without.
        """
        if self._split_escapes and any("<0x" in text for text in texts):
            return [self._encode_around_escapes(text) for text in texts]
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not self._leading_lost:
            return self._run(self._bare, texts)
        cuts = [self._first_space(text) for text in texts]
        heads = self._run(self._bare, [text[:cut] for text, cut in zip(texts, cuts, strict=True)])
        tails = self._run(self._prefixed, [text[cut:] for text, cut in zip(texts, cuts, strict=True)])
        return [head + tail for head, tail in zip(heads, tails, strict=True)]

    def _first_space(self, text: str) -> int:
        if text[:1].isspace():
            return 0
        found = _SPACE.search(text) if self._inner_lost else None
        return found.start() if found else len(text)

    def _encode_around_escapes(self, text: str) -> list[int]:
        # A Unigram model holds its byte pieces in the trie that reads text: `<0x41>` would be read as one byte.
        parts = self._encode(_ESCAPE.split(text))
        return [token for part in parts for token in part]

    def _run(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        clean = [_scalar(text) for text in texts]
        encodings = tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        if not self._ids:
            return [encoding.ids for encoding in encodings]
        return [[self._ids.get(token, token) for token in encoding.ids] for encoding in encodings]

    def encode_bytes(self, data: bytes) -> list[int] | None:
        """Returns the model's merges over the byte table's characters; None where it has no byte table."""
        if not self._byte_level:
            return None
        return [token.id for token in self._bare.model.tokenize(characters_of(data))]


def _scalar(text: str) -> str:
    """Lone surrogates become U+FFFD: Rust strings cannot hold them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _load(data: Mapping[str, Any]) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(data, ensure_ascii=False))
    except Exception as error:  # tokenizers raises bare Exception for every malformed component
        raise VocabularyError(f"tokenizers does not accept this tokenizer.json: {error}") from error


def _map_leaves(
    component: Any,
    change: Callable[[dict[str, Any]], dict[str, Any] | None],
) -> Any:
    """The component with every leaf changed, or dropped where `change` returns None."""
    if not component:
        return component
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in component:
            children = (_map_leaves(child, change) for child in component[key])
            return {**component, key: [child for child in children if child is not None]}
    return change(dict(component))


def _text_only(
    data: Mapping[str, Any], added: Mapping[int, AddedToken], speakable: NDArray[np.bool_]
) -> dict[str, Any]:
    """The copy with nothing in it that is not text; the dummy prefix is still there."""
    flags = {entry["id"]: entry for entry in data.get("added_tokens") or ()}
    kept = [
        {
            **flags.get(token.id, {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}),
            "id": token.id,
            "content": token.content,
            "special": False,
        }
        for token in sorted(added.values(), key=lambda token: token.id)
        if token.id < len(speakable) and speakable[token.id]
    ]
    model = dict(data["model"])
    vocab = model["vocab"]
    base = enumerate(piece for piece, _ in vocab) if isinstance(vocab, list) else ((i, t) for t, i in vocab.items())
    hidden = {token_id: text for token_id, text in base if token_id >= len(speakable) or not speakable[token_id]}
    _hide(model, hidden)
    if "dropout" in model:
        model["dropout"] = None
    return {
        "version": data.get("version", "1.0"),
        "truncation": None,
        "padding": None,
        "added_tokens": kept,
        "normalizer": data.get("normalizer"),
        "pre_tokenizer": data.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": None,
        "model": model,
    }


def _hide(model: dict[str, Any], hidden: Mapping[int, str]) -> None:
    """Renames hidden base tokens and fills the holes, so that ids stay and no text can reach them."""
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [
            [_hidden(token_id), score] if token_id in hidden else [piece, score]
            for token_id, (piece, score) in enumerate(vocab)
        ]
        return
    names = {text: _hidden(token_id) for token_id, text in hidden.items()}
    taken = set(vocab.values())
    renamed = {names.get(text, text): token_id for text, token_id in vocab.items()} if names else dict(vocab)
    # A hole would be given to the next added token, whose number would then be that of a base token further on.
    renamed.update((_hidden(token_id), token_id) for token_id in range(max(taken) + 1) if token_id not in taken)
    model["vocab"] = renamed
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if names and model.get("merges"):
        model["merges"] = _merges_without(model["merges"], names, str(model.get("continuing_subword_prefix") or ""))


def _merges_without(merges: Sequence[Any], names: Mapping[str, str], prefix: str) -> list[Any]:
    """The merges that neither use nor make a hidden token."""

    def touches(merge: Any) -> bool:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        return left in names or right in names or left + right.removeprefix(prefix) in names

    return [merge for merge in merges if not touches(merge)]


def _has_prefix(data: Mapping[str, Any]) -> bool:
    """Whether some component puts a space before the text."""
    return has_type(data["normalizer"], "Prepend") or any(
        leaf.get("type") == "Metaspace" or leaf.get("add_prefix_space")
        for leaf in components(data["pre_tokenizer"])
        if leaf.get("prepend_scheme") != "never"
    )


def _without_prefix(data: Mapping[str, Any]) -> dict[str, Any]:
    def normalizer(leaf: dict[str, Any]) -> dict[str, Any] | None:
        return None if leaf.get("type") == "Prepend" else leaf

    def splitter(leaf: dict[str, Any]) -> dict[str, Any]:
        if leaf.get("type") == "Metaspace":
            kept = {key: value for key, value in leaf.items() if key not in ("add_prefix_space", "str_rep")}
            return {**kept, "prepend_scheme": "never"}
        return {**leaf, "add_prefix_space": False} if "add_prefix_space" in leaf else leaf

    return {
        **data,
        "normalizer": _map_leaves(data["normalizer"], normalizer),
        "pre_tokenizer": _map_leaves(data["pre_tokenizer"], splitter),
    }
