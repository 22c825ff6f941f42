"""Whether the parts of a `tokenizer.json` have the shapes that their readers rely on.

Checked once, before anything is read: a damaged file is refused by the name of the part that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import VocabularyError
from .limits import MAX_ID

_NESTED = ("normalizers", "pretokenizers", "decoders", "processors")
_MAX_DEPTH = 16
"""Deepest nesting of components; published files nest them twice."""

_MODEL_TEXTS = ("type", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
_LEAF_TEXTS = {"replacement": "Metaspace", "prefix": "WordPiece", "suffix": "BPEDecoder", "str_rep": "Metaspace"}


def check_shape(data: Mapping[str, Any], name: str) -> None:
    """Checks components, model fields, vocabulary entries and added tokens.

    Args:
        data: the file's JSON, in which `model.vocab` is known to exist.
        name: the file's name, for messages.

    Raises:
        VocabularyError: names the part that is wrong.
    """
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        _check_component(data.get(part), part, name, 0)
    model = data["model"]
    for key in _MODEL_TEXTS:
        _expect(model.get(key), _is_text_or_none, f"{key} of the model in", name, "a string or null")
    _expect(model.get("unk_id"), _is_index_or_none, "unk_id of the model in", name, "a number or null")
    _expect(model.get("merges"), _is_list_or_none, "merges of the model in", name, "a list")
    _expect(data.get("added_tokens"), _is_list_or_none, "added_tokens of", name, "a list")
    if model.get("continuing_subword_prefix"):
        _check_continuations(model.get("merges") or (), model["continuing_subword_prefix"], name)
    for entry in data.get("added_tokens") or ():
        if not isinstance(entry, dict) or not _is_index(entry.get("id")) or not isinstance(entry.get("content"), str):
            raise VocabularyError(f"{name} has an added token without an id or a content: {entry!r:.80}")
        if not 0 <= entry["id"] <= MAX_ID:
            raise VocabularyError(f"{name} has the added token id {entry['id']}: ids lie between 0 and {MAX_ID}")


def parts_of(merge: Any) -> tuple[str, str]:
    """The two halves of a merge, which old files write as `left right` and newer ones as a list.

    Raises:
        ValueError: it is neither.
    """
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2:
        left, right = parts
        if isinstance(left, str) and isinstance(right, str):
            return left, right
    raise ValueError(f"{merge!r:.80} is neither `left right` nor a pair of strings")


def _check_continuations(merges: Sequence[Any], prefix: str, name: str) -> None:
    # `tokenizers` cuts as many bytes off every right half without looking, and takes the whole process down where that
    # leaves half a character.
    for merge in merges:
        try:
            _, right = parts_of(merge)
        except ValueError as error:
            raise VocabularyError(f"a merge of {name} cannot be read: {error}") from error
        if not right.startswith(prefix):
            raise VocabularyError(
                f"a merge of {name} continues a word with {right!r:.80}, without the prefix {prefix!r}"
            )


def _check_component(component: Any, part: str, name: str, depth: int) -> None:
    if component is None or component == {}:
        return
    _expect(component, _is_table, f"{part} of", name, "a table")
    if depth > _MAX_DEPTH:
        raise VocabularyError(f"the {part} of {name} is nested more than {_MAX_DEPTH} times")
    nested = next((key for key in _NESTED if key in component), None)
    if nested is None:
        _check_leaf(component, part, name)
        return
    _expect(component[nested], _is_list, f"{part} of", name, "a list of steps")
    for child in component[nested]:
        _check_component(child, part, name, depth + 1)


def _check_leaf(leaf: Mapping[str, Any], part: str, name: str) -> None:
    kind = leaf.get("type")
    _expect(kind, _is_text_or_none, f"type of a step in the {part} of", name, "a string")
    for key, owner in _LEAF_TEXTS.items():
        if kind == owner:
            _expect(leaf.get(key, ""), _is_text, f"{key} of {kind} in the {part} of", name, "a string")
    if kind == "Replace":
        pattern = leaf.get("pattern") or {}
        texts = list(_texts_of(pattern))
        if len(texts) != 1 or not isinstance(texts[0], str):
            raise VocabularyError(f"a Replace in the {part} of {name} has no pattern that is a string: {pattern!r:.80}")
        _expect(leaf.get("content"), _is_text, f"content of Replace in the {part} of", name, "a string")
        if part == "decoder" and "Regex" in pattern:
            _check_regex(texts[0], name)


def _check_regex(pattern: str, name: str) -> None:
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise VocabularyError(f"the decoder of {name} replaces by a pattern that cannot be read: {error}") from error


def _texts_of(pattern: Any) -> Iterator[Any]:
    if isinstance(pattern, dict):
        yield from (pattern[key] for key in ("String", "Regex") if key in pattern)


def _expect(value: Any, fits: Callable[[Any], bool], what: str, name: str, expected: str) -> None:
    if not fits(value):
        raise VocabularyError(f"{what} {name} should be {expected}, and is {value!r:.80}")


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_list_or_none(value: Any) -> bool:
    return value is None or isinstance(value, list)


def _is_index(value: Any) -> bool:
    return type(value) is int


def _is_index_or_none(value: Any) -> bool:
    return value is None or type(value) is int
