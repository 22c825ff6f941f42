"""Libraries written in Rust refuse bad input by bare exceptions or by panics; both become one of our errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import XTokenError


@contextmanager
def refused(sentence: str, error_type: type[XTokenError]) -> Iterator[None]:
    """Turns whatever the library raises inside into `error_type`.

    Args:
        sentence: what the library would not do; its own reason follows after a colon.
        error_type: the error to raise.
    """
    try:
        yield
    except BaseException as error:
        # pyo3 derives its PanicException from BaseException alone, and offers no name to import it by.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise error_type(f"{sentence}: {reason:.200}") from error
