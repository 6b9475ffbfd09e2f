"""dump now, list, restore: the daily dumps by pg_dump."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from elsapg.cli.operate import size
from elsapg.cli.options import DEFAULT_STACK, Json, Stack, deployment


def register(app: typer.Typer) -> None:
    """Add this group's commands to `app`."""
    dump = typer.Typer(
        help="Dumps by pg_dump: make one, list them, restore one beside what is there.",
        no_args_is_help=True,
    )
    dump.command("now")(now)
    dump.command("list")(list_)
    dump.command("restore")(restore)
    app.add_typer(dump, name="dump")


def now(
    stack: Stack = DEFAULT_STACK,
    plain: Annotated[bool, typer.Option("--plain", help="Plain SQL as well.")] = False,
    accept_smaller: Annotated[
        bool,
        typer.Option(
            "--accept-smaller", help="Keep it also if it has less than half of the last one's size."
        ),
    ] = False,
) -> None:
    """Dump both databases and the roles (no passwords) from a standby, check them, store them.

    Old dumps are removed only when this one is stored; the newest never is.

    Examples:

        elsapg dump now

        elsapg dump now --plain
    """
    from elsapg.services import recovery  # noqa: PLC0415

    done = recovery.dump(deployment(stack), plain=plain, accept_smaller=accept_smaller)
    print(f"{done.label}  {size(done.bytes)} from {done.source}")


def list_(stack: Stack = DEFAULT_STACK, json: Json = False) -> None:
    """List the dumps in S3."""
    from elsapg.services import recovery  # noqa: PLC0415

    found = recovery.overview(deployment(stack))
    if json:
        print(recovery.dumps_as_json(found))
        return
    table = Table("label", "finished (UTC)", "from", "databases", "their size", "stored")
    # What one has to type elsewhere is shown whole.
    table.columns[0].no_wrap = True
    for one in found.dumps:
        table.add_row(
            one.label,
            one.finished,
            one.source,
            ", ".join(one.databases),
            size(one.database_bytes),
            size(one.bytes),
        )
    Console().print(table)


def restore(
    label: Annotated[str, typer.Argument(help="From `elsapg dump list`, or `latest`.")],
    database: Annotated[
        str, typer.Option("--database", "-D", help="elsa_workflows or elsa_runtime.")
    ],
    name: Annotated[
        str, typer.Option("--as", metavar="NAME", help="The new database; it must not exist.")
    ],
    stack: Stack = DEFAULT_STACK,
) -> None:
    """Restore one database of a dump under a new name: all of it, or nothing.

    What is there stays as it is; docs/backups.md says how the two change places.

    Examples:

        elsapg dump restore latest -D elsa_workflows --as elsa_workflows_yesterday
    """
    from elsapg.services import recovery  # noqa: PLC0415

    print(recovery.restore(deployment(stack), label, database, name))
