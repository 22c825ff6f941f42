"""`inspect`: the coverage report of a mapping, weighed by a corpus where one is given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import counted, direction, mappings, print_json, print_table, stderr_console, store_option, tell, visible

if TYPE_CHECKING:
    from ..corpus.weigh import CorpusCoverage
    from ..coverage.recommend import Recommendation
    from ..mapping.audit import Audit
    from ..mapping.find import Unmatched
    from ..mapping.mapping import Mapping, Side
    from ..vocab.vocab import Vocab

_LEAST_SHARE = 0.95


def weigh_corpus(mapping: Mapping, paths: Sequence[str], options: dict[str, Any]) -> CorpusCoverage:
    """Weighs a mapping by files, with the tokenizers it was built from or those that the user names."""
    from ..corpus.texts import read_texts
    from ..corpus.weigh import weigh

    student = _tokenizer(mapping.student, "student", options["student"])
    teacher = _teacher(mapping, options["teacher"])
    with _progress(paths) as progress:
        return weigh(mapping, student, read_texts(paths, field=options["field"], progress=progress), teacher=teacher)


def _tokenizer(side: Side, role: str, source: str | None) -> Vocab:
    from ..errors import CorpusError, SourceError
    from ..read import read_vocab
    from ..sources.presets import presets
    from ..store.load import check_fits

    needs = f"a corpus is weighed with the {role}'s tokenizer, and {side.source!r}"
    # What a mapping's file names may be anyone's repository: nothing is fetched from there unless the user names it.
    if source is None and side.source not in presets() and not Path(side.source).exists():
        raise CorpusError(f"{needs}, which the mapping names, is no alias and no file here; name it with --{role}")
    try:
        vocab = read_vocab(side.source if source is None else source)
    except SourceError as error:
        if source is not None:
            raise
        raise CorpusError(f"{needs} is not to be had from here ({error}); name it with --{role}") from error
    check_fits(side, vocab, role)
    return vocab


def _teacher(mapping: Mapping, source: str | None) -> Vocab | None:
    """The teacher's tokenizer; without it one figure is left out, which is no reason to refuse the others."""
    from ..errors import XTokenError

    try:
        return _tokenizer(mapping.teacher, "teacher", source)
    except XTokenError as error:
        if source is not None:
            raise
        tell(f"Note: chunk starts are left out: {error}", err=True)
        return None


@contextmanager
def _progress(paths: Sequence[str]) -> Iterator[Callable[[int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    # The size of stdin is not known: the bar then only pulses.
    files = [Path(path) for path in paths]
    total = sum(file.stat().st_size for file in files) if all(file.is_file() for file in files) else None
    with Progress(BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=stderr_console()) as bar:
        task = bar.add_task("", total=total)
        yield lambda size: bar.advance(task, size)


def render_corpus(found: CorpusCoverage) -> None:
    """Prints the shares, the classes, the most frequent tokens that are not exact, and the chunk starts."""
    from rich import box
    from rich.table import Table

    click.echo(f"\nIn {counted(found.texts, 'text')}, {found.tokens:,} tokens, {found.bytes:,} bytes:")
    if found.unspelled:
        tell(f"{found.unspelled:,} texts are not in it, or not whole: the student's vocabulary cannot spell them.")
    if not found.tokens:
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), show_footer=True)
    table.add_column("class", "all", no_wrap=True)
    table.add_column("tokens", f"{found.tokens:,}", justify="right", no_wrap=True)
    table.add_column("share", "100%", justify="right", no_wrap=True)
    for way, count in found.ways.items():
        table.add_column(way, _share(count, found.tokens), justify="right", no_wrap=True)
    for name, row in sorted(found.classes.items(), key=lambda item: -item[1]["tokens"]):
        shares = (_share(row[way], row["tokens"]) for way in found.ways)
        table.add_row(name, f"{row['tokens']:,}", _share(row["tokens"], found.tokens), *shares)
    print_table(table)
    bytes_by_way = ", ".join(f"{way} {_share(count, found.bytes)}" for way, count in found.way_bytes.items())
    tell(f"\nOf the bytes: {bytes_by_way}.")
    if found.frequent:
        click.echo("\nThe most frequent tokens that are not exact:")
        for entry in found.frequent:
            click.echo(f"  {entry.count:>10,}  {visible(entry.surface)}  {entry.reason}")
    _render_starts(found)


def _render_starts(found: CorpusCoverage) -> None:
    starts = found.starts
    if starts is None:
        return
    click.echo()
    if starts.share is not None:
        tell(f"Chunks whose first tokens lie in one bin: {starts.share:.2%} of {starts.chunks:,}.")
    if starts.skipped:
        tell(
            f"Looking for chunks, {starts.skipped:,} stretches of text were left out: the two tokenizers do not say "
            "the same bytes of them."
        )
    if starts.share is not None and starts.share < _LEAST_SHARE:
        tell(f"That is below {_LEAST_SHARE:.0%}: Partition-KL and C-KL would leave much of this text out.")


def _share(count: int, total: int) -> str:
    if not total or not count:
        return "-"
    # A few of many must not read as none, nor all but a few as all.
    if count < total and count / total >= 0.9995:
        return ">99.9%"
    return f"{count / total:.1%}" if count / total >= 0.001 else "<0.1%"


@click.command("inspect")
@click.argument("mapping", shell_complete=mappings)
@click.argument("files", nargs=-1, metavar="")
@click.option("--critical", metavar="A,B", help="Classes by which the paper's rule decides. "
              "[default: digits_2,digits_3,ascii_punct_1]")  # fmt: skip
@click.option("--unmatched", is_flag=True, help="List the tokens that are neither exact nor near, numerals first.")
@click.option("--class", "classes", metavar="A,B", help="List only tokens of these classes.")
@click.option("--reason", "reasons", multiple=True, metavar="WORDS", help="List only tokens with this reason.")
@click.option("--pattern", metavar="REGEX", help="List only tokens in which this is found.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="List at most N tokens.")
@click.option("--tsv", is_flag=True, help="Print the list as tab-separated values.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the report as one HTML page instead of printing it.")  # fmt: skip
@click.option(
    "--corpus",
    multiple=True,
    metavar="FILE...",
    help="Weigh everything by the tokens of these texts: plain, .jsonl, .json, .parquet, also .gz or .zst; - is stdin.",
)
@click.option(
    "--field", default="text", show_default=True, metavar="NAME", help="Where JSON and Parquet have the text."
)
@click.option(
    "--student", metavar="SOURCE", help="The student's tokenizer, for --corpus. [default: the mapping's source]"
)
@click.option(
    "--teacher", metavar="SOURCE", help="The teacher's tokenizer, for --corpus. [default: the mapping's source]"
)
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(mapping: str, files: tuple[str, ...], **options: Any) -> None:
    """Report what a MAPPING covers, class by class and rule by rule, what stays empty, and which loss to train with.

    With --unmatched, or an option that narrows the list, the tokens that are split or empty are listed instead.

    \b
    Examples:
      xtoken-align inspect llama-3--qwen3
      xtoken-align inspect llama-3--qwen3 --unmatched --limit 20
      xtoken-align inspect llama-3--qwen3 --class han --reason decompose --tsv
      xtoken-align inspect mapping.npz --critical digits_3 --json
      xtoken-align inspect mapping.npz --html report.html
      xtoken-align inspect llama-3--qwen3 --corpus books.txt web.jsonl.gz
    """
    from ..store.load import load

    if files and not options["corpus"]:
        raise click.UsageError(f"got {files[0]!r} beside the mapping: name texts with --corpus.")
    if options["tsv"] and options["corpus"]:
        raise click.UsageError("--tsv is the list of tokens alone: leave out --corpus, or take --json.")
    loaded = load(mapping, store=options["store"])
    corpus = weigh_corpus(loaded, (*options["corpus"], *files), options) if options["corpus"] else None
    listed = _listed(loaded, options)
    if options["html"]:
        _write_page(loaded, options)
    if options["as_json"]:
        report = _report(loaded, listed, options)
        print_json(report if corpus is None else {**report, "corpus": corpus.to_dict()})
    elif listed is None:
        # A page has all that is printed, but for the corpus.
        if not options["html"]:
            _render(loaded, _recommendation(loaded, options["critical"]))
    elif options["tsv"]:
        _print_tsv(listed)
    else:
        _render_list(listed)
    if corpus is not None and not options["as_json"]:
        render_corpus(corpus)


def _listed(mapping: Mapping, options: dict[str, Any]) -> list[Unmatched] | None:
    """The listed tokens, None where none are asked for."""
    narrowing = options["classes"], options["reasons"], options["pattern"], options["tsv"], options["limit"] is not None
    if not options["unmatched"] and not any(narrowing):
        return None
    return mapping.unmatched(
        classes=_words(options["classes"]),
        reasons=options["reasons"],
        pattern=options["pattern"],
        limit=options["limit"],
    )


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _recommendation(mapping: Mapping, critical: str | None) -> Recommendation:
    coverage = mapping.coverage()
    if critical is None:
        return coverage.recommendation
    from ..coverage.recommend import recommend

    identical = mapping.student.fingerprint == mapping.teacher.fingerprint
    return recommend(coverage.classes, identical=identical, critical=_words(critical))


def _report(mapping: Mapping, listed: list[Unmatched] | None, options: dict[str, Any]) -> dict[str, Any]:
    from ..mapping.audit import audit

    report = mapping.to_dict()
    report["recommendation"] = _recommendation(mapping, options["critical"]).to_dict()
    report["by_class_and_rule"] = mapping.coverage().to_dict()["by_class_and_rule"]
    report["audit"] = audit(mapping).to_dict()
    report["provenance"] = mapping.provenance
    report["imported"] = mapping.notes.get("imported")
    if listed is not None:
        report["unmatched"] = [entry.to_dict() for entry in listed]
    return report


def _write_page(mapping: Mapping, options: dict[str, Any]) -> None:
    from dataclasses import replace

    from ..report import write_html

    measured = replace(mapping.coverage(), recommendation=_recommendation(mapping, options["critical"]))
    write_html(replace(mapping, measured=measured), options["html"])
    click.echo(f"Report written to {options['html']}", err=True)


def _print_tsv(listed: list[Unmatched]) -> None:
    click.echo("id\tsurface\tclass\treason")
    for entry in listed:
        click.echo(f"{entry.id}\t{visible(entry.surface)}\t{entry.class_name}\t{entry.reason}")


def _render_list(listed: list[Unmatched]) -> None:
    for entry in listed:
        click.echo(f"{entry.id:>7}  {visible(entry.surface)}  {entry.class_name}, {entry.reason}")
    if not listed:
        click.echo("No such tokens.", err=True)


def _render(mapping: Mapping, recommendation: Recommendation) -> None:
    from dataclasses import replace

    from ..coverage.render import coverage_table, rules_table, summary
    from ..mapping.audit import audit

    coverage, bins = replace(mapping.coverage(), recommendation=recommendation), mapping.bin_sizes
    student, teacher = mapping.student, mapping.teacher
    tell(
        f"{direction(student.name, teacher.name)}: version {mapping.version}, {mapping.provenance}.\n"
        f"W is {student.sizes.logits:,} x {teacher.sizes.logits:,} with {len(mapping.matrix.data):,} links."
    )
    for line in _origin_lines(mapping):
        tell(line)
    click.echo()
    print_table(coverage_table(coverage), narrow=coverage_table(coverage, shares=False))
    click.echo()
    print_table(rules_table(coverage), narrow=rules_table(coverage, gap=0))
    found = audit(mapping)
    for line in _audit_lines(found):
        # Tokens, and the draft of a file, stay as they are.
        (click.echo if line.startswith(" ") else tell)(line)
    tell(
        f"\nBins: {bins.count:,}; the largest holds {bins.largest_student:,} student tokens, "
        f"the largest on the teacher's side {bins.largest_teacher:,}."
    )
    tell(
        f"Common set: {found.common_strict:,} tokens strictly, {found.common_relaxed:,} relaxed; "
        f"{found.collisions:,} rows lost their teacher token to another row."
    )
    tell(f"Teacher tokens that no row reaches: {len(found.unreached):,}.")
    tell(summary(coverage))


def _origin_lines(mapping: Mapping) -> list[str]:
    """Where an imported mapping comes from, and what was odd there."""
    noted = mapping.notes.get("imported")
    lines = [str(line) for line in noted] if isinstance(noted, list) else []
    return [f"Imported {lines[0]}.", *(f"  {line}." for line in lines[1:])] if lines else []


def _audit_lines(found: Audit) -> list[str]:
    """Every special token's fate, suggestions for those without one, and what else a reader should know."""
    from ..mapping.audit import override_text

    lines = ["", "Special tokens:"] if found.specials else []
    for decision in found.specials:
        teacher = "-" if decision.teacher_surface is None else visible(decision.teacher_surface)
        lines.append(f"  {decision.id:>7}  {visible(decision.surface)} -> {teacher}  {decision.by}")
    if found.suggestions:
        lines += ["", "Names alike among the unmatched, to check and pass with --override:"]
        lines += [f"  {line}" for line in override_text(found.suggestions).splitlines()]
    for side, count, disagreeing in zip(("student", "teacher"), found.duplicates, found.disagreeing, strict=True):
        if count:
            lines.append(f"Of the {side}'s tokens {count:,} have a surface that another has already.")
        if disagreeing:
            lines.append(f"Of the {side}'s tokens {disagreeing:,} decode to another text than they are encoded from.")
    return lines
