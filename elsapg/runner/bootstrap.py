"""Applies `bootstrap_sql` to the primary: cluster files, the stack's data settings, passwords, the
numbered migrations, and the cluster files that need the migrations' tables.

Runs in the runner's container as the superuser, by client certificate. Everything is checked
before anything is applied, under an advisory lock in each database, so two runs at once are safe;
a run that finds nothing to do changes nothing and says so.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from elsapg.errors import DeploymentError, ElsapgError, UsageError
from elsapg.runner import scram
from elsapg.runner.migrations import (
    SqlError,
    Step,
    apply_patiently,
    examine,
    explained,
    pending,
    read_ledger,
    refuse,
    run_statements,
)
from elsapg.runner.sessions import Connect, Connection, Log, Sessions
from elsapg.runner.sqlfile import DATABASES, POSTGRES, ClusterFile, SqlTree, Statement, read_tree

CONFIG_PATH = Path("/etc/elsapg/runner.json")
PASSWORD_ROLES = (
    "elsa_migrator",
    "elsa_app",
    "elsa_worker",
    "elsa_readonly",
    "elsa_host",
    "elsa_admin",
    "monitoring",
)
# The rows of elsapg.setting, whole numbers that the stack's file gives.
SETTINGS = ("instances_days", "archive_months", "snapshots_hours", "months_ahead")
_LARGEST_SETTING = 2**31 - 1
_SYNCHRONOUS_COMMIT = ("on", "off", "local", "remote_write", "remote_apply")


@dataclass
class Result:
    """What one run did."""

    cluster_files: int = 0
    migrations: dict[str, list[str]] = field(default_factory=dict)
    passwords_changed: list[str] = field(default_factory=list)
    settings_changed: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether a migration was applied, or a password or a setting changed."""
        return bool(
            self.passwords_changed or self.settings_changed or any(self.migrations.values())
        )

    def __str__(self) -> str:
        applied = sum(map(len, self.migrations.values()))
        return (
            f"{_count(applied, 'migration')} applied,"
            f" {_count(len(self.passwords_changed), 'password')} changed,"
            f" {_count(len(self.settings_changed), 'setting')} changed"
        )


def bootstrap(
    connect: Connect,
    sql_dir: Path,
    passwords: Mapping[str, str],
    log: Log,
    *,
    settings: Mapping[str, int] | None = None,
    expect_primary: bool = True,
    synchronous_commit: str | None = None,
    connect_timeout: float = 60,
    lock_timeout: float = 120,
) -> Result:
    """Bring the server to what `sql_dir` says. `connect` takes a database's name.

    `settings` are rows of `elsapg.setting`; those not given stay as they are. Timeouts are in
    seconds: how long to wait for a primary, and for another run to end.
    """
    check_passwords(passwords)
    check_settings(settings or {})
    tree = read_tree(sql_dir)
    session = {} if synchronous_commit is None else {"synchronous_commit": synchronous_commit}
    with Sessions(
        connect,
        log,
        session,
        connect_timeout=connect_timeout,
        lock_timeout=lock_timeout,
        expect_primary=expect_primary,
    ) as sessions:
        steps = _examine(sessions, tree)
        refuse(steps)
        result = Result()
        _run_cluster(sessions, tree, result, log, after_migrations=False)
        result.settings_changed = _write_settings(sessions, settings or {}, log)
        result.passwords_changed = set_passwords(sessions.get(POSTGRES), passwords)
        log(f"passwords: changed {', '.join(result.passwords_changed) or 'none'}")
        for database in tree.migrations:
            result.migrations[database] = _migrate(sessions, database, steps[database], log)
        _run_cluster(sessions, tree, result, log, after_migrations=True)
    return result


def _examine(sessions: Sessions, tree: SqlTree) -> dict[str, list[Step]]:
    rows = sessions.get(POSTGRES).execute("SELECT d.datname FROM pg_catalog.pg_database AS d")
    present = {str(row[0]) for row in rows.fetchall()}
    steps: dict[str, list[Step]] = {}
    for database, files in tree.migrations.items():
        ledger = read_ledger(sessions.get(database)) if database in present else []
        steps[database] = examine(database, files, ledger)
    return steps


def _run_cluster(
    sessions: Sessions, tree: SqlTree, result: Result, log: Log, *, after_migrations: bool
) -> None:
    files = [file for file in tree.cluster if file.after_migrations is after_migrations]
    for file in files:
        for database in file.databases:
            run_cluster_file(sessions.get(database), file, database)
    result.cluster_files += len(files)
    when = "after the migrations" if after_migrations else "before the migrations"
    log(f"cluster: {_count(len(files), 'file')} run {when}, safe to run again")


def _migrate(sessions: Sessions, database: str, steps: list[Step], log: Log) -> list[str]:
    files = pending(steps)
    for file in files:
        apply_patiently(sessions, database, file, log)
    before = len(steps) - len(files)
    log(f"{database}: {_count(len(files), 'migration')} applied, {before} before")
    return [file.name for file in files]


def run_cluster_file(connection: Connection, file: ClusterFile, database: str) -> None:
    """Run one cluster file in one database, unless its own query says that it is done."""
    if file.unless is not None:
        query = Statement(file.unless, 1, ())
        with explained(file.label, database, query, "Nothing of this file was run."):
            if connection.execute(file.unless.encode()).fetchone() is not None:
                return
    if file.transaction:
        try:
            # All at once, without waiting for each answer: hundreds of them add up.
            with connection.transaction(), connection.pipeline():
                for statement in file.statements:
                    connection.execute(statement.text.encode())
            return
        except psycopg.Error:
            # Whose error it was is not told. Nothing was kept: once more, one by one, which names
            # the line.
            pass
        with connection.transaction():
            run_statements(connection, file.label, database, file.statements)
    else:
        run_statements(
            connection,
            file.label,
            database,
            file.statements,
            kept="This file runs outside a transaction: the statements above that line are kept.",
        )


# --- the stack's data settings -----------------------------------------------------------------


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse an unknown name, and a value that is no whole number from 0."""
    for name, value in settings.items():
        if name not in SETTINGS:
            raise UsageError(f"no data setting is called {name}; there are {', '.join(SETTINGS)}")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and 0 <= value <= _LARGEST_SETTING):
            raise UsageError(
                f"data setting {name} = {value!r}: must be a whole number from 0 to"
                f" {_LARGEST_SETTING}"
            )


def _write_settings(sessions: Sessions, settings: Mapping[str, int], log: Log) -> list[str]:
    """Write the rows that differ, in every database; returns their names."""
    changed: dict[str, None] = {}
    for database in DATABASES if settings else ():
        connection = sessions.get(database)
        rows = connection.execute("SELECT s.name, s.value FROM elsapg.setting AS s").fetchall()
        stored: dict[str, int] = dict(rows)
        for name, value in settings.items():
            if stored.get(name) != value:
                connection.execute(
                    "INSERT INTO elsapg.setting (name, value) VALUES (%s, %s)"
                    " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    (name, value),
                )
                log(f"{database}: setting {name} = {value}, was {stored.get(name, 'missing')}")
                changed[name] = None
    return list(changed)


# --- passwords ---------------------------------------------------------------------------------


def check_passwords(passwords: Mapping[str, str]) -> None:
    """Refuse a missing, unknown or unusable entry by the role's name."""
    for role in PASSWORD_ROLES:
        if role not in passwords:
            raise UsageError(f"no password for role {role}; the roles' file must name all of them")
        if not scram.is_supported(passwords[role]):
            raise UsageError(f"the password of role {role} must be printable ASCII and not empty")
    for role in passwords:
        if role not in PASSWORD_ROLES:
            raise UsageError(f"role {role} takes no password; remove it from the roles' file")


def set_passwords(connection: Connection, passwords: Mapping[str, str]) -> list[str]:
    """Store a new verifier where the password differs; returns the changed roles' names.

    An unchanged password keeps its verifier, salt and all: PgBouncer caches SCRAM keys, and a
    new salt would make every pooled login fail once.
    """
    rows = connection.execute(
        "SELECT a.rolname, a.rolpassword FROM pg_catalog.pg_authid AS a WHERE a.rolname = ANY(%s)",
        (list(passwords),),
    ).fetchall()
    stored: dict[str, str | None] = dict(rows)
    changed = [role for role in passwords if not scram.matches(passwords[role], stored.get(role))]
    with connection.transaction():
        # A verifier is no password, but it has no business in a log or in pg_stat_statements.
        for name, value in (
            ("log_statement", "none"),
            ("log_min_duration_statement", "-1"),
            ("log_min_error_statement", "panic"),
            ("pg_stat_statements.track_utility", "off"),
        ):
            connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", (name, value))
        for role in changed:
            statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                sql.Identifier(role), sql.Literal(scram.verifier(passwords[role]))
            )
            try:
                connection.execute(statement)
            except psycopg.Error as error:
                raise SqlError(
                    f"the password of role {role} could not be set: {error.diag.message_primary}"
                ) from None
    return changed


# --- the container's door ----------------------------------------------------------------------


def main(config_path: Path = CONFIG_PATH) -> int:
    """Read the runner's configuration, run the bootstrap, return the exit code."""
    started = time.monotonic()
    try:
        config = _read_json(config_path)
        try:
            primary = config["primary"]
            address = f"{primary['host']}:{primary['port']}"
            parameters = {
                "host": primary["host"],
                "port": primary["port"],
                "user": config["superuser"],
                # Only the certificate counts: a server that asks for a password is refused.
                "sslmode": "verify-full",
                "sslrootcert": config["sslrootcert"],
                "sslcert": config["sslcert"],
                "sslkey": config["sslkey"],
                "sslcertmode": "require",
                "require_auth": "none",
                "connect_timeout": 5,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "application_name": "elsapg-bootstrap",
                "client_encoding": "UTF8",
                "options": "",
            }
            sql_dir = Path(config["sql_dir"])
            passwords = _read_json(Path(config["passwords_file"]))
            settings = config.get("settings", {})
            if not isinstance(settings, dict):
                raise UsageError(f"{config_path}: settings must be a JSON object")
        except (KeyError, TypeError) as error:
            raise UsageError(f"{config_path} lacks or misspells {error}") from None
        synchronous_commit = config.get("synchronous_commit")
        if synchronous_commit not in (None, *_SYNCHRONOUS_COMMIT):
            raise UsageError(
                f"{config_path}: synchronous_commit must be one of {', '.join(_SYNCHRONOUS_COMMIT)}"
            )
        _say(f"bootstrap: {address} as {config['superuser']}")
        result = bootstrap(
            lambda database: psycopg.connect(dbname=database, **parameters),
            sql_dir,
            passwords,
            _say,
            settings=settings,
            synchronous_commit=synchronous_commit,
        )
    except ElsapgError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except psycopg.OperationalError as error:
        # The connection broke under a statement: a failover, or the server stopped.
        print(
            f"error: the connection to the primary was lost: {' '.join(str(error).split())}\n"
            "  Run the bootstrap again; what was applied stays, the rest follows.",
            file=sys.stderr,
            flush=True,
        )
        return DeploymentError.exit_code
    _say(f"done: {result}, in {time.monotonic() - started:.1f} s")
    return 0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        # Not the parser's message: it may quote the file, and the file may hold passwords.
        raise UsageError(f"{path} is not JSON") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} must hold a JSON object")
    return value


def _say(line: str) -> None:
    print(line, flush=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    raise SystemExit(main(*(Path(argument) for argument in sys.argv[1:2])))
