"""Migrations for the team: what is applied, applying the rest, the next file, a script for a DBA.

Works on a running stack as elsa_migrator, through the door that keeps a session: an advisory lock
behind a pool of transactions would be nobody's. Cluster files (roles, extensions, views) need the
superuser and stay with `elsapg up`, which applies the migrations, too, by the same functions.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from elsapg.errors import DeploymentError, NotDeployedError, UsageError
from elsapg.runner.migrations import (
    LOCK_TIMEOUT_S,
    OWNER,
    Step,
    apply_migration,
    apply_patiently,
    examine,
    pending,
    read_ledger,
    refuse,
)
from elsapg.runner.sessions import (
    LOCK_KEY,
    SESSION,
    Connect,
    Connection,
    Log,
    Sessions,
    connect_primary,
    prepare,
)
from elsapg.runner.sqlfile import DATABASES, Migration, SqlTree, read_tree, split
from elsapg.services import connect as doors
from elsapg.services.deployment import Deployment
from elsapg.services.places import write_private

SQL_FOLDER = "bootstrap_sql"
ROLE = "elsa_migrator"

_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,79}")
_LAST_NUMBER = 9999
_CONNECT_TIMEOUT_S = 15.0
_RUN_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Status:
    """Where the migrations of some databases stand."""

    databases: dict[str, list[Step]]

    @property
    def pending(self) -> int:
        """How many files are still to be applied."""
        return sum(len(pending(steps)) for steps in self.databases.values())

    @property
    def problems(self) -> list[str]:
        """Why nothing may be applied; empty if something may."""
        return [step.problem for of in self.databases.values() for step in of if step.problem]

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "databases": {
                database: [_step_json(step) for step in steps]
                for database, steps in self.databases.items()
            },
            "pending": self.pending,
            "problems": self.problems,
        }


def _step_json(step: Step) -> dict[str, Any]:
    row, file = step.applied, step.file
    return {
        "number": step.version,
        "name": step.name,
        "state": step.state,
        "applied_at": row.applied_at if row else None,
        "applied_by": row.applied_by if row else None,
        "duration_ms": row.duration_ms if row else None,
        "under_load": file.under_load if file else None,
    }


def connector(deployment: Deployment, through: doors.Tunnel | None = None) -> Connect:
    """Opens a session of elsa_migrator in one of the stack's databases."""
    name = f"elsapg migrate ({_user()}@{socket.gethostname()})"

    def connect(database: str) -> Connection:
        door = doors.connection(deployment, ROLE, database, "session", through)
        return psycopg.connect(
            **doors.words(door),
            password=door.password,
            connect_timeout=5,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            application_name=name[:63],
            client_encoding="UTF8",
        )

    return connect


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user need not have a name.
        return str(os.getuid())


def chosen(database: str | None) -> tuple[str, ...]:
    """The databases that a command works on. Raises UsageError for one that has no migrations."""
    if database is None:
        return DATABASES
    if database not in DATABASES:
        raise UsageError(f"database {database!r} has no migrations; there are {_among(DATABASES)}")
    return (database,)


# --- status and apply --------------------------------------------------------------------------


def status(connect: Connect, sql_dir: Path, databases: Sequence[str], log: Log) -> Status:
    """Where every migration stands. Takes no lock: it answers while another run applies."""
    tree = read_tree(sql_dir)
    steps: dict[str, list[Step]] = {}
    with _told_if_lost():
        for database in databases:
            connection = connect_primary(connect, database, log, timeout=_CONNECT_TIMEOUT_S)
            try:
                prepare(connection, {})
                steps[database] = _examine(connection, tree, database)
            finally:
                connection.close()
    return Status(steps)


def apply(
    connect: Connect,
    sql_dir: Path,
    databases: Sequence[str],
    log: Log,
    *,
    dry_run: bool = False,
    run_timeout: float = _RUN_TIMEOUT_S,
) -> dict[str, list[str]]:
    """Apply what is pending; returns the names by database.

    Everything is checked, in all `databases`, before anything is applied. `run_timeout`: how long
    to wait for another run, in seconds.

    Raises RefusedError, SqlError, LockedError, DeploymentError.
    """
    tree = read_tree(sql_dir)
    done: dict[str, list[str]] = {database: [] for database in databases}
    with (
        _told_if_lost(),
        Sessions(
            connect,
            log,
            {},
            connect_timeout=_CONNECT_TIMEOUT_S,
            lock_timeout=run_timeout,
        ) as sessions,
    ):
        steps = {name: _examine(sessions.get(name), tree, name) for name in databases}
        refuse(steps)
        for database in databases:
            for file in pending(steps[database]):
                log(f"{database}: pending {file.name}\n  under load: {file.under_load or '-'}")
        for database in databases:
            files = pending(steps[database])
            if dry_run:
                done[database] = _try_out(sessions, database, files, log)
                continue
            for file in files:
                apply_patiently(sessions, database, file, log)
                done[database].append(file.name)
    return done


def _examine(connection: Connection, tree: SqlTree, database: str) -> list[Step]:
    try:
        found = connection.execute(
            "SELECT c.ledger IS NOT NULL, pg_catalog.has_table_privilege(%s, c.ledger, 'INSERT')"
            " FROM (SELECT pg_catalog.to_regclass('elsapg.schema_migration')::oid AS ledger) AS c",
            (OWNER,),
        ).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        found = (True, False)
    if found != (True, True):
        lacks = "may not be written by " + OWNER if found and found[0] else "is not there"
        raise NotDeployedError(
            f"elsapg.schema_migration of database {database} {lacks}: run `elsapg up` first, which"
            " makes roles, schemas and that ledger of what was applied"
        )
    return examine(database, tree.migrations[database], read_ledger(connection))


def _try_out(sessions: Sessions, database: str, files: list[Migration], log: Log) -> list[str]:
    """Apply in one transaction and roll it back."""
    tried: list[str] = []
    connection = sessions.get(database)
    with connection.transaction(force_rollback=True):
        for file in files:
            if not file.transaction:
                log(f"{database}: not tried, it runs outside a transaction: {file.name}")
                continue
            sessions.get(database)
            ms = apply_migration(connection, file, database)
            log(f"{database}: would apply {file.name} ({ms} ms); rolled back")
            tried.append(file.name)
    return tried


@contextmanager
def _told_if_lost() -> Iterator[None]:
    try:
        yield
    except psycopg.OperationalError as error:
        raise DeploymentError(
            f"the primary broke off: {' '.join(str(error).split())}\n"
            "  Run this again: a file is recorded in the transaction that applies it, so what was"
            " applied stays, and the rest follows."
        ) from error


# --- new ---------------------------------------------------------------------------------------

_TEMPLATE = """\
-- Under load:
--
-- Above, on the first line: which locks it takes, on which tables, for how long, and what a client
-- feels meanwhile. A file without that is not applied. Then delete this guidance.
--
-- Runs once, in one transaction, as elsa_owner, with an empty search_path: name every schema.
--   * A new table: SELECT elsapg.isolate_tenants('schema.table'); in the same file, and a COMMENT
--     on it and on each column. Nobody waits for a table that is not there yet.
--   * A column: ADD COLUMN with a constant default, or nullable. No rewrite, no scan.
--   * A constraint: ADD CONSTRAINT … NOT VALID here, VALIDATE CONSTRAINT in the next file.
--   * An index on a table that has rows: a file of its own that begins with the line
--         -- elsapg: transaction=off
--     and drops and builds it CONCURRENTLY: bootstrap_sql/README.md shows one.
--   * Many rows to change: not here; in batches, by a job or by the application.
-- `make lint` knows the rest. Never edit the file once it was applied: write the next one.
"""


def new(sql_dir: Path, name: str, database: str) -> Path:
    """Make the database's next file from a template. Raises UsageError for a name that is none."""
    (database,) = chosen(database)
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} names no migration: say what it does in lower case, as in"
            " add_priority_to_triggers (letters a-z, digits, _; at most 80)"
        )
    existing = read_tree(sql_dir).migrations[database]
    number = max((file.version for file in existing), default=0) + 1
    if number > _LAST_NUMBER:
        raise UsageError(f"{database} has a migration {_LAST_NUMBER} already: no number is left")
    path = sql_dir / database / f"{number:04d}_{name}.sql"
    if not write_private(path, _TEMPLATE, mode=0o644, replace=False):
        raise UsageError(f"{path} exists already")
    return path


# --- script ------------------------------------------------------------------------------------


def script(
    sql_dir: Path,
    databases: Sequence[str],
    *,
    first: int | None = None,
    last: int | None = None,
    idempotent: bool = False,
) -> str:
    """One psql script that applies and records the migrations numbered `first` to `last`.

    With `idempotent` it passes over what is applied. Either way it refuses an edited file, and
    each migration is one transaction with its row in the ledger. Raises RefusedError for a file
    that may not be applied, UsageError for a range that holds none.
    """
    tree = read_tree(sql_dir)
    low, high = first or 1, _LAST_NUMBER if last is None else last
    if low > high:
        raise UsageError(f"--from {low} lies above --to {high}")
    selected = {
        name: [file for file in tree.migrations[name] if low <= file.version <= high]
        for name in databases
    }
    if not any(selected.values()):
        raise UsageError(f"no migration of {_among(databases)} has a number from {low} to {high}")
    # Whatever it meets, it is to be able to apply all of them.
    refuse({name: examine(name, files, []) for name, files in selected.items()})
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - SQL, and the files are our own
    )
    return environment.get_template("migration_script.sql.j2").render(
        databases=selected,
        idempotent=idempotent,
        session=_script_session(),
        owner=OWNER,
        lock_key=LOCK_KEY,
        is_terminated=_is_terminated,
    )


def _script_session() -> dict[str, str]:
    session = {**SESSION, "lock_timeout": f"{LOCK_TIMEOUT_S}s"}
    # BEGIN says these two for its own transaction.
    del session["default_transaction_read_only"], session["default_transaction_isolation"]
    return session


def _is_terminated(file: Migration) -> bool:
    # With its semicolon there, what follows is a statement of its own.
    return len(split(f"{file.text}\nX", file.label)) > len(file.statements)


def _among(names: Sequence[str]) -> str:
    return ", ".join(names)
