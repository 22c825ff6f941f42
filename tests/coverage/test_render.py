from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console
from small_matrices import matrix_of

from xtoken_align.coverage import CLASSES, Coverage, measure
from xtoken_align.coverage.render import coverage_table, rules_line, summary
from xtoken_align.rules.links import RULE_NUMBER
from xtoken_align.vocab.kinds import Kind


def coverage_of(*groups: tuple[str, str, int], kind: Kind = Kind.TEXT, lossy: int = 0) -> Coverage:
    """Counts groups of (class, owning rule, rows)."""
    owner = [RULE_NUMBER[rule] for _, rule, count in groups for _ in range(count)]
    return measure(
        matrix_of([(rule, 1) for rule in owner]),
        kinds=np.full(len(owner), kind, np.uint8),
        classes=np.array([CLASSES.index(name) for name, _, count in groups for _ in range(count)], np.uint8),
        lossy=lossy,
        identical=False,
    )


def printed(coverage: Coverage, width: int = 80) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=width).print(coverage_table(coverage))
    return output.getvalue().splitlines()


def cells(coverage: Coverage, name: str) -> list[str]:
    (line,) = [line for line in printed(coverage) if line.split()[:1] == [name]]
    return line.split()[1:]


def test_a_row_shows_counts_and_percentages_and_a_dash_for_none() -> None:
    assert cells(coverage_of(("latin", "exact", 3), ("latin", "decompose", 1)), "latin") == [
        "4",
        "3",
        "75",
        "-",
        "1",
        "25",
        "-",
    ]


def test_percentages_never_round_to_none_or_all() -> None:
    coverage = coverage_of(("han", "exact", 1999), ("han", "decompose", 1))

    assert cells(coverage, "han") == ["2,000", "1,999", ">99", "-", "1", "<1", "-"]


def test_numerals_come_first_and_classes_without_tokens_are_left_out() -> None:
    coverage = coverage_of(("special", "none", 1), ("digits_2", "digits", 1), ("latin", "exact", 1))

    first_words = [line.split()[0] for line in printed(coverage) if line.strip()]

    assert [word for word in first_words if word in CLASSES] == ["digits_2", "special", "latin"]
    assert first_words[-1] == "all"


def test_the_last_line_counts_all_ids() -> None:
    assert cells(coverage_of(("latin", "exact", 1), ("thai", "none", 1)), "all") == [
        "2",
        "1",
        "50",
        "-",
        "-",
        "1",
        "50",
    ]


@pytest.mark.parametrize("rows", [1, 240_000])
def test_the_table_fits_80_columns_without_wrapping_or_cutting(rows: int) -> None:
    coverage = coverage_of(*(("ascii_punct_1", rule, rows) for rule in ("exact", "space", "decompose", "none")))

    assert printed(coverage, width=80) == printed(coverage, width=200)
    assert max(map(len, printed(coverage))) <= 80


def test_piped_output_carries_no_escape_codes() -> None:
    assert not any("\x1b" in line for line in printed(coverage_of(("latin", "exact", 1))))


def test_the_table_of_an_empty_vocabulary_can_be_drawn() -> None:
    assert cells(coverage_of(), "all") == ["0", "-", "-", "-", "-"]


def test_the_rules_line_lists_rules_with_rows_in_running_order() -> None:
    coverage = coverage_of(("latin", "decompose", 1200), ("latin", "exact", 2))

    assert rules_line(coverage) == "exact 2, decompose 1,200"
    assert rules_line(coverage_of()) == "no rule found a row"


def test_the_summary_names_reasons_lossy_rows_and_the_loss() -> None:
    coverage = coverage_of(("special", "none", 2), kind=Kind.SPECIAL, lossy=13)

    assert summary(coverage).splitlines() == [
        "Rows by rule: no rule found a row.",
        "Empty rows: special without counterpart 2.",
        "Lossy rows: 13.",
        f"Train with c-kl: {coverage.recommendation.reason}.",
        "(The rule of the X-Token paper names p-kl: none of the student's 2 tokens is a token of the teacher too.)",
    ]


def test_the_summary_is_silent_about_lossy_rows_when_there_are_none() -> None:
    assert "Lossy" not in summary(coverage_of(("latin", "exact", 1)))
