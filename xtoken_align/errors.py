"""Every error the library raises on purpose, and the one warning category it uses.

XTokenError
├── SourceError          a tokenizer cannot be found, fetched or recognised
│   └── MissingExtraError    an optional dependency is not installed
├── VocabularyError      a tokenizer was found but its contents contradict themselves
├── OptionError          an option has a value that the library cannot use
├── ServerError          a served teacher cannot be reached, or answers something else than it was asked
├── CorpusError          a corpus cannot be read
├── OverrideError        an override file is malformed or names an unknown token
└── MappingError         something is wrong with a mapping
    ├── ArtifactError        a mapping file is damaged, foreign or from the future
    ├── MismatchError        a mapping was built for other tokenizers
    └── StoreError           the store cannot be read or written

A message is one sentence a user can act on: what was expected, what came, what to do. `refused` makes such errors of
those of other libraries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class XTokenError(Exception):
    """Root of all deliberate refusals; the command line turns it into exit code 1."""


class SourceError(XTokenError):
    """A tokenizer cannot be found, fetched or recognised."""


class MissingExtraError(SourceError):
    """An optional dependency is not installed; the message names the extra."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'xtoken-align[{extra}]'")


class VocabularyError(XTokenError):
    """A tokenizer was found but its contents contradict themselves."""


class OptionError(XTokenError):
    """An option has a value that the library cannot use."""


class ServerError(XTokenError):
    """A served teacher cannot be reached, or answers something else than it was asked."""


class CorpusError(XTokenError):
    """A corpus cannot be read; the message names the file and, where there is one, the line."""


class OverrideError(XTokenError):
    """An override file is malformed or names an unknown token."""


class MappingError(XTokenError):
    """Something is wrong with a mapping."""


class ArtifactError(MappingError):
    """A mapping file is damaged, foreign or from the future."""


class MismatchError(MappingError):
    """A mapping was built for tokenizers other than the ones in hand."""


class StoreError(MappingError):
    """The store cannot be read or written, or a name in it is unknown."""


class XTokenWarning(UserWarning):
    """Something was accepted that the user should know about."""


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
