"""From what a user types for a tokenizer to the files on disk, and to a short name."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..errors import OptionError, SourceError
from . import hub
from .presets import Preset, presets

PREFIX = "pkg:"


def package_file(source: str) -> Path:
    """Finds a file that an installed package carries.

    The package is never imported (some take a second to): its directories come from the import system's finder, which
    also knows packages without `__init__.py` and those spread over several directories.

    Args:
        source: `pkg:package/path/in/package`.

    Returns:
        The file's or directory's path on this disk.

    Raises:
        SourceError: the form is wrong, the package is not installed, or it has no such file.
    """
    package, _, inside = source.removeprefix(PREFIX).partition("/")
    parts = inside.split("/")
    if not package.isidentifier() or any(part in {"", ".", ".."} or "\\" in part or "\0" in part for part in parts):
        raise SourceError(
            f"{source!r} does not name a file in a package: expected pkg:package/path/in/package,"
            " without '..' or an empty part"
        )
    try:
        # Only the top-level name: `find_spec` would import the parents of a dotted one.
        spec = find_spec(package)
    except ValueError:  # a module that was put into sys.modules by hand has no spec
        spec = None
    if spec is None or spec.submodule_search_locations is None:
        raise SourceError(
            f"{source!r} names the package {package}, which is not installed here: install it, or use a path"
        )
    for directory in spec.submodule_search_locations:
        candidate = Path(directory, *parts)
        if candidate.exists():
            return candidate
    raise SourceError(
        f"the installed package {package} has no file {inside!r}: check the name, or install a version that has it"
    )


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
    # `/models/Llama-3/tokenizer.json` is `llama-3`, `/models/llama3.tiktoken` is `llama3`.
    if path == directory or path.name.lower() in _GENERIC:
        repository = directory.parent.parent.name  # models--user--repo/snapshots/<commit>: a commit is no name
        if directory.parent.name == "snapshots" and repository.startswith(_CACHED_REPOSITORY):
            return safe_name(repository.rpartition("--")[2])
        return safe_name(directory.name)
    name = re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE)
    return safe_name(_SUFFIX.sub("", name))


def safe_name(text: str) -> str:
    """Returns a text in lower case, reduced to what file names allow everywhere: a-z, 0-9, `.`, `_` and `-`."""
    # `Mödel v2` becomes `model-v2`: NFKD takes the dots off the o, and ASCII drops them. A name that has no
    # such letter, as in Chinese, is told from others by its hash.
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-. ")[:_LONGEST].rstrip("-. ")
    if not name:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return f"tokenizer-{digest[:8]}"
    return _DEVICE.sub(r"\1-tokenizer\2", name)


_FILE_SUFFIX = re.compile(r"\.(json|tiktoken|spm|gguf|gz|txt|bpe|vocab|model(\.\w+)?)$", re.IGNORECASE)
_PATH_START = re.compile(r"[/~\\]|\.{1,2}(?=[/\\]|$)|[A-Za-z]:[/\\]")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w][\w.-]*)?", re.ASCII)
_CLOSE_ENOUGH = 60
"""rapidfuzz's ratio, 0 to 100: `lama3` to `llama-3` scores 83, `bert-base-uncased` to any alias below 45."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A source that was found.

    Attributes:
        name: short name, safe as a file name: the alias, or the path's or Hub id's last part in lower case.
        label: what a mapping records as its source: alias, Hub id, `pkg:...`, or a local path's last part.
        path: a file or directory on this disk.
        preset: what the alias says about the generation; None for other sources.
        revision: the Hub commit hash; None for other sources.
    """

    name: str
    label: str
    path: Path
    preset: Preset | None
    revision: str | None


def locate(source: str | os.PathLike[str], *, revision: str | None = None) -> Located:
    """Finds a tokenizer's files.

    Args:
        source: a path, an alias, `pkg:package/path`, or a Hub id `user/repo[@revision]`. A path object is a path only.
        revision: branch, tag or commit hash of a Hub id.

    Returns:
        Where the files are, and what the source says about them.

    Raises:
        SourceError: nothing is found; the message says what would help.
        OptionError: a revision was given twice, or for something that has none.
    """
    text = os.fsdecode(os.fspath(source))
    # pathlib raises for a user without a home, a name that is too long and a null byte: here they only do not exist.
    path = os.path.expanduser(text)  # noqa: PTH111
    if text and os.path.exists(path):  # noqa: PTH110
        _refuse_revision(text, "a local path", revision)
        return _at_path(Path(path))
    # Before aliases and the Hub: whoever mistypes `./tokeniser.json` shall hear of a missing file, not of a repository.
    if not isinstance(source, str) or _looks_like_path(text):
        raise SourceError(f"no such file or directory: {text}; give an existing path, an alias or a Hub id (user/repo)")
    if text in presets():
        _refuse_revision(text, "an alias", revision)
        return _at_alias(presets()[text])
    if text.startswith(PREFIX):
        _refuse_revision(text, "a file in a package", revision)
        file = package_file(text)
        return Located(name=path_name(file), label=text, path=file, preset=None, revision=None)
    return _at_hub(text, revision)


def _at_path(path: Path) -> Located:
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - a link's own name is the one the user knows
    if not (whole.is_file() or whole.is_dir()):
        raise SourceError(
            f"{path} is neither a file nor a directory: give a tokenizer file, or a directory that holds one"
        )
    return Located(name=path_name(whole), label=whole.name or str(whole), path=path, preset=None, revision=None)


def _at_alias(preset: Preset) -> Located:
    """Takes the first location that is there; the Hub is asked only when no installed package has the file."""
    failures: list[str] = []
    for location in preset.locations:
        try:
            if location.startswith(PREFIX):
                path, commit = package_file(location), None
            else:
                path, commit = hub.snapshot(location, None)
        except SourceError as error:
            failures.append(str(error))
            continue
        return Located(name=preset.alias, label=preset.alias, path=path, preset=preset, revision=commit)
    install = f"`pip install {preset.package}` brings its file; " if preset.package else ""
    raise SourceError(f"the alias {preset.alias} is not on this machine: {install}{failures[-1]}")


def _at_hub(text: str, revision: str | None) -> Located:
    repo_id, at, typed = text.partition("@")
    if at and not typed:
        raise SourceError(f"{text!r} ends in '@' without a revision: write user/repo@revision, or leave the '@' out")
    # `llama-3@main`: an alias with a revision came here because the whole text is no alias.
    if repo_id in presets():
        _refuse_revision(repo_id, "an alias", typed)
    if typed and revision not in (None, typed):
        raise OptionError(
            f"{text} already names revision {typed!r}, but the option says {revision!r}: give one of them"
        )
    if not _HUB_ID.fullmatch(repo_id):
        raise SourceError(
            f"{text!r} is no existing path, no alias and no Hub id: expected a path, user/repo, or one of"
            f" {', '.join(presets())}"
        )
    try:
        path, commit = hub.snapshot(repo_id, typed or revision)
    except SourceError as error:
        # `user/repo` was surely meant for the Hub; `lama3` may be a misspelt alias, so both are said.
        if "/" in repo_id:
            raise
        raise SourceError(
            f"{text!r} is no existing path and no alias{_suggestion(repo_id)}; as a Hub id: {error}"
        ) from error
    return Located(name=hub_name(repo_id), label=repo_id, path=path, preset=None, revision=commit)


def tokenizer_files(path: Path) -> list[Path]:
    """The files that make a tokenizer: the one that was named, or some of a folder that may hold a model too.

    Args:
        path: a file or a folder, as `Located` has it.

    Returns:
        Paths in the order of their names; the model's own `config.json` and `generation_config.json` are none of them.
    """
    if not path.is_dir():
        return [path]
    patterns = (*hub.VOCABULARY_FILES, *hub.CONFIGURATION_FILES)
    files = {file for pattern in patterns for file in path.glob(pattern) if file.is_file()}
    return sorted(file for file in files if file.name not in {"config.json", "generation_config.json"})


def _looks_like_path(text: str) -> bool:
    """Whether a text can only mean a path; such a text is never sent to the Hub."""
    if text.startswith(PREFIX):
        return False
    # `user/repo@branch/with/slashes` is a Hub id: only what stands before the `@` is looked at.
    repo_id = text.partition("@")[0]
    several_slashes = repo_id.count("/") > 1 or repo_id.endswith("/")
    return bool(_PATH_START.match(text) or _FILE_SUFFIX.search(text) or several_slashes or "\\" in text)


def _suggestion(text: str) -> str:
    from rapidfuzz import process
    from rapidfuzz.distance import Indel

    close = process.extract(
        text.lower(), list(presets()), scorer=Indel.normalized_similarity, score_cutoff=_CLOSE_ENOUGH / 100, limit=3
    )
    return f" (did you mean {' or '.join(name for name, _, _ in close)}?)" if close else ""


def _refuse_revision(text: str, what: str, revision: str | None) -> None:
    if revision is not None:
        raise OptionError(
            f"{text} is {what} and has no revisions, but {revision!r} was given: leave it out, or name a Hub id"
        )
