"""`get_or_build`: the mapping of a pair for training code, built at most once."""

from __future__ import annotations

import os
from collections.abc import Mapping as Table
from typing import Any

from ..builder import build, plain_options
from ..errors import MappingError
from ..mapping.archive import read_metadata
from ..mapping.mapping import Mapping
from ..mapping.storage import load_mapping
from ..read import as_vocab
from ..vocab.vocab import Vocab
from .store import Store


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
    kept = Store(store)
    for path in reversed(kept.versions(f"{sides['student'].name}--{sides['teacher'].name}")):
        try:
            if _fits(read_metadata(path), sides, wanted):
                return load_mapping(path)
        except MappingError:
            # A damaged file is no reason not to train: the pair is built anew.
            continue
    mapping = build(student=sides["student"], teacher=sides["teacher"], **options)
    kept.save(mapping)
    return mapping


def _fits(metadata: Table[str, Any], sides: Table[str, Vocab], options: Table[str, Any]) -> bool:
    return metadata.get("options") == options and all(
        metadata[side]["fingerprint"] == vocab.fingerprint
        and metadata[side]["sizes"]["logits"] == vocab.sizes.logits
        and metadata[side]["roles"] == {role: list(ids) for role, ids in vocab.roles.items()}
        for side, vocab in sides.items()
    )
