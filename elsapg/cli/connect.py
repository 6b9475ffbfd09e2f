"""uri, psql, appsettings: how to reach a stack."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from elsapg.cli.options import DEFAULT_STACK, Stack, deployment

Role = Annotated[str, typer.Argument(help="elsa_app, elsa_worker, elsa_migrator, …")]
Database = Annotated[str, typer.Option("--database", "-D", help="elsa_workflows or elsa_runtime.")]
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
) -> None:
    """Print how a role connects, password included: for a pipe, not for a screen share.

    Examples:

        psql "$(elsapg uri elsa_app)"

        elsapg uri elsa_migrator --via session --format npgsql
    """
    from elsapg.services import connect  # noqa: PLC0415

    _one_of("--via", via, ("pool", "session", "readonly", "direct"))
    _one_of("--format", format_, tuple(connect.FORMATS))
    found = connect.connection(deployment(stack), role, database, via)  # type: ignore[arg-type]
    print(connect.FORMATS[format_](found))


def appsettings(
    stack: Stack = DEFAULT_STACK,
    environment: Annotated[
        str, typer.Option("--environment", "-e", help="production or development.")
    ] = "production",
) -> None:
    """Print Elsa's appsettings.json: pooled, migrator's and locks' connection strings.

    Development adds Include Error Detail: exceptions then quote the values of rows, which is why
    production has it not. For an SQL Server elsewhere (elsapg:database) the password is read from
    ELSAPG_DATABASE_PASSWORD.

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
        print(connect.appsettings(deployment(stack), environment))  # type: ignore[arg-type]
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
    found = connect.connection(deployment(stack), role, database, via)  # type: ignore[arg-type]
    folder = Path(found.ca_file).parent
    passwords = folder / f"{stack}.{role}.pgpass"
    secret = found.password.replace("\\", "\\\\").replace(":", "\\:")
    write_private(passwords, f"*:*:*:{role}:{secret}\n")
    words = {
        "host": ",".join(h for h, _ in found.addresses),
        "port": ",".join(str(p) for _, p in found.addresses),
        "dbname": found.database,
        "user": role,
        "sslmode": "verify-full",
        "sslrootcert": str(found.ca_file),
        "passfile": str(passwords),
    }
    conninfo = " ".join(f"{k}='{v}'" for k, v in words.items())
    os.execv(program, ["psql", conninfo, *context.args])  # noqa: S606 - no shell is the point
