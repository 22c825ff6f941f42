"""Bounds on what is read: beyond them a file is damaged or hostile, and is refused in one sentence.

Every reader of files that others may have written takes its bounds from here. Each lies well above all that is
published, and each keeps reading below a gigabyte of memory and ten seconds.
"""

from __future__ import annotations

from pathlib import Path

from .errors import SourceError

MAX_IDS = 1 << 20
"""Ids of a vocabulary. The largest published one, XLM-V's, has 901,629; those of language models have some 262,000."""

MAX_ID = MAX_IDS - 1
"""The largest token id."""

MAX_TOKENIZER_BYTES = 1 << 27
"""A tokenizer's file, unpacked: four times the size of the largest `tokenizer.json`. GGUF files may be larger, since
only their headers are read."""

MAX_PATTERN = 1 << 14
"""Characters of a regular expression in a tokenizer's file; published ones have some hundreds."""

MAX_PATTERN_SECONDS = 5.0
"""How long a file's own regular expression may rewrite a vocabulary; one that backtracks without end takes years."""

MAX_GROWTH = 100
"""How many characters a tokenizer's `Replace` steps may make of one. Published files make three at most."""

UNPACKS_FREELY = 1 << 26
MAX_EXPANSION = 200
"""A Parquet file may hold 64 MiB of text, or 200 times its own size where that is more. Text shrinks to a third or a
tenth; a few bytes can say one text of megabytes a thousand times. Other packed files are read piece by piece."""

MAX_TEXT_BYTES = 1 << 26
"""One text of a corpus, such as a JSON line: 64 MiB."""

MAX_PROJECTION_BYTES = 1 << 28
"""A file of another program's mapping. NeMo-RL's table of 32 links for each of 262,144 tokens has 100 MB."""

MAX_PLACES = 10_000_000
"""Places of such a table, or links of such a file: a little more than that table's."""

MAX_PICKLE_BYTES = 1 << 26
"""The pickle inside such a file where it lists pairs, 24 bytes each: 2.7 million of them."""

MAX_TENSOR_PICKLE_BYTES = 1 << 16
"""The same where it describes tensors, whose elements stand outside of it; NeMo-RL's have 500 bytes."""

MAX_YAML_VALUES = 10_000
"""Values in a configuration, each alias counted as all that it stands for."""


def read_tokenizer_file(path: Path) -> bytes:
    """The bytes of a tokenizer's file, or of a configuration beside it.

    Raises:
        SourceError: it cannot be read, or is too large for one.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_TOKENIZER_BYTES + 1)
    except OSError as error:
        raise SourceError(f"cannot read {path.name}: {error.strerror or error}") from error
    return check_size(data, path.name)


def check_size(data: bytes, name: str) -> bytes:
    """The data of a tokenizer's file, if it is not too large for one.

    Raises:
        SourceError: it is.
    """
    if len(data) > MAX_TOKENIZER_BYTES:
        raise SourceError(f"{name} has more than {MAX_TOKENIZER_BYTES:,} bytes: no tokenizer's file is that large")
    return data
