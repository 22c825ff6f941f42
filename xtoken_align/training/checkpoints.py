"""Checkpoints that are whole: a process may be killed at any moment, and the last whole one is found again."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from ..errors import StoreError
from ..files import write_atomically

STATE = "distillation.pt"
"""The losses' state. Written after everything else and removed before it, it says that a checkpoint is whole."""

_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, the oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint in a folder, None where there is none."""
    whole = [path for path in checkpoints_in(folder) if (path / STATE).is_file()]
    return whole[-1] if whole else None


def finish_checkpoint(checkpoint: Path, loss: torch.nn.Module) -> None:
    """Adds the losses' state, and with it declares a checkpoint whole."""
    content = io.BytesIO()
    torch.save(loss.state_dict(), content)
    write_atomically(checkpoint / STATE, content.getvalue())


def load_loss(checkpoint: Path, loss: torch.nn.Module) -> None:
    """Gives the losses the state that they had.

    Raises:
        StoreError: the checkpoint is not whole, or of other losses.
    """
    path = checkpoint / STATE
    if not path.is_file():
        raise StoreError(f"{checkpoint} is no whole checkpoint of a distillation: it has no {STATE}; name another")
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    try:
        loss.load_state_dict(state)
    except RuntimeError as error:
        raise StoreError(f"{path} is of other losses than this run's: go on with the options it began with") from error


def remove_checkpoint(checkpoint: Path) -> None:
    """Removes a checkpoint; if that is cut short, what is left does not count as one."""
    (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def rotate(folder: Path, *, limit: int | None, best: str | None) -> None:
    """Removes the oldest checkpoints.

    Args:
        folder: where they are.
        limit: how many stay; all for None or 0.
        best: one that stays in any case.
    """
    found = checkpoints_in(folder)
    kept = found[-1:] + ([Path(best)] if best else [])
    excess = len(found) - max(limit, len({path.resolve() for path in kept})) if limit else 0
    for checkpoint in found:
        if excess > 0 and checkpoint.resolve() not in {path.resolve() for path in kept}:
            remove_checkpoint(checkpoint)
            excess -= 1
