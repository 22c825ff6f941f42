"""A copy of a `tokenizer.json` that holds nothing but ordinary text.

It knows no added token that is special, reserved or padding, and hides such tokens of the base vocabulary behind
strings that no text contains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import VocabularyError
from .components import components, has_type
from .json_shape import parts_of
from .tokenizer_json import AddedToken

NONCHARACTER = "\uffff"
"""What the names of hidden tokens begin and end with."""


def _hidden(token_id: int) -> str:
    # No text has a noncharacter by right, no normaliser touches it, and a text that has one all the same is cut there.
    return f"{NONCHARACTER}{token_id}{NONCHARACTER}"


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


def text_only(
    data: Mapping[str, Any], added: Mapping[int, AddedToken], speakable: NDArray[np.bool_]
) -> tuple[dict[str, Any], dict[int, int]]:
    """Makes the copy; the dummy prefix is still in it.

    Args:
        data: the file's JSON; it is not changed.
        added: its added tokens by id.
        speakable: bool (ids,), which ids text may become.

    Returns:
        The copy, and its base tokens' ids that differ from the file's: the copy's -> the file's, -1 for a piece that
        the file does not have.

    Raises:
        VocabularyError: a merge cannot be read.
    """
    flags = {entry["id"]: entry for entry in data.get("added_tokens") or ()}
    kept = [
        {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            **flags.get(token.id, {}),
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
    base_ids = _hide(model, hidden)
    if "dropout" in model:
        model["dropout"] = None
    copy = {
        "version": data.get("version", "1.0"),
        "truncation": None,
        "padding": None,
        "added_tokens": kept,
        "normalizer": data.get("normalizer"),
        "pre_tokenizer": _map_leaves(data.get("pre_tokenizer"), _in_new_terms),
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    return copy, base_ids


def _hide(model: dict[str, Any], hidden: Mapping[int, str]) -> dict[int, int]:
    """Renames hidden base tokens, so that no text can reach them, and closes the holes.

    Returns:
        The copy's ids that differ from the file's -> the file's, -1 for a piece that the file does not have.
    """
    vocab = model["vocab"]
    if isinstance(vocab, list):
        return _hide_pieces(model, hidden)
    names = {text: _hidden(token_id) for token_id, text in hidden.items()}
    renamed = {names.get(text, text): token_id for text, token_id in vocab.items()} if names else dict(vocab)
    order = sorted(renamed.values())
    moved = {mine: theirs for mine, theirs in enumerate(order) if mine != theirs}
    if moved:
        # `tokenizers` numbers added tokens from the vocabulary's size on: in a hole's stead they would take an id.
        place = {theirs: mine for mine, theirs in enumerate(order)}
        renamed = {text: place[token_id] for text, token_id in renamed.items()}
    model["vocab"] = renamed
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if names and model.get("merges"):
        model["merges"] = _merges_without(model["merges"], names, str(model.get("continuing_subword_prefix") or ""))
    return moved


def _hide_pieces(model: dict[str, Any], hidden: Mapping[int, str]) -> dict[int, int]:
    pieces = [
        [_hidden(token_id), score] if token_id in hidden else [piece, score]
        for token_id, (piece, score) in enumerate(model["vocab"])
    ]
    model["vocab"] = pieces
    if model.get("unk_id") is not None:
        return {}
    # Without an unknown piece `tokenizers` refuses a text with a character that no piece has; BPE leaves it out.
    model["unk_id"] = len(pieces)
    pieces.append([_hidden(len(pieces)), 0.0])
    return {len(pieces) - 1: -1}


def _merges_without(merges: Sequence[Any], names: Mapping[str, str], prefix: str) -> list[Any]:
    """The merges that neither use nor make a hidden token."""

    def touches(merge: Any) -> bool:
        left, right = parts_of(merge)
        return left in names or right in names or left + right.removeprefix(prefix) in names

    try:
        return [merge for merge in merges if not touches(merge)]
    except ValueError as error:
        raise VocabularyError(f"a merge of this tokenizer.json cannot be read: {error}") from error


def _in_new_terms(leaf: dict[str, Any]) -> dict[str, Any]:
    """A Metaspace step with `prepend_scheme`: `tokenizers` refuses an old one that switches its prefix off."""
    if leaf.get("type") != "Metaspace":
        return leaf
    kept = {key: value for key, value in leaf.items() if key not in ("add_prefix_space", "str_rep")}
    return {"prepend_scheme": "always" if leaf.get("add_prefix_space", True) else "never", **kept}


def has_prefix(data: Mapping[str, Any]) -> bool:
    """Whether some component puts a space before the text."""
    return has_type(data["normalizer"], "Prepend") or any(
        leaf.get("type") == "Metaspace" or leaf.get("add_prefix_space")
        for leaf in components(data["pre_tokenizer"])
        if leaf.get("prepend_scheme") != "never"
    )


def without_prefix(data: Mapping[str, Any]) -> dict[str, Any]:
    """The copy with every step that puts a space before the text taken out or switched off."""

    def normalizer(leaf: dict[str, Any]) -> dict[str, Any] | None:
        return None if leaf.get("type") == "Prepend" else leaf

    def splitter(leaf: dict[str, Any]) -> dict[str, Any]:
        if leaf.get("type") == "Metaspace":
            return {**leaf, "prepend_scheme": "never"}
        return {**leaf, "add_prefix_space": False} if "add_prefix_space" in leaf else leaf

    return {
        **data,
        "normalizer": _map_leaves(data["normalizer"], normalizer),
        "pre_tokenizer": _map_leaves(data["pre_tokenizer"], splitter),
    }
