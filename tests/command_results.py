"""What a command leaves behind, and what a refusal looks like."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


def refused(result: Result) -> str:
    """The sentence of a refusal: exit code 1, one line on stderr, nothing on stdout, no traceback."""
    assert result.code == 1, result
    assert result.out == ""
    lines = [line for line in result.err.splitlines() if not line.startswith("Note: ")]
    assert len(lines) == 1, result.err
    assert "Traceback" not in lines[0]
    return lines[0].removeprefix("Error: ")
