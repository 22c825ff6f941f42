"""Colours that can be told apart."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from xtoken_align.report.charts import _COLOURS, by_way, style_rules, swatch, way_of
from xtoken_align.rules.links import OPTIONAL_RULES, RULES

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
