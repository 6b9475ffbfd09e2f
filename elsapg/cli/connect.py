"""uri, psql, appsettings: how to reach a stack."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elsapg.cli.options import DEFAULT_STACK, Stack, deployment

if TYPE_CHECKING:
    from elsapg.services import connect
    from elsapg.services.deployment import Deployment

Role = Annotated[str, typer.Argument(help="elsa_app, elsa_worker, elsa_migrator, …")]
Database = Annotated[str, typer.Option("--database", "-D", help="elsa_workflows or elsa_runtime.")]
CaFile = Annotated[
    str | None,
    typer.Option(
        "--ca-file", metavar="PATH", help="Where whoever connects has the CA; a file here if unset."
    ),
]
Via = Annotated[
    str, typer.Option("--via", help="pool (transactions), session, readonly, or direct.")
]


def register(app: typer.Typer) -> None:
    """Add this group's commands to `app`."""
    app.command()(uri)
    app.command()(appsettings)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(psql)


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise typer.BadParameter(f"{value!r}: one of {', '.join(known)}", param_hint=option)


def uri(
    role: Role,
    stack: Stack = DEFAULT_STACK,
    database: Database = "elsa_workflows",
    via: Via = "pool",
    format_: Annotated[str, typer.Option("--format", help="libpq, npgsql or env.")] = "libpq",
    ca_file: CaFile = None,
    port_forward: Annotated[
        bool,
        typer.Option(
            "--port-forward",
            help="kubernetes: from this machine; forwards a port until Ctrl-C.",
        ),
    ] = False,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="For --port-forward; 0: a free one.")
    ] = 0,
) -> None:
    """Print how a role connects, password included: for a pipe, not for a screen share.

    On kubernetes that is how pods of the cluster do, unless a port is forwarded.

    Examples:

        psql "$(elsapg uri elsa_app)"

        elsapg uri elsa_migrator --via session --format npgsql

        elsapg uri elsa_app -s production --port-forward --port 6432
    """
    from elsapg.services import connect  # noqa: PLC0415

    _one_of("--via", via, ("pool", "session", "readonly", "direct"))
    _one_of("--format", format_, tuple(connect.FORMATS))
    target = deployment(stack)

    def show(through: connect.Tunnel | None) -> None:
        found = connect.connection(target, role, database, via, through)  # type: ignore[arg-type]
        print(connect.FORMATS[format_](connect.with_ca(found, ca_file)), flush=True)

    if port_forward:
        _keep_forwarded(target, via, port, show)
    else:
        show(None)


def _keep_forwarded(
    target: Deployment, via: str, port: int, show: Callable[[connect.Tunnel | None], None]
) -> None:
    """Until Ctrl-C; a pod that goes is followed by another, on the same port."""
    from elsapg.errors import UsageError  # noqa: PLC0415
    from elsapg.services import connect  # noqa: PLC0415
    from elsapg.targets.kubernetes.forward import LOCAL  # noqa: PLC0415

    if target.pods is None:
        raise UsageError(
            f"--port-forward: stack {target.stack!r} is on docker, whose ports are published here"
        )
    shown = False
    while True:
        with connect.tunnel(target, via, port) as way:  # type: ignore[arg-type]
            assert way is not None
            if not shown:
                # The certificates hold this address, too; not every client can be told two.
                show(connect.Tunnel(LOCAL, way.port))
                typer.echo(f"forwarding {LOCAL}:{way.port}; Ctrl-C ends it", err=True)
            shown, port = True, way.port
            way.wait()


def appsettings(
    stack: Stack = DEFAULT_STACK,
    environment: Annotated[
        str, typer.Option("--environment", "-e", help="production or development.")
    ] = "production",
    ca_file: CaFile = None,
) -> None:
    """Print Elsa's appsettings.json: pooled, migrator's and locks' connection strings.

    Development adds Include Error Detail: exceptions then quote the values of rows, which is why
    production has it not. On kubernetes the strings are for pods of the cluster, which need the
    CA's certificate in a file (--ca-file). For an SQL Server elsewhere (elsapg:database) the
    password is read from ELSAPG_DATABASE_PASSWORD.

    Examples:

        elsapg appsettings > appsettings.Production.json

        elsapg appsettings -e development > appsettings.Development.json
    """
    from elsapg import stackfile  # noqa: PLC0415
    from elsapg.services import connect  # noqa: PLC0415
    from elsapg.services.places import find_root  # noqa: PLC0415

    _one_of("--environment", environment, ("production", "development"))
    database = stackfile.read(find_root(), stack).database
    if database.provisioned:
        print(connect.appsettings(deployment(stack), environment, ca_file))  # type: ignore[arg-type]
    else:
        print(connect.appsettings_elsewhere(database, environment))  # type: ignore[arg-type]


def psql(
    context: typer.Context,
    role: Role,
    stack: Stack = DEFAULT_STACK,
    database: Database = "elsa_workflows",
    via: Via = "session",
) -> None:
    """Open psql as a role; what follows the role's name goes to psql.

    The password travels in a private file, never in arguments or the environment.

    Examples:

        elsapg psql elsa_readonly

        elsapg psql elsa_migrator -D elsa_runtime -c 'SELECT 1'
    """
    from elsapg.errors import MissingError  # noqa: PLC0415
    from elsapg.services import connect  # noqa: PLC0415
    from elsapg.services.places import write_private  # noqa: PLC0415

    _one_of("--via", via, ("pool", "session", "readonly", "direct"))
    program = shutil.which("psql")
    if program is None:
        raise MissingError("psql is not on this machine: install postgresql-client")
    target = deployment(stack)
    with connect.tunnel(target, via) as through:  # type: ignore[arg-type]
        found = connect.connection(target, role, database, via, through)  # type: ignore[arg-type]
        passwords = Path(found.ca_file).parent / f"{stack}.{role}.pgpass"
        secret = found.password.replace("\\", "\\\\").replace(":", "\\:")
        write_private(passwords, f"*:*:*:{role}:{secret}\n")
        words = {**connect.words(found), "passfile": str(passwords)}
        conninfo = " ".join(f"{k}='{v}'" for k, v in words.items())
        if through is None:
            os.execv(program, ["psql", conninfo, *context.args])  # noqa: S606 - no shell is the point
        raise typer.Exit(_until_end([program, conninfo, *context.args]))


def _until_end(command: list[str]) -> int:
    """Run a program that has the terminal: its Ctrl-C is its own affair."""
    # A handler and not SIG_IGN, which the program would inherit.
    before = signal.signal(signal.SIGINT, lambda _signal, _frame: None)
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
