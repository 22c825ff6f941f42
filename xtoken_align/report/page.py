"""The page: one HTML file with its style, its script and its data inside, under a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..coverage.render import percent
from ..errors import MissingExtraError
from ..files import write_atomically
from ..mapping.audit import audit, override_text
from ..mapping.mapping import Mapping
from ..rules.pieces import Pieces
from ..visible import markup, printable, visible, visible_bytes
from . import contents
from .charts import coverage_chart, pieces_chart, rule_name, style_rules, swatch

if TYPE_CHECKING:
    from jinja2 import Environment

_SCRIPTS = ("tokens.js", "numerals.js")


def write_html(mapping: Mapping, path: Path) -> None:
    """Writes a mapping's report as one HTML file; it is there whole or not at all.

    Args:
        mapping: the mapping.
        path: the file; its folder must exist, an existing file is replaced.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        StoreError: the file cannot be written.
    """
    write_atomically(path, render_html(mapping).encode())


_CARD_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
</head><body style="color-scheme:light dark;font-family:system-ui,sans-serif;margin:2em">
{card}
</body></html>
"""


def write_card(title: str, card: str, path: Path) -> None:
    """Writes the card that a value has in a notebook as one HTML file.

    Args:
        title: of the page.
        card: from a value's `_repr_html_`, which has escaped every text.
        path: the file; its folder must exist, an existing file is replaced.

    Raises:
        StoreError: the file cannot be written.
    """
    shown = html.escape(printable(title, one_line=True))
    write_atomically(path, _CARD_PAGE.format(title=shown, card=card).encode())


def render_html(mapping: Mapping) -> str:
    """A mapping's report as one HTML page.

    The page loads nothing, works from a disk or a mail, in light and dark, on paper and with the keyboard alone. Equal
    mappings give equal pages with equal versions of the libraries that draw them.

    Args:
        mapping: the mapping.

    Returns:
        The page.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    environment = _environment()
    style = _source(environment, "page.css").replace("/* colours */", style_rules())
    scripts = [_source(environment, name) for name in _SCRIPTS]
    return environment.get_template("page.html").render(
        style=_trusted(style),
        scripts=[_trusted(script) for script in scripts],
        style_hash=_hash(style),
        script_hashes=[_hash(script) for script in scripts],
        **_charts(mapping),
        **_facts(mapping),
    )


def _environment() -> Environment:
    try:
        import matplotlib as mpl  # noqa: F401 - asked for here, before any work is done
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("the HTML report", "report") from error
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=lambda count: f"{count:,}",
        percent=percent,
        rule_name=rule_name,
        swatch=swatch,
        token=lambda surface: markup(visible_bytes(surface)),
        visible=visible,
    )
    return environment


def _charts(mapping: Mapping) -> dict[str, Any]:
    bars = contents.class_bars(mapping.coverage())
    student, teacher = visible(mapping.student.name), visible(mapping.teacher.name)
    return {
        "bars": bars,
        "coverage_chart": coverage_chart(bars) if bars else None,
        "pieces": [
            _pieces(mapping.student_pieces, student, teacher),
            _pieces(mapping.teacher_pieces, teacher, student),
        ],
    }


def _pieces(pieces: Pieces, side: str, writer: str) -> dict[str, Any]:
    counts = contents.piece_counts(pieces)
    total = sum(count for _, count in counts)
    described = f"Tokens of {side} by the number of pieces in which {writer} writes them"
    chart = pieces_chart(counts, described) if total else None
    return {"side": side, "writer": writer, "total": total, "chart": chart}


def _facts(mapping: Mapping) -> dict[str, Any]:
    coverage, audited = mapping.coverage(), audit(mapping)
    every = contents.totals(coverage)
    table = contents.token_table(mapping)
    hundreds = contents.numerals(mapping)
    headline, explanation = contents.loss_words(coverage.recommendation.loss)
    return {
        "mapping": mapping,
        "words": contents,
        "advice": coverage.recommendation,
        "headline": headline,
        "explanation": explanation,
        "every": every,
        "ways": list(contents.way_widths(every)),
        "rules": contents.rule_counts(coverage),
        "empty": {reason: rows for reason, rows in coverage.empty.items() if rows},
        "found": audited,
        "specials": contents.special_decisions(audited),
        "decided_by": contents.decided_by(audited),
        "suggestions": override_text(audited.suggestions) if audited.suggestions else "",
        "lossy": contents.lossy_rows(mapping),
        "hundreds": hundreds,
        "numeral_counts": contents.counts(hundreds),
        "table_json": _trusted(contents.embeddable(table)),
        "table_rows": len(table["rows"]["id"]),
        "reasons": contents.reasons_of(table),
        "sides": [contents.side_facts(side) for side in (mapping.teacher, mapping.student)],
        "mapping_facts": contents.mapping_facts(mapping),
    }


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _trusted(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # noqa: S704 - our own files, and JSON that `embeddable` has escaped


def _hash(text: str) -> str:
    """How a content security policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
