"""The command line under the name that it is installed by, which only pyproject.toml spells."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType

ENTRY = next(iter(entry_points(group="console_scripts", name="xtoken-align")))

START = f"from {ENTRY.module} import {ENTRY.attr}; {ENTRY.attr}()"
"""Python code that runs the command line on the arguments of its process."""


def part(name: str) -> ModuleType:
    """A module of the command line, as `main`."""
    return import_module(f"{ENTRY.module.rpartition('.')[0]}.{name}")
