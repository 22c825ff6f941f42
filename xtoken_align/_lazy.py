"""Names that a package imports when they are first used (PEP 562), so that importing the package costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Makes a package's `__getattr__` and `__dir__`.

    Args:
        package: the package's `__name__`.
        homes: name -> module that defines it, relative to the package: `{"build": "builder"}`.

    Returns:
        Two functions to bind to `__getattr__` and `__dir__`. An unknown name is an AttributeError that suggests the
        nearest of `homes`.
    """

    def get(name: str) -> object:
        if name not in homes:
            hint = ""
            # Python itself asks for names such as `__path__`; nobody misspelt those.
            if not name.startswith("__"):
                from difflib import get_close_matches

                hint = "".join(f"; did you mean {near!r}?" for near in get_close_matches(name, homes, n=1))
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")
        value: object = getattr(import_module(f".{homes[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})
