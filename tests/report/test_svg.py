"""Figures as elements of a page."""

from __future__ import annotations

import pytest

from xtoken_align.report.charts import Shape, inline_svg

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure


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
