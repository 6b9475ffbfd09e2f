"""doctor, setup."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from elsapg.cli.options import DEFAULT_STACK, Json, Stack
from elsapg.errors import MissingError


def register(app: typer.Typer) -> None:
    """Add this group's commands to `app`."""
    app.command()(doctor)
    app.command()(setup)


def doctor(stack: Stack = DEFAULT_STACK, as_json: Json = False) -> None:
    """Say what this machine lacks for a stack, and what to do about it (exit 4 if it lacks).

    Example:

        elsapg doctor --json
    """
    from elsapg.services import machine  # noqa: PLC0415
    from elsapg.services.places import find_root  # noqa: PLC0415

    checks = machine.examine(find_root(), stack)
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        table = Table.grid(padding=(0, 2))
        for check in checks:
            mark = Text("ok", style="green") if check.ok else Text("MISSING", style="bold red")
            table.add_row(mark, Text(check.name), Text(check.found))
        Console().print(table)
        for check in checks:
            if not check.ok:
                print(f"{check.name}: {check.way_out}")
    missing = [check.name for check in checks if not check.ok]
    if missing:
        raise MissingError(f"this machine lacks: {', '.join(missing)}")


def setup(
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop the Docker daemon that setup started, if it did.")
    ] = False,
) -> None:
    """Install what is missing, and start Docker; uses what is already here.

    Examples:

        elsapg setup

        elsapg setup --stop
    """
    from elsapg.services import machine  # noqa: PLC0415
    from elsapg.services.places import Places, find_root  # noqa: PLC0415

    places = Places(find_root())
    if stop:
        machine.stop_docker(places, say=print)
    else:
        machine.install(places, say=lambda text: print(text, flush=True))
