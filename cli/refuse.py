"""How commands end: what the library refuses becomes one sentence on stderr and exit code 1."""

from __future__ import annotations

import gc
import io
import os
import sys
import warnings
from pathlib import Path

import click


def run(command: click.Command) -> int:
    """Runs a command on the process's arguments.

    Returns:
        0 done, 1 the library refused or the user interrupted, 2 wrong usage.
    """
    arguments = sys.argv[1:]
    # Accepted anywhere before `--`, as people add it at the end of a command that failed.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    arguments = [word for word in arguments[:end] if word != "--debug"] + arguments[end:]
    warnings.showwarning = _show_warning
    _prepare_streams()
    # A command is one short computation over a million small objects: collecting them again and again is a tenth of it.
    gc.disable()
    try:
        result = command.main(args=arguments, prog_name="xtoken-align", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        if debug:
            raise
        click.echo("Interrupted: no file was left half-written.", err=True)
        return 1
    except BrokenPipeError:
        # The reader of our output went away: nothing to say, and nothing more to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug or not _is_refusal(error):
            raise
        click.echo(f"Error: {_sentence(error)}", err=True)
        return 1
    # Outside its standalone mode, click returns the code that a command exits with.
    return result if isinstance(result, int) else 0


def _prepare_streams() -> None:
    """Lets every token be printed anywhere: escaped where the terminal's encoding lacks it, nowhere if closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the life of the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_refusal(error: Exception) -> bool:
    from ..errors import XTokenError

    return isinstance(error, (XTokenError, OSError, MemoryError))


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory for this"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split("\n"))


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
        click.echo(f"Note: {message}", err=True)
