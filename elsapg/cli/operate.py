"""status, switchover, backup: the day-2 commands."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from elsapg.cli.options import DEFAULT_STACK, Json, Stack, deployment

if TYPE_CHECKING:
    from elsapg.services.backups import Backup
    from elsapg.services.status import Status


def register(app: typer.Typer) -> None:
    """Add this group's commands to `app`."""
    app.command()(status)
    app.command()(switchover)
    backup = typer.Typer(help="Take and list backups.", no_args_is_help=True)
    backup.command("now")(backup_now)
    backup.command("list")(backup_list)
    backup.command("check")(backup_check)
    app.add_typer(backup, name="backup")


def status(
    stack: Stack = DEFAULT_STACK,
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again.")] = False,
) -> None:
    """What runs, who leads, and what is wrong. Exit 7 if anything is.

    Examples:

        elsapg status --watch

        elsapg status --json | jq .problems
    """
    from elsapg.services.status import gather  # noqa: PLC0415

    target = deployment(stack)
    if watch:
        with Live(Console().render_str("looking …"), refresh_per_second=4) as live:
            while True:
                found = gather(target)
                live.update(Group(*_tables(found), *map(Text, _lines(found))))
                time.sleep(1)
    found = gather(target)
    if json:
        print(found.as_json())
    else:
        console = Console()
        console.print(*_tables(found))
        for line in _lines(found):
            # A command that were broken by the terminal's width could not be pasted.
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(7 if found.problems else 0)


def _tables(found: Status) -> tuple[Table, Table]:
    nodes = Table("node", "role", "state", "timeline", "lag", title=f"stack {found.stack}")
    for node in found.nodes:
        lag = "" if node.role == "leader" else size(node.lag_bytes)
        nodes.add_row(node.name, node.role, node.state, str(node.timeline or "-"), lag)
    pools = Table("pool", "clients", "waiting", "servers busy", "idle")
    for pool in found.pools:
        pools.add_row(
            pool.name + (" PAUSED" if pool.paused else ""),
            str(pool.clients_active),
            str(pool.clients_waiting),
            str(pool.servers_active),
            str(pool.servers_idle),
        )
    return nodes, pools


def _lines(found: Status) -> list[str]:
    archive, backup = found.archive, found.last_backup
    lines = [f"synchronous   {found.synchronous}"]
    if archive is not None:
        age = "-" if archive.age_seconds is None else f"{archive.age_seconds:.0f} s ago"
        lines.append(f"last WAL in S3  {archive.last_segment or '-'} ({age})")
    lines.append(f"last backup   {f'{backup.label} ({backup.finished})' if backup else '-'}")
    dump = found.last_dump
    lines.append(f"last dump     {f'{dump.label} from {dump.source}' if dump else '-'}")
    lines += [
        f"last {one.job:<9}{'' if one.ok else 'FAILED: '}{one.message}"
        for one in found.recovery
        if one.job != "dump"
    ]
    return lines + ([f"PROBLEM  {problem}" for problem in found.problems] or ["all is well"])


def size(count: int | None) -> str:
    """So many bytes, for people."""
    if count is None:
        return "?"
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.0f} TiB"


def switchover(
    stack: Stack = DEFAULT_STACK,
    to: Annotated[
        str | None, typer.Option("--to", metavar="NODE", help="The standby that takes over.")
    ] = None,
) -> None:
    """Make a standby the primary; pooled clients wait a moment and see no error.

    Examples:

        elsapg switchover

        elsapg switchover --to pg-2
    """
    from elsapg.services.switchover import switchover as run  # noqa: PLC0415

    done = run(deployment(stack), to)
    print(f"{done.new} is the primary; the pools waited {done.stall_seconds:.1f} s")


def backup_now(
    stack: Stack = DEFAULT_STACK,
    kind: Annotated[str, typer.Option("--type", help="full, diff or incr.")] = "incr",
) -> None:
    """Take a backup, from a standby where there is one."""
    from elsapg.services import backups  # noqa: PLC0415

    if kind not in ("full", "diff", "incr"):
        raise typer.BadParameter(f"{kind!r}: one of full, diff, incr", param_hint="--type")
    print(backups.now(deployment(stack), kind))  # type: ignore[arg-type]


def backup_list(stack: Stack = DEFAULT_STACK, json: Json = False) -> None:
    """List the backups in the repository."""
    from elsapg.services import backups  # noqa: PLC0415

    found = backups.backups(deployment(stack))
    if json:
        print(backups.as_json(found))
        return
    table = Table("label", "type", "finished (UTC)", "database", "added", "errors", "repo")
    for one in found:
        table.add_row(*_row(one))
    Console().print(table)


def backup_check(stack: Stack = DEFAULT_STACK) -> None:
    """Read and compare every file of the repository, and name gaps in the WAL. Takes a while."""
    from elsapg.services import recovery  # noqa: PLC0415

    found = recovery.run(deployment(stack), "check")
    print(
        f"{found['backups']} backups and {found['segments']} WAL segments are sound"
        f" ({found['seconds']} s)"
    )
    for hole in found["holes"]:
        print(hole)


def _row(one: Backup) -> tuple[str, ...]:
    return (
        one.label,
        one.kind,
        one.finished,
        size(one.database_bytes),
        size(one.repository_bytes),
        "yes" if one.failed else "no",
        str(one.repository),
    )
