"""The user's override file: reading it, finding its tokens, and putting its rows among the decompositions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OverrideError
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .links import Decay, normalised
from .pieces import Pair, Pieces, spells

TokenRef = str | int
"""A surface (else a raw string), or an id."""

_SHAPE = "a list of {student: token, teacher: [token, ...], weights: [number, ...]}, a token being a string or {id: N}"


@dataclass(frozen=True, slots=True)
class Override:
    """One row: a student token, its teacher tokens, and their weights (None: decay).

    Raises:
        OverrideError: there is no teacher token, or the weights are not finite numbers of at least 0, one for each.
    """

    student: TokenRef
    teacher: tuple[TokenRef, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.teacher:
            raise OverrideError(f"the student token {self.student!r} has no teacher token: expected at least one")
        if self.weights is None:
            return
        if len(self.weights) != len(self.teacher):
            raise OverrideError(
                f"the student token {self.student!r} has {len(self.weights)} weights for {len(self.teacher)} teacher "
                "tokens: expected one each"
            )
        if any(not math.isfinite(weight) or weight < 0 for weight in self.weights) or not any(self.weights):
            raise OverrideError(
                f"the student token {self.student!r} has the weights {short(list(self.weights))}: expected finite "
                "numbers of at least 0, one above 0"
            )

    def shares(self, decay: Decay) -> NDArray[np.float64]:
        """float64 (teacher tokens,), summing to 1: the weights as given, else by decay over all of them."""
        if self.weights is not None:
            return normalised(np.array(self.weights, dtype=np.float64))
        # Decay without `top_k`: whoever lists six tokens wants six links.
        return normalised(decay.lead * np.power(float(decay.decay), np.arange(len(self.teacher))))

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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OverrideError(f"cannot read the override file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise OverrideError(f"the override file {path} is not UTF-8: {error.reason} at byte {error.start}") from error
    return parse_overrides(_parse_text(text, path), path.name)


def _parse_text(text: str, path: Path) -> object:
    """Tries JSON first: a YAML reader would split the surrogate pairs of a JSON file, and refuse its tabs."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    import yaml

    try:
        return yaml.safe_load(text)
    # ValueError: a date or number that fits YAML's syntax and does not exist; RecursionError: thousands of brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise OverrideError(f"the override file {path} is neither YAML nor JSON: {reason}") from error


def parse_overrides(entries: Any, name: str = "overrides") -> tuple[Override, ...]:
    """Checks parsed entries.

    Raises:
        OverrideError: names every entry that has another shape.
    """
    if not isinstance(entries, list):
        raise OverrideError(f"{name} holds {_TYPE_NAMES.get(type(entries), 'a single value')}: expected {_SHAPE}")
    parsed: list[Override] = []
    mistakes: list[str] = []
    for number, entry in enumerate(entries, start=1):
        try:
            parsed.append(_parse(entry, f"entry {number} of {name}"))
        except OverrideError as error:
            mistakes.append(str(error))
    _refuse(mistakes)
    return tuple(parsed)


def _refuse(mistakes: Sequence[str]) -> None:
    """Raises one error for all mistakes; does nothing if there are none."""
    if mistakes:
        more = [f"and {len(mistakes) - _SHOWN:,} more"] * (len(mistakes) > _SHOWN)
        several = "\n  ".join([f"{len(mistakes):,} mistakes in overrides:", *mistakes[:_SHOWN], *more])
        raise OverrideError(mistakes[0] if len(mistakes) == 1 else several)


_SHOWN = 20


_TYPE_NAMES = {type(None): "nothing", dict: "one object"}


def _parse(entry: Any, where: str) -> Override:
    if isinstance(entry, Override):
        return entry
    if not isinstance(entry, dict) or not {"student", "teacher"} <= entry.keys() <= {"student", "teacher", "weights"}:
        raise OverrideError(f"{where} is {short(entry):.200}: expected {_SHAPE}")
    # `teacher: b` is short for `teacher: [b]`.
    teacher = entry["teacher"] if isinstance(entry["teacher"], list | tuple) else [entry["teacher"]]
    refs = tuple(_parse_ref(ref, where) for ref in teacher)
    student, weights = _parse_ref(entry["student"], where), _parse_weights(entry.get("weights"), where)
    try:
        return Override(student, refs, weights)
    except OverrideError as error:
        raise OverrideError(f"{where}: {error}") from error


def _parse_ref(ref: Any, where: str) -> TokenRef:
    if isinstance(ref, str):
        return ref
    if isinstance(ref, dict) and ref.keys() == {"id"} and type(ref["id"]) is int:
        return int(ref["id"])
    raise OverrideError(
        f"{where} has the token {short(ref)}: expected a string (in quotes, if it is a number) or {{id: N}}"
    )


def _parse_weights(weights: Any, where: str) -> tuple[float, ...] | None:
    if weights is None:
        return None
    if not isinstance(weights, list | tuple) or any(type(weight) not in (int, float) for weight in weights):
        raise OverrideError(f"{where} has the weights {short(weights)}: expected a list of numbers")
    try:
        return tuple(float(weight) for weight in weights)
    except OverflowError as error:
        raise OverrideError(f"{where} has the weights {short(weights)}: expected finite numbers") from error


def find_overridden(pair: Pair, overrides: Sequence[Override]) -> list[tuple[int, list[int]]]:
    """Each entry's student id and teacher ids.

    Raises:
        OverrideError: a token is unknown, or a student token is overridden twice; names all of these.
    """
    student, teacher = TokenFinder(pair.student, "student"), TokenFinder(pair.teacher, "teacher")
    rows: dict[int, list[int]] = {}
    mistakes: list[str] = []

    def found(finder: TokenFinder, ref: TokenRef) -> int:
        try:
            return finder.find(ref)
        except OverrideError as error:
            mistakes.append(str(error))
            return -1

    for entry in overrides:
        row = found(student, entry.student)
        if row in rows and row >= 0:
            mistakes.append(f"the student token {entry.student!r} (id {row}) is overridden twice: keep one entry")
        rows[row] = [found(teacher, ref) for ref in entry.teacher]
    _refuse(mistakes)
    return list(rows.items())


class TokenFinder:
    """Finds the tokens that a user names.

    Args:
        vocab: where.
        side: `student` or `teacher`, for messages.
    """

    def __init__(self, vocab: Vocab, side: str) -> None:
        self._vocab = vocab
        self._whose = f"the {side} {vocab.name}"

    def find(self, ref: TokenRef) -> int:
        """The id of a token: an id as it is, a string as a surface first and as a raw string second.

        Raises:
            OverrideError: there is no such token.
        """
        vocab = self._vocab
        if isinstance(ref, int):
            if not 0 <= ref < len(vocab):
                raise OverrideError(f"{self._whose} has no id {ref}: its ids run from 0 to {len(vocab) - 1}")
            if vocab.kinds[ref] >= Kind.PADDING:
                raise OverrideError(f"{self._whose} has no token with the id {ref}: name an id that has one")
            return ref
        # A string from a YAML file is a surface (` the`) before it is a raw string (`Ġthe`); text wins over byte
        # tokens.
        surface = ref.encode("utf-8", "surrogatepass")
        for table in (vocab.lowest_text_id, vocab.lowest_byte_id):
            if surface in table:
                return table[surface]
        if ref not in self._by_raw:
            raise OverrideError(f"{self._whose} has no token {ref!r}, neither as a surface nor as a raw string")
        return self._by_raw[ref]

    @cached_property
    def _by_raw(self) -> dict[str, int]:
        """Raw string -> lowest id of a token."""
        # In reverse, so that of two ids with one string the lower is written last and stays.
        ids = np.flatnonzero(self._vocab.kinds < Kind.PADDING).tolist()
        table = {self._vocab.raw[token_id]: token_id for token_id in reversed(ids)}
        table.pop("", None)
        return table


def with_overrides(pair: Pair, overrides: Sequence[Override]) -> Pieces:
    """The student's decompositions with overridden tokens replaced by their teacher tokens, in the order given.

    An override that spells another text than its token counts as lossy, like any decomposition that does.

    Raises:
        OverrideError: a token is unknown.
    """
    pieces = pair.student_pieces
    given: dict[int, list[int]] = {}
    for entry, (row, ids) in zip(overrides, find_overridden(pair, overrides), strict=True):
        # Without weights all of them are its pieces, whatever is cut from W; a weight of 0 says that one is not.
        used = [True] * len(ids) if entry.weights is None else (entry.shares(Decay()) > 0).tolist()
        given[row] = list(compress(ids, used))
    lossy = set(pieces.lossy.tolist()) - given.keys()
    lossy |= {row for row, ids in given.items() if not spells(pair.teacher, ids, pair.student.surfaces[row])}
    # Tokens 0 1 2 with the pieces 9 | 4 5 | 7 have the owners 0 1 1 2. If token 1 is overridden with 8, its entries go
    # and one is added at the end: owners 0 2 1, pieces 9 7 8. `Pieces.of` puts them in the order of the tokens.
    owners = np.repeat(np.arange(len(pieces)), pieces.lengths)
    encoded = ~np.isin(owners, list(given))
    return Pieces.of(
        len(pieces),
        np.concatenate([owners[encoded], np.array([row for row, ids in given.items() for _ in ids], np.int64)]),
        np.concatenate([pieces.ids[encoded], np.array([piece for ids in given.values() for piece in ids], np.int32)]),
        lossy=sorted(lossy),
    )
