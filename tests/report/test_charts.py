"""The charts' contents."""

from __future__ import annotations

import re

import matplotlib as mpl
import pytest

from xtoken_align.coverage.render import percent
from xtoken_align.report.charts import Bar, coverage_chart, pieces_chart


def test_a_segment_per_rule_and_a_title_for_each() -> None:
    chart = coverage_chart([Bar("han", 10, 5, {"exact": 5, "decompose": 4, "none": 1})])
    assert re.findall(r"<title>([^<]+)", chart) == [
        "han, exact: 5 of 10 (50%)",
        "han, decompose: 4 of 10 (40%)",
        "han, empty: 1 of 10 (10%)",
    ]


def test_names_that_matplotlib_has_no_letters_for_or_takes_for_formulas_are_drawn_without_a_warning() -> None:
    bars = [Bar(name, 1, 1, {"exact": 1}) for name in ("中文", "$x^", "a\nb\u202e", "<b>", "long" * 30, "")]
    chart = coverage_chart(bars)
    assert "\u202e" not in chart
    assert "<b>" not in chart


def test_bars_of_pieces_have_their_counts() -> None:
    chart = pieces_chart([("2", 1200), ("10+", 0)], "described")
    assert "1,200</text>" in chart
    assert "<title>2 pieces: 1,200 tokens</title>" in chart
    assert 'aria-label="described"' in chart


def test_a_user_s_settings_of_matplotlib_change_nothing_and_are_left_as_they_are() -> None:
    plain = pieces_chart([("2", 1)], "x")
    with mpl.rc_context({"font.size": 40, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert pieces_chart([("2", 1)], "x") == plain
        assert mpl.rcParams["font.size"] == 40


@pytest.mark.parametrize(
    ("count", "total", "text"), [(0, 10, "0%"), (1, 300, "<1%"), (299, 300, ">99%"), (10, 10, "100%"), (0, 0, "-")]
)
def test_a_few_of_many_do_not_read_as_none_nor_all_but_a_few_as_all(count: int, total: int, text: str) -> None:
    assert percent(count, total) == text
