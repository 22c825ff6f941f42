"""The page's charts: colours, figures, and SVG that may stand in a page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from ..coverage.render import percent
from ..rules.links import EXACT_RULES, NEAR_RULES, RULES, SPLIT_RULES
from ..visible import visible

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def rule_name(rule: str) -> str:
    """What a rule is called in a legend."""
    return "empty" if rule == "none" else rule


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour on a light and on a dark page."""

    light: str
    dark: str


# Blue, green and orange after Okabe and Ito's set for colour-blind readers (jfly.uni-koeln.de/color, 2008); the rules
# of one way differ in lightness, which every eye sees. Rules that run by default have the middle of their hue.
_COLOURS = {
    "identity": Colour("#004a78", "#1f6fa8"),
    "exact": Colour("#0072b2", "#3a9bdc"),
    "special": Colour("#6cbdec", "#9dd6f9"),
    "space": Colour("#00835f", "#1fae86"),
    "case": Colour("#62c3a2", "#83dcbf"),
    "nfkc": Colour("#005a41", "#0d7d5e"),
    "override": Colour("#bf76ab", "#d487bb"),
    "digits": Colour("#c4450c", "#e8703a"),
    "decompose": Colour("#eaa221", "#f0b445"),
    "bytes": Colour("#7a3b06", "#a7602a"),
    "reverse": Colour("#f3cd7e", "#f9e0a8"),
    "none": Colour("#a3abb5", "#59626e"),
}
assert set(_COLOURS) == set(RULES), "every rule has a colour"

_WAY_COLOURS = {"exact": "exact", "near": "space", "split": "decompose", "empty": "none"}

OTHER = Colour("#5f6670", "#b6bec8")
"""For a rule that only a newer version knows."""


def way_of(rule: str, links: int) -> str:
    """How a row is mapped, from its rule and its number of links: an override is near with one, split with more.

    >>> way_of("space", 1), way_of("override", 2), way_of("none", 0)
    ('near', 'split', 'empty')
    """
    if rule == "override":
        return "near" if links <= 1 else "split"
    for way, rules in (("exact", EXACT_RULES), ("near", NEAR_RULES), ("split", SPLIT_RULES)):
        if rule in rules:
            return way
    return "empty"


def by_way(rules: Iterable[str]) -> list[str]:
    """Rules in the order in which a bar shows them: exact first, then near, overrides, split, and last no rule."""
    given = list(rules)
    order = (*EXACT_RULES, *NEAR_RULES, "override", *SPLIT_RULES)
    return [rule for rule in order if rule in given] + [rule for rule in given if rule not in order]


def swatch(rule: str) -> str:
    """The style class that fills a shape with a rule's colour."""
    return f"rule-{rule}" if rule in _COLOURS else "rule-other"


def style_rules() -> str:
    """The colours as style sheet text: one property per rule for each of the two themes, one class per rule and way."""
    named = {**{f"rule-{rule}": colour for rule, colour in _COLOURS.items()}, "rule-other": OTHER}
    named |= {f"way-{way}": _COLOURS[rule] for way, rule in _WAY_COLOURS.items()}
    light = "".join(f"--{name}:{colour.light};" for name, colour in named.items())
    dark = "".join(f"--{name}:{colour.dark};" for name, colour in named.items())
    classes = "".join(f".{name}{{fill:var(--{name});background-color:var(--{name})}}\n" for name in named)
    # A printed page is light, whatever the screen is.
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{classes}"


_SVG = "{http://www.w3.org/2000/svg}"
_SIZE = re.compile(r"font(?:-size)?:[^;]*?([0-9.]+)px")
_ANCHOR = re.compile(r"text-anchor:\s*([a-z]+)")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a shape of the figure is called in the page.

    Attributes:
        style: its style class.
        title: what a pointer resting on it shows; none for an ornament.
    """

    style: str
    title: str = ""


def inline_svg(figure: Figure, shapes: Mapping[str, Shape], description: str) -> Markup:
    """Draws a figure as an element of a page.

    Args:
        figure: the figure; what is not text and has no entry in `shapes` is left out.
        shapes: by the `gid` of each artist that is drawn.
        description: what the chart shows, for who cannot see it.
    """
    import matplotlib as mpl
    from markupsafe import Markup

    buffer = io.BytesIO()
    # Text stays text, for the page's own font and for a search. Ids, which would be random, are left out below.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "xtoken-align"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawn = ET.fromstring(buffer.getvalue())  # noqa: S314 - our own drawing, no file of a stranger
    root = ET.Element("svg", {"viewBox": drawn.attrib["viewBox"], "role": "img", "aria-label": description})
    _copy(drawn, root, shapes)
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - ElementTree has escaped every string


def _copy(source: ET.Element, target: ET.Element, shapes: Mapping[str, Shape]) -> None:
    for element in source:
        name = element.tag.removeprefix(_SVG)
        gid = element.get("id", "")
        if gid in shapes:
            _copy_shape(element, target, shapes[gid])
        elif name == "text":
            target.append(_text(element))
        elif name == "g":
            _copy(element, target, shapes)


def _copy_shape(source: ET.Element, target: ET.Element, shape: Shape) -> None:
    group = ET.SubElement(target, "g", {"class": shape.style})
    if shape.title:
        ET.SubElement(group, "title").text = shape.title
    for path in source.iter(f"{_SVG}path"):
        ET.SubElement(group, "path", {"d": " ".join(path.attrib["d"].split())})


def _text(source: ET.Element) -> ET.Element:
    style = source.get("style", "")
    attributes: dict[str, str] = {name: source.attrib[name] for name in ("x", "y") if name in source.attrib}
    # Text that starts at its anchor is placed by a transform instead of by coordinates.
    if not attributes and "transform" in source.attrib:
        attributes["transform"] = source.attrib["transform"]
    if size := _SIZE.search(style):
        attributes["font-size"] = size[1]
    if anchor := _ANCHOR.search(style):
        attributes["text-anchor"] = anchor[1]
    text = ET.Element("text", attributes)
    text.text = "".join(source.itertext())
    return text


_WIDTH = 7.6
"""Inches; the page scales a chart to its column."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One class of tokens.

    Attributes:
        name: its name.
        total: ids of the class.
        matched: how many of them are exact or near.
        rules: rule -> rows, `none` for the empty ones.
    """

    name: str
    total: int
    matched: int
    rules: Mapping[str, int]


def coverage_chart(bars: Sequence[Bar]) -> Markup:
    """A bar from 0 to 100% per class, in it a segment per rule; beside it the number of ids and the matched share.

    Args:
        bars: one at least, each with a total above 0.
    """
    height = 0.27 * len(bars) + 0.6
    shapes = {"grid": Shape("grid")}
    with _plain_figure(_WIDTH, height) as figure:
        axes = _bare_axes(figure, (0.155, 0.3 / height, 0.62, 1 - 0.6 / height))
        axes.set_xlim(0, 100)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        lines = axes.vlines([0, 25, 50, 75, 100], -0.5, len(bars) - 0.5, clip_on=False, zorder=0)
        lines.set_gid("grid")
        for row, bar in enumerate(bars):
            _stack(axes, row, bar, shapes)
            axes.text(-1.5, row, _plain(bar.name), ha="right", va="center_baseline", parse_math=False)
            axes.text(116, row, f"{bar.total:,}", ha="right", va="center_baseline")
            axes.text(134, row, percent(bar.matched, bar.total), ha="right", va="center_baseline")
        for x, label in ((0, "0%"), (50, "50%"), (100, "100%")):
            axes.text(x, len(bars) - 0.3, label, ha="center", va="top", fontsize=8)
        for x, label in ((116, "ids"), (134, "one to one")):
            axes.text(x, -0.75, label, ha="right", va="bottom", fontsize=8)
        return inline_svg(figure, shapes, "Share of each class's ids by the rule that maps them, class by class")


def pieces_chart(counts: Sequence[tuple[str, int]], described: str) -> Markup:
    """Upright bars with their counts above them.

    Args:
        counts: label -> height, from left to right; one at least.
        described: what is counted, `Llama-3's tokens by ...`.
    """
    highest = max(count for _, count in counts) or 1
    shapes = {"grid": Shape("grid")}
    with _plain_figure(_WIDTH / 2, 2.1) as figure:
        axes = _bare_axes(figure, (0.02, 0.15, 0.96, 0.72))
        axes.set_xlim(-0.5, len(counts) - 0.5)
        axes.set_ylim(0, highest)
        axes.hlines([0], -0.5, len(counts) - 0.5, clip_on=False).set_gid("grid")
        for x, (label, count) in enumerate(counts):
            (bar,) = axes.bar([x], [count], width=0.72, clip_on=False)
            bar.set_gid(f"bar-{x}")
            shapes[f"bar-{x}"] = Shape("way-split", f"{label} pieces: {count:,} tokens")
            axes.text(x, count + 0.025 * highest, f"{count:,}", ha="center", va="bottom", fontsize=8)
            axes.text(x, -0.04 * highest, label, ha="center", va="top", fontsize=8)
        return inline_svg(figure, shapes, described)


def _stack(axes: Axes, row: int, bar: Bar, shapes: dict[str, Shape]) -> None:
    left = 0.0
    for number, rule in enumerate(by_way(bar.rules)):
        rows = bar.rules[rule]
        width = 100 * rows / bar.total
        (segment,) = axes.barh([row], [width], left=[left], height=0.7, clip_on=False)
        gid = f"segment-{row}-{number}"
        segment.set_gid(gid)
        title = f"{visible(bar.name)}, {rule_name(rule)}: {rows:,} of {bar.total:,} ({percent(rows, bar.total)})"
        shapes[gid] = Shape(swatch(rule), title)
        left += width


@contextmanager
def _plain_figure(width: float, height: float) -> Iterator[Figure]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        # The user's own settings (LaTeX text, other fonts) are for other charts.
        mpl.rcdefaults()
        mpl.rcParams["font.size"] = 9
        yield Figure(figsize=(width, height))


def _bare_axes(figure: Figure, place: tuple[float, float, float, float]) -> Axes:
    axes = figure.add_axes(place)
    axes.set_axis_off()
    return axes


def _plain(name: str) -> str:
    # matplotlib measures text with a font of its own and warns of characters that it lacks.
    return visible(name).encode("ascii", "backslashreplace").decode()[:20]
