"""Roles: what a special token does (bos, eot, tool call), whatever its name. Rules match them by role first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..readers.parsed import Parsed
from .kinds import Kind


class HasRoles(Protocol):
    """A vocabulary, or what a mapping keeps of one."""

    @property
    def roles(self) -> Mapping[str, tuple[int, ...]]:
        """Role -> ids."""


ROLES = (
    "bos",
    "eot",
    "eos",
    "eom",
    "pad",
    "unk",
    "mask",
    "cls",
    "sep",
    "header_start",
    "header_end",
    "system",
    "user",
    "assistant",
    "tools_start",
    "tools_end",
    "tool_calls_start",
    "tool_calls_end",
    "tool_call_start",
    "tool_call_end",
    "tool_responses_start",
    "tool_responses_end",
    "tool_response_start",
    "tool_response_end",
    "think_start",
    "think_end",
    "fim_prefix",
    "fim_middle",
    "fim_suffix",
    "fim_pad",
    "repo_name",
    "file_sep",
    "image",
    "image_start",
    "image_end",
    "stop",
)
"""In order of precedence: the first role that two tokens share decides. An end of turn that also ends the text (Qwen's
`<|im_end|>`) is an end of turn first."""

STOPS = ("eot", "eos", "eom", "stop")
"""Roles of what a model ends its turn with; a model may have several, and its configuration lists some as `stop`."""

# Strings whose role is the same wherever they occur, from the chat templates and tokenizer_config.json of the
# tokenizers that use them (2023-2026). A string that means different things in different families is not here.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>", "<|begin▁of▁sentence|>",
            "<BOS_TOKEN>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<｜end▁of▁sentence｜>", "<|end▁of▁sentence|>",
            "<EOS_TOKEN>"),
    "eot": ("<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|EOT|>", "<|end_of_turn|>",
            "<|END_OF_TURN_TOKEN|>", "<|end_of_role|>"),
    "eom": ("<|eom_id|>", "<|eom|>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<PAD>", "<｜▁pad▁｜>", "<|finetune_right_pad_id|>", "<|finetune_right_pad|>",
            "<|padding|>"),
    "unk": ("<unk>", "[UNK]", "<|unk|>", "<UNK>"),
    "mask": ("<mask>", "[MASK]", "<MASK_TOKEN>"),
    "cls": ("[CLS]", "<cls>", "<CLS>"),
    "sep": ("[SEP]", "<sep>", "<SEP>"),
    "header_start": ("<|im_start|>", "<|start_header_id|>", "<|header_start|>", "<start_of_turn>", "<|turn>",
                     "<|start|>", "<|START_OF_TURN_TOKEN|>", "<|start_of_role|>"),
    "header_end": ("<|end_header_id|>", "<|header_end|>", "<|im_sep|>"),
    "system": ("<|system|>", "<|SYSTEM_TOKEN|>"),
    "user": ("<|user|>", "<｜User｜>", "<|USER_TOKEN|>"),
    "assistant": ("<|assistant|>", "<｜Assistant｜>", "<|CHATBOT_TOKEN|>"),
    "tools_start": ("[AVAILABLE_TOOLS]", "<tools>"),
    "tools_end": ("[/AVAILABLE_TOOLS]", "</tools>"),
    "tool_calls_start": ("[TOOL_CALLS]", "<｜tool▁calls▁begin｜>", "<|tool_calls_section_begin|>"),
    "tool_calls_end": ("<｜tool▁calls▁end｜>", "<|tool_calls_section_end|>"),
    "tool_call_start": ("<tool_call>", "<｜tool▁call▁begin｜>", "<|tool_call|>", "<|tool_call_begin|>"),
    "tool_call_end": ("</tool_call>", "<｜tool▁call▁end｜>", "<|/tool_call|>", "<|tool_call_end|>"),
    "tool_responses_start": ("<｜tool▁outputs▁begin｜>",),
    "tool_responses_end": ("<｜tool▁outputs▁end｜>",),
    "tool_response_start": ("<tool_response>", "[TOOL_RESULTS]", "<｜tool▁output▁begin｜>", "<|tool_response|>"),
    "tool_response_end": ("</tool_response>", "[/TOOL_RESULTS]", "<｜tool▁output▁end｜>"),
    "think_start": ("<think>", "[THINK]", "<|reasoning_thinking_start|>"),
    "think_end": ("</think>", "[/THINK]", "<|reasoning_thinking_end|>"),
    "fim_prefix": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<｜fim▁begin｜>", "[PREFIX]", "<|PRE|>", "<PRE>"),
    "fim_middle": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<｜fim▁end｜>", "[MIDDLE]", "<|MID|>", "<MID>"),
    "fim_suffix": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "<｜fim▁hole｜>", "[SUFFIX]", "<|SUF|>", "<SUF>"),
    "fim_pad": ("<|fim_pad|>", "<fim_pad>", "<fim-pad>"),
    "repo_name": ("<|repo_name|>", "<repo_name>", "<reponame>"),
    "file_sep": ("<|file_sep|>", "<file_sep>", "<|file_separator|>"),
    "image": ("<|image|>", "[IMG]", "<|image_pad|>", "<image>", "<image_soft_token>", "<｜image｜>"),
    "image_start": ("<|vision_start|>", "<|image_start|>", "<start_of_image>"),
    "image_end": ("<|vision_end|>", "<|image_end|>", "[IMG_END]", "<end_of_image>"),
}  # fmt: skip


def decide_roles(parsed: Parsed, kinds: NDArray[np.uint8]) -> dict[str, tuple[int, ...]]:
    """The ids of every role: the configuration's word first, the alias's table second, well-known names last.

    Args:
        parsed: what the file and its configuration say.
        kinds: the kind of each id; only special ids have roles.

    Returns:
        Role -> ids in ascending order; a role without ids is absent. An id may have several roles.
    """
    ids: dict[str, list[int]] = {}
    for token_id in np.flatnonzero(kinds == Kind.SPECIAL).tolist():
        text = parsed.raw[token_id]
        if text is not None:
            ids.setdefault(text, []).append(token_id)
    decided: dict[str, tuple[int, ...]] = {}
    for table in (parsed.roles, parsed.preset_roles, _NAMES):
        for role, texts in table.items():
            members = sorted(token_id for text in texts for token_id in ids.get(text, ()))
            if members and role not in decided:
                decided[role] = tuple(members)
    # A list of stop tokens that names nothing new is no role of its own.
    ends = {token_id for role in STOPS[:-1] for token_id in decided.get(role, ())}
    if ends.issuperset(decided.get("stop", ())):
        decided.pop("stop", None)
    return {role: decided[role] for role in in_order(decided)}


def stop_ids(vocab: HasRoles) -> list[int]:
    """The ids that end a turn or a text, ascending."""
    return sorted({token_id for role in STOPS for token_id in vocab.roles.get(role, ())})


def in_order(roles: Iterable[str]) -> list[str]:
    """Roles in their order of precedence; those that `ROLES` does not name come last, by name."""
    place = {role: position for position, role in enumerate(ROLES)}
    return sorted(roles, key=lambda role: (place.get(role, len(ROLES)), role))
