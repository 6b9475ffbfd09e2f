"""Connections for running files of `bootstrap_sql`: what a file finds, whatever ran before it, and
the lock that keeps two runs out of one database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import psycopg
from psycopg import sql

from elsapg.errors import DeploymentError, LockedError

# Any constant will do, as long as nothing else uses it: "elsapg" in ASCII. Advisory locks are per
# database, so a run takes this one in each database that it works in.
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
# DISCARD ALL less the advisory locks, which must outlive it.
_RESET = (
    "CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; DEALLOCATE ALL; UNLISTEN *;"
    " DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES; "
)

Connection = psycopg.Connection[Any]
Connect = Callable[[str], Connection]
Log = Callable[[str], None]


class NoPrimaryError(DeploymentError):
    """The primary could not be reached, or stayed in recovery."""


def connect_primary(
    connect: Connect, database: str, log: Log, *, timeout: float, expect_primary: bool = True
) -> Connection:
    """Connect, waiting up to `timeout` seconds while the server starts, is promoted, fails over."""
    deadline = time.monotonic() + timeout
    told = ""
    while True:
        try:
            connection = connect(database)
            try:
                row = connection.execute("SELECT pg_catalog.pg_is_in_recovery()").fetchone()
                connection.rollback()
                connection.autocommit = True
                # `prepare` deallocates what psycopg would otherwise believe to be there.
                connection.prepare_threshold = None
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


def prepare(connection: Connection, settings: Mapping[str, str]) -> None:
    """Forget everything that a file can leave in its session but locks; then `SESSION`."""
    wanted = {
        # Behind PgBouncer, RESET ALL would take the name away.
        "application_name": connection.info.parameter_status("application_name") or "",
        **SESSION,
        **settings,
    }
    set_config = sql.SQL(", ").join(
        sql.SQL("pg_catalog.set_config({}, {}, false)").format(
            sql.Literal(name), sql.Literal(value)
        )
        for name, value in wanted.items()
    )
    connection.execute(sql.SQL(_RESET) + sql.SQL("SELECT ") + set_config)


def take_lock(connection: Connection, database: str, log: Log, timeout: float) -> None:
    """Hold the session's lock on this database until the connection closes.

    Waits up to `timeout` seconds for another run. Raises LockedError that names its holder.
    """
    deadline = time.monotonic() + timeout
    told = False
    # Tries, instead of one statement that waits: its snapshot would hold up a holder that builds
    # an index concurrently, which waits for older snapshots to go.
    while True:
        row = connection.execute(
            "SELECT pg_catalog.pg_try_advisory_lock(%s)", (LOCK_KEY,)
        ).fetchone()
        if row == (True,):
            return
        who = _holder(connection)
        if time.monotonic() >= deadline:
            raise LockedError(
                f"{who} still holds the migration lock of database {database} after {timeout:g} s;"
                " wait for it to end, or end it, and run this again"
            )
        if not told:
            log(
                f"{who} holds the migration lock of database {database}; waiting up to"
                f" {timeout:g} s"
            )
            told = True
        time.sleep(min(0.5, max(timeout, 0.01)))


def _holder(connection: Connection) -> str:
    row = connection.execute(
        "SELECT a.pid, a.application_name, a.client_addr::pg_catalog.text"
        " FROM pg_catalog.pg_locks AS l"
        " JOIN pg_catalog.pg_stat_activity AS a USING (pid)"
        " JOIN pg_catalog.pg_database AS d ON d.oid = l.database"
        " WHERE d.datname = pg_catalog.current_database()"
        " AND l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
        " AND (l.classid::pg_catalog.int8 << 32 | l.objid::pg_catalog.int8) = %s",
        (LOCK_KEY,),
    ).fetchone()
    if row is None:
        return "another run"
    pid, name, address = row
    # The address is shown to a superuser only, and behind a pooler it is the pooler's.
    details = [f"server process {pid}", *filter(None, [name, address and f"from {address}"])]
    return f"another run ({', '.join(details)})"


class Sessions:
    """One locked connection per database, opened when first asked for, closed at the end.

    `settings` go on top of `SESSION`. Timeouts are in seconds.
    """

    def __init__(
        self,
        connect: Connect,
        log: Log,
        settings: Mapping[str, str],
        *,
        connect_timeout: float,
        lock_timeout: float,
        expect_primary: bool = True,
    ) -> None:
        self._connect = connect
        self._log = log
        self._settings = settings
        self._connect_timeout = connect_timeout
        self._lock_timeout = lock_timeout
        self._expect_primary = expect_primary
        self._open: dict[str, Connection] = {}

    def get(self, database: str) -> Connection:
        """The database's connection, its session as new."""
        if database not in self._open:
            connection = connect_primary(
                self._connect,
                database,
                self._log,
                timeout=self._connect_timeout,
                expect_primary=self._expect_primary,
            )
            self._open[database] = connection
            prepare(connection, self._settings)
            take_lock(connection, database, self._log, self._lock_timeout)
        else:
            prepare(self._open[database], self._settings)
        return self._open[database]

    def __enter__(self) -> Sessions:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self._open.values():
            connection.close()
