"""`xtoken-align align`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from .console import steps, tokenizers

_SHOWN = 500
"""Cells that are drawn where no other number is given: about ten screens."""


@click.command("align")
@click.argument("teacher", shell_complete=tokenizers)
@click.argument("student", shell_complete=tokenizers)
@click.argument("file", required=False, type=click.Path(allow_dash=True))
@click.option("--text", metavar="TEXT", help="Align this text instead of a file's.")
@click.option("--bos", is_flag=True, help="Begin with the token that begins a text, on the sides that have one.")
@click.option("--eos", is_flag=True, help="End with the token that ends a text, on the sides that have one.")
@click.option("--student-pattern", metavar="REGEX", help="Split pattern of the student's rank file.")
@click.option("--teacher-pattern", metavar="REGEX", help="Split pattern of the teacher's rank file.")
@click.option("--student-revision", metavar="REV", help="Hub revision of the student.")
@click.option("--teacher-revision", metavar="REV", help="Hub revision of the teacher.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=_SHOWN,
    show_default=True,
    metavar="N",
    help="Show at most N chunks and gaps; the statistics and --json have all.",
)
@click.option("--all", "show_all", is_flag=True, help="Show all chunks and gaps.")
@click.option("--stats", "stats_only", is_flag=True, help="Print the statistics alone.")
@click.option("--json", "as_json", is_flag=True, help="Print chunks, gaps and statistics as JSON.")
def command(teacher: str, student: str, file: str | None, text: str | None, **options: Any) -> None:
    """Align a text as the TEACHER and the STUDENT tokenise it: which tokens stand for the same stretch of text?

    The text is read from FILE, from --text, or from stdin. The student's tokens stand over the teacher's, and a chunk,
    the shortest stretch after which both have a token's end, is one column:

    \b
      │       between chunks
      ┊       between the tokens of a chunk
      ░       nothing here: the other side's tokens are in no chunk
      ␣       a space
      ⟨f0 9f⟩ bytes of an unfinished character

    What would not be seen is escaped, as \\n or \\u200d. Special tokens of one role at one place are a chunk too.

    \b
    Examples:
      xtoken-align align qwen3 llama-3 --text 'x = 12345'
      xtoken-align align qwen3 llama-3 README.md --limit 50
      cat texts/*.txt | xtoken-align align qwen3 llama-3 --stats
      xtoken-align align gpt-oss ./my-student notes.txt --bos --json
    """
    text = _read(file, text)
    from ..read import read_vocab
    from ..spans.aligner import Aligner

    with steps(quiet=False) as say:
        say("Reading the tokenizers")
        student_vocab, teacher_vocab = (
            read_vocab(source, pattern=options[f"{side}_pattern"], revision=options[f"{side}_revision"])
            for side, source in (("student", student), ("teacher", teacher))
        )
        say("Aligning")
        aligner = Aligner(student=student_vocab, teacher=teacher_vocab, bos=options["bos"], eos=options["eos"])
        spans = aligner.texts([text])
    from .align_report import draw, print_report, print_statistics

    sides, statistics = spans.sides(), spans.statistics()
    if options["as_json"]:
        print_report(sides, statistics, stats_only=options["stats_only"])
    elif options["stats_only"]:
        print_statistics(sides, statistics)
    else:
        draw(sides, statistics, limit=None if options["show_all"] else options["limit"])


def _read(file: str | None, text: str | None) -> str:
    """The text, from wherever the user has it; nothing in it is changed."""
    from ..errors import CorpusError

    if text is not None:
        if file is not None:
            raise click.UsageError(f"got --text and the file {file!r} as well: give one of them.")
        return _decoded(os.fsencode(text), "--text")
    if file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("there is no text: name a FILE, give --text, or pipe a text into stdin.")
    if file is None or file == "-":
        return _decoded(sys.stdin.buffer.read(), "stdin")
    if not Path(file).exists():
        raise CorpusError(f"there is no file {file!r}: name one, or give the text itself as --text")
    return _decoded(Path(file).read_bytes(), file)


def _decoded(data: bytes, name: str) -> str:
    from ..errors import CorpusError

    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(
            f"{name} is not UTF-8 at byte {error.start} (line {line}): expected a text in UTF-8, convert it"
        ) from error
