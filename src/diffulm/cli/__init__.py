"""The command line: `diffulm VERB ...`.

One file a verb, found by its name; a verb's function has its file's name. Nothing heavy is imported until a verb runs,
so that `--help` answers at once. Standard output carries the result alone, everything else goes to standard error.

Exit codes: 0 done; 2 bad input, with one line on standard error; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import cast

import typer

from diffulm.errors import BadInput

# The base of all of typer's own errors, reached through a public class: some versions of typer carry their own copy of
# click, others use the installed one.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])


def application() -> typer.Typer:
    """The typer application with every verb in this folder."""
    app = typer.Typer(
        name="diffulm",
        help="Turn an autoregressive language model into a diffusion language model, and use it.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_top)
    for module in iter_modules(__path__):
        if not module.name.startswith("_"):
            verb = getattr(import_module(f"{__name__}.{module.name}"), module.name)
            app.command(module.name.rstrip("_"))(verb)  # `import_`: Python keeps the word to itself
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from diffulm import __version__

        print(f"diffulm {__version__}")
        raise typer.Exit


def _top(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave the process with its exit code.

    `DIFFULM_DEBUG=1` shows the traceback behind a line of error.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        # Not command.main(): that has its own way with interrupts and broken pipes, and more lines for an error.
        command = typer.main.get_command(application())
        with command.make_context("diffulm", list(arguments) or ["--help"]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(_tell(error))
    sys.exit(0)


def _tell(error: BaseException) -> int:
    """One line on standard error for what a user can put right; anything else is ours and keeps its traceback."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if os.environ.get("DIFFULM_DEBUG"):
        raise error
    if isinstance(error, BrokenPipeError):
        # The reader has gone (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        _line("interrupted" + "".join(f"; {part}" for part in error.args))
        return 130
    if isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "diffulm"
        _line(f"error: {error.format_message()} (see {path} --help)")
        return 2
    if isinstance(error, BadInput | OSError):
        _line(f"error: {error}")
        return 2
    raise error


def _line(message: str) -> None:
    print("diffulm:", " ".join(message.split()), file=sys.stderr, flush=True)
