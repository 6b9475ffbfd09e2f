"""verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from elsapg.cli import debugging
from elsapg.cli.options import DEFAULT_STACK, Json, Stack
from elsapg.errors import UnhealthyError

if TYPE_CHECKING:
    from elsapg.services.verify import Check, Group, Verification

# The same finding on every unit is told once, for so many units by name.
NAMED = 4
# What is red is asked once more: a standby may be away for a moment, or a machine busy.
SETTLES_WITHIN_S = 5.0


def register(app: typer.Typer) -> None:
    """Add this group's commands to `app`."""
    app.command()(verify)


def verify(
    stack: Stack = DEFAULT_STACK,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="A group or a check; may be repeated."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="DIR", help="Where to; .elsapg/reports/STACK/ if not given."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove on the running stack that everything holds; write a report (exit 7 if it does not).

    Writes nothing into the databases, and changes nothing but one WAL segment switch.

    Examples:

        elsapg verify

        elsapg verify -s staging --only tls --only replication
    """
    from elsapg.services import verify as service  # noqa: PLC0415
    from elsapg.services.deployment import Deployment  # noqa: PLC0415
    from elsapg.services.places import find_root  # noqa: PLC0415

    deployment = Deployment(find_root(), stack)
    found = service.settled(deployment, SETTLES_WITHIN_S, only or (), debug=debugging())
    folder = service.write_report(found, report, deployment.root)
    if as_json:
        print(json.dumps({**found.as_json(), "report": str(folder)}, indent=2))
    else:
        _show(found, folder, Console(soft_wrap=True, highlight=False))
    if not found.green:
        raise UnhealthyError(f"stack {found.stack!r} does not hold: {sentence(found)}")


def sentence(found: Verification) -> str:
    """What does not hold, in a few words."""
    parts = [f"{len(found.failures)} of {len(found.checks)} checks are red"]
    if found.unjudged:
        parts.append(f"{len(found.unjudged)} could not be made")
    if found.broken:
        parts.append(found.broken[0])
    return ", ".join(parts)


def _show(found: Verification, folder: Path, console: Console) -> None:
    for group in found.groups:
        console.print(_line(group, console.width))
    show_failures(found, console)
    reasons = sorted({check.found for check in found.unjudged})
    if reasons:
        console.print(Text(f"\nnot made: {len(found.unjudged)} ({'; '.join(reasons)})"))
    for check in found.late:
        console.print(Text(f"\n{check.label} held when asked again; at first: {check.found}"))
    for target in sorted({one.target for one in found.left_out}):
        ours = [one for one in found.left_out if one.target == target]
        why = "; ".join(dict.fromkeys(one.reason for one in ours))
        count = sum(one.count for one in ours)
        console.print(Text(f"\nleft out: {count}, which are for {target} only ({why})"))
    total = f"{len(found.checks)} checks in {found.seconds:.0f} s"
    console.print(Text(f"\n{total}; report: {folder / 'report.html'}"))


def show_failures(found: Verification, console: Console) -> None:
    """What does not hold, check by check, and what to do about it."""
    for checks in _alike(found.failures):
        first = checks[0]
        subjects = [check.subject for check in checks if check.subject]
        more = f" and {len(subjects) - NAMED} more" if len(subjects) > NAMED else ""
        where = f" ({', '.join(subjects[:NAMED])}{more})" if subjects else ""
        console.print(Text(f"\n{first.group}: {first.claim}{where}", style="bold red"))
        console.print(Text(f"  found {first.found}; do: {first.todo}"))
        if debugging() and first.trace:
            console.print(Text(first.trace, style="dim"))


def _line(group: Group, width: int) -> Text:
    failed, unjudged = group.count("failed"), group.count("unjudged")
    mark, style = (
        ("RED", "bold red") if failed else ("??", "yellow") if unjudged else ("ok", "green")
    )
    held = f"{group.count('passed')} of {len(group.checks)}"
    if unjudged:
        held += f", {unjudged} not made"
    line = Text(f"{mark:<5}", style=style)
    line.append(f"{group.name:<15}{held:<10}  ", style="none")
    line.append(group.about.partition(": ")[2], style="dim")
    line.truncate(width, overflow="ellipsis")
    return line


def _alike(failures: tuple[Check, ...]) -> list[list[Check]]:
    """Failures that say the same, together."""
    alike: dict[tuple[str, ...], list[Check]] = {}
    for check in failures:
        # The finding may name its subject, and be the same otherwise.
        found = check.found.replace(check.subject, "*") if check.subject else check.found
        alike.setdefault((check.group, check.name, found, check.todo), []).append(check)
    return list(alike.values())
