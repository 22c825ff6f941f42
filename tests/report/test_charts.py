"""Charts: their colours, their SVG, and what they show."""

from __future__ import annotations

import re
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from xtoken_align.coverage.render import percent
from xtoken_align.report.charts import (
    _COLOURS,
    Bar,
    Shape,
    by_way,
    coverage_chart,
    inline_svg,
    pieces_chart,
    style_rules,
    swatch,
    way_of,
)
from xtoken_align.rules.links import OPTIONAL_RULES, RULES


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


# How the two common and the rare kind of colour blindness see linear RGB: Machado, Oliveira and Fernandes (2009),
# severity 1.
_SEEN = {
    "all colours": np.eye(3),
    "no red": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "no green": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "no blue": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def _linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(linear, 0, 1) / np.array([0.9505, 1, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("eyes", _SEEN)
def test_the_colours_of_rules_that_run_by_default_differ_for_every_eye(theme: str, eyes: str) -> None:
    usual = [rule for rule in RULES if rule not in (*OPTIONAL_RULES, "identity", "override", "reverse")]
    seen = {rule: _lab(_SEEN[eyes] @ _linear(getattr(_COLOURS[rule], theme))) for rule in usual}
    for one, other in combinations(usual, 2):
        # 2.3 is a just noticeable difference (CIE 1976).
        assert np.linalg.norm(seen[one] - seen[other]) > 10, (one, other)


def test_every_rule_has_a_colour_in_both_themes() -> None:
    css = style_rules()
    for rule in RULES:
        assert css.count(f"--rule-{rule}:#") == 2
        assert f".{swatch(rule)}{{" in css


def test_a_rule_of_a_newer_version_has_the_colour_of_the_unknown() -> None:
    assert swatch('new"><script>') == "rule-other"


def test_bars_go_from_exact_to_empty_and_keep_unknown_rules() -> None:
    assert by_way(["none", "later", "digits", "override", "space", "exact"]) == [
        "exact",
        "space",
        "override",
        "digits",
        "none",
        "later",
    ]


def test_an_override_is_near_with_one_link_and_split_with_more() -> None:
    assert [way_of("override", links) for links in (1, 2)] == ["near", "split"]


pytest.importorskip("matplotlib")


def drawn(title: str = "a title") -> str:
    figure = Figure((2, 1))
    axes = figure.add_axes((0, 0, 1, 1))
    (bar,) = axes.bar([0], [1])
    bar.set_gid("bar")
    axes.text(0, 0, "words & <b>", parse_math=False)
    return str(inline_svg(figure, {"bar": Shape("rule-exact", title)}, 'a "chart"'))


def test_no_style_attribute_and_no_id_is_left() -> None:
    svg = drawn()
    assert "style" not in svg
    assert " id=" not in svg
    assert "<metadata" not in svg
    assert "http" not in svg


def test_a_registered_shape_has_its_class_and_title_and_all_others_are_gone() -> None:
    svg = drawn()
    assert svg.count("<path") == 1
    assert '<g class="rule-exact"><title>a title</title><path' in svg


def test_titles_and_texts_are_escaped() -> None:
    svg = drawn("</title><script>")
    assert "<script>" not in svg
    assert "words &amp; &lt;b&gt;</text>" in svg
    assert 'aria-label="a &quot;chart&quot;"' in svg
