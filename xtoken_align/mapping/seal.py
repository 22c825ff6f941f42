"""The seal: a SHA-256 over all other bytes of a mapping file, in the comment that may end a zip file.

The content hash guards what a mapping means. The seal guards the file: without it a damaged byte that no reader looks
at, such as a member's date, would pass.
"""

from __future__ import annotations

import hashlib
import io
from typing import IO

_LABEL = b"xtoken-align sha256 "
_DIGITS = 64
SEAL_BYTES = len(_LABEL) + _DIGITS
BLANK = _LABEL + b"0" * _DIGITS
"""The comment as the archive is first written with it, to be replaced by `sealed`."""

_CHUNK_BYTES = 1 << 20


def sealed(content: bytes) -> bytes:
    """The bytes of a file that ends in `BLANK`, with the digest of all before the digest in its place."""
    body = content[:-_DIGITS]
    return body + hashlib.sha256(body).hexdigest().encode()


def has_seal(file: IO[bytes], size: int) -> bool:
    """Whether a file ends in a seal, right or wrong."""
    if size < SEAL_BYTES:
        return False
    file.seek(size - SEAL_BYTES)
    return file.read(len(_LABEL)) == _LABEL


def seal_fits(file: IO[bytes], size: int) -> bool:
    """Whether the seal that a file ends in is that of its bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    left = size - _DIGITS
    while left > 0:
        chunk = file.read(min(_CHUNK_BYTES, left))
        if not chunk:
            return False
        digest.update(chunk)
        left -= len(chunk)
    file.seek(size - _DIGITS, io.SEEK_SET)
    return file.read(_DIGITS) == digest.hexdigest().encode()
