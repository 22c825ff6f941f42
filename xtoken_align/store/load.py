"""`load` and `get_or_build`: a mapping for training code, checked against the tokenizers in hand."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

import numpy as np

from ..builder import build, plain_options
from ..compare.compat import compat
from ..compare.parts import PartsMatch, earlier_note
from ..errors import ArtifactError, MappingError, MismatchError, SourceError, StoreError, XTokenWarning
from ..mapping.file import read_metadata
from ..mapping.mapping import Mapping, Side, check_counts, load_mapping
from ..read import as_vocab
from ..vocab.fingerprint import ENCODING, PART_WORDS, compare_stated
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .store import Store, checked_name, locked

_HUB = "hf://"
_REPOSITORY = re.compile(
    r"(?P<id>[a-z0-9][\w.-]{0,95}/[a-z0-9][\w.-]{0,95})(@(?P<revision>[\w.-]{1,200}))?(/(?P<file>.+))?",
    re.ASCII | re.IGNORECASE,
)

MAPPING_FILE = "mapping.npz"
"""The name of a mapping's file in a repository of the Hub."""


def load(
    name_or_path: str | os.PathLike[str],
    *,
    student: Vocab | str | os.PathLike[str] | Any = None,
    teacher: Vocab | str | os.PathLike[str] | Any = None,
    store: str | os.PathLike[str] | None = None,
) -> Mapping:
    """Loads and checks a mapping.

    Args:
        name_or_path: a file, a name in the store (`llama-3--qwen3`, `llama-3--qwen3@latest`, `...@version`), or a
            repository of the Hub (`user/repository`, `user/repository@revision`, `hf://user/repository/file`).
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
    path = locate_mapping(name_or_path, store=store)
    mapping = load_mapping(path)
    if mapping.student.parts is None or mapping.teacher.parts is None:
        warnings.warn(earlier_note(path.name), XTokenWarning, stacklevel=2)
    for side, given in ((mapping.student, student), (mapping.teacher, teacher)):
        if given is not None:
            role = "student" if side is mapping.student else "teacher"
            check_fits(side, as_vocab(given), role)
    return mapping


def verify(name_or_path: str | os.PathLike[str], *, store: str | os.PathLike[str] | None = None) -> Mapping:
    """Loads a mapping and checks what `load` does not believe and therefore need not check: the counts in its file.

    Args:
        name_or_path: as for `load`.
        store: the store's folder.

    Returns:
        The mapping.

    Raises:
        StoreError: there is no such mapping.
        ArtifactError: the file is damaged, foreign, from a newer schema, or states other counts than its rows give.
    """
    path = locate_mapping(name_or_path, store=store)
    mapping = load_mapping(path)
    try:
        check_counts(mapping)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
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
    repository = _REPOSITORY.fullmatch(text)
    if repository and not repository["file"] and not is_folder and path.suffix != ".npz":
        try:
            return _download(repository)
        except SourceError as error:
            raise StoreError(f"{text} is no file here, and as a repository of the Hub: {error}") from error
    if path.suffix == ".npz" or len(path.parts) > 1:
        problem = "is a folder, not a mapping file" if is_folder else "is no file"
        raise StoreError(f"{text} {problem}: name a mapping file, or a mapping in the store")
    try:
        return Store(store).find(text)
    except StoreError as error:
        # The store's own folder may be the current one, so a folder of that name is no refusal by itself.
        raise StoreError(f"{text} is a folder, and {error}" if is_folder else str(error)) from error


def is_repository(text: str) -> bool:
    """Whether a text is a Hub id of the form `user/repo`, without a revision or a file.

    The Hub takes neither two hyphens nor two dots, so a mapping's own name, `llama-3--qwen3`, is none.
    """
    repository = _REPOSITORY.fullmatch(text)
    return repository is not None and repository["id"] == text and "--" not in text and ".." not in text


def _from_hub(address: str) -> Path:
    repository = _REPOSITORY.fullmatch(address.removeprefix(_HUB))
    if repository is None or {"", ".", ".."} & set((repository["file"] or MAPPING_FILE).split("/")):
        raise StoreError(f"{address} is no Hub address: expected hf://user/repository or hf://user/repository/file")
    return _download(repository)


def _download(repository: re.Match[str]) -> Path:
    from ..sources.hub import download

    return download(repository["id"], repository["file"] or MAPPING_FILE, repository["revision"])


def check_fits(side: Side, vocab: Vocab, role: str) -> None:
    """Refuses a vocabulary whose text is not the one that a mapping's side was built for.

    Text is the same where the tokens are and where they encode alike. Where something else differs (special tokens,
    roles, width, decoder, template), a warning says what: base and instruct models share their text.

    Raises:
        MismatchError: says what differs.
    """
    parts = PartsMatch(side, vocab)
    if not parts.same_text:
        raise MismatchError(
            f"the mapping's {role} is {side.name}, and {vocab.name} is not it ({compat(side, vocab).because}): build a "
            "mapping for this tokenizer"
        )
    differences: list[str] = []
    widths = side.sizes.logits, vocab.sizes.logits
    if widths[0] != widths[1]:
        differences.append(f"their logit width ({widths[0]} there, {widths[1]} here)")
    # Text and byte ids agree by now, so that only ids of other kinds are compared: if id 7 is the
    # special `<s>` there and a hole here, it is one of them.
    shared = min(widths)
    mapped, given = side.surfaces.list, vocab.surfaces.list
    named = (side.kinds[:shared] > Kind.BYTE) | (vocab.kinds[:shared] > Kind.BYTE)
    others = [i for i in np.flatnonzero(named).tolist() if mapped[i] != given[i] or side.kinds[i] != vocab.kinds[i]]
    if others:
        there, here = (surfaces[others[0]].decode("utf-8", "replace") for surfaces in (mapped, given))
        differences.append(f"{len(others)} special or reserved ids (id {others[0]} is {there!r} there, {here!r} here)")
    if parts.roles:
        differences.append(f"the roles {', '.join(parts.roles)}")
    differences += [f"the {PART_WORDS[name]}" for name in parts.beside]
    if parts.one_template == "old":
        differences.append("the chat template, which the tokenizer in hand lacks")
    if differences:
        warnings.warn(
            f"the mapping's {role} {side.name} and the {role} in hand {vocab.name} have the same text but differ in "
            f"{' and in '.join(differences)}",
            XTokenWarning,
            stacklevel=3,
        )


def get_or_build(
    *,
    student: Vocab | str | os.PathLike[str] | Any,
    teacher: Vocab | str | os.PathLike[str] | Any,
    store: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Mapping:
    """The mapping of a pair: from the store if it is there for these very tokenizers and options, else built and kept.

    Args:
        student: a vocabulary, or what `read_vocab` takes.
        teacher: the same.
        store: the store's folder.
        **options: those of `build`.

    Returns:
        A mapping that fits both tokenizers.

    Raises:
        Whatever `build` and `Store.save` raise.
    """
    sides = {
        "student": as_vocab(student),
        "teacher": as_vocab(teacher),
    }
    wanted = plain_options(**options)
    in_store, name = Store(store), f"{sides['student'].name}--{sides['teacher'].name}"
    mapping = _kept(in_store, name, sides, wanted)
    if mapping is not None:
        return mapping
    folder = in_store.root / checked_name(name)
    # Of many processes that ask at once, the first that has the lock builds, and the others find what it built.
    with locked(folder):
        mapping = _kept(in_store, name, sides, wanted)
        if mapping is None:
            mapping = build(student=sides["student"], teacher=sides["teacher"], **options)
            mapping.save(folder / f"{mapping.version}.npz")
    return mapping


def _kept(in_store: Store, name: str, sides: Table[str, Vocab], options: Table[str, Any]) -> Mapping | None:
    """The newest mapping of a name that fits; a file that is damaged or gone meanwhile is none."""
    for path in reversed(in_store.versions(name)):
        try:
            if _fits(read_metadata(path), sides, options):
                return load_mapping(path)
        except (MappingError, KeyError, TypeError):
            continue
    return None


def _fits(metadata: Table[str, Any], sides: Table[str, Vocab], options: Table[str, Any]) -> bool:
    """Whether a file's W is what a build of these tokenizers makes; templates and decoders decide nothing of it."""
    return metadata.get("options") == options and all(
        metadata[side]["fingerprint"] == vocab.fingerprint
        and metadata[side]["sizes"]["logits"] == vocab.sizes.logits
        and metadata[side]["roles"] == {role: list(ids) for role, ids in vocab.roles.items()}
        and False not in compare_stated(metadata[side]["parts"]["stated"], vocab.parts.stated, ENCODING).values()
        for side, vocab in sides.items()
    )
