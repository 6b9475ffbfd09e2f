"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from elsapg.services.commands import DEFAULT

if TYPE_CHECKING:
    from elsapg.services.deployment import Deployment

Stack = Annotated[
    str,
    typer.Option(
        "--stack", "-s", envvar="ELSAPG_STACK", metavar="NAME", help="The stack to work on."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask. Needed without a terminal.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
DEFAULT_STACK = DEFAULT


def deployment(stack: str) -> Deployment:
    """The running stack that a day-2 command works on."""
    # Half a second of imports, which `--help` need not pay.
    from elsapg.services.deployment import Deployment  # noqa: PLC0415
    from elsapg.services.places import find_root  # noqa: PLC0415

    return Deployment(find_root(), stack)
