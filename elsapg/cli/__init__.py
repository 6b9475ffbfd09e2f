"""The command line: thin, one module per group of commands.

A group is a module with `register(app)`; name it in `_GROUPS`. What the commands do is in
`elsapg.services`; import that inside the command, so that `--help` and the commands that need
no Pulumi stay quick.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

import elsapg
from elsapg.errors import ElsapgError

_GROUPS = (
    *("lifecycle", "operate", "restore", "dumps", "drill", "connect", "keys"),
    *("verify", "migrate", "manifests", "machine"),
)

_HELP = """Highly available PostgreSQL for Elsa Workflows, by Pulumi.

A stack is a file `stacks/Pulumi.<stack>.yaml`; `local` is the embedded default.

Examples:

    elsapg doctor                    what this machine lacks

    elsapg up --yes                  make stack 'local' what its file says

    elsapg up -s staging             the same for another stack, asking first

    elsapg destroy -s staging        remove it; data volumes and secrets stay

Exit codes: 0 done, 2 usage, 3 settings, 4 something is missing here, 5 locked, 6 deployment
failed, 7 unhealthy, 8 not deployed, 9 unexpected changes, 70 a defect of elsapg, 130 stopped.
"""


def build() -> typer.Typer:
    """The application with all its groups."""
    app = typer.Typer(
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_globals)
    for name in _GROUPS:
        importlib.import_module(f"elsapg.cli.{name}").register(app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        print(f"elsapg {elsapg.__version__}")
        raise typer.Exit


def _globals(
    debug: Annotated[
        bool, typer.Option("--debug", help="Tracebacks and everything Pulumi says. Anywhere.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    # `main` takes --debug out before Typer sees it; it stands here for the help text.
    del debug, version


def debugging() -> bool:
    """Whether --debug (or ELSAPG_DEBUG) was given."""
    return os.environ.get("ELSAPG_DEBUG", "") not in ("", "0")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code. Tracebacks only with --debug."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    if "--debug" in given[:end]:
        given = [word for word in given[:end] if word != "--debug"] + given[end:]
        os.environ["ELSAPG_DEBUG"] = "1"
    return run_guarded(
        lambda: build()(given, prog_name="elsapg", standalone_mode=False), debug=debugging()
    )


def run_guarded(command: Callable[[], object], *, debug: bool) -> int:
    """Run `command`; returns the exit code, having said on stderr what went wrong, if it did."""
    try:
        code = command()
        # Typer gives an Exit's code back, also that of Ctrl-C.
        if code == 130:
            _complain("stopped", debug=False)
        return code if isinstance(code, int) else 0
    except ElsapgError as error:
        _complain(str(error), debug)
        return error.exit_code
    except typer.TyperException as error:
        # Usage errors can show the usage line; what else Typer raises is one line.
        show = getattr(error, "show", None)
        if show:
            show()
        else:
            _complain(error.format_message(), debug)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("stopped", debug=False)
        return 130
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone: nobody is left to tell, also at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _complain(f"{told}\nthis is a defect of elsapg; run with --debug to see where", debug)
        return 70


def _complain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"elsapg: {message}", file=sys.stderr)
