"""up, preview, refresh, destroy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from elsapg.cli import debugging
from elsapg.cli.manifests import secrets_apply
from elsapg.cli.options import DEFAULT_STACK, Stack, Yes

if TYPE_CHECKING:
    from elsapg.services.lifecycle import Lifecycle

ExpectNoChanges = Annotated[
    bool,
    typer.Option("--expect-no-changes", help="Fail (exit 9) if there are changes; make none."),
]
Refresh = Annotated[
    bool, typer.Option("--refresh", help="First look at what is really there, as `refresh` does.")
]


def register(app: typer.Typer) -> None:
    """Add this group's commands to `app`."""
    for command in (up, preview, refresh, destroy, clone):
        app.command()(command)


def _lifecycle(stack: str) -> Lifecycle:
    # Half a second of imports, which `--help` need not pay.
    from elsapg.services.lifecycle import Lifecycle, terminal_ask  # noqa: PLC0415
    from elsapg.services.places import find_root  # noqa: PLC0415

    console = Console()
    return Lifecycle(find_root(), stack, console, debug=debugging(), ask=terminal_ask())


def up(
    stack: Stack = DEFAULT_STACK,
    yes: Yes = False,
    expect_no_changes: ExpectNoChanges = False,
    refresh: Refresh = False,
    from_backup: Annotated[
        bool,
        typer.Option("--from-backup", help="The data is lost: bring it back from the archive."),
    ] = False,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="TARGET", help="With --from-backup; latest if not given."),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            "--keys", metavar="FILE", help="What `elsapg keys repository` printed; - for stdin."
        ),
    ] = None,
) -> None:
    """Make a stack what its file says: create what is missing, change what differs.

    An `up` that was stopped or killed is finished by the next one.

    Examples:

        elsapg up --yes

        elsapg up -s staging --expect-no-changes

        elsapg up -s prod --from-backup --keys prod-keys.json
    """
    if not expect_no_changes and _recovering(stack, from_backup, to, keys, yes):
        return
    _lifecycle(stack).up(yes=yes, expect_no_changes=expect_no_changes, refresh=refresh)


def _recovering(stack: str, from_backup: bool, to: str | None, keys: str | None, yes: bool) -> bool:
    """Bring the stack out of a repository, if that is what is wanted or was begun."""
    from elsapg import stackfile  # noqa: PLC0415
    from elsapg.errors import UsageError  # noqa: PLC0415
    from elsapg.runner import target as targets  # noqa: PLC0415
    from elsapg.services import rescue  # noqa: PLC0415
    from elsapg.services.places import find_root  # noqa: PLC0415

    root = find_root()
    if not from_backup and (to or keys):
        raise UsageError("--to and --keys go with --from-backup")
    begun = rescue.pending(root, stack)
    order = begun
    if from_backup:
        if to is not None or begun is None:
            order = rescue.Order(to=str(targets.parse(to or targets.LATEST)))
    elif begun is None:
        order = rescue.of_file(root, stack, stackfile.read(root, stack))
    elif begun.source is None:
        raise UsageError(
            f"stack {stack!r} was being brought back from its archive: `elsapg up --stack {stack} "
            "--from-backup` goes on with that"
        )
    if order is None:
        return False
    life = _lifecycle(stack)
    kept = rescue.read_escrow(keys, stack) if keys else None
    done = rescue.recover(life, order, kept, yes=yes, say=print)
    print(
        f"stack {stack!r} is back, from backup {done['backup']}: last commit "
        f"{done['last_commit'] or 'unknown'}, LSN {done['lsn']}, timeline {done['timeline']}"
    )
    return True


def clone(
    to: Annotated[
        str, typer.Option("--to", metavar="TARGET", help="A time with its zone, an LSN, a mark …")
    ],
    name: Annotated[str, typer.Option("--as", metavar="NEW", help="The new stack's name.")],
    stack: Stack = DEFAULT_STACK,
    timeline: Annotated[
        int | None, typer.Option("--timeline", help="The line of history, if not the present one.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Make a second stack from this one's backups, with its own passwords, CA and archive.

    Its jobs are off until `elsapg:jobs` says otherwise. Stopped anywhere, `elsapg up` of the new
    stack goes on. On kubernetes, unless Pulumi runs the stack from here, its file and its Secrets
    are made (S3's keys as `elsapg secrets apply` takes them, else the source's), and what comes
    next is said.

    Example:

        elsapg clone -s prod --to 2026-01-31T12:00:00Z --as investigation --yes
    """
    from elsapg.cli.options import deployment  # noqa: PLC0415
    from elsapg.runner import target as targets  # noqa: PLC0415
    from elsapg.services import clone as service  # noqa: PLC0415

    wanted, source = targets.parse(to), deployment(stack)
    path = service.write(source, wanted, timeline, name)
    print(f"wrote {path}")
    if service.by_up(source):
        up(stack=name, yes=yes)
    else:
        secrets_apply(name)


def preview(
    stack: Stack = DEFAULT_STACK,
    expect_no_changes: ExpectNoChanges = False,
    refresh: Refresh = False,
) -> None:
    """Show what `up` would change. Changes nothing.

    Example, as a nightly check that nobody changed anything by hand:

        elsapg preview -s production --refresh --expect-no-changes
    """
    _lifecycle(stack).preview(expect_no_changes=expect_no_changes, refresh=refresh)


def refresh(
    stack: Stack = DEFAULT_STACK, yes: Yes = False, expect_no_changes: ExpectNoChanges = False
) -> None:
    """Find what was changed by hand, and take it into the state, for `up` to put right.

    Example:

        elsapg refresh --yes && elsapg up --yes
    """
    _lifecycle(stack).refresh(yes=yes, expect_no_changes=expect_no_changes)


def destroy(
    stack: Stack = DEFAULT_STACK,
    yes: Yes = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="Also delete data, backups, secrets and the stack.")
    ] = False,
    confirm: Annotated[
        str | None,
        typer.Option("--confirm", metavar="NAME", help="The stack's name, for --purge unasked."),
    ] = None,
) -> None:
    """Remove what a stack runs. What holds data stays, unless --purge.

    Examples:

        elsapg destroy --yes

        elsapg destroy -s test-1 --purge --confirm test-1
    """
    _lifecycle(stack).destroy(yes=yes, purge=purge, confirm=confirm)
