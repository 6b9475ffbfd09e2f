"""migrate status, apply, new, script: the team's own changes to the two databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from elsapg.cli.options import DEFAULT_STACK, Json, Stack, deployment
from elsapg.errors import DeploymentError, UnexpectedChangesError

if TYPE_CHECKING:
    from elsapg.runner.migrations import Step

Database = Annotated[
    str | None,
    typer.Option("--database", "-D", help="elsa_workflows or elsa_runtime; both if not given."),
]

_STYLES = {"applied": "green", "pending": "yellow"}


def register(app: typer.Typer) -> None:
    """Add this group's commands to `app`."""
    group = typer.Typer(
        help="Change the databases: what is applied, the rest, a new file, a script.",
        no_args_is_help=True,
    )
    group.command()(status)
    group.command()(apply)
    group.command()(new)
    group.command()(script)
    app.add_typer(group, name="migrate")


def status(stack: Stack = DEFAULT_STACK, as_json: Json = False) -> None:
    """Which migrations are applied, pending, edited or missing, in both databases.

    Exit 0 when everything is applied, 9 when something is pending, 6 when files and databases do
    not fit together (edited, renamed, missing, numbered too low, silent about load).

    Examples:

        elsapg migrate status

        elsapg migrate status -s staging --json | jq .pending
    """
    from elsapg.runner.sqlfile import DATABASES  # noqa: PLC0415
    from elsapg.services import connect, migrate  # noqa: PLC0415

    target = deployment(stack)
    with connect.tunnel(target, "session") as through:
        door = migrate.connector(target, through)
        found = migrate.status(door, _folder(target.root), DATABASES, _say_aside)
    if as_json:
        print(json.dumps({"stack": stack, **found.as_json()}, indent=2))
    else:
        console = Console(soft_wrap=True, highlight=False)
        for database, steps in found.databases.items():
            console.print(_table(database, steps))
        for problem in found.problems:
            console.print(Text(f"PROBLEM  {problem}"))
        if not found.problems:
            console.print(f"{found.pending} pending" if found.pending else "all applied")
    code = UnexpectedChangesError.exit_code if found.pending else 0
    raise typer.Exit(DeploymentError.exit_code if found.problems else code)


def _table(database: str, steps: list[Step]) -> Table:
    table = Table("name", "state", "applied (UTC)", "by", "ms", title=database)
    table.columns[0].overflow = "fold"
    for step in steps:
        row = step.applied
        table.add_row(
            step.name,
            Text(step.state, style=_STYLES.get(step.state, "bold red")),
            row.applied_at if row else "",
            row.applied_by if row else "",
            str(row.duration_ms) if row else "",
        )
    return table


def apply(
    stack: Stack = DEFAULT_STACK,
    database: Database = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run it all, then roll it back.")
    ] = False,
) -> None:
    """Apply what is pending, as elsa_migrator: no superuser, no new image.

    Each file is one transaction with its row in the ledger: stopped at any point, nothing is half
    applied, and running it again does the rest. A file that cannot get a lock within 3 s gives way
    and is tried again.

    --dry-run holds every lock until its end, uses up numbers of sequences, and cannot show how
    long the files wait under load; files outside a transaction it only names.

    Roles, extensions and views are not migrations: `elsapg up` brings those.

    Examples:

        elsapg migrate apply --dry-run

        elsapg migrate apply -s staging -D elsa_runtime
    """
    from elsapg.services import connect, migrate  # noqa: PLC0415

    databases = migrate.chosen(database)
    target = deployment(stack)
    with connect.tunnel(target, "session") as through:
        door = migrate.connector(target, through)
        done = migrate.apply(door, _folder(target.root), databases, _say, dry_run=dry_run)
    count = sum(map(len, done.values()))
    if not count:
        print("nothing to do" if not dry_run else "nothing was tried")
    else:
        print(f"{count} tried and rolled back" if dry_run else f"{count} applied")


def new(
    name: Annotated[str, typer.Argument(help="What it does, as in add_priority_to_triggers.")],
    database: Annotated[
        str, typer.Option("--database", "-D", help="elsa_workflows or elsa_runtime.")
    ],
) -> None:
    """Make the next migration's file, with what to think of in it; prints its path.

    Example:

        elsapg migrate new add_priority_to_triggers -D elsa_workflows
    """
    from elsapg.services import migrate  # noqa: PLC0415
    from elsapg.services.places import find_root  # noqa: PLC0415

    print(migrate.new(_folder(find_root()), name, database))


def script(
    database: Database = None,
    first: Annotated[
        int | None, typer.Option("--from", metavar="N", min=1, help="The first number.")
    ] = None,
    last: Annotated[
        int | None, typer.Option("--to", metavar="N", min=1, help="The last number.")
    ] = None,
    idempotent: Annotated[
        bool, typer.Option("--idempotent", help="Pass over what is applied already.")
    ] = False,
) -> None:
    """Print the migrations as one psql script, for a DBA who applies them by hand.

    It needs no stack. It records what it applies, so that `status` and `up` know.

    Examples:

        elsapg migrate script --idempotent > release.sql

        elsapg migrate script -D elsa_runtime --from 3 --to 5 | psql -X -d elsa_runtime
    """
    from elsapg.services import migrate  # noqa: PLC0415
    from elsapg.services.places import find_root  # noqa: PLC0415

    folder = _folder(find_root())
    print(
        migrate.script(
            folder, migrate.chosen(database), first=first, last=last, idempotent=idempotent
        ),
        end="",
    )


def _folder(root: Path) -> Path:
    from elsapg.services.migrate import SQL_FOLDER  # noqa: PLC0415

    return root / SQL_FOLDER


def _say(line: str) -> None:
    print(line, flush=True)


def _say_aside(line: str) -> None:
    # Standard output may be JSON.
    typer.echo(line, err=True)
