"""Applies `bootstrap_sql` to the primary: cluster files, passwords, the numbered migrations, and
the cluster files that need the migrations' tables.

Runs in the runner's container as the superuser, by client certificate. Everything is checked
before anything is applied, under an advisory lock, so two runs at once are safe; a run that
finds nothing to do changes nothing and says so.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.errors import Diagnostic

from elsapg.errors import DeploymentError, ElsapgError, LockedError, UsageError
from elsapg.runner import scram
from elsapg.runner.sqlfile import (
    POSTGRES,
    ClusterFile,
    Migration,
    SqlTree,
    Statement,
    read_tree,
)

CONFIG_PATH = Path("/etc/elsapg/runner.json")
OWNER = "elsa_owner"
PASSWORD_ROLES = (
    "elsa_migrator",
    "elsa_app",
    "elsa_worker",
    "elsa_readonly",
    "elsa_host",
    "elsa_admin",
    "monitoring",
)

# Any constant will do, as long as nothing else uses it: "elsapg" in ASCII.
LOCK_KEY = 0x656C73617067

# What every file finds, whatever the server, the role or the environment was told. An empty
# search_path makes each file name schemas, so that nothing lands in `public` by accident.
SESSION = {
    "search_path": "",
    "client_min_messages": "warning",
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "standard_conforming_strings": "on",
    "check_function_bodies": "on",
    "row_security": "on",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
_SYNCHRONOUS_COMMIT = ("on", "off", "local", "remote_write", "remote_apply")

Connection = psycopg.Connection[Any]
Connect = Callable[[str], Connection]
Log = Callable[[str], None]


class NoPrimaryError(DeploymentError):
    """The primary could not be reached, or stayed in recovery."""


class RefusedError(DeploymentError):
    """What was applied before and what is in the files do not fit; nothing was applied."""


class SqlError(DeploymentError):
    """A statement of a file failed; the message names file, line and what the server said."""


@dataclass(frozen=True)
class Applied:
    """One row of `elsapg.schema_migration`."""

    version: int
    name: str
    sha256: str
    applied_at: str


@dataclass
class Result:
    """What one run did."""

    cluster_files: int = 0
    migrations: dict[str, list[str]] = field(default_factory=dict)
    passwords_changed: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether a migration was applied or a password changed."""
        return bool(self.passwords_changed or any(self.migrations.values()))

    def __str__(self) -> str:
        applied = sum(map(len, self.migrations.values()))
        changed = len(self.passwords_changed)
        return f"{_count(applied, 'migration')} applied, {_count(changed, 'password')} changed"


def bootstrap(
    connect: Connect,
    sql_dir: Path,
    passwords: Mapping[str, str],
    log: Log,
    *,
    expect_primary: bool = True,
    synchronous_commit: str | None = None,
    connect_timeout: float = 60,
    lock_timeout: float = 120,
) -> Result:
    """Bring the server to what `sql_dir` says. `connect` takes a database's name.

    Timeouts are in seconds: how long to wait for a primary, and for another run to end.
    """
    check_passwords(passwords)
    tree = read_tree(sql_dir)

    @contextmanager
    def opened(database: str) -> Iterator[Connection]:
        connection = _connect(connect, database, log, expect_primary, connect_timeout)
        try:
            _prepare_session(connection, synchronous_commit)
            yield connection
        finally:
            connection.close()

    with opened(POSTGRES) as holder:
        _take_lock(holder, log, lock_timeout)
        present = _databases(holder)
        ledgers: dict[str, list[Applied]] = {}
        for database in tree.migrations:
            ledgers[database] = []
            if database in present:
                with opened(database) as connection:
                    ledgers[database] = read_ledger(connection)
        refuse(tree, ledgers)

        result = Result()

        def run_cluster(after_migrations: bool) -> None:
            files = [f for f in tree.cluster if f.after_migrations is after_migrations]
            for file in files:
                for database in file.databases:
                    with opened(database) as connection:
                        run_cluster_file(connection, file, database)
            result.cluster_files += len(files)
            when = "after the migrations" if after_migrations else "before the migrations"
            log(f"cluster: {_count(len(files), 'file')} run {when}, safe to run again")

        run_cluster(after_migrations=False)
        result.passwords_changed = set_passwords(holder, passwords)
        log(f"passwords: changed {', '.join(result.passwords_changed) or 'none'}")
        for database, migrations in tree.migrations.items():
            done = {applied.version for applied in ledgers[database]}
            pending = [migration for migration in migrations if migration.version not in done]
            result.migrations[database] = []
            with opened(database) as connection:
                for migration in pending:
                    # A file's own SET outlives its transaction; the next must not depend on it.
                    _prepare_session(connection, synchronous_commit)
                    duration_ms = apply_migration(connection, migration, database)
                    result.migrations[database].append(migration.name)
                    log(f"{database}: applied {migration.name} ({duration_ms} ms)")
            log(f"{database}: {_count(len(pending), 'migration')} applied, {len(done)} before")
        run_cluster(after_migrations=True)
    return result


# --- connections -------------------------------------------------------------------------------


def _connect(
    connect: Connect, database: str, log: Log, expect_primary: bool, timeout: float
) -> Connection:
    """Connect, waiting while the server starts, is promoted, or fails over."""
    deadline = time.monotonic() + timeout
    told = ""
    while True:
        try:
            connection = connect(database)
            try:
                row = connection.execute("SELECT pg_catalog.pg_is_in_recovery()").fetchone()
                connection.rollback()
                connection.autocommit = True
                if not expect_primary or row == (False,):
                    return connection
                connection.close()
                reason = "it is a standby (in recovery)"
            except BaseException:
                connection.close()
                raise
        except psycopg.OperationalError as error:
            reason = " ".join(str(error).split())
        if time.monotonic() >= deadline:
            raise NoPrimaryError(
                f"no primary for database {database} within {timeout:g} s: {reason}"
            )
        if reason != told:
            log(f"waiting for the primary: {reason}")
            told = reason
        time.sleep(0.5)


def _prepare_session(connection: Connection, synchronous_commit: str | None) -> None:
    settings = dict(SESSION)
    if synchronous_commit is not None:
        settings["synchronous_commit"] = synchronous_commit
    connection.execute("RESET ROLE")
    for name, value in settings.items():
        connection.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))


def _take_lock(connection: Connection, log: Log, timeout: float) -> None:
    """Hold the session lock on `postgres` until the connection closes; wait for another run."""
    deadline = time.monotonic() + timeout
    told = False
    while True:
        row = connection.execute(
            "SELECT pg_catalog.pg_try_advisory_lock(%s)", (LOCK_KEY,)
        ).fetchone()
        if row == (True,):
            return
        holder = connection.execute(
            "SELECT a.pid, a.application_name, a.client_addr::pg_catalog.text"
            " FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_stat_activity AS a USING (pid)"
            " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
            " AND (l.classid::pg_catalog.int8 << 32 | l.objid::pg_catalog.int8) = %s",
            (LOCK_KEY,),
        ).fetchone()
        if holder is None:
            who = "another run"
        else:
            who = f"another run (server process {holder[0]}, from {holder[2] or 'a local socket'})"
        if time.monotonic() >= deadline:
            raise LockedError(
                f"{who} still holds the bootstrap lock after {timeout:g} s; wait for it to end, or"
                " end it, and run the bootstrap again (nothing was applied)"
            )
        if not told:
            log(f"{who} holds the bootstrap lock; waiting up to {timeout:g} s")
            told = True
        time.sleep(min(0.5, max(timeout, 0.01)))


def _databases(connection: Connection) -> set[str]:
    rows = connection.execute("SELECT d.datname FROM pg_catalog.pg_database AS d").fetchall()
    return {str(row[0]) for row in rows}


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
        " pg_catalog.to_char(m.applied_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')"
        " FROM elsapg.schema_migration AS m ORDER BY m.version"
    ).fetchall()
    return [Applied(*row) for row in rows]


def refuse(tree: SqlTree, ledgers: Mapping[str, list[Applied]]) -> None:
    """Raise, naming every file, if what was applied and what is there do not fit."""
    problems: list[str] = []
    for database, applied in ledgers.items():
        problems += find_problems(database, tree.migrations[database], applied)
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise RefusedError(f"bootstrap refused; nothing was applied:\n{lines}")


def find_problems(
    database: str, migrations: tuple[Migration, ...], applied: list[Applied]
) -> list[str]:
    """Why these files may not be applied to a database with that history; empty if they may."""
    problems: list[str] = []
    files = {migration.version: migration for migration in migrations}
    newest = max((row.version for row in applied), default=0)
    following = max([newest, *files]) + 1
    for row in applied:
        file = files.get(row.version)
        was = f"{database}/{row.name}"
        if file is None:
            problems.append(
                f"{was} was applied on {row.applied_at} UTC but is missing; restore the file from"
                " Git, or run the release that has it"
            )
        elif file.name != row.name:
            problems.append(
                f"{file.label} was applied as {row.name} on {row.applied_at} UTC; give the file its"
                " old name"
            )
        elif file.sha256 != row.sha256:
            problems.append(
                f"{was} was edited after it was applied on {row.applied_at} UTC (sha256"
                f" {row.sha256[:12]} then, {file.sha256[:12]} now); restore it from Git and put the"
                f" change into a new file {following:04d}_….sql"
            )
    done = {row.version for row in applied}
    problems += [
        f"{migration.label} is new but numbered below {newest:04d}, which was applied already;"
        f" renumber it to {following:04d} or above"
        for migration in migrations
        if migration.version not in done and migration.version < newest
    ]
    return problems


# --- running files -----------------------------------------------------------------------------


def run_cluster_file(connection: Connection, file: ClusterFile, database: str) -> None:
    """Run one cluster file in one database, unless its own query says that it is done."""
    if file.unless is not None:
        query = Statement(file.unless, 1, ())
        with _explained(file.label, database, query, "Nothing of this file was run."):
            if connection.execute(file.unless.encode()).fetchone() is not None:
                return
    if file.transaction:
        with connection.transaction():
            _run(connection, file.label, database, file.statements)
    else:
        _run(
            connection,
            file.label,
            database,
            file.statements,
            kept="This file runs outside a transaction: the statements above that line are kept.",
        )


def apply_migration(connection: Connection, migration: Migration, database: str) -> int:
    """Apply one migration and record it, in one transaction; returns the duration in ms."""
    started = time.monotonic()
    with connection.transaction():
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(OWNER)))
        _run(connection, migration.label, database, migration.statements)
        # Deferred constraints would fail at COMMIT, when no line could be named.
        last = migration.statements[-1] if migration.statements else Statement("", 1, ())
        with _explained(migration.label, database, last, _NOTHING_KEPT):
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        connection.execute("RESET ROLE")
        duration_ms = round((time.monotonic() - started) * 1000)
        connection.execute(
            "INSERT INTO elsapg.schema_migration"
            " (version, name, sha256, applied_by, duration_ms)"
            " VALUES (%s, %s, %s, session_user, %s)",
            (migration.version, migration.name, migration.sha256, duration_ms),
        )
    return duration_ms


# Of DETAIL or CONTEXT: enough to see where, not a page of a recursion's stack.
_MOST_LINES = 8
_NOTHING_KEPT = "Nothing of this file was kept."


def _run(
    connection: Connection,
    label: str,
    database: str,
    statements: tuple[Statement, ...],
    kept: str = _NOTHING_KEPT,
) -> None:
    for statement in statements:
        with _explained(label, database, statement, kept):
            connection.execute(statement.text.encode())


@contextmanager
def _explained(label: str, database: str, statement: Statement, kept: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise SqlError(describe(label, database, statement, error, kept)) from error


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
