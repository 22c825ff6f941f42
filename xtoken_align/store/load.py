"""`load`: a mapping by path, by name in the store, or from the Hub, checked against the tokenizers in hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import MismatchError, StoreError
from ..mapping.mapping import Mapping
from ..mapping.side import Side
from ..mapping.storage import load_mapping
from ..read import read_vocab
from ..vocab.vocab import Vocab
from .store import Store

_HUB = "hf://"


def load(
    name_or_path: str | os.PathLike[str],
    *,
    student: Vocab | str | os.PathLike[str] | Any = None,  # noqa: ANN401 - whatever read_vocab takes
    teacher: Vocab | str | os.PathLike[str] | Any = None,  # noqa: ANN401
    store: str | os.PathLike[str] | None = None,
) -> Mapping:
    """Loads and checks a mapping.

    Args:
        name_or_path: a file, a name in the store (`llama-3--qwen3`, `llama-3--qwen3@latest`, `...@version`), or
            `hf://user/repository/file`.
        student: the student tokenizer in hand, if the mapping must fit it.
        teacher: the teacher tokenizer in hand, likewise.
        store: the store's folder.
    Returns:
        The mapping.
    Raises:
        StoreError: there is no such mapping.
        ArtifactError: the file is damaged, foreign or from a newer schema.
        MismatchError: it was built for other tokenizers than the ones in hand.
    """
    mapping = load_mapping(locate_mapping(name_or_path, store=store))
    for side, given in ((mapping.student, student), (mapping.teacher, teacher)):
        if given is not None:
            role = "student" if side is mapping.student else "teacher"
            check_fits(side, given if isinstance(given, Vocab) else read_vocab(given), role)
    return mapping


def locate_mapping(name_or_path: str | os.PathLike[str], *, store: str | os.PathLike[str] | None = None) -> Path:
    """The file that a path, a store name or a Hub address means.

    Raises:
        StoreError: there is none.
    """
    text = os.fspath(name_or_path)
    if text.startswith(_HUB):
        return _from_hub(text)
    path = Path(text)
    if path.is_file():
        return path
    if path.is_dir():
        raise StoreError(f"{text} is a folder: name a mapping file, or a mapping in the store")
    if path.suffix == ".npz" or len(path.parts) > 1:
        raise StoreError(f"no such file: {text}")
    return Store(store).find(text)


def _from_hub(address: str) -> Path:
    parts = address.removeprefix(_HUB).split("/")
    if len(parts) < 3 or not all(parts):
        raise StoreError(f"{address} is no Hub address: expected hf://user/repository/file")
    from ..sources.hub import download

    repo, _, revision = parts[1].partition("@")
    return download(f"{parts[0]}/{repo}", "/".join(parts[2:]), revision or None)


def check_fits(side: Side, vocab: Vocab, role: str) -> None:
    """Refuses a vocabulary whose text is not the one that a mapping's side was built for.

    Raises:
        MismatchError: says what differs.
    """
    if vocab.fingerprint == side.fingerprint:
        return
    ours, theirs = side.surfaces.list, vocab.surfaces.list
    shared = min(len(ours), len(theirs))
    moved = [i for i in range(shared) if ours[i] != theirs[i]]
    if moved:
        first = moved[0]
        what = f"{len(moved)} ids stand for other tokens, the first being {first}: {ours[first]!r} there, {theirs[first]!r} here"
    elif len(ours) != len(theirs):
        what = f"it has {len(theirs)} ids where the mapping has {len(ours)}"
    else:
        what = "the tokens are equal but text is encoded otherwise (another split pattern, normaliser or merges)"
    raise MismatchError(
        f"the mapping's {role} is {side.name}, and {vocab.name} is not it: {what}; build a mapping for this tokenizer"
    )
