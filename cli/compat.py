"""`xtoken-align compat`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import print_json, print_table, tell, tokenizers, visible

if TYPE_CHECKING:
    from ..compare.compat import Compat
    from ..vocab.vocab import Vocab

_LONGEST = 60


@click.command("compat")
@click.argument("a", shell_complete=tokenizers)
@click.argument("b", shell_complete=tokenizers)
@click.option("--a-logits", type=int, metavar="N", help="The logit width of A's model.")
@click.option("--b-logits", type=int, metavar="N", help="The logit width of B's model.")
@click.option("--a-pattern", metavar="REGEX", help="Split pattern of A's rank file.")
@click.option("--b-pattern", metavar="REGEX", help="Split pattern of B's rank file.")
@click.option(
    "--corpus",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Also encode the lines of this file with both (text, .jsonl, .json, .parquet, .gz, .zst; may be repeated).",
)
@click.option("--field", default="text", show_default=True, metavar="NAME", help="The corpus field with the text.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 unless the tokenizers are identical.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write it as an HTML page.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.pass_context
def command(ctx: click.Context, /, a: str, b: str, as_json: bool, exit_code: bool, **options: Any) -> None:
    """Compare tokenizers A and B: whether ids stand for the same tokens, and whether text becomes the same ids.

    The first line is the verdict: identical, same ids (with what differs), permuted, extended, repurposed, partial or
    disjoint. Then comes each part: tokens, merges, split pattern, normaliser, flags, roles, chat template.

    \b
    Examples:
      xtoken-align compat llama-3 llama-3.1
      xtoken-align compat ./old-tokenizer ./new-tokenizer --exit-code
      xtoken-align compat qwen3 qwen3.6 --corpus corpus.jsonl
    """
    from ..compare.compat import compat
    from ..corpus.texts import read_texts
    from ..read import read_vocab

    vocabularies = [
        read_vocab(source, logits=options[f"{side}_logits"], pattern=options[f"{side}_pattern"])
        for side, source in (("a", a), ("b", b))
    ]
    texts = read_texts(options["corpus"], field=options["field"]) if options["corpus"] else None
    found = compat(vocabularies[0], vocabularies[1], corpus=texts)
    if options["html"] is not None:
        from ..report.page import write_card

        names = " and ".join(vocab.name for vocab in vocabularies)
        write_card(f"{names}: {found.relation}", found._repr_html_(), options["html"])
        click.echo(f"Comparison written to {options['html']}", err=True)
    if as_json:
        print_json(found.to_dict())
    elif options["html"] is None:
        _render(found, vocabularies)
    if exit_code and found.relation != "identical":
        ctx.exit(1)


def _render(found: Compat, vocabularies: list[Vocab]) -> None:
    from rich.table import Table

    tell(f"{vocabularies[0].name} and {vocabularies[1].name}: {found.verdict}")
    tell(f"{found.tokens}.")
    tell(f"A mapping made for one {found.service}; logits {found.logits[0]:,} and {found.logits[1]:,}.")
    if found.corpus is not None:
        tell(f"{str(found.corpus)[:1].upper()}{str(found.corpus)[1:]}.")
        for text, *tokens in found.corpus.examples:
            one, other = ("+".join(map(visible, surfaces)) for surfaces in tokens)
            click.echo(f"  {visible(text.encode()[:_LONGEST])}: {one} -> {other}")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(ratio=2)
    table.add_column(ratio=3)
    for name, state in found.parts.items():
        table.add_row(name, state)
    click.echo()
    print_table(table)
