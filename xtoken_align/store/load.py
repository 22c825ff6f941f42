"""`load`: a mapping by path, by name in the store, or from the Hub, checked against the tokenizers in hand."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..compare.compat import compat
from ..errors import MismatchError, StoreError, XTokenWarning
from ..mapping.mapping import Mapping
from ..mapping.side import Side
from ..mapping.storage import load_mapping
from ..read import read_vocab
from ..vocab.kinds import Kind
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
    # pathlib raises for a name that is too long: here it only does not exist.
    if os.path.isfile(text):  # noqa: PTH113
        return path
    is_folder = os.path.isdir(text)  # noqa: PTH112
    if path.suffix == ".npz" or len(path.parts) > 1:
        problem = "is a folder, not a mapping file" if is_folder else "is no file"
        raise StoreError(f"{text} {problem}: name a mapping file, or a mapping in the store")
    try:
        return Store(store).find(text)
    except StoreError as error:
        # The store's own folder may be the current one, so a folder of that name is no refusal by itself.
        raise StoreError(f"{text} is a folder, and {error}" if is_folder else str(error)) from error


def _from_hub(address: str) -> Path:
    parts = address.removeprefix(_HUB).split("/")
    if len(parts) < 3 or not all(parts):
        raise StoreError(f"{address} is no Hub address: expected hf://user/repository/file")
    from ..sources.hub import download

    repo, _, revision = parts[1].partition("@")
    return download(f"{parts[0]}/{repo}", "/".join(parts[2:]), revision or None)


def check_fits(side: Side, vocab: Vocab, role: str) -> None:
    """Refuses a vocabulary whose text is not the one that a mapping's side was built for.

    Where the text is equal and something else differs (special tokens, roles, width), a warning says what: base and
    instruct models share their text.

    Raises:
        MismatchError: says what differs.
    """
    if vocab.fingerprint != side.fingerprint:
        raise MismatchError(
            f"the mapping's {role} is {side.name}, and {vocab.name} is not it: {_text_difference(side, vocab)}; build a "
            "mapping for this tokenizer"
        )
    differences = list(_other_differences(side, vocab))
    if differences:
        warnings.warn(
            f"the mapping's {role} {side.name} and {vocab.name} have the same text but differ in {', '.join(differences)}",
            XTokenWarning,
            stacklevel=3,
        )


def _text_difference(side: Side, vocab: Vocab) -> str:
    ours, theirs = _texts(side), _texts(vocab)
    moved = [i for i, (there, here) in enumerate(zip_longest(ours, theirs)) if there != here]
    if not moved:
        return "the tokens are equal but text is encoded otherwise (another split pattern, normaliser or merges)"
    first = moved[0]
    there, here = ("no text" if i >= len(texts) or texts[i] is None else repr(texts[i])
                   for i, texts in ((first, ours), (first, theirs)))  # fmt: skip
    subject = "1 id stands" if len(moved) == 1 else f"{len(moved):,} ids stand"
    return f"{subject} for other text, the first being {first}: {there} in the mapping, {here} in the tokenizer"


def _texts(side: Side | Vocab) -> list[bytes | None]:
    """The surfaces of text and byte tokens, None elsewhere."""
    speaks = (side.kinds <= Kind.BYTE).tolist()
    return [surface if speak else None for surface, speak in zip(side.surfaces.list, speaks, strict=True)]


def _other_differences(side: Side, vocab: Vocab) -> Iterator[str]:
    if side.sizes.logits != vocab.sizes.logits:
        yield f"logit width ({side.sizes.logits} in the mapping, {vocab.sizes.logits} in the tokenizer)"
    shared = min(side.sizes.logits, vocab.sizes.logits)
    ours, theirs = side.surfaces.list, vocab.surfaces.list
    named = np.flatnonzero((side.kinds[:shared] > Kind.BYTE) | (vocab.kinds[:shared] > Kind.BYTE)).tolist()
    others = [i for i in named if ours[i] != theirs[i] or side.kinds[i] != vocab.kinds[i]]
    if others:
        first = others[0]
        yield (
            f"{len(others)} special or reserved tokens (the first is {first}: {ours[first].decode(errors='replace')!r} "
            f"in the mapping, {theirs[first].decode(errors='replace')!r} in the tokenizer)"
        )
    roles = [
        name
        for name in sorted({*side.roles, *vocab.roles})
        if tuple(side.roles.get(name, ())) != tuple(vocab.roles.get(name, ()))
    ]
    if roles:
        yield f"the roles {', '.join(roles)}"
