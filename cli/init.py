"""`xtoken-align init`."""

from __future__ import annotations

import shlex
import sys

import click

from .console import tell


@click.command("init")
@click.argument("teacher")
@click.argument("student")
@click.argument("texts", nargs=-1, required=True)
@click.option("-o", "--output", metavar="DIR", default="./run", show_default=True, help="The run's folder.")
def command(teacher: str, student: str, texts: tuple[str, ...], output: str) -> None:
    """Print a configuration for `distill`: every setting with its default and what it is.

    TEACHER and STUDENT are models: folders, GGUF files or Hub ids. TEXTS are files with texts or chats, folders, quoted
    patterns, or data sets of the Hub (hf://OWNER/NAME). What is not there yet is said, and written all the same.

    \b
    Examples:
      xtoken-align init Qwen/Qwen3-4B ./my-student corpus.jsonl > run.yaml
      xtoken-align init teacher.gguf ./my-student 'corpus/*.jsonl' > run.yaml
    """
    from ..training.config import StudentConfig, TeacherConfig
    from ..training.config_file import mistakes_of_files, starter

    click.echo(starter(teacher, student, texts, output), nl=False)
    values = {
        "student": StudentConfig(model=student),
        "teachers": (TeacherConfig(model=teacher),),
        "texts": texts,
        "output": output,
    }
    for _, said in mistakes_of_files(values):
        tell(f"Note: {said}", err=True)
    if sys.stdout.isatty():
        again = shlex.join(["xtoken-align", "init", teacher, student, *texts])
        click.echo(f"To put it into a file:\n  {again} > run.yaml", err=True)
    click.echo("Next, with the file as run.yaml:", err=True)
    click.echo("  xtoken-align distill run.yaml --check --show 3", err=True)
    click.echo("  xtoken-align distill run.yaml", err=True)
