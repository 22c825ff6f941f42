"""From a located file, directory or object to the reader that understands it: by content, not by name alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingExtraError, SourceError, refused
from ..sources.presets import AddedToken, Preset
from .configs import Configs, load_json, read_configs, template_of
from .parsed import Declared, Parsed
from .rank_file import looks_like_rank_file, read_rank_file
from .tekken import looks_like_tekken, read_tekken
from .tokenizer_json import contradiction, looks_like_tokenizer_json, parse_tokenizer_json

_HEAD = 4096
_READABLE = "tokenizer.json, tekken.json, a rank file (.tiktoken), a SentencePiece .model, GGUF"

# In a directory the first of these that exists is read: the complete description before the partial ones.
_IN_DIRECTORY = (
    "tokenizer.json",
    "tekken.json",
    "*.tiktoken",
    "*.tiktoken.gz",
    "tokenizer.model",
    "*.model",
    "*.model.v*",
    "*.spm",
    "*.gguf",
)
_SLOW_FILES = ("vocab.json", "vocab.txt", "merges.txt", "tokenizer_config.json", "spiece.model")


def read_path(path: Path, *, preset: Preset | None = None, pattern: str | None = None) -> Parsed:
    """Reads a file or a directory.

    Args:
        path: where it is.
        preset: the alias through which it was named, if any.
        pattern: the user's split pattern, for rank formats.

    Raises:
        SourceError: nothing readable is there.
        VocabularyError: something is, but it contradicts itself.
    """
    if path.is_dir():
        return _read_directory(path, preset, pattern)
    if not path.exists():
        raise SourceError(f"no such file: {path}")
    return _read_file(path, Configs(), preset, pattern)


def _read_directory(path: Path, preset: Preset | None, pattern: str | None) -> Parsed:
    configs = read_configs(path)
    for glob in _IN_DIRECTORY:
        files = sorted(file for file in path.glob(glob) if file.is_file())
        if len(files) > 1:
            listed = ", ".join(file.name for file in files[:5])
            raise SourceError(f"the directory {path.name} holds several tokenizers ({listed}): name the file itself")
        if files:
            return _read_file(files[0], configs, preset, pattern)
    if any((path / name).exists() for name in _SLOW_FILES):
        return _read_converted(path, configs)
    raise SourceError(f"the directory {path.name} holds no tokenizer that can be read: {_READABLE}")


def _read_file(path: Path, configs: Configs, preset: Preset | None, pattern: str | None) -> Parsed:
    """Reads a file, and adds what the files beside it and the alias say."""
    parsed = _read_by_content(path, configs, preset, pattern)
    if parsed.format != "tokenizer.json":
        parsed = with_added(parsed, configs.added, path.name)
    parsed = _with_roles(parsed, configs)
    width, origin = parsed.width, parsed.width_source
    if configs.width is not None:
        width, origin = configs.width, "config.json"
    elif preset is not None and width is None:
        width, origin = preset.logits, f"the alias {preset.alias}"
    return replace(
        parsed,
        preset_roles=preset.roles if preset is not None else parsed.preset_roles,
        flagged=parsed.flagged | configs.flagged,
        chat_template=configs.chat_template or parsed.chat_template,
        width=width,
        width_source=origin,
    )


def with_added(parsed: Parsed, added: Sequence[AddedToken], name: str) -> Parsed:
    """A tokenizer of a format other than `tokenizer.json`, with added tokens that configuration files list.

    Where a configuration contradicts the file, the file holds, and a warning names both.
    """
    if not added:
        return parsed
    raw = list(parsed.raw)
    token_bytes = None if parsed.token_bytes is None else list(parsed.token_bytes)
    size = max(len(raw), max(token.id for token in added) + 1)
    declared = np.zeros(size, dtype=np.uint8)
    declared[: len(raw)] = parsed.declared
    in_base = np.zeros(size, dtype=np.bool_)
    in_base[: len(raw)] = parsed.in_base
    raw += [""] * (size - len(raw))
    if token_bytes is not None:
        token_bytes += [None] * (size - len(token_bytes))
    known = {text: at for at, text in enumerate(raw) if text}
    warnings = list(parsed.warnings)
    for token in added:
        given = raw[token.id]
        if given is None and token_bytes is not None:
            given = (token_bytes[token.id] or b"").decode("utf-8", "replace")
        if declared[token.id] != Declared.ABSENT or known.get(token.text, token.id) != token.id:
            note = contradiction(token, given, known.get(token.text), name)
            # Some readers of GGUF have looked at these tokens already.
            if given != token.text and note not in warnings:
                warnings.append(note)
            continue
        raw[token.id] = token.text
        declared[token.id] = Declared.SPECIAL if token.special else Declared.ADDED
    return replace(
        parsed, raw=raw, token_bytes=token_bytes, declared=declared, in_base=in_base, warnings=tuple(warnings)
    )


def _with_roles(parsed: Parsed, configs: Configs) -> Parsed:
    """The roles that configuration files give; a role whose token no file has is a warning."""
    roles = {**parsed.roles, **configs.roles}
    stops = [parsed.raw[token_id] for token_id in configs.stops if token_id < len(parsed.raw)]
    if any(stops):
        roles["stop"] = tuple(text for text in stops if text)
    texts = {text for texts in configs.roles.values() for text in texts}
    missing = texts - set(parsed.raw) - {text for text in texts if text.encode() in (parsed.token_bytes or ())}
    notes = tuple(
        f"{text!r} is to be {role} by tokenizer_config.json, and no file has this token: the role is left out"
        for role, its_texts in configs.roles.items()
        for text in its_texts
        if text in missing
    )
    return replace(parsed, roles=roles, warnings=(*parsed.warnings, *notes))


def _read_by_content(path: Path, configs: Configs, preset: Preset | None, pattern: str | None) -> Parsed:
    """Lets the reader of the file's format read it; its first bytes say which that is."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        raise SourceError(f"cannot read {path.name}: {error.strerror or error}") from error
    if not head:
        raise SourceError(f"{path.name} is empty: expected {_READABLE}")
    if head.startswith(b"GGUF"):
        from .gguf_file import read_gguf

        return read_gguf(path, more_added=configs.added)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        # Looking for keys that stand twice takes time, and a tekken file has a table for each rank.
        data = load_json(path, unique=b'"token_bytes"' not in head)
        if looks_like_tekken(data):
            return read_tekken(data, name=path.name, preset=preset, pattern=pattern)
        if not looks_like_tokenizer_json(data):
            raise SourceError(f"{path.name} is JSON but neither a tokenizer.json (no model.vocab) nor a tekken.json")
        return parse_tokenizer_json(data, name=path.name, more_added=configs.added)
    if head.startswith(b"\x1f\x8b") or looks_like_rank_file(head) or path.name.endswith(".tiktoken"):
        return read_rank_file(path, preset=preset, pattern=pattern)
    from .sentencepiece_model import looks_like_sentencepiece, read_sentencepiece

    if looks_like_sentencepiece(head):
        return read_sentencepiece(path, prefix_everywhere=configs.legacy)
    raise SourceError(f"{path.name} is in no format that can be read: expected {_READABLE}")


def _read_converted(path: Path, configs: Configs) -> Parsed:
    """Lets transformers convert the tokenizer in a directory without a fast form; no remote code is run.

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
