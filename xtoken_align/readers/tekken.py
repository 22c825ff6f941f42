"""Mistral's `tekken.json`: ranks with bytes in base64 under a block of special ids.

Source: mistral-common, tokens/tokenizers/tekken.py (2024-2026). Of the ranks listed only those below
`default_vocab_size - default_num_special_tokens` are used; a rank's id is the rank plus the number of special ids.
"""

from __future__ import annotations

import binascii
from typing import Any

from ..errors import VocabularyError
from ..limits import MAX_ID
from ..sources.presets import Preset, presets
from .parsed import Parsed
from .rank_file import Ranks, assemble

_FILLER = "<SPECIAL_{}>"


def looks_like_tekken(data: object) -> bool:
    """Whether parsed JSON has the fields of a tekken file."""
    if not isinstance(data, dict):
        return False
    config = data.get("config")
    return isinstance(config, dict) and "default_num_special_tokens" in config and isinstance(data.get("vocab"), list)


def read_tekken(
    data: dict[str, Any], *, name: str = "tekken.json", preset: Preset | None = None, pattern: str | None = None
) -> Parsed:
    """Reads a parsed `tekken.json`.

    Args:
        data: the file's JSON.
        name: the file's name, for messages.
        preset: the alias through which it was named, if any.
        pattern: the user's split pattern; it wins over the file's.

    Raises:
        VocabularyError: a field is missing or contradicts another.
    """
    config = data["config"]
    try:
        special_count = _number(config["default_num_special_tokens"])
        used = _number(config["default_vocab_size"]) - special_count
        entries = [entry for entry in data["vocab"] if _number(entry["rank"]) < used]
        tokens = [binascii.a2b_base64(entry["token_bytes"], strict_mode=True) for entry in entries]
        split = pattern if pattern is not None else str(config["pattern"])
    except KeyError as error:
        raise VocabularyError(f"{name} lacks the field {error.args[0]!r} that a tekken file has") from error
    except (TypeError, ValueError) as error:
        raise VocabularyError(f"{name} has an entry that no tekken file has: {error}") from error
    if not entries or special_count < 0:
        raise VocabularyError(f"{name} holds no usable tokens: its vocabulary is empty or its sizes contradict it")
    ranks = Ranks.checked(tokens, [entry["rank"] for entry in entries], name)
    added = _special_tokens(data, special_count, name)
    preset = preset or presets().get("mistral-tekken")
    return assemble(
        ranks,
        format="tekken",
        pattern=split,
        added=added,
        offset=special_count,
        preset_roles=preset.roles if preset else {},
        width=used + special_count,
    )


def _number(value: object) -> int:
    if type(value) is not int or value > MAX_ID:
        raise ValueError(f"{value!r:.80} is no whole number up to {MAX_ID}")
    return value


def _special_tokens(data: dict[str, Any], count: int, name: str) -> dict[int, tuple[str, bool]]:
    """The special ids: the file's own list, else the list that files without one imply, then numbered fillers."""
    listed = data.get("special_tokens")
    try:
        if listed:
            named = {_number(entry["rank"]): (entry["token_str"], bool(entry["is_control"])) for entry in listed}
        else:
            preset = presets()["mistral-tekken"]
            named = {token.id: (token.text, token.special) for token in preset.added if token.id < count}
    except (KeyError, TypeError, ValueError) as error:
        raise VocabularyError(f"{name} has a special token without rank, token_str or is_control") from error
    if listed and (len(named) < len(listed) or not all(isinstance(text, str) for text, _ in named.values())):
        raise VocabularyError(f"{name} has a special token without a string of its own, or two on one id")
    if any(not 0 <= rank < count for rank in named):
        raise VocabularyError(f"{name} has a special token outside the {count} ids that it sets aside for them")
    return {rank: named.get(rank, (_FILLER.format(rank), True)) for rank in range(count)}
