"""Tokenizer files of a Hub repository: fetched, or taken from the local cache; never weights, never code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
            f"{repo_id} has no revision {revision!r}: name a branch, a tag or a full commit hash"
        ) from error
    except errors.HFValidationError as error:
        raise SourceError(f"{repo_id!r} is not a Hub id: expected user/repo") from error
    except ValueError as error:
        # An answer that is no JSON: a network that asks for a login first answers every request with a page of its own.
        raise SourceError(
            f"{repo_id}{at} could not be fetched: what answered was not the Hub ({' '.join(str(error).split()):.80}); "
            "check that this network lets you through, or give a path to its files"
        ) from error
    except (transport, OSError) as error:
        raise SourceError(
            f"{repo_id}{at} could not be fetched from the Hub ({type(error).__name__}): try again, or give a path"
            " to its files"
        ) from error


def _download(repo_id: str, revision: str | None, local_files_only: bool) -> str:
    """The one call that may reach the network."""
    from huggingface_hub import snapshot_download

    return snapshot_download(
        repo_id,
        revision=revision,
        cache_dir=_cache_directory(),
        local_files_only=local_files_only,
        allow_patterns=[*VOCABULARY_FILES, *CONFIGURATION_FILES],
    )


def _download_file(repo_id: str, filename: str, revision: str | None, local_files_only: bool) -> str:
    """The other call that may reach the network."""
    from huggingface_hub import hf_hub_download

    return hf_hub_download(
        repo_id, filename, revision=revision, cache_dir=_cache_directory(), local_files_only=local_files_only
    )


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


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
