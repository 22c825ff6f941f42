"""Reading a JSON file that a user named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import SourceError


def load_json(path: Path) -> Any:
    """The parsed file.

    Raises:
        SourceError: it cannot be read, or is not whole JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read {path.name}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path.name} is not whole JSON: {error}") from error
