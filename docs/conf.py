"""How Sphinx builds the documentation, by `scripts/docs.sh` or `sphinx-build -W -b html docs docs/_build/html`.

Nothing is fetched while building, and the pages load nothing from elsewhere.
"""

import inspect
import re
import sys
from pathlib import Path

import click
from docutils import nodes
from sphinx.application import Sphinx

import xtoken_align

sys.path.insert(0, str(Path(__file__).parent))  # for documented.py

project = "xtoken-align"
copyright = "The xtoken-align developers"  # noqa: A001 - the name that Sphinx reads
version = release = xtoken_align.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
# Docstrings and help texts write `names` in single backticks.
default_role = "code"
# Names such as STUDENT--TEACHER keep their hyphens.
smartquotes = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has the types

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"xtoken-align {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "source_repository": "https://github.com/xtoken-align/xtoken-align/",
    "source_branch": "main",
    "source_directory": "docs/",
}

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example|Examples|Note|Source)s?:")


def plain(lines: list[str]) -> list[str]:
    """Plain text as reStructuredText: `|`, `*` and `_` mean themselves, and a paragraph indented by four is literal.

    Examples of the interpreter (`>>>`) and what stands in backticks stay as they are.
    """
    prose: list[str] = []
    literal = False
    for number, line in enumerate(lines):
        before = lines[number - 1] if number else ""
        if line.startswith("    ") and not before.strip() and not literal:
            prose += ["::", ""]
            literal = True
        elif line.strip() and not line.startswith("    "):
            literal = False
        prose.append(line if literal or line.lstrip().startswith(">>>") else escaped(line))
    return prose


def escaped(line: str) -> str:
    """A line in which what reStructuredText would read as markup is escaped, outside of backticks."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(part if part.startswith("`") else re.sub(r"([|*]|_\b)", r"\\\1", part) for part in parts)


def docstring(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Docstrings are plain text before their first section, and Google's sections after it."""
    first = next((number for number, line in enumerate(lines) if SECTION.fullmatch(line)), len(lines))
    lines[:first] = plain(lines[:first])
    lines[first:] = [line if line.lstrip().startswith(">>>") else escaped(line) for line in lines[first:]]


def signature(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, arguments: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Types under their own names alone, where a signature has defaults that Sphinx cannot read."""
    return arguments and re.sub(r"~[\w.]+\.", "", arguments), returns


def description(_app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """A command's help: paragraphs, and literal blocks where click is told not to wrap."""
    lines.clear()
    for paragraph in re.split("\n\n|\n(?=\b)", inspect.cleandoc(context.command.help or "")):
        first, *rest = paragraph.removeprefix("\b\n").split("\n")
        if paragraph.startswith("\b"):
            lines += [f"{first}:", "", *(f"   {line}" for line in rest), ""]
        else:
            lines += [*map(escaped, [first, *rest]), ""]


def arguments(_app: Sphinx, _context: click.Context, lines: list[str]) -> None:
    """Leaves out what stands under a command's arguments: its usage line names them."""
    lines.clear()


def options(_app: Sphinx, _context: click.Context, lines: list[str]) -> None:
    """Options' help is plain text too."""
    lines[:] = [line if line.lstrip().startswith("..") else escaped(line) for line in lines]


def dashes(_app: Sphinx, page: nodes.document, _name: str) -> None:
    """The dash between a parameter and its description, which Sphinx writes as two hyphens."""
    for text in list(page.findall(nodes.Text)):
        if text == " -- " and text.parent is not None:
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Sphinx) -> None:
    """Connects the readers of plain text; docstrings before napoleon sees them."""
    app.connect("autodoc-process-docstring", docstring, priority=400)
    app.connect("autodoc-process-signature", signature)
    app.connect("doctree-resolved", dashes)
    app.connect("sphinx-click-process-description", description)
    app.connect("sphinx-click-process-arguments", arguments)
    app.connect("sphinx-click-process-options", options)
