"""drill, backup check: the proof that what lies in S3 can be restored."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from elsapg.cli.operate import size
from elsapg.cli.options import DEFAULT_STACK, Json, Stack, deployment
from elsapg.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add this group's commands to `app`."""
    app.command()(drill)


def drill(
    stack: Stack = DEFAULT_STACK,
    report: Annotated[
        bool, typer.Option("--report", help="Show the last one's report; make none.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Restore the newest backup beside the stack and compare it with what is there.

    Row counts and checksums of every table at one place in the WAL, pg_amcheck, migrations,
    row-level security. The stack goes on meanwhile; the copy is removed. Also on a schedule
    (archive.drill_schedule); a failed or overdue one shows in `status` and `verify`.

    Examples:

        elsapg drill

        elsapg drill --report --json
    """
    from elsapg.services import recovery  # noqa: PLC0415

    target = deployment(stack)
    if report:
        ended = [one for one in recovery.overview(target).ended if one.job == "drill"]
        if not ended:
            raise UsageError("there was no drill yet: `elsapg drill` makes one")
        told, title = ended[0].report, ended[0].message
    else:
        told, title = recovery.run(target, "drill"), ""
    if as_json:
        print(json.dumps(told, indent=2))
        return
    _show(told, title)
    raise typer.Exit(7 if told.get("findings") else 0)


def _show(told: dict[str, Any], title: str) -> None:
    table = Table("what", "", show_header=False)
    table.add_row("backup", f"{told.get('backup')}, recovered to {told.get('lsn')}")
    table.add_row("compared with", str(told.get("source")))
    table.add_row("the same", f"{told.get('tables')} tables, {told.get('rows')} rows")
    table.add_row("restored", f"{size(told.get('database_bytes'))} at "
                  f"{told.get('restore_mib_per_s')} MiB/s")  # fmt: skip
    for part, seconds in told.get("seconds", {}).items():
        table.add_row(part, f"{seconds} s")
    console = Console()
    console.print(table)
    for finding in told.get("findings", []):
        console.print(f"FOUND  {finding}", markup=False, highlight=False)
    if title:
        console.print(title, markup=False, highlight=False)
