"""Short names for tokenizers, safe as file names on every system."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

_GENERIC = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "tokenizer.model",
        "tekken.json",
        "spiece.model",
        "sentencepiece.bpe.model",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
    }
)
"""File names that every model's directory uses, so the directory says more."""

_SUFFIX = re.compile(r"\.(json|tiktoken|model|spm|gguf|txt)(?=(\.\w+)?$)", re.IGNORECASE)
_DEVICE = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)")
"""Windows opens a device under these names, whatever follows the first dot."""

_LONGEST = 80
_CACHED_REPOSITORY = "models--"


def hub_name(repo_id: str) -> str:
    """Returns the name of a Hub repository: the part after the slash."""
    return safe_name(repo_id.rpartition("/")[2])


def path_name(path: Path) -> str:
    """Returns the name of a file or directory.

    Args:
        path: an absolute path.

    Returns:
        The directory's name where the file's says nothing (`tokenizer.json`), else the file's without its suffixes.
    """
    directory = path if path.is_dir() else path.parent
    if path == directory or path.name.lower() in _GENERIC:
        repository = directory.parent.parent.name  # models--user--repo/snapshots/<commit>: a commit is no name
        if directory.parent.name == "snapshots" and repository.startswith(_CACHED_REPOSITORY):
            return safe_name(repository.rpartition("--")[2])
        return safe_name(directory.name)
    name = re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE)
    return safe_name(_SUFFIX.sub("", name))


def safe_name(text: str) -> str:
    """Returns a text in lower case, reduced to what file names allow everywhere: a-z, 0-9, `.`, `_` and `-`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-. ")[:_LONGEST].rstrip("-. ")
    if not name:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return f"tokenizer-{digest[:8]}"
    return _DEVICE.sub(r"\1-tokenizer\2", name)
