"""`xtoken-align build`."""

from __future__ import annotations

import shlex
from pathlib import Path
from time import perf_counter
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
    from ..mapping.mapping import Mapping


@click.command("build")
@click.argument("sources", nargs=-1, metavar="TEACHER STUDENT", shell_complete=tokenizers)
@click.option(
    "--teacher",
    metavar="SOURCE",
    shell_complete=tokenizers,
    help="The teacher's tokenizer, instead of the first argument.",
)
@click.option(
    "--student",
    metavar="SOURCE",
    shell_complete=tokenizers,
    help="The student's tokenizer, instead of the second argument.",
)
@place_options()
@click.option(
    "--top-k", type=int, default=4, show_default=True, metavar="N", help="Pieces of a decomposition that get weights."
)
@click.option("--lead", type=float, default=0.9, show_default=True, metavar="X", help="Weight of the first piece.")
@click.option(
    "--decay",
    type=float,
    default=0.1,
    show_default=True,
    metavar="X",
    help="Each further piece's share of the one before; 0 keeps the first alone.",
)
@click.option("--rules", metavar="A,B", help="Run only these rules. [default: all but case and nfkc]")
@click.option("--case", is_flag=True, help="Also match tokens that are equal after case folding.")
@click.option("--nfkc", is_flag=True, help="Also match tokens that are equal after compatibility folding.")
@click.option("--reverse-pass", is_flag=True, help="Link teacher tokens that no row reaches to the student's pieces.")
@click.option("--override", type=click.Path(path_type=Path), metavar="FILE", help="Rows of your own, YAML or JSON.")
@click.option("--student-logits", type=int, metavar="N", help="The student model's logit width.")
@click.option("--teacher-logits", type=int, metavar="N", help="The teacher model's logit width.")
@click.option("--student-pattern", metavar="REGEX", help="Split pattern of the student's rank file.")
@click.option("--teacher-pattern", metavar="REGEX", help="Split pattern of the teacher's rank file.")
@click.option("--student-revision", metavar="REV", help="Hub revision of the student.")
@click.option("--teacher-revision", metavar="REV", help="Hub revision of the teacher.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the file's path alone, and no notes.")
def command(sources: tuple[str, ...], **options: Any) -> None:
    """Build the mapping through which a STUDENT learns from a TEACHER with another tokenizer, and keep it.

    Prints how many rows each rule gave, what is covered by class of token, which loss to train with, and the file.

    \b
    Examples:
      xtoken-align build qwen3 llama-3
      xtoken-align build Qwen/Qwen3-4B ./my-student -o mapping.npz
      xtoken-align build gpt-oss model.gguf --student-logits 32064
    """
    teacher, student = _pair(sources, options["teacher"], options["student"])
    check_place(options)
    started = perf_counter()
    if options["quiet"]:
        ignore_notes()
    with steps(quiet=options["quiet"] or options["as_json"]) as say:
        mapping, path = _build(teacher, student, options, say)
    if options["quiet"]:
        click.echo(path)
    elif options["as_json"]:
        print_json(build_report(mapping, path, perf_counter() - started))
    else:
        _render(mapping, path, perf_counter() - started)
        _render_next(teacher, student, _name_of(path, options))


def _pair(sources: tuple[str, ...], teacher: str | None, student: str | None) -> tuple[str, str]:
    """The two tokenizers, from arguments, options or one of each."""
    left = list(sources)
    if teacher is None and left:
        teacher = left.pop(0)
    if student is None and left:
        student = left.pop(0)
    if left:
        raise click.UsageError(f"expected one teacher and one student, got {left[0]!r} as well.")
    if teacher is None or student is None:
        missing = "teacher" if teacher is None else "student"
        raise click.UsageError(f"the {missing} is missing: xtoken-align build TEACHER STUDENT")
    return teacher, student


def _build(teacher: str, student: str, options: dict[str, Any], say: Any) -> tuple[Mapping, Path]:
    from ..builder import build, plain_options
    from ..read import read_vocab

    rules = options["rules"]
    choices: dict[str, Any] = {
        "rules": None if rules is None else [rule.strip() for rule in rules.split(",") if rule.strip()],
        "overrides": options["override"] or (),
        **{key: options[key] for key in ("case", "nfkc", "lead", "decay", "top_k", "reverse_pass")},
    }
    # Reading the tokenizers may mean fetching them: what is wrong without them is said before.
    plain_options(**choices)
    sides = {}
    for side, source in (("teacher", teacher), ("student", student)):
        say(f"reading the {side} {source}")
        sides[side] = read_vocab(
            source,
            logits=options[f"{side}_logits"],
            pattern=options[f"{side}_pattern"],
            revision=options[f"{side}_revision"],
        )
    say(f"{direction(sides['student'].name, sides['teacher'].name)}: building")
    mapping = build(student=sides["student"], teacher=sides["teacher"], **choices)
    say("writing")
    return mapping, write_mapping(mapping, options)


def build_report(mapping: Mapping, path: Path, seconds: float) -> dict[str, Any]:
    """The JSON of `build`."""
    report = mapping.to_dict()
    report.pop("bins")
    return {"schema": report.pop("schema"), "path": str(path), **report, "seconds": round(seconds, 3)}


def _render(mapping: Mapping, path: Path, seconds: float) -> None:
    from ..coverage.render import coverage_table, summary

    student, teacher, coverage = mapping.student, mapping.teacher, mapping.coverage()
    tell(f"{direction(student.name, teacher.name)}.")
    tell(
        f"W is {student.sizes.logits:,} x {teacher.sizes.logits:,} with {len(mapping.matrix.data):,} links, "
        f"version {mapping.version}, {seconds:.1f} s\n"
    )
    print_table(coverage_table(coverage), narrow=coverage_table(coverage, shares=False))
    tell(f"\n{summary(coverage)}")
    tell(f"Written to {path}")


def _name_of(path: Path, options: dict[str, Any]) -> str:
    """How a mapping is named in another command: by its name in the user's own store, else by its file."""
    in_store = options["output"] is None and options["store"] is None
    return path.parent.name if in_store else str(path)


def _render_next(teacher: str, student: str, name: str) -> None:
    """Prints the commands that come next, names filled in."""
    click.echo("\nNext:")
    models = _model_of(teacher, "TEACHER"), _model_of(student, "STUDENT")
    for words in (
        ["xtoken-align", "inspect", name],
        ["xtoken-align", "init", *models, "corpus.jsonl", ">", "run.yaml"],
        ["xtoken-align", "distill", "run.yaml"],
    ):
        click.echo("  " + " ".join(word if word == ">" else shlex.quote(word) for word in words))


def _model_of(source: str, otherwise: str) -> str:
    """The model whose tokenizer was given; a word to fill in where it was a tokenizer alone."""
    from ..sources.presets import presets

    if source in presets() and not Path(source).exists():
        # The Hub's first place is the model's own; copies of tokenizers are by others.
        places = [place for place in presets()[source].locations if not place.startswith(("pkg:", "Xenova/"))]
        return places[0] if places else otherwise
    path = Path(source).expanduser()
    if not path.exists():
        return otherwise if source.startswith("pkg:") else source
    is_model = path.suffix == ".gguf" or (path / "config.json").exists()
    if path.name == "tokenizer.json" and (path.parent / "config.json").exists():
        return str(path.parent)
    return source if is_model else otherwise
