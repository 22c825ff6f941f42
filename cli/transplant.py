"""`xtoken-align transplant`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import ignore_notes, mappings, print_json, print_table, steps, store_option, tell, tokenizers

if TYPE_CHECKING:
    from ..export.transplant import Transplant


@click.command("transplant")
@click.argument("model", shell_complete=tokenizers)
@click.argument("tokenizer", shell_complete=tokenizers)
@click.option(
    "-o",
    "--out",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="The folder of the new model.",
)
@click.option(
    "--mapping",
    metavar="FILE",
    shell_complete=mappings,
    help="The mapping from TOKENIZER to the model's own, a file or a name in the store. [default: built]",
)
@click.option(
    "--model-tokenizer",
    metavar="SOURCE",
    shell_complete=tokenizers,
    help="The tokenizer that the model has, where it does not stand beside it. [default: MODEL]",
)
@click.option(
    "--logits", type=int, metavar="N", help="How many rows the new model gets. [default: as TOKENIZER's own model]"
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the noise in rows that have no pieces.",
)
@store_option
@click.option("--force", is_flag=True, help="Replace a model that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the folder alone, and no notes.")
def command(model: str, tokenizer: str, **options: Any) -> None:
    """Give a MODEL another TOKENIZER, with embedding and head rows made from its own; nothing is trained.

    Each new token gets the row of the same token, else the mean of the rows of the pieces that the model's own
    tokenizer makes of it. Prints how many rows were made in which way. Afterwards, distil the new model from the old
    one.

    \b
    Examples:
      xtoken-align transplant ./smollm2 llama-3 --out ./smollm2-llama-3
      xtoken-align transplant model.gguf qwen3 --out out --mapping qwen3--smollm2
    """
    if options["quiet"]:
        ignore_notes()
    with steps(quiet=options["quiet"] or options["as_json"]) as say:
        moved = _transplant(model, tokenizer, options, say)
    if options["quiet"]:
        click.echo(options["output"])
    elif options["as_json"]:
        print_json({**moved.to_dict(), "path": str(options["output"])})
    else:
        _render(moved, model, options["output"])


def _transplant(model: str, tokenizer: str, options: dict[str, Any], say: Any) -> Transplant:
    from ..builder import build
    from ..errors import OptionError
    from ..files import check_folder
    from ..read import read_vocab
    from ..store.load import load

    # Loading a model takes a while: what is wrong without it is said before.
    output, force = options["output"], options["force"]
    check_folder(output, overwrite=force)
    if Path(model).exists() and output.resolve() in (Path(model).resolve(), Path(model).resolve().parent):
        raise OptionError(f"{output} is the folder of the model itself, which is to teach the new one: name another")
    say("reading the tokenizers")
    new = read_vocab(tokenizer, logits=options["logits"])
    own = read_vocab(options["model_tokenizer"] or model)
    if options["mapping"] is None:
        say(f"building the mapping from {new.name} to {own.name}")
        mapping = build(student=new, teacher=own)
    else:
        mapping = load(options["mapping"], student=new, teacher=own, store=options["store"])
        if options["logits"] not in (None, mapping.student.sizes.logits):
            raise OptionError(
                f"the mapping is for {mapping.student.sizes.logits} logits, not for {options['logits']}: leave it "
                "out, or build a mapping with that --student-logits"
            )
    # Imported late: torch takes seconds, and a mistake in the arguments should not.
    from ..export.transplant import transplant

    _silence_transformers()
    say(f"loading {model} and making the rows")
    moved = transplant(model, mapping, seed=options["seed"])
    say("writing")
    moved.save(output, tokenizer=tokenizer, overwrite=force)
    return moved


def _silence_transformers() -> None:
    """Its bars and notes are about loading and writing, which this command says itself."""
    try:
        from transformers.utils import logging
    except ImportError:
        return  # what is missing is said when the model is loaded
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _render(moved: Transplant, model: str, output: Path) -> None:
    """Prints how the rows were made, the ids of special tokens, and what to do next."""
    from rich import box
    from rich.table import Table

    from ..export.transplant import MADE

    report = moved.to_dict()
    rows, columns = report["shape"]
    matrices = "embedding and head one matrix" if moved.tied else "embedding and head apart"
    tell(f"Model {report['model']} has the tokenizer {report['tokenizer']} now.")
    tell(f"{rows:,} rows of {columns:,} numbers, {matrices}, mapping {report['mapping']}\n")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("rows", no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    table.add_column("made from")
    for way, count in moved.rows.items():
        if count:
            table.add_row(way, f"{count:,}", f"{100 * count / rows:.1f}", MADE[way])
    print_table(table)
    ids = ", ".join(f"{role} {_ids(value)}" for role, value in report["roles"].items())
    tell(f"\nIds: {ids}")
    if moved.emptied:
        tell(f"Without a counterpart, and so None: {', '.join(moved.emptied)}")
    tell(f"Written to {output}\n")
    tell("Next, distil it from the model as it was. As run.yaml, for `xtoken-align distill run.yaml`:")
    for line in (
        f"  student: {{model: {output}}}",
        f"  teachers: [{{model: {model}}}]",
        "  texts: [corpus.jsonl]",
        "  output: ./run",
    ):
        click.echo(line)


def _ids(value: Any) -> str:
    given = value if isinstance(value, list) else [value]
    return " ".join("none" if token_id is None else f"{token_id:,}" for token_id in given) or "none"
