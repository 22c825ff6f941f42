"""Tokenizers without a fast form, through transformers' converter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, SourceError
from .configs import Configs, template_of
from .parsed import Parsed, refused
from .tokenizer_json import parse_tokenizer_json


def read_converted(path: Path, configs: Configs) -> Parsed:
    """Lets transformers convert the tokenizer in a directory; no remote code is run.

    Args:
        path: the directory.
        configs: what its configuration files say.

    Raises:
        MissingExtraError: transformers is not installed.
        SourceError: transformers cannot load or convert it.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("A tokenizer without tokenizer.json", "train") from error
    # What its files make transformers and `tokenizers` raise can be anything: a bare Exception for a merges.txt in
    # Latin-1, a panic of Rust code.
    with refused(f"the directory {path.name} has no tokenizer.json, and transformers cannot load it", SourceError):
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False, local_files_only=True)
    parsed = read_object(tokenizer)
    note = f"{path.name} has no tokenizer.json: transformers converted it, which can change how it tokenises"
    return replace(
        parsed,
        roles={**parsed.roles, **configs.roles},
        flagged=parsed.flagged | configs.flagged,
        chat_template=configs.chat_template or parsed.chat_template,
        width=configs.width,
        width_source="config.json" if configs.width is not None else "",
        warnings=(*parsed.warnings, note),
    )


def read_object(tokenizer: Any) -> Parsed:
    """Reads a `tokenizers.Tokenizer` or a `PreTrainedTokenizerFast`.

    Raises:
        SourceError: the object is neither.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    to_str = getattr(backend, "to_str", None)
    if not callable(to_str):
        raise SourceError(
            f"expected a tokenizers.Tokenizer or a PreTrainedTokenizerFast, got {type(tokenizer).__name__}: "
            "load its fast form, or pass the path of its files"
        )
    data = json.loads(to_str())
    named = getattr(tokenizer, "special_tokens_map", None)
    roles: dict[str, tuple[str, ...]] = {}
    flagged: set[str] = set()
    if isinstance(named, dict):
        for key, value in named.items():
            if isinstance(value, str) and key.endswith("_token"):
                roles[key.removesuffix("_token")] = (value,)
            elif isinstance(value, (list, tuple)):
                flagged.update(str(text) for text in value)
    parsed = parse_tokenizer_json(data, name=type(tokenizer).__name__, roles=roles, flagged=frozenset(flagged))
    return replace(parsed, chat_template=template_of(getattr(tokenizer, "chat_template", None)))
