"""The rules in their order: each turns rows that are still open into links, and the first to link a row owns it.

A rule is a function here, a line in `_RULES`, and a name in `links.RULES`. Those from `identity` to `nfkc` match whole
tokens, so every link weighs 1; `digits`, `decompose`, `bytes` and `reverse` split tokens as an encoder does.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from ..vocab.kinds import Kind
from ..vocab.roles import in_order
from ..vocab.vocab import Vocab
from .links import OPTIONAL_RULES, RULE_NUMBER, RULES, Decay, Links, from_pieces, one_to_one
from .override import Override, find_overridden, parse_overrides, read_overrides
from .pieces import Pair, is_utf8

SELECTABLE = tuple(rule for rule in RULES if rule not in ("none", "reverse"))
DEFAULT_RULES = tuple(rule for rule in SELECTABLE if rule not in OPTIONAL_RULES)


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """What decides the links, beside the two vocabularies.

    Attributes:
        rules: names of the rules that run; their order is fixed.
        decay: weights of decompositions.
        reverse_pass: whether teacher tokens without an entry are decomposed into student tokens.
        overrides: the user's own rows.
    """

    rules: tuple[str, ...] = DEFAULT_RULES
    decay: Decay = field(default_factory=Decay)
    reverse_pass: bool = False
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        for rule in self.rules:
            if rule not in SELECTABLE:
                raise OptionError(f"no rule is called {rule!r}: the rules are {', '.join(SELECTABLE)}")
        if not self.rules:
            raise OptionError(f"no rule is named: name at least one of {', '.join(SELECTABLE)}")
        object.__setattr__(self, "rules", tuple(rule for rule in SELECTABLE if rule in self.rules))

    def to_dict(self) -> dict[str, Any]:
        """The options as a mapping records them; part of its content hash."""
        return {
            "rules": list(self.rules),
            # As Python's own types: 1 and 1.0 are one value and would be two texts in the hashed metadata.
            "lead": float(self.decay.lead),
            "decay": float(self.decay.decay),
            "top_k": int(self.decay.top_k),
            "reverse_pass": self.reverse_pass,
            "overrides": [entry.to_dict() for entry in self.overrides],
        }


def rule_options(
    *,
    rules: Sequence[str] | None = None,
    case: bool = False,
    nfkc: bool = False,
    lead: float = 0.9,
    decay: float = 0.1,
    top_k: int = 4,
    reverse_pass: bool = False,
    overrides: str | os.PathLike[str] | Sequence[Override | dict[str, Any]] = (),
) -> RuleOptions:
    """Options from the flat arguments of `build`.

    Raises:
        OptionError: an unknown rule, or a number out of its range.
        OverrideError: an override file cannot be read, or an entry is malformed.
    """
    rows: tuple[Override, ...] = ()
    if isinstance(overrides, (str, os.PathLike)):
        rows = read_overrides(Path(overrides))
    elif overrides:
        rows = parse_overrides(list(overrides))
    chosen = tuple(rules) if rules is not None else DEFAULT_RULES
    chosen += ("case",) * case + ("nfkc",) * nfkc + ("override",) * bool(rows)
    return RuleOptions(chosen, Decay(lead, decay, top_k), reverse_pass, rows)


def run_rules(pair: Pair, options: RuleOptions) -> list[Links]:
    """Every enabled rule's links, the reverse pass last.

    Args:
        pair: student and teacher.
        options: what decides.

    Returns:
        One `Links` per rule that ran; no row is in two of them, but for `reverse`.

    Raises:
        OverrideError: an override names an unknown token.
    """
    # Every row begins open; what a rule links is closed to the rules after it.
    open_rows = np.ones(len(pair.student), dtype=np.bool_)
    by_rule: list[Links] = []
    for name in options.rules:
        links = _RULES[name](pair, open_rows, options)
        open_rows[links.rows] = False
        by_rule.append(links)
    if options.reverse_pass:
        reached = np.zeros(len(pair.teacher), dtype=np.bool_)
        for links in by_rule:
            reached[links.columns] = True
        by_rule.append(reverse(pair, reached, options))
    return by_rule


Open = NDArray[np.bool_]
"""bool (student width,), the rows that no earlier rule has linked."""


def override(pair: Pair, _: Open, options: RuleOptions) -> Links:
    """The user's rows: the weights that were given, or decay over all the pieces that were given.

    Raises:
        OverrideError: a token is unknown, or a student token is overridden twice.
    """
    if not options.overrides:
        return one_to_one("override", (), ())
    links: list[tuple[int, int, int, float]] = []
    for entry, (row, pieces) in zip(options.overrides, find_overridden(pair, options.overrides), strict=True):
        # Weights of 0 (decay 0 gives them to all but the first) make no links.
        shares = entry.shares(options.decay).tolist()
        weighted = [(piece, share) for piece, share in zip(pieces, shares, strict=True) if share]
        links += [(row, piece, min(at, 255), share) for at, (piece, share) in enumerate(weighted)]
    rows, columns, positions, weights = zip(*links, strict=True)
    return Links(
        RULE_NUMBER["override"],
        np.array(rows, dtype=np.int32),
        np.array(columns, dtype=np.int32),
        np.array(positions, dtype=np.uint8),
        np.array(weights, dtype=np.float64),
    )


def identity(pair: Pair, open_rows: Open, _: RuleOptions) -> Links:
    """Equal fingerprints: every text and byte id to itself, special and reserved ids by equal string."""
    # Between two equal vocabularies an encoder's detours do not matter: id 7 is id 7, also where no text produces it.
    if not pair.identical:
        return one_to_one("identity", (), ())
    rows = pair.student.speakable_ids.tolist()
    columns = list(rows)
    for kind in (Kind.SPECIAL, Kind.RESERVED):
        # Special and reserved ids are no part of the fingerprint, and may stand at other ids: by string, kind by kind.
        teacher_ids = _ids_by_string(pair.teacher, kind)
        for row in pair.student.ids_of(kind).tolist():
            column = teacher_ids.get(pair.student.raw[row])
            if column is not None:
                rows.append(row)
                columns.append(column)
    is_open = open_rows[rows]
    return one_to_one("identity", np.array(rows, np.int32)[is_open], np.array(columns, np.int32)[is_open])


def exact(pair: Pair, open_rows: Open, _: RuleOptions) -> Links:
    """Equal surfaces of the same kind, text or byte; among duplicates the id that the teacher's encoder writes."""
    rows = np.flatnonzero(open_rows & (pair.student_equal >= 0))
    return one_to_one("exact", rows.astype(np.int32), pair.student_equal[rows])


def special(pair: Pair, open_rows: Open, _: RuleOptions) -> Links:
    """Special tokens by equal role, else by equal string.

    Where the teacher has several tokens of a role, the one with the equal string is taken, else the one of equal rank
    (the student's second `eot` to the teacher's second), else the last.
    """
    student_roles, teacher_roles = pair.student.roles, pair.teacher.roles
    shared_roles = in_order(student_roles.keys() & teacher_roles.keys())
    teacher_ids = _ids_by_string(pair.teacher, Kind.SPECIAL)
    rows: list[int] = []
    columns: list[int] = []
    for row in np.flatnonzero(open_rows & (pair.student.kinds == Kind.SPECIAL)).tolist():
        column = teacher_ids.get(pair.student.raw[row])
        # Llama-3's `<|eot_id|>` has the role `eot`; so has Qwen's `<|im_end|>`. No string is equal, and the role
        # decides.
        role = next((role for role in shared_roles if row in student_roles[role]), None)
        if role is not None and column not in teacher_roles[role]:
            rank = student_roles[role].index(row)
            column = teacher_roles[role][min(rank, len(teacher_roles[role]) - 1)]
        if column is not None:
            rows.append(row)
            columns.append(column)
    return one_to_one("special", rows, columns)


def space(pair: Pair, open_rows: Open, _: RuleOptions) -> Links:
    """Equal after adding or dropping one leading space, where exactly one such teacher token exists.

    Surfaces that are not UTF-8 are left to the rule `bytes`: a space more or less says nothing about half a character.
    """
    lowest, highest = pair.teacher.lowest_text_id, pair.teacher.highest_text_id
    surfaces = pair.student.surfaces.list
    rows: list[int] = []
    columns: list[int] = []
    for row in _open_text(pair, open_rows):
        surface = surfaces[row]
        # `the` may be ` the`; ` the` may be `the` or `  the`, and is neither where the teacher has both.
        variants = (b" " + surface, surface[1:]) if surface.startswith(b" ") else (b" " + surface,)
        known = [variant for variant in variants if variant in lowest]
        if len(known) == 1 and lowest[known[0]] == highest[known[0]] and is_utf8(surface):
            rows.append(row)
            columns.append(lowest[known[0]])
    return one_to_one("space", rows, columns)


def case(pair: Pair, open_rows: Open, _: RuleOptions) -> Links:
    """Equal after case folding; among several the lowest teacher id."""
    return _folded("case", pair, open_rows, str.casefold)


def nfkc(pair: Pair, open_rows: Open, _: RuleOptions) -> Links:
    """Equal after compatibility folding (NFKC); among several the lowest teacher id."""
    return _folded("nfkc", pair, open_rows, lambda text: unicodedata.normalize("NFKC", text))


def _folded(rule: str, pair: Pair, open_rows: Open, fold: Callable[[str], str]) -> Links:
    # `THE` and `The` both fold to `the`, whose id is the lower of the two.
    teacher_ids: dict[str, int] = {}
    for surface, column in pair.teacher.lowest_text_id.items():
        if is_utf8(surface):
            key = fold(surface.decode())
            teacher_ids[key] = min(column, teacher_ids.get(key, column))
    surfaces = pair.student.surfaces.list
    rows: list[int] = []
    columns: list[int] = []
    for row in _open_text(pair, open_rows):
        if surfaces[row] and is_utf8(surfaces[row]):
            equal = teacher_ids.get(fold(surfaces[row].decode()))
            if equal is not None:
                rows.append(row)
                columns.append(equal)
    return one_to_one(rule, rows, columns)


_NUMERAL = re.compile(rb" ?[0-9]+")


def digits(pair: Pair, open_rows: Open, options: RuleOptions) -> Links:
    """A numeral (at most one leading space, then ASCII digits only), split as the teacher splits it."""
    # A rule of its own, though its links are those of `decompose`: numerals are what arithmetic is lost by.
    surfaces = pair.student.surfaces.list
    rows = [row for row in _open_text(pair, open_rows) if _NUMERAL.fullmatch(surfaces[row])]
    return from_pieces("digits", rows, pair.student_pieces, options.decay)


def decompose(pair: Pair, open_rows: Open, options: RuleOptions) -> Links:
    """Any other text that is UTF-8, as the teacher tokenises it."""
    surfaces = pair.student.surfaces.list
    rows = [row for row in _open_text(pair, open_rows) if is_utf8(surfaces[row])]
    return from_pieces("decompose", rows, pair.student_pieces, options.decay)


def bytes_(pair: Pair, open_rows: Open, options: RuleOptions) -> Links:
    """Byte tokens, and surfaces that are not UTF-8."""
    surfaces = pair.student.surfaces.list
    rows = [row for row in _open_text(pair, open_rows) if not is_utf8(surfaces[row])]
    # `<0xE4>` and the surface E4 B8, a part of a Chinese character, are both written byte by byte.
    rows += np.flatnonzero(open_rows & (pair.student.kinds == Kind.BYTE)).tolist()
    return from_pieces("bytes", sorted(rows), pair.student_pieces, options.decay)


def reverse(pair: Pair, reached: NDArray[np.bool_], options: RuleOptions) -> Links:
    """Teacher tokens that no row reaches: the student tokens that spell one gain a link to it, by decay.

    If no student token links to teacher `201`, and the student writes it `2`, `0`, `1`, then the rows of `2`, `0` and
    `1` gain links to `201` with the weights 0.9009, 0.0901 and 0.009; those rows are normalised again afterwards.

    Args:
        pair: student and teacher.
        reached: bool (teacher width,), the columns that have a link already.
        options: whose decay gives the weights.
    """
    # Teacher tokens take the place of rows while weights are given, and change places with the columns afterwards.
    columns = np.flatnonzero(~reached & (pair.teacher_pieces.lengths > 0))
    links = from_pieces("reverse", columns, pair.teacher_pieces, options.decay)
    return Links(links.rule, links.columns, links.rows, links.positions, links.weights)


def _ids_by_string(vocab: Vocab, kind: Kind) -> dict[str, int]:
    """Raw string -> lowest id of a kind."""
    return {vocab.raw[token_id]: token_id for token_id in vocab.ids_of(kind)[::-1].tolist()}


def _open_text(pair: Pair, open_rows: Open) -> list[int]:
    """Open student ids of kind text, ascending."""
    ids: list[int] = np.flatnonzero(open_rows & (pair.student.kinds == Kind.TEXT)).tolist()
    return ids


_RULES: dict[str, Callable[[Pair, Open, RuleOptions], Links]] = {
    "override": override,
    "identity": identity,
    "exact": exact,
    "special": special,
    "space": space,
    "case": case,
    "nfkc": nfkc,
    "digits": digits,
    "decompose": decompose,
    "bytes": bytes_,
}
