"""How people and applications reach a stack: URIs, Elsa's settings, a psql session.

Also for a stack whose database is elsewhere (`database.provider`): Elsa's settings have the same
names whichever database it is, so that switching is one line and no code.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

from elsapg.definition import topology as t
from elsapg.definition.secrets import PASSWORD_ROLES
from elsapg.errors import UsageError
from elsapg.services.deployment import Deployment
from elsapg.services.places import write_private
from elsapg.settings import DatabaseSettings
from elsapg.targets.kubernetes.forward import LOCAL, forward

Via = Literal["pool", "session", "readonly", "direct"]
Format = Literal["libpq", "npgsql", "env"]
Environment = Literal["development", "production"]
FROM_ENVIRONMENT = "ELSAPG_DATABASE_PASSWORD"

# The door decides the database's name at PgBouncer.
_SUFFIX: dict[Via, str] = {"pool": "", "session": "_session", "readonly": "_readonly", "direct": ""}


@dataclass(frozen=True)
class Connection:
    """Where a role connects. `password` is a secret: show it only where it was asked for."""

    role: str
    password: str
    database: str
    addresses: tuple[tuple[str, int], ...]
    ca_file: Path
    via: Via
    hostaddr: str | None = None
    """Where the names in `addresses`, which the certificates hold, lead to; None: look them up."""
    lifetime_s: int | None = None
    """After so long a client's own pool ought to connect anew; None: whenever it likes."""


@dataclass(frozen=True)
class Tunnel:
    """A port of this machine that leads into the cluster, and the name that answers there."""

    name: str
    port: int
    wait: Callable[[], None] = lambda: None


def connection(
    deployment: Deployment,
    role: str,
    database: str = t.DATABASES[0],
    via: Via = "pool",
    through: Tunnel | None = None,
) -> Connection:
    """The connection of a role. Raises UsageError for what does not exist, with what does.

    On kubernetes it is one for the cluster's inside, unless it goes `through` a tunnel.
    """
    if role not in PASSWORD_ROLES:
        raise UsageError(
            f"role {role!r} has no password to connect with; roles: {', '.join(PASSWORD_ROLES)}"
        )
    known = (*t.DATABASES, "postgres") if via == "direct" else t.DATABASES
    if database not in known:
        raise UsageError(f"database {database!r}: via {via} there are {', '.join(known)}")
    settings = deployment.settings
    hostaddr = None
    if through is not None:
        addresses: tuple[tuple[str, int], ...] = ((through.name, through.port),)
        hostaddr = LOCAL if through.name != LOCAL else None
    elif via == "direct":
        addresses = ((settings.docker.connect_address, _direct_port(deployment)),)
    else:
        addresses = tuple((pool["host"], int(pool["port"])) for pool in deployment.outputs["pools"])
    return Connection(
        role=role,
        password=deployment.outputs["passwords"][role],
        database=database + _SUFFIX[via],
        addresses=addresses,
        ca_file=ca_file(deployment),
        via=via,
        hostaddr=hostaddr,
        # Before a pool that leaves has gone; what has just begun ends in the last quarter.
        lifetime_s=math.ceil(settings.kubernetes.pool_leave_s * 3 / 4) or None,
    )


def _direct_port(deployment: Deployment) -> int:
    port = deployment.settings.docker.direct_port
    if deployment.settings.target == "kubernetes":
        raise UsageError(
            f"nothing but the pools reaches PostgreSQL itself in stack {deployment.stack!r}: use "
            "--via session, or --port-forward"
        )
    if port is None:
        raise UsageError(
            f"stack {deployment.stack!r} does not publish PostgreSQL itself: use --via "
            "session, or set docker.direct_port in its file and run `elsapg up`"
        )
    return port


@contextlib.contextmanager
def tunnel(deployment: Deployment, via: Via, port: int = 0) -> Iterator[Tunnel | None]:
    """A way from this machine to a door of the stack: None where it is published here anyway.

    It ends with the block. `port`: the local one, any free one if 0.
    """
    if deployment.settings.target != "kubernetes":
        yield None
        return
    assert deployment.pods is not None
    if via == "direct":
        name, target, remote = t.PRIMARY_HOST, f"pod/{deployment.primary()}", t.PG_PORT
    else:
        pool = deployment.outputs["pools"][0]
        name, target, remote = str(pool["host"]), "service/pgbouncer", t.POOL_PORT
    with forward(deployment.pods.kubectl, target, remote, port) as found:
        yield Tunnel(name, found.port, found.wait)


def ca_file(deployment: Deployment) -> Path:
    """The stack's CA certificate on this machine, written from the outputs."""
    path = deployment.root / ".elsapg" / "connect" / f"{deployment.stack}.crt"
    write_private(path, deployment.outputs["ca"], mode=0o644)
    return path


def words(c: Connection) -> dict[str, Any]:
    """libpq's own words for it, without the password."""
    found: dict[str, Any] = {
        "host": ",".join(host for host, _ in c.addresses),
        "port": ",".join(str(port) for _, port in c.addresses),
        "dbname": c.database,
        "user": c.role,
        "sslmode": "verify-full",
        "sslrootcert": str(c.ca_file),
    }
    return found | ({"hostaddr": c.hostaddr} if c.hostaddr else {})


def libpq(c: Connection) -> str:
    """A libpq URI, RFC 3986 quoted, with every address: the client takes the next if one fails."""
    hosts = ",".join(f"{host}:{port}" for host, port in c.addresses)
    options = {"sslmode": "verify-full", "sslrootcert": str(c.ca_file)}
    if c.hostaddr:
        options["hostaddr"] = c.hostaddr
    return (
        f"postgresql://{quote(c.role, safe='')}:{quote(c.password, safe='')}@{hosts}/{c.database}"
        f"?{urlencode(options, safe='/', quote_via=quote)}"
    )


def npgsql(c: Connection, *, detail: bool = False) -> str:
    """A connection string for Npgsql (Elsa), after its manual's page on PgBouncer.

    `detail`: exceptions carry the server's DETAIL, which quotes values of rows. Neither Options nor
    Search Path may stand here: PgBouncer refuses them at login. Nor may Target Session Attributes:
    each PgBouncer leads to the primary, and Npgsql's data sources refuse it beside several hosts.
    """
    words = {
        "Host": ",".join(f"{host}:{port}" for host, port in c.addresses),
        "Database": c.database,
        "Username": c.role,
        "Password": c.password,
        "SSL Mode": "VerifyFull",
        "Root Certificate": str(c.ca_file),
    }
    if len(c.addresses) > 1:
        # Otherwise the second PgBouncer, with its half of the server connections, would idle.
        words |= {"Load Balance Hosts": "true"}
    if c.via in ("pool", "readonly"):
        # DISCARD ALL has no use in transaction mode; PgBouncer tracks prepared statements.
        words |= {"No Reset On Close": "true"}
        if c.lifetime_s:
            words |= {"Connection Lifetime": str(c.lifetime_s)}
    else:
        # A pooled connection that idles would hold one of the few server connections of this door.
        words |= {"Pooling": "false"}
    if detail:
        words |= {"Include Error Detail": "true"}
    return _joined(words)


def _joined(words: Mapping[str, str]) -> str:
    """A connection string as .NET's DbConnectionStringBuilder reads it."""
    return ";".join(f"{key}={_quoted(value)}" for key, value in words.items())


def _quoted(value: str) -> str:
    return f"'{value.replace(chr(39), chr(39) * 2)}'" if set(value) & set(";='\" ") else value


def variables(c: Connection) -> dict[str, str]:
    """libpq's environment variables; PGPASSWORD is a secret."""
    return {
        "PGHOST": ",".join(host for host, _ in c.addresses),
        **({"PGHOSTADDR": c.hostaddr} if c.hostaddr else {}),
        "PGPORT": ",".join(str(port) for _, port in c.addresses),
        "PGDATABASE": c.database,
        "PGUSER": c.role,
        "PGPASSWORD": c.password,
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": str(c.ca_file),
    }


def environment(c: Connection) -> str:
    """libpq's environment variables, one a line, quoted for a shell to `source` or `eval`."""
    return "\n".join(f"{key}={shlex.quote(value)}" for key, value in variables(c).items())


FORMATS = {"libpq": libpq, "npgsql": npgsql, "env": environment}


def with_ca(c: Connection, path: str | None) -> Connection:
    """The connection as it is for somebody who has the CA's certificate elsewhere."""
    return c if path is None else replace(c, ca_file=Path(path))


def appsettings(
    deployment: Deployment, environment: Environment = "production", ca_file: str | None = None
) -> str:
    """`appsettings.json` for Elsa: three strings, because they need three different doors.

    Application: pooled. Migrations: a session as the migrator. Locks: a session, because
    Medallion's locks are session advisory locks, which two clients of one pool would share.
    """
    workflows, runtime = t.DATABASES
    connections = {
        "Elsa": connection(deployment, "elsa_app", workflows),
        "ElsaMigrations": connection(deployment, "elsa_migrator", workflows, "session"),
        "ElsaLocks": connection(deployment, "elsa_app", workflows, "session"),
        "ElsaRuntime": connection(deployment, "elsa_app", runtime),
    }
    detail = environment == "development"
    strings = {name: npgsql(with_ca(c, ca_file), detail=detail) for name, c in connections.items()}
    return _appsettings("PostgreSql", strings, environment)


def appsettings_elsewhere(database: DatabaseSettings, environment: Environment) -> str:
    """`appsettings.json` for a database that the toolkit does not run: the same names.

    The password of an SQL Server is taken from the environment; UsageError if it is not there.
    """
    if database.provider == "sqlite":
        provider, string = "Sqlite", _joined({"Data Source": database.file})
    else:
        password = os.environ.get(FROM_ENVIRONMENT)
        if not password:
            raise UsageError(
                f"the password of {database.user!r} on {database.host!r} is in no file: put it "
                f"into the environment variable {FROM_ENVIRONMENT} and run this again"
            )
        provider = "SqlServer"
        string = _joined(
            {
                "Server": f"tcp:{database.host},{database.port}",
                "Database": database.database,
                "User ID": str(database.user),
                "Password": password,
                "Encrypt": "True",
                "TrustServerCertificate": "False",
            }
        )
    names = ("Elsa", "ElsaMigrations", "ElsaLocks", "ElsaRuntime")
    return _appsettings(provider, dict.fromkeys(names, string), environment)


# What the design document calls the application's string in each environment.
_ALIASES: Mapping[Environment, str] = {
    "development": "DefaultConnection",
    "production": "ProductionConnection",
}


def _appsettings(provider: str, strings: Mapping[str, str], environment: Environment) -> str:
    """`provider` is spelt as in Elsa's own DatabaseProvider setting."""
    named = {**strings, _ALIASES[environment]: strings["Elsa"]}
    return json.dumps({"DatabaseProvider": provider, "ConnectionStrings": named}, indent=2)
