"""The user's own rows: a YAML or JSON file that has the last word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OverrideError
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .links import Decay, Links
from .names import RULE_NUMBER
from .pair import Pair

TokenRef = str | int
"""A surface (else a raw string), or an id."""

_SHAPE = "a list of {student: token, teacher: [token, ...], weights: [number, ...]}, a token being a string or {id: N}"


@dataclass(frozen=True, slots=True)
class Override:
    """One row: a student token, its teacher tokens, and their weights (None: decay)."""

    student: TokenRef
    teacher: tuple[TokenRef, ...]
    weights: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, object]:
        """The entry as a file would hold it."""
        entry: dict[str, object] = {"student": _ref_dict(self.student), "teacher": [_ref_dict(t) for t in self.teacher]}
        if self.weights is not None:
            entry["weights"] = list(self.weights)
        return entry


def _ref_dict(ref: TokenRef) -> object:
    return {"id": ref} if isinstance(ref, int) else ref


def read_overrides(path: Path) -> tuple[Override, ...]:
    """Reads an override file.

    Raises:
        OverrideError: it cannot be read, or an entry has another shape than it should; the message names the entry.
    """
    import yaml

    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OverrideError(f"cannot read the override file {path.name}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise OverrideError(f"the override file {path.name} is neither YAML nor JSON: {reason}") from error
    return parse_overrides(entries, path.name)


def parse_overrides(entries: Any, name: str = "overrides") -> tuple[Override, ...]:  # noqa: ANN401 - YAML
    """Checks parsed entries.

    Raises:
        OverrideError: names the first entry that has another shape.
    """
    if not isinstance(entries, list):
        raise OverrideError(f"{name} holds {type(entries).__name__}: expected {_SHAPE}")
    return tuple(_parse(entry, f"entry {number} of {name}") for number, entry in enumerate(entries, start=1))


def _parse(entry: Any, where: str) -> Override:  # noqa: ANN401
    if not isinstance(entry, dict) or not {"student", "teacher"} <= entry.keys() <= {"student", "teacher", "weights"}:
        raise OverrideError(f"{where} is {entry!r}: expected {_SHAPE}")
    teacher = entry["teacher"] if isinstance(entry["teacher"], list) else [entry["teacher"]]
    if not teacher:
        raise OverrideError(f"{where} has no teacher token: expected {_SHAPE}")
    refs = tuple(_parse_ref(ref, where) for ref in teacher)
    weights = entry.get("weights")
    if weights is not None:
        weights = _parse_weights(weights, len(refs), where)
    return Override(_parse_ref(entry["student"], where), refs, weights)


def _parse_ref(ref: Any, where: str) -> TokenRef:  # noqa: ANN401
    if isinstance(ref, str):
        return ref
    if isinstance(ref, dict) and ref.keys() == {"id"} and type(ref["id"]) is int:
        return int(ref["id"])
    raise OverrideError(f"{where} has the token {ref!r}: expected a string (in quotes, if it is a number) or {{id: N}}")


def _parse_weights(weights: Any, count: int, where: str) -> tuple[float, ...]:  # noqa: ANN401
    if not isinstance(weights, list) or any(type(weight) not in (int, float) for weight in weights):
        raise OverrideError(f"{where} has the weights {weights!r}: expected a list of numbers")
    if len(weights) != count:
        raise OverrideError(f"{where} has {len(weights)} weights for {count} teacher tokens: expected one each")
    if any(not math.isfinite(weight) or weight < 0 for weight in weights) or not any(weights):
        raise OverrideError(f"{where} has the weights {weights}: expected finite numbers of at least 0, one above 0")
    return tuple(float(weight) for weight in weights)


def override(pair: Pair, _open_rows: NDArray[np.bool_], overrides: Sequence[Override], decay: Decay) -> Links:
    """The user's rows, weights as given, or by decay over all the pieces given.

    Raises:
        OverrideError: a token is unknown, or a student token is overridden twice.
    """
    rows: list[int] = []
    columns: list[int] = []
    positions: list[int] = []
    weights: list[float] = []
    seen: set[int] = set()
    everything = Decay(decay.lead, decay.decay, 255)
    for entry in overrides:
        row = resolve(pair.student, entry.student, "student")
        if row in seen:
            raise OverrideError(f"the student token {entry.student!r} (id {row}) is overridden twice: keep one entry")
        seen.add(row)
        given = entry.weights if entry.weights is not None else everything.weights(len(entry.teacher)).tolist()
        # decay 0 gives weights that are 0 to all but the first: they make no links, but their tokens must exist.
        pieces = [resolve(pair.teacher, ref, "teacher") for ref in entry.teacher]
        kept = [(piece, weight) for piece, weight in zip(pieces, given, strict=False) if weight > 0]
        rows += [row] * len(kept)
        columns += [piece for piece, _ in kept]
        positions += [min(position, 255) for position in range(len(kept))]
        weights += [weight for _, weight in kept]
    return Links(
        RULE_NUMBER["override"],
        np.array(rows, dtype=np.int32),
        np.array(columns, dtype=np.int32),
        np.array(positions, dtype=np.uint8),
        np.array(weights, dtype=np.float64),
    )


def resolve(vocab: Vocab, ref: TokenRef, side: str) -> int:
    """The id of a token: an id as it is, a string as a surface first and as a raw string second.

    Raises:
        OverrideError: there is no such token.
    """
    if isinstance(ref, int):
        if not 0 <= ref < len(vocab) or vocab.kinds[ref] >= Kind.PADDING:
            raise OverrideError(f"the {side} {vocab.name} has no token with the id {ref}: its ids end at {vocab.sizes.ids - 1}")
        return ref
    surface = ref.encode("utf-8", "surrogatepass")
    for table in (vocab.lowest_text_id, vocab.lowest_byte_id):
        if surface in table:
            return table[surface]
    for token_id in range(len(vocab)):
        if vocab.raw[token_id] == ref and ref:
            return token_id
    raise OverrideError(f"the {side} {vocab.name} has no token {ref!r}, neither as a surface nor as a raw string")
