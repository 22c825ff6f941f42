"""The kinds of token ids, and which kind an id is: decided once, from what its file declares."""

from __future__ import annotations

import re
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..readers.parsed import Declared, Parsed


class Kind(IntEnum):
    """What an id is. The values are stored in mapping files and never change."""

    TEXT = 0
    BYTE = 1
    SPECIAL = 2
    RESERVED = 3
    PADDING = 4
    HOLE = 5


_FILLER_STEMS = frozenset(("reserved", "unused", "extra", "placeholder", "control", "dummy", "special"))
_BRACKETED = re.compile(r"<\|(.+)\|>|<｜(.+)｜>|<(.+)>|\[(.+)\]|>>(.+)<<", re.DOTALL)
_NAME = re.compile(r"[\w▁ #-]+")
_WORDS = re.compile(r"[^\W\d_]+|\d+|#")

_MARKER = re.compile(r"<\|.+\|>|<｜.+｜>", re.DOTALL)
_NAMED_MARKER = re.compile(r"</?([^<>]+)>|\[/?([^\[\]]+)\]")

# Words that mark chat turns, tools, thinking, images in a chat, and fill-in-the-middle in the added tokens of the
# tokenizers of 2023-2026 (their tokenizer_config.json); HTML tags and other words in brackets are text.
_MARKER_WORDS = frozenset(
    """
    think thinking thought reasoning answer
    tool tools tool_call tool_calls tool_response tool_responses tool_result tool_results tool_output tool_outputs
    tool_content tool_declaration tool_list available_tools call_id args function function_call function_response
    inst sys system system_prompt user assistant model_settings start_of_turn end_of_turn turn message
    start_of_image end_of_image image_soft_token image img img_break img_end start_of_audio end_of_audio audio
    begin_audio
    prefix middle suffix pre mid suf fim_prefix fim_middle fim_suffix fim_pad fim_begin fim_hole fim_end
    fim-prefix fim-middle fim-suffix fim-pad repo_name file_sep filename file_separator eot eom
    """.split()  # noqa: SIM905 - a list of sixty quoted words reads worse
)


def is_filler(text: str) -> bool:
    """Whether a whole token is a bracketed name with a filler stem and a number or `#`.

    >>> [is_filler(text) for text in ("<unused12>", "<|reserved_special_token_5|>", "<｜place▁holder▁no▁0｜>")]
    [True, True, True]
    >>> [is_filler(text) for text in (" unused", "<h1>", "<special>", "<extra credit 5 to you!>")]
    [False, False, False, False]
    """
    match = _BRACKETED.fullmatch(text)
    if match is None:
        return False
    name = next(group for group in match.groups() if group is not None)
    if not _NAME.fullmatch(name):
        return False
    words = _WORDS.findall(re.sub(r"(?i)place[▁_ -]holder", "placeholder", name).lower())
    return any(word in _FILLER_STEMS for word in words) and any(word == "#" or word.isdecimal() for word in words)


def is_marker(text: str) -> bool:
    """Whether an added token without the special flag is shaped like a control marker all the same.

    >>> [is_marker(text) for text in ("<|fim_pad|>", "<think>", "</tool_call>", "[INST]", "<table>", "<s>")]
    [True, True, True, True, False, False]
    """
    if _MARKER.fullmatch(text):
        return True
    match = _NAMED_MARKER.fullmatch(text)
    return match is not None and (match[1] or match[2]).lower() in _MARKER_WORDS


def decide_kinds(parsed: Parsed, width: int) -> NDArray[np.uint8]:
    """The kind of every id below the logit width; the first line of the definition that fits decides.

    Args:
        parsed: what the file says.
        width: logit width; ids from the highest on are padding.

    Returns:
        uint8 (width,), values of `Kind`.
    """
    declared = np.zeros(width, dtype=np.uint8)
    count = min(width, len(parsed.declared))
    declared[:count] = parsed.declared[:count]
    kinds = np.full(width, Kind.TEXT, dtype=np.uint8)
    kinds[declared == Declared.ABSENT] = Kind.HOLE
    kinds[declared == Declared.BYTE] = Kind.BYTE
    kinds[(declared == Declared.SPECIAL) | (declared == Declared.UNKNOWN)] = Kind.SPECIAL
    kinds[len(parsed.declared) :] = Kind.PADDING
    # What a configuration flags, or gives a role, is special although the tokenizer's file does not say so.
    roles = (*parsed.roles.values(), *parsed.preset_roles.values())
    configured = parsed.flagged.union(*roles)
    for token_id, text in _candidates(parsed, count, configured):
        if text == f"[PAD{token_id}]":
            kinds[token_id] = Kind.PADDING
        elif is_filler(text):
            kinds[token_id] = Kind.RESERVED
        elif kinds[token_id] == Kind.TEXT and (
            (text in configured and not (declared[token_id] == Declared.NORMAL and _is_plain(text)))
            or (declared[token_id] == Declared.ADDED and is_marker(text))
        ):
            kinds[token_id] = Kind.SPECIAL
    return kinds


def _is_plain(text: str) -> bool:
    # Some CLIP configurations pad with `!`, which stays text: it is an ordinary token that padding reuses.
    return _BRACKETED.fullmatch(text) is None


def _candidates(parsed: Parsed, count: int, configured: frozenset[str]) -> list[tuple[int, str]]:
    """The ids, with their strings, whose string may give them another kind than was declared: a few of all ids."""
    candidates = [
        (token_id, text)
        for token_id, text in enumerate(parsed.raw[:count])
        if text and (text[0] in "<[>" or text in configured)
    ]
    if parsed.token_bytes is not None:
        # Brackets are ASCII, so the bytes show them; decoding a whole rank file would take longer than all the rest.
        candidates += [
            (token_id, data.decode("utf-8", "replace"))
            for token_id, data in enumerate(parsed.token_bytes[:count])
            if data and data[0] in b"<[>" and data[-1] in b">]<"
        ]
    return candidates
