"""Files inside installed packages, found without importing the package."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from ..errors import SourceError

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
    spec = _spec(package)
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


def _spec(package: str) -> ModuleSpec | None:
    try:
        return find_spec(package)
    except ValueError:  # a module that was put into sys.modules by hand has no spec
        return None
