"""The Hub: tokenizer files and mappings are fetched, or taken from the local cache; never weights, never code.

Only `upload` writes there, and only with the user's own token.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from ..errors import SourceError

VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model*",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.spm",
    "tekken.json",
    "*.tiktoken",
    "vocab.json",
    "vocab.txt",
)
CONFIGURATION_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "merges.txt",
)

_COMMIT = re.compile(r"[0-9a-f]{40}")

_PATIENCE = 3.0
"""Seconds to wait for a connection to the Hub."""


def snapshot(repo_id: str, revision: str | None) -> tuple[Path, str]:
    """Returns a directory with a repository's tokenizer files.

    A commit that is in the cache is taken from there without asking the Hub; a branch or tag is looked up, and taken
    from the cache when the Hub cannot be reached.

    Args:
        repo_id: `user/repo`, or the one-part id of an old repository.
        revision: branch, tag or commit hash; None is the default branch.

    Returns:
        The directory, and the commit hash it holds.

    Raises:
        SourceError: the repository or revision does not exist, is closed to this user, holds no tokenizer, or the Hub
            cannot be reached and nothing is cached.
    """
    offline = _offline()
    if not offline and revision is not None and _COMMIT.fullmatch(revision):
        cached = _cached_commit(repo_id, revision)
        if cached is not None:
            return cached, cached.name
    directory = _fetch(repo_id, revision, local_files_only=offline)
    if not _has_vocabulary(directory):
        raise SourceError(
            f"the Hub repository {repo_id} at {directory.name[:12]} has no tokenizer file (looked for"
            f" {', '.join(VOCABULARY_FILES)}): name the repository of the base model"
        )
    return directory, directory.name


def _cached_commit(repo_id: str, commit: str) -> Path | None:
    try:
        directory = _fetch(repo_id, commit, local_files_only=True)
    except SourceError:
        return None
    return directory if _has_vocabulary(directory) else None


def download(repo_id: str, filename: str, revision: str | None = None) -> Path:
    """Returns one file of a repository, fetched or from the cache.

    Args:
        repo_id: `user/repo`.
        filename: the file's path in the repository.
        revision: branch, tag or commit hash; None is the default branch.

    Returns:
        The file.

    Raises:
        SourceError: the repository, revision or file does not exist, is closed to this user, or the Hub cannot be
            reached and the file is not cached.
    """
    with _one_sentence(repo_id, revision, local_files_only=_offline()):
        return Path(_download_file(repo_id, filename, revision, _offline()))


def _fetch(repo_id: str, revision: str | None, *, local_files_only: bool) -> Path:
    from huggingface_hub import errors

    # huggingface_hub calls a repository that is cached in part not cached: what a training framework fetched
    # beforehand, weights and tokenizer without a README, is enough here.
    with _one_sentence(repo_id, revision, local_files_only=local_files_only):
        try:
            return Path(_download(repo_id, revision, local_files_only))
        except errors.LocalEntryNotFoundError as error:
            partial = getattr(error, "snapshot_path", None)
            if partial is not None and _has_vocabulary(Path(partial)):
                return Path(partial)
            raise


@contextmanager
def _one_sentence(repo_id: str, revision: str | None, *, local_files_only: bool) -> Iterator[None]:
    """Turns each of huggingface_hub's refusals into one sentence."""
    from huggingface_hub import errors

    # errors.py imports the HTTP library's root error under this name, whichever library this version uses.
    transport: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    at = f" at revision {revision!r}" if revision else ""
    try:
        with _quiet(bars=True):
            yield
    except errors.LocalEntryNotFoundError as error:
        raise SourceError(
            f"{repo_id}{at} is not in the local Hub cache, and the Hub cannot be reached"
            f" ({_reason(error, local_files_only)}): connect once to fetch it, or give a path to its files"
        ) from error
    except errors.EntryNotFoundError as error:
        raise SourceError(f"{repo_id}{at} has no such file: check its name on the Hub") from error
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{repo_id} is gated on the Hub: accept its licence on the model's page and run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"{repo_id} is not on the Hub, or is private: check the spelling, or run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"{repo_id} has no revision {revision or 'main'!r}: name a branch, a tag or a full commit hash"
        ) from error
    except errors.HFValidationError as error:
        raise SourceError(f"{repo_id!r} is not a Hub id: expected user/repo, without -- or .. in it") from error
    except ValueError as error:
        # An answer that is no JSON: a network that asks for a login first answers every request with a page of its own.
        raise SourceError(
            f"{repo_id}{at} could not be fetched: what answered was not the Hub ({' '.join(str(error).split()):.80}); "
            "check that this network lets you through, or give a path to its files"
        ) from error
    except (transport, OSError) as error:
        if _status(error) in _NO_ACCESS:
            raise SourceError(_TOKEN_REFUSED.format(repo_id)) from error
        raise SourceError(
            f"{repo_id}{at} could not be fetched from the Hub ({type(error).__name__}): try again, or give a path"
            " to its files"
        ) from error


_NO_ACCESS = (401, 403)
_TOKEN_REFUSED = "the Hub does not accept your token for {}: run `hf auth login` with one that may do this"  # noqa: S105


def _status(error: BaseException) -> int | None:
    """The status of the Hub's answer, where an error has one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def upload(repo_id: str, files: Mapping[str, bytes], *, private: bool, message: str, token: str | None) -> str:
    """Writes files into a repository in one commit; the repository is made if it is missing.

    Args:
        repo_id: `user/repo`.
        files: name in the repository -> content.
        private: whether a repository that is made is private.
        message: of the commit.
        token: the user's; by default that of `hf auth login` or `$HF_TOKEN`.

    Returns:
        The hash of the commit.

    Raises:
        SourceError: there is no token, it is refused, the id is none, or the Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, errors, get_token

    transport: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    if _offline():
        raise SourceError(f"{repo_id} is not written, since HF_HUB_OFFLINE is set: unset it")
    token = token or os.environ.get("HF_TOKEN") or get_token()
    if not token:
        raise SourceError(f"{repo_id} is not written without a token: run `hf auth login`, or set HF_TOKEN")
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    try:
        with _quiet(bars=False):
            api = HfApi(endpoint=_endpoint(), token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.create_commit(repo_id, operations, commit_message=message).oid)
    except errors.HFValidationError as error:
        raise SourceError(f"{repo_id!r} is not a Hub id: expected user/repo, without -- or .. in it") from error
    except (transport, OSError, ValueError) as error:
        if _status(error) in _NO_ACCESS:
            raise SourceError(_TOKEN_REFUSED.format(repo_id)) from error
        reason = f"it answered {_status(error)}" if _status(error) else type(error).__name__
        raise SourceError(f"{repo_id} could not be written to the Hub ({reason}): try again") from error


def _download(repo_id: str, revision: str | None, local_files_only: bool) -> str:
    """The one call that may reach the network."""
    from huggingface_hub import snapshot_download

    return snapshot_download(
        repo_id,
        revision=revision,
        endpoint=_endpoint(),
        cache_dir=_cache_directory(),
        local_files_only=local_files_only or _unreachable(),
        allow_patterns=[*VOCABULARY_FILES, *CONFIGURATION_FILES],
    )


def _download_file(repo_id: str, filename: str, revision: str | None, local_files_only: bool) -> str:
    """The other call that may reach the network."""
    from huggingface_hub import hf_hub_download

    return hf_hub_download(
        repo_id,
        filename,
        revision=revision,
        endpoint=_endpoint(),
        cache_dir=_cache_directory(),
        local_files_only=local_files_only or _unreachable(),
    )


def _unreachable() -> bool:
    """Whether nothing answers at the Hub's address, twice: huggingface_hub would go on trying for half a minute."""
    from huggingface_hub import constants

    if getproxies():
        return False  # the proxy has the connection, and this machine may have none
    address = urlsplit(_endpoint() or constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    for pause in (0.5, 0.0):
        try:
            socket.create_connection((address.hostname or "", port), timeout=_PATIENCE).close()
        except OSError:
            time.sleep(pause)
        else:
            return False
    return True


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


@contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """Lets huggingface_hub try again without a word: what it could not do is said in one sentence at the end.

    Args:
        bars: whether it may show its progress bars.
    """
    from huggingface_hub import utils

    # Type checkers take its functions for no exports.
    public: Any = utils
    verbosity, shown = public.logging.get_verbosity(), not public.are_progress_bars_disabled()
    public.logging.set_verbosity_error()
    if not bars:
        public.disable_progress_bars()
    try:
        yield
    finally:
        public.logging.set_verbosity(verbosity)
        if shown and not bars:
            public.enable_progress_bars()


def _endpoint() -> str | None:
    """The address of the Hub, where the environment names another than the public one."""
    return os.environ.get("HF_ENDPOINT") or None


def _cache_directory() -> Path | None:
    """The cache named by the environment now; huggingface_hub reads these variables only once, when imported."""
    cache, home = os.environ.get("HF_HUB_CACHE"), os.environ.get("HF_HOME")
    if cache:
        return Path(os.path.expandvars(cache)).expanduser()
    return Path(os.path.expandvars(home), "hub").expanduser() if home else None


def _has_vocabulary(directory: Path) -> bool:
    return directory.is_dir() and any(any(directory.glob(pattern)) for pattern in VOCABULARY_FILES)


def _reason(error: Exception, local_files_only: bool) -> str:
    if local_files_only:
        return "offline"
    return type(error.__cause__).__name__ if error.__cause__ is not None else "no connection"
