"""restore, restore points, restore mark: back to a moment, in place."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from elsapg.cli import debugging
from elsapg.cli.options import DEFAULT_STACK, Json, Stack, deployment
from elsapg.cli.verify import sentence, show_failures
from elsapg.errors import UnhealthyError, UsageError

if TYPE_CHECKING:
    from elsapg.services.deployment import Deployment
    from elsapg.services.restore import Finish, Prepared, Restored

SETTLES_WITHIN_S = 60


def register(app: typer.Typer) -> None:
    """Add this group's commands to `app`."""
    group = typer.Typer(invoke_without_command=True)
    group.callback()(restore)
    group.command()(points)
    group.command()(mark)
    app.add_typer(group, name="restore")


def restore(
    context: typer.Context,
    stack: Stack = DEFAULT_STACK,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="A time with its zone, an LSN, a mark's name, or latest.",
        ),
    ] = None,
    timeline: Annotated[
        int | None, typer.Option("--timeline", help="The line of history, if not the present one.")
    ] = None,
    backup: Annotated[
        str | None, typer.Option("--backup", metavar="LABEL", help="Begin with this backup.")
    ] = None,
    confirm: Annotated[
        str | None,
        typer.Option("--confirm", metavar="NAME", help="The stack's name, to restore unasked."),
    ] = None,
    no_backup: Annotated[
        bool, typer.Option("--no-backup", help="Take no backup first; undoing takes longer.")
    ] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not read the WAL before; it is found out later.")
    ] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Give up one that has not touched the data yet.")
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not verify at the end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put the running stack back to a moment. Everything after it goes, and can be brought back.

    Stopped or killed anywhere, the same command (or one without --to) goes on.

    Examples:

        elsapg restore points

        elsapg restore --to 2026-01-31T11:59:59Z

        elsapg restore --to before-release-12 --confirm local
    """
    if context.invoked_subcommand is not None:
        return
    from elsapg.runner import target as targets  # noqa: PLC0415
    from elsapg.services import restore as service  # noqa: PLC0415
    from elsapg.services.lifecycle import terminal_ask  # noqa: PLC0415

    where = deployment(stack)
    if abandon:
        target = service.Restore(where).abandon()
        print(f"the restore to {target} is given up; the database goes on as it was")
        return
    request = service.Request(
        target=targets.parse(to) if to is not None else None,
        timeline=timeline,
        backup=backup,
        save=not no_backup,
        check=not no_check,
    )
    say = _say if not as_json else _silent
    work = service.Restore(where, say)
    prepared = work.prepare(request)
    _confirm(stack, prepared, confirm, terminal_ask(), say)
    done = work.run(prepared, _finish(where))
    red = done.trouble or ("" if no_verify else _verify(where, say))
    if as_json:
        print(json.dumps(_as_json(done, red), indent=2))
    else:
        _report(done)
    if red:
        raise UnhealthyError(
            f"the restore is done, but {red}\n`elsapg verify --stack {stack}` shows the rest"
        )


def _say(text: str) -> None:
    print(text, flush=True)


def _silent(_text: str) -> None:
    pass


def _confirm(
    stack: str, prepared: Prepared, confirm: str | None, ask: Any, say: Callable[[str], None]
) -> None:
    plan = prepared.plan
    say(
        f"stack {stack!r} goes to {plan['value'] or 'the end'} on timeline {plan['timeline']}, from"
        f" backup {plan['backup']} (of {plan['backup_stopped']}); what came after is gone from it"
    )
    if prepared.how == "new" and prepared.primary is None:
        say("there is no primary: its unfinished WAL cannot be saved, so no undo will bring it")
    if confirm is None:
        if ask is None:
            raise UsageError(
                f"restore replaces the data of {stack!r}: add --confirm {stack}; nothing was done"
            )
        confirm = ask("type the stack's name to go on: ").strip()
    if confirm != stack:
        raise UsageError(f"{confirm!r} is not the stack's name {stack!r}; nothing was done")


def _finish(where: Deployment) -> Finish:
    from elsapg.services.lifecycle import Lifecycle  # noqa: PLC0415
    from elsapg.services.restore import Finish  # noqa: PLC0415

    lifecycle = Lifecycle(where.root, where.stack, Console(quiet=True), debug=debugging())
    # Nothing is stopped yet: what cannot be ended is not begun.
    lifecycle.check_rerun()
    return Finish(
        bootstrap=lambda: lifecycle.rerun("bootstrap"),
        tasks=lambda: lifecycle.rerun("configure", "first-backup"),
    )


def _verify(where: Deployment, say: Callable[[str], None]) -> str:
    """What is red, in a few words; "" if nothing is."""
    from elsapg.services import verify  # noqa: PLC0415

    say("verifying")
    found = verify.settled(where, SETTLES_WITHIN_S, debug=debugging())
    verify.write_report(found, None, where.root)
    if found.green:
        return ""
    # On standard error: with --json, standard output is for the result alone.
    show_failures(found, Console(stderr=True, soft_wrap=True, highlight=False))
    return sentence(found)


def _as_json(done: Restored, red: str) -> dict[str, Any]:
    return {
        "target": done.target,
        "backup": done.backup,
        "node": done.node,
        "before": done.before,
        "after": done.after,
        "lost_transactions": done.lost_transactions,
        "lost_seconds": done.lost_seconds,
        "undo": done.undo,
        "red": red,
    }


def _report(done: Restored) -> None:
    rows = [("restored to", f"{done.target}, from backup {done.backup}, on {done.node}")]
    before, after = done.before, done.after
    rows.append(
        ("last before", _moment(before) if before else "unknown: there was no primary to ask")
    )
    rows.append(("last now", _moment(after)))
    if done.lost_transactions is not None:
        seconds = "" if done.lost_seconds is None else f" in {done.lost_seconds:.1f} s"
        rows.append(("gone", f"{done.lost_transactions} transactions{seconds}"))
    rows.append(("undo", done.undo or "not possible"))
    for name, text in rows:
        print(f"{name:<12}{text}")


def _moment(facts: dict[str, Any]) -> str:
    commit = facts.get("last_commit") or "no commit known"
    return f"{commit}, LSN {facts['lsn']}, timeline {facts['timeline']}"


def points(stack: Stack = DEFAULT_STACK, as_json: Json = False) -> None:
    """List what can be reached: by line of history, marks, backups.

    Example:

        elsapg restore points --json | jq '.windows[-1].earliest'
    """
    from elsapg.services import restore as service  # noqa: PLC0415

    found = service.points(deployment(stack))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = Console()
    windows = Table("timeline", "from", "to", "to LSN", "", title=f"stack {stack}")
    for window in found["windows"]:
        left = f"left at {window['left_at']}" if window["left_at"] else "left"
        windows.add_row(
            str(window["timeline"]),
            window["earliest"],
            window["latest"],
            window["latest_lsn"],
            "the present" if window["current"] else left,
        )
    console.print(windows)
    marks = Table("mark", "time", "timeline", "LSN", "")
    for one in found["marks"]:
        reachable = "" if one["reachable"] else "not reachable"
        marks.add_row(one["name"], one["time"], str(one["timeline"]), one["lsn"], reachable)
    console.print(marks)


def mark(
    name: Annotated[str, typer.Argument(help="1 to 50 of a-z, 0-9, '_', '.', '-'.")],
    stack: Stack = DEFAULT_STACK,
) -> None:
    """Make a named restore point, for `--to NAME`.

    Example, before a release:

        elsapg restore mark before-release-12
    """
    from elsapg.services import restore as service  # noqa: PLC0415

    made = service.mark(deployment(stack), name)
    print(f"{made['name']}: {made['time']}, LSN {made['lsn']}, timeline {made['timeline']}")
