"""up, preview, refresh, destroy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from elsapg.cli import debugging
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
    for command in (up, preview, refresh, destroy):
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
) -> None:
    """Make a stack what its file says: create what is missing, change what differs.

    An `up` that was stopped or killed is finished by the next one.

    Examples:

        elsapg up --yes

        elsapg up -s staging --expect-no-changes
    """
    _lifecycle(stack).up(yes=yes, expect_no_changes=expect_no_changes, refresh=refresh)


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
