"""From a matplotlib figure to SVG that may stand in a page: no styles of its own, no ids, colours by class.

The page's security policy refuses style attributes, and a page that is light or dark must colour its charts itself.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

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
