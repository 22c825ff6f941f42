"""The folder of a run: what it was begun with, and what has been reached."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, MismatchError, StoreError
from ..files import write_atomically
from .checkpoints import last_checkpoint
from .config import DistillConfig

_FREE = ("log_every", "keep", "workers", "save_every")
"""Settings of `training` that may change while a run is going on: they do not change what comes out."""


class RunFolder:
    """A run's folder. Its files appear whole, so that whatever is there can be believed.

    Attributes:
        path: the folder.
        checkpoints: where checkpoints are.
        texts: where the rows are kept.
        student: where the student will be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.texts = path / "texts"
        self.student = path / "student"

    def claim(self, config: DistillConfig, facts: Mapping[str, Any]) -> None:
        """Writes down what a run is begun with, or checks that it was begun with the same.

        Args:
            config: the run's.
            facts: what else decides it: hashes of its files, its tokenizers, its mappings.

        Raises:
            MismatchError: the folder is another run's; says what differs.
            StoreError: the folder cannot be made or written.
        """
        given = json.loads(json.dumps({"config": _deciding(config), **facts}))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {self.path} ({error.strerror}): choose another output") from error
        begun = self.read("run.json")
        if begun is None or not self._anything_reached():
            # What was measured before a run with other settings is not what this one begins with.
            if begun != given:
                (self.path / "before.json").unlink(missing_ok=True)
            self.write("run.json", given)
        elif different := _differences(begun, given):
            raise MismatchError(
                f"{self.path} was begun with other settings ({'; '.join(different[:3])}): run with those to go on, or "
                "name another output"
            )

    def _anything_reached(self) -> bool:
        """Whether a run has come to its first whole checkpoint, or to its end."""
        return last_checkpoint(self.checkpoints) is not None or (self.path / "result.json").exists()

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, None where it is not there.

        Raises:
            ArtifactError: it is damaged.
        """
        path = self.path / name
        try:
            made: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged ({error}): remove the folder and begin anew") from error
        return made

    def write(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes a JSON file."""
        write_atomically(self.path / name, json.dumps(values, indent=1).encode() + b"\n")


def _deciding(config: DistillConfig) -> dict[str, Any]:
    """The settings that decide what comes out; where it goes to is none of them."""
    values = config.to_dict()
    del values["output"]
    values["training"] = {name: value for name, value in values["training"].items() if name not in _FREE}
    return values


def _differences(begun: Any, given: Any, where: str = "") -> list[str]:
    """What differs between two JSON values, place by place.

    >>> _differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b is 1 there, 3 here']
    """
    if isinstance(begun, dict) and isinstance(given, dict):
        names = dict.fromkeys([*begun, *given])
        return [
            line
            for name in names
            for line in _differences(begun.get(name), given.get(name), f"{where}.{name}" if where else name)
        ]
    if isinstance(begun, list) and isinstance(given, list) and len(begun) == len(given):
        pairs = enumerate(zip(begun, given, strict=True))
        return [line for number, pair in pairs for line in _differences(*pair, f"{where}[{number}]")]
    return [] if begun == given else [f"{where} is {begun!r} there, {given!r} here"]
