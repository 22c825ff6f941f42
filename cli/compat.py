"""`xtoken-align compat`."""

from __future__ import annotations

import click

from .console import print_json, tokenizers


@click.command("compat")
@click.argument("a", shell_complete=tokenizers)
@click.argument("b", shell_complete=tokenizers)
@click.option("--a-logits", type=int, metavar="N", help="The logit width of A's model.")
@click.option("--b-logits", type=int, metavar="N", help="The logit width of B's model.")
@click.option("--a-pattern", metavar="REGEX", help="Split pattern of A's rank file.")
@click.option("--b-pattern", metavar="REGEX", help="Split pattern of B's rank file.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def command(a: str, b: str, as_json: bool, **options: str | int | None) -> None:
    """Compare tokenizers A and B: identical, permuted, extended, repurposed, partial or disjoint, with counts.

    A mapping made for A serves B where both mean the same by text.

    \b
    Examples:
      xtoken-align compat llama-3 llama-3.1
      xtoken-align compat ./old-tokenizer ./new-tokenizer --json
    """
    from ..compare.compat import compat
    from ..read import read_vocab

    vocabularies = [
        read_vocab(source, logits=options[f"{side}_logits"], pattern=options[f"{side}_pattern"])  # type: ignore[arg-type]
        for side, source in (("a", a), ("b", b))
    ]
    found = compat(*vocabularies)
    if as_json:
        print_json(found.to_dict())
        return
    click.echo(f"{vocabularies[0].name} and {vocabularies[1].name}: {found.relation}")
    click.echo(f"{found.because}.")
    serves = "serves the other too" if found.same_text else "does not serve the other"
    click.echo(f"A mapping made for one {serves}; logits {found.logits[0]:,} and {found.logits[1]:,}.")
