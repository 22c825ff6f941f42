"""The JSON files beside a tokenizer: special tokens, roles, widths, chat templates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import SourceError, VocabularyError
from ..limits import MAX_ID, read_tokenizer_file
from ..sources.presets import AddedToken
from .json_blocks import parse_blocks


def load_json(path: Path, *, unique: bool = False) -> Any:
    """The parsed file.

    Args:
        path: the file.
        unique: whether a key that stands twice in one table is refused; else its last value counts. Vocabulary and
            merges of a model may be blocks then, see `json_blocks`.

    Raises:
        SourceError: it cannot be read, or is not whole JSON.
        VocabularyError: a key stands twice, under `unique`.
    """
    try:
        data = read_tokenizer_file(path)
        return parse_blocks(data, _unique) if unique else json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path.name} is not whole JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise VocabularyError(f"the key {twice!r:.80} stands twice in one table: which of its values holds is unclear")
    return table


_ROLE_KEYS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "pad_token": "pad",
    "unk_token": "unk",
    "mask_token": "mask",
    "cls_token": "cls",
    "sep_token": "sep",
    "eot_token": "eot",
}
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
"""What an added token may say about the text around it."""

_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config", "language_model", "decoder")

_EXTRA_KEYS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True)
class Configs:
    """What the files beside a tokenizer say; all empty for a bare file.

    Attributes:
        roles: role -> token strings, from `tokenizer_config.json` and `special_tokens_map.json`.
        flagged: strings that they declare special.
        added: added tokens, from `added_tokens_decoder` and `added_tokens.json`.
        width: the model's logit width, from `config.json`.
        chat_template: the Jinja template.
        stops: ids with which the model ends its turn, from `generation_config.json`.
        legacy: whether a SentencePiece model puts its dummy prefix behind every special token too.
    """

    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    flagged: frozenset[str] = frozenset()
    added: tuple[AddedToken, ...] = ()
    width: int | None = None
    chat_template: str | None = None
    stops: tuple[int, ...] = ()
    legacy: bool = False


def read_configs(directory: Path) -> Configs:
    """Reads the files that exist. A template in a file of its own goes before one in the configuration.

    Raises:
        SourceError: one of them is not whole JSON.
    """
    tokenizer = _load(directory / "tokenizer_config.json")
    listed = [
        AddedToken(id=token_id, text=text, special=False)
        for text, token_id in _load(directory / "added_tokens.json").items()
        if type(token_id) is int and 0 <= token_id <= MAX_ID and text
    ]
    configs = configs_of(
        {**_load(directory / "special_tokens_map.json"), **tokenizer}, _load(directory / "config.json")
    )
    known = {token.id for token in configs.added}
    configs = replace(
        configs,
        added=(*configs.added, *(token for token in listed if token.id not in known)),
        stops=_ids(_load(directory / "generation_config.json").get("eos_token_id")),
    )
    template = directory / "chat_template.jinja"
    return replace(configs, chat_template=_text(template)) if template.is_file() else configs


def configs_of(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> Configs:
    """What the two parsed files say."""
    roles = {role: (text,) for key, role in _ROLE_KEYS.items() if (text := _content(tokenizer.get(key))) is not None}
    extra = [text for key in _EXTRA_KEYS for text in _contents(tokenizer.get(key))]
    added = tuple(_added(tokenizer.get("added_tokens_decoder")))
    flagged = frozenset(extra) | {token.text for token in added if token.special}
    template = template_of(tokenizer.get("chat_template"))
    legacy = tokenizer.get("legacy") is True
    return Configs(
        roles=roles, flagged=flagged, added=added, width=_width(model), chat_template=template, legacy=legacy
    )


def _ids(entry: object) -> tuple[int, ...]:
    """An id, or a list of them."""
    entries = entry if isinstance(entry, list) else [entry]
    return tuple(token_id for token_id in entries if type(token_id) is int and 0 <= token_id <= MAX_ID)


def template_of(entry: object) -> str | None:
    """A chat template given as a string, or as the `default` one of several with names."""
    if isinstance(entry, list):
        named = [part for part in entry if isinstance(part, dict) and isinstance(part.get("name"), str)]
        entry = {part["name"]: part.get("template") for part in named}
    if isinstance(entry, dict):
        entry = entry.get("default")
    return entry if isinstance(entry, str) and entry else None


def _text(path: Path) -> str:
    try:
        return read_tokenizer_file(path).decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"cannot read {path.name} as UTF-8 text: {error}") from error


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    data = load_json(path)
    return data if isinstance(data, dict) else {}


def _content(entry: object) -> str | None:
    """A token given as a string or as an AddedToken's fields."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


def _contents(entries: object) -> list[str]:
    values = entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else ()
    return [text for entry in values if (text := _content(entry)) is not None]


def _added(entries: object) -> list[AddedToken]:
    if not isinstance(entries, dict):
        return []
    return [
        AddedToken(
            id=int(key),
            text=text,
            special=bool(entry.get("special", False)),
            flags=frozenset(flag for flag in FLAGS if entry.get(flag)),
        )
        for key, entry in entries.items()
        if key.isdecimal() and len(key) <= len(str(MAX_ID)) and int(key) <= MAX_ID
        if isinstance(entry, dict) and (text := _content(entry)) is not None
    ]


def _width(model: Mapping[str, Any]) -> int | None:
    """`vocab_size`, or that of the text part of a model with several parts (Qwen-Omni's lies two levels deep)."""
    width = model.get("vocab_size")
    if type(width) is int and width > 0:
        return width
    parts = (model.get(key) for key in _TEXT_PARTS)
    return next((found for part in parts if isinstance(part, dict) and (found := _width(part)) is not None), None)
