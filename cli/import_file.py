"""`xtoken-align import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import (
    check_place,
    direction,
    ignore_notes,
    place_options,
    print_json,
    print_table,
    steps,
    tell,
    tokenizers,
    write_mapping,
)

if TYPE_CHECKING:
    from ..export.imported import Imported


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("teacher", shell_complete=tokenizers)
@click.argument("student", shell_complete=tokenizers)
@place_options("STUDENT--TEACHER-imported")
@click.option("--drop-scale-trick", is_flag=True, help="Leave out the links that NeMo-RL's scale trick wrote.")
@click.option("--student-logits", type=int, metavar="N", help="The student model's logit width.")
@click.option("--teacher-logits", type=int, metavar="N", help="The teacher model's logit width.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the mapping's path alone, and no notes.")
def command(file: Path, teacher: str, student: str, **options: Any) -> None:
    """Make a mapping of another program's FILE, say what is odd there, and keep it.

    FILE is NeMo-RL's projection matrix (.pt), as a table or as a dict of pairs, a sparse tensor (.pt), or safetensors.
    Nothing that stands in it is run. It is checked against the two tokenizers that it was made from, and compared with
    what `build` makes of them.

    \b
    Examples:
      xtoken-align import projection.pt qwen3 llama-3
      xtoken-align import projection.pt qwen3 llama-3 -o mapping.npz
      xtoken-align import projection.pt qwen3 llama-3 --drop-scale-trick
    """
    check_place(options)
    if options["quiet"]:
        ignore_notes()
    with steps(quiet=options["quiet"] or options["as_json"]) as say:
        imported, path = _import(file, teacher, student, options, say)
    if options["quiet"]:
        click.echo(path)
    elif options["as_json"]:
        print_json({**imported.to_dict(), "path": str(path)})
    else:
        _render(imported, path)


def _import(file: Path, teacher: str, student: str, options: dict[str, Any], say: Any) -> tuple[Imported, Path]:
    from ..export.imported import import_mapping
    from ..read import read_vocab
    from ..store.store import pair_name

    sides = {}
    for side, source in (("teacher", teacher), ("student", student)):
        say(f"reading the {side} {source}")
        sides[side] = read_vocab(source, logits=options[f"{side}_logits"])
    say(f"importing {file.name}")
    imported = import_mapping(file, **sides, drop_scale_trick=options["drop_scale_trick"])
    # Under a name of its own: `latest` of the pair stays the mapping that was built.
    name = f"{pair_name(imported.mapping)}-imported"
    return imported, write_mapping(imported.mapping, options, name=name)


def _render(imported: Imported, path: Path) -> None:
    from ..coverage.render import coverage_table, summary

    mapping, file = imported.mapping, imported.file
    student, teacher, coverage = mapping.student, mapping.teacher, mapping.coverage()
    tell(f"{direction(student.name, teacher.name)}.")
    named = [name for name in file.sides if name is not None]
    says = f"; it names {' and '.join(named)}" if named else ""
    tell(f"{file.name} is {file.form}{says}.")
    tell(
        f"W is {student.sizes.logits:,} x {teacher.sizes.logits:,} with {len(mapping.matrix.data):,} links, "
        f"version {mapping.version}, imported\n"
    )
    print_table(coverage_table(coverage), narrow=coverage_table(coverage, shares=False))
    tell(f"\n{summary(coverage)}")
    tell("\nIn the file:")
    for finding in imported.findings:
        tell(f"- {finding.sentence}")
    if not imported.findings:
        tell("- nothing odd")
    rows = imported.diff.rows
    tell(
        f"Beside what build makes: rows the same {rows.same:,}, with other weights or links {rows.weights:,}, by "
        f"another rule {rows.rule:,}, more {rows.added:,}, missing {rows.removed:,}; L1 distance "
        f"{imported.diff.l1:,.1f} in all"
    )
    tell(f"Written to {path}")
