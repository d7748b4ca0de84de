"""The command line: `diffulm VERB ...`.

One file a verb, found by its name; a verb's function has its file's name. Nothing heavy is imported until a verb runs,
so that `--help` answers at once. Standard output carries the result alone, everything else goes to standard error.

Exit codes: 0 done; 2 bad input, with one line on standard error; 130 interrupted, 143 terminated; 141 the reader of standard
output has gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import NoReturn, cast

import typer

from diffulm.cli import _process
from diffulm.cli._complete import attach
from diffulm.cli._overview import overview
from diffulm.errors import BadInput, Elsewhere

COMPLETING = "_DIFFULM_COMPLETE"  # set by the scripts of --install-completion

# The base of all of typer's own errors, reached through a public class: some versions of typer carry their own copy of
# click, others use the installed one.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])


def application() -> typer.Typer:
    """The typer application with every verb in this folder."""
    app = typer.Typer(
        name="diffulm",
        help="Turn an autoregressive language model into a diffusion language model, and use it.",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_top)
    for name, module in verbs().items():
        verb = getattr(import_module(module), module.rpartition(".")[2])
        attach(verb)
        app.command(name)(verb)
    return app


def verbs() -> dict[str, str]:
    """The verbs and the modules they are in. A file `import_.py` holds `import`: Python keeps the word to itself."""
    names = [module.name for module in iter_modules(__path__) if not module.name.startswith("_")]
    return {name.rstrip("_"): f"{__name__}.{name}" for name in names}


def _version(wanted: bool) -> None:
    if wanted:
        from diffulm import __version__

        print(f"diffulm {__version__}")
        raise typer.Exit


def _top(
    version: bool = typer.Option(False, "--version", "-V", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run one command and leave the process with its exit code. Without one, say what there is.

    `DIFFULM_DEBUG=1` shows the traceback behind a line of error.
    """
    if arguments is None:
        _process.begin()
    _process.when_stopped()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if COMPLETING in os.environ:
        complete()
    if arguments[:1] == ["help"]:  # `diffulm help infill`
        arguments = [*(word for word in arguments if word != "help"), "--help"]
    if arguments[1:] and arguments[0] in ("--install-completion", "--show-completion"):
        # typer's own switch: the shell is named, `--show-completion zsh`, so that typer need not look for it
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    try:
        if arguments:
            # Not command.main(): that has its own way with interrupts and broken pipes, and more lines for an error.
            command = typer.main.get_command(application())
            with command.make_context("diffulm", arguments) as context:
                command.invoke(context)
        else:
            from diffulm import __version__

            print(overview(__version__, verbs()))
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        _process.leave(_tell(error))
    _process.leave(0)


def complete() -> NoReturn:
    """Answer a shell that asks what may come next; where that fails it offers nothing, for nobody reads errors there."""
    try:
        typer.main.get_command(application()).main([], prog_name="diffulm")
    except Exception:
        if os.environ.get("DIFFULM_DEBUG"):
            raise
    sys.exit(1)


def _tell(error: BaseException) -> int:
    """One line on standard error for what a user can put right; anything else is ours and keeps its traceback."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if os.environ.get("DIFFULM_DEBUG"):
        raise error
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        return _process.UNREAD  # rich makes a SystemExit of it
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt | typer.Abort) or _process.stopped():
        _line(_process.words())  # whatever a library made of the interrupt
        return _process.stopped() or _process.INTERRUPTED
    if isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "diffulm"
        message = error.format_message()
        if message.startswith("Missing"):
            message += _example(path)
        _line(f"error: {message} (see {path} --help)")
        return 2
    if isinstance(error, ImportError) and not (error.name or "").startswith("diffulm"):
        _line(f"error: {error}; `diffulm doctor` says what is missing and how to get it")
        return 2
    if isinstance(error, Elsewhere) and os.environ.get("RANK", "0") != "0":
        return 2
    if isinstance(error, OSError) and not error.filename and not _process.takes_results():
        return 0
    if isinstance(error, BadInput | OSError):
        _line(f"error: {error}")
        return 2
    raise error


def _example(path: str) -> str:
    """How a verb is called: the first line of its file, with a model that everybody has."""
    file = sys.modules.get(verbs().get(path.rpartition(" ")[2], ""))
    example = re.match(r"`(.+)`", (file and file.__doc__) or "")
    return f" For example: {example[1].replace('MODEL', 'pocket')}" if example else ""


def _line(message: str) -> None:
    if message:
        with contextlib.suppress(OSError):  # nobody is there to read it
            print("diffulm:", " ".join(message.split()), file=sys.stderr, flush=True)
