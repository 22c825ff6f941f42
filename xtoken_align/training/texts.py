"""The rows of a run: texts read once from files, kept on the disk, cut to what a row holds, some of them set aside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..corpus.texts import pieces, read_texts
from ..errors import CorpusError, MissingExtraError
from .config import DistillConfig


def make_rows(config: DistillConfig, folder: Path, processes: int = 1) -> tuple[Any, Any]:
    """The rows to train on and those to measure on, as data sets that are read from the disk.

    Args:
        config: the run's.
        folder: where they are kept; what is there already is taken from there.
        processes: among which those to measure on can be shared out.

    Raises:
        CorpusError: a file cannot be read, or there are no texts.
        MissingExtraError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("Training", "train") from error
    files = hashes_of(config.texts)
    datasets.disable_progress_bars()
    try:
        rows = datasets.Dataset.from_generator(
            _rows,
            gen_kwargs={"given": (tuple(config.texts), tuple(files.items()), config.text_field, config.characters)},
            features=datasets.Features({"text": datasets.Value("large_string")}),
            cache_dir=str(folder),
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, CorpusError):
            raise error.__cause__ from error
        raise
    return split(rows, config.holdout, config.training.seed, processes)


def hashes_of(names: Sequence[str]) -> dict[str, str]:
    """A hash of each file's bytes; what is no file has none."""
    found = {}
    for name in names:
        path = Path(name)
        if path.is_file():
            facts = path.stat()
            found[name] = _hash_of(path.resolve(), facts.st_size, facts.st_mtime_ns)
    return found


@lru_cache(maxsize=1024)
def _hash_of(path: Path, size: int, changed: int) -> str:  # noqa: ARG001 - a file that was changed is read again
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    return f"content {digest}"


def split(rows: Any, holdout: int, seed: int, processes: int = 1) -> tuple[Any, Any]:
    """Rows to train on, in their order, and rows to measure on, drawn from all; a tenth of them at most."""
    aside = min(holdout, len(rows) // 10)
    aside -= aside % processes
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(np.sort(order[aside:])), rows.select(np.sort(order[:aside]))


def _rows(given: tuple[Any, ...]) -> Iterator[dict[str, str]]:
    paths, _, field, characters = given
    found = False
    for text in read_texts(paths, field=field):
        for piece in pieces(text, characters):
            if piece.strip():
                found = True
                yield {"text": piece}
    if not found:
        # A data set without rows cannot be read back.
        raise CorpusError(f"there is no text in {', '.join(paths)}: name files that have some")
