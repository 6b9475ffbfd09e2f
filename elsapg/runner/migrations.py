"""Numbered migrations: where each stands, applying one, and the ledger that remembers it.

The bootstrap run and `elsapg migrate` share this: the one as the superuser, the other as
elsa_migrator. Either way a file runs as elsa_owner.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import sql
from psycopg.errors import Diagnostic

from elsapg.errors import DeploymentError
from elsapg.runner.sessions import Connection, Log, Sessions
from elsapg.runner.sqlfile import Migration, Statement

OWNER = "elsa_owner"

# The first file of each database was there before the rule that a file says how it behaves under
# load; it makes the first tables, so nothing can be waiting for them.
LOAD_RULE_FROM = 2

# Whoever wants a table after a waiting migration waits, too. The application gives up a lock after
# 10 s: a migration that gives up well before costs it time and no error.
LOCK_TIMEOUT_S = 3
ATTEMPTS = 10
PAUSE_S = 5

_ANOTHER_HAS_IT = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)

State = Literal[
    "applied", "pending", "edited", "renamed", "missing", "late", "unexplained", "empty"
]


class RefusedError(DeploymentError):
    """What was applied before and what is in the files do not fit; nothing was applied."""


class SqlError(DeploymentError):
    """A statement of a file failed; the message names file, line and what the server said."""


@dataclass(frozen=True)
class Applied:
    """One row of `elsapg.schema_migration`. `applied_at` is UTC, to the minute."""

    version: int
    name: str
    sha256: str
    applied_at: str
    applied_by: str = ""
    duration_ms: int = 0


@dataclass(frozen=True)
class Step:
    """Where one migration of one database stands. With a `problem`, nothing may be applied."""

    version: int
    name: str
    state: State
    file: Migration | None = None
    applied: Applied | None = None
    problem: str = ""


# --- what was applied before -------------------------------------------------------------------


def read_ledger(connection: Connection) -> list[Applied]:
    """The rows of `elsapg.schema_migration`, none if there is no such table yet."""
    exists = connection.execute(
        "SELECT pg_catalog.to_regclass('elsapg.schema_migration') IS NOT NULL"
    ).fetchone()
    if exists != (True,):
        return []
    rows = connection.execute(
        "SELECT m.version, m.name, m.sha256,"
        " pg_catalog.to_char(m.applied_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),"
        " m.applied_by, m.duration_ms"
        " FROM elsapg.schema_migration AS m ORDER BY m.version"
    ).fetchall()
    return [Applied(*row) for row in rows]


def examine(
    database: str, migrations: Iterable[Migration], applied: Iterable[Applied]
) -> list[Step]:
    """Where every migration stands, by number: those in the files and those applied."""
    files = {migration.version: migration for migration in migrations}
    rows = {row.version: row for row in applied}
    newest = max(rows, default=0)
    following = max([newest, *files], default=0) + 1
    steps: list[Step] = []
    for version in sorted(files.keys() | rows.keys()):
        file, row = files.get(version), rows.get(version)
        if row is not None:
            state, problem = _judge_applied(database, file, row, following)
            steps.append(Step(version, row.name, state, file, row, problem))
        elif file is not None:
            state, problem = _judge_new(file, newest, following)
            steps.append(Step(version, file.name, state, file, None, problem))
    return steps


def _judge_applied(
    database: str, file: Migration | None, row: Applied, following: int
) -> tuple[State, str]:
    was = f"{database}/{row.name}"
    if file is None:
        return "missing", (
            f"{was} was applied on {row.applied_at} UTC but is missing; restore the file from"
            " Git, or run the release that has it"
        )
    if file.name != row.name:
        return "renamed", (
            f"{file.label} was applied as {row.name} on {row.applied_at} UTC; give the file its"
            " old name"
        )
    if file.sha256 != row.sha256:
        return "edited", (
            f"{was} was edited after it was applied on {row.applied_at} UTC (sha256"
            f" {row.sha256[:12]} then, {file.sha256[:12]} now); restore it from Git and put the"
            f" change into a new file {following:04d}_….sql"
        )
    return "applied", ""


def _judge_new(file: Migration, newest: int, following: int) -> tuple[State, str]:
    if file.version < newest:
        return "late", (
            f"{file.label} is new but numbered below {newest:04d}, which was applied already;"
            f" renumber it to {following:04d} or above"
        )
    if not file.statements:
        return "empty", f"{file.label} holds no statement; write what it does, or remove it"
    if file.version >= LOAD_RULE_FROM and not file.under_load:
        return "unexplained", (
            f"{file.label} does not say how it behaves under load; begin it with a line"
            " '-- Under load: …' that tells which locks it takes, on which tables, for how long"
        )
    return "pending", ""


def find_problems(
    database: str, migrations: Iterable[Migration], applied: Iterable[Applied]
) -> list[str]:
    """Why these files may not be applied to a database with that history; empty if they may."""
    return [step.problem for step in examine(database, migrations, applied) if step.problem]


def refuse(steps: Mapping[str, list[Step]]) -> None:
    """Raise, naming every file of every database, if what was applied and what is there clash."""
    problems = [step.problem for of in steps.values() for step in of if step.problem]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise RefusedError(f"migrations refused; nothing was applied:\n{lines}")


def pending(steps: Iterable[Step]) -> list[Migration]:
    """The files that are still to be applied, in their order."""
    return [step.file for step in steps if step.applied is None and step.file is not None]


# --- running files -----------------------------------------------------------------------------


NOTHING_KEPT = "Nothing of this file was kept."
_KEPT_OUTSIDE = (
    "This file runs outside a transaction: the statements above that line are kept. Run it again:"
    " it drops what it left before it builds it."
)


def apply_patiently(sessions: Sessions, database: str, migration: Migration, log: Log) -> int:
    """Apply one migration, giving way to who holds its tables; returns the duration in ms.

    One that waits for a lock longer than LOCK_TIMEOUT_S is rolled back, so that nobody waits for
    it, and tried again after PAUSE_S, ATTEMPTS times in all. Raises SqlError.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            duration_ms = apply_migration(sessions.get(database), migration, database)
        except SqlError as error:
            if not isinstance(error.__cause__, _ANOTHER_HAS_IT):
                raise
            if attempt == ATTEMPTS:
                raise SqlError(
                    f"{error}\n  It did not get its lock in {ATTEMPTS} attempts: somebody keeps the"
                    " table. Find the long transaction in pg_stat_activity, or try at a quieter"
                    " time."
                ) from error
            log(
                f"{database}: {migration.name} did not get a lock within {LOCK_TIMEOUT_S} s and was"
                f" rolled back, so that nobody waits for it; attempt {attempt + 1} of {ATTEMPTS} in"
                f" {PAUSE_S:g} s"
            )
            time.sleep(PAUSE_S)
        else:
            log(f"{database}: applied {migration.name} ({duration_ms} ms)")
            return duration_ms
    raise AssertionError(ATTEMPTS)


def apply_migration(connection: Connection, migration: Migration, database: str) -> int:
    """Apply one migration and record it, in one transaction; returns the duration in ms.

    A file that says `transaction=off` is recorded after its last statement, and made so that it
    can be run again if it was interrupted before that. Raises SqlError.
    """
    started = time.monotonic()
    # Deferred constraints would fail at COMMIT, when no line could be named.
    last = migration.statements[-1] if migration.statements else Statement("", 1, ())
    if migration.transaction:
        with connection.transaction():
            _become_owner(connection, local=True)
            _set_lock_timeout(connection, f"{LOCK_TIMEOUT_S}s", local=True)
            run_statements(connection, migration.label, database, migration.statements)
            with explained(migration.label, database, last):
                connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            # The file may have changed its role.
            _become_owner(connection, local=True)
            return _record(connection, migration, database, started)
    _become_owner(connection, local=False)
    # Building an index concurrently waits for transactions that began before it, however long they
    # last, and nobody has to wait for it meanwhile.
    _set_lock_timeout(connection, "0", local=False)
    run_statements(connection, migration.label, database, migration.statements, kept=_KEPT_OUTSIDE)
    return _record(connection, migration, database, started)


def _become_owner(connection: Connection, *, local: bool) -> None:
    words = "SET LOCAL ROLE {}" if local else "SET ROLE {}"
    connection.execute(sql.SQL(words).format(sql.Identifier(OWNER)))


def _set_lock_timeout(connection: Connection, value: str, *, local: bool) -> None:
    connection.execute("SELECT pg_catalog.set_config('lock_timeout', %s, %s)", (value, local))


def _record(connection: Connection, migration: Migration, database: str, started: float) -> int:
    duration_ms = round((time.monotonic() - started) * 1000)
    with explained(migration.label, database, Statement("", 1, ())):
        connection.execute(
            "INSERT INTO elsapg.schema_migration"
            " (version, name, sha256, applied_by, duration_ms)"
            " VALUES (%s, %s, %s, session_user, %s)",
            (migration.version, migration.name, migration.sha256, duration_ms),
        )
    return duration_ms


def run_statements(
    connection: Connection,
    label: str,
    database: str,
    statements: tuple[Statement, ...],
    kept: str = NOTHING_KEPT,
) -> None:
    """Run a file's statements one by one. Raises SqlError with the line of the one that failed."""
    for statement in statements:
        with explained(label, database, statement, kept):
            connection.execute(statement.text.encode())


@contextmanager
def explained(
    label: str, database: str, statement: Statement, kept: str = NOTHING_KEPT
) -> Iterator[None]:
    """Turn what the server says about a statement into a SqlError."""
    try:
        yield
    except psycopg.Error as error:
        raise SqlError(describe(label, database, statement, error, kept)) from error


# Of DETAIL or CONTEXT: enough to see where, not a page of a recursion's stack.
_MOST_LINES = 8


def describe(
    label: str, database: str, statement: Statement, error: psycopg.Error, kept: str
) -> str:
    """`file:line: in database: message (SQLSTATE)`, then the server's details, one a line."""
    diag = error.diag
    message = diag.message_primary or " ".join(str(error).split()) or type(error).__name__
    state = f" ({diag.sqlstate})" if diag.sqlstate else ""
    lines = [f"{label}:{line_of(statement, diag)}: in {database}: {message}{state}"]
    for title, text in (
        ("DETAIL", diag.message_detail),
        ("HINT", diag.message_hint),
        ("CONTEXT", diag.context),
    ):
        if text:
            said = text.splitlines()
            if len(said) > _MOST_LINES:
                said = [*said[:_MOST_LINES], f"… and {len(said) - _MOST_LINES} more lines"]
            lines.append(f"  {title}: " + "\n    ".join(said))
    lines.append(f"  {kept}")
    return "\n".join(lines)


def line_of(statement: Statement, diag: Diagnostic) -> int:
    """The file's line: the server's position, else the line of a DO block, else the statement."""
    if diag.statement_position:
        return statement.line_at(int(diag.statement_position))
    if statement.words[:1] == ("do",):
        block = re.search(r"inline_code_block line ([0-9]+)", diag.context or "")
        if block:
            return statement.body_line(int(block.group(1)))
    return statement.line
