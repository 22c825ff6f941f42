"""What `--version` prints: the versions on which a result depends."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_MATTERING = ("numpy", "scipy", "tokenizers", "tiktoken", "sentencepiece", "huggingface-hub", "transformers", "torch")


def version_text() -> str:
    """One line per distribution; those that are not installed are left out."""
    from .._version import __version__

    lines = [f"xtoken-align {__version__}", f"python {platform.python_version()}"]
    for name in _MATTERING:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return "\n".join(lines)
