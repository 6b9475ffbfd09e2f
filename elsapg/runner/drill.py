"""The restore drill: the newest backup and WAL, restored beside the stack and compared with it.

A standby's replay is held for a moment, while snapshots of all databases are taken: that is one
place in the WAL. Its tables are counted and summed up there; the throw-away server is recovered to
exactly there, and must hold the same. Then its files are searched for damage, and what only reads
is tried on it: migrations, row-level security, views.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from elsapg.errors import UnhealthyError, UsageError
from elsapg.runner import backup, jobs, repository, throwaway
from elsapg.runner.archive import Plan
from elsapg.runner.config import Config
from elsapg.runner.dumps import LARGEST_LAG
from elsapg.runner.jobs import say
from elsapg.runner.migrations import examine, read_ledger
from elsapg.runner.patroni import PatroniError
from elsapg.runner.pgbackrest import SETTLES_S, Repository
from elsapg.runner.recovery import PrivateServer
from elsapg.runner.sqlfile import DATABASES, POSTGRES, read_tree
from elsapg.runner.tables import Content, contents, differences
from elsapg.runner.target import Target

EVERY = (POSTGRES, *DATABASES)
_CLASS = 0x656C7361
ARCHIVED_S = 300
ATTEMPTS = 3
# So many tenants, those with the most rows, are looked at through row-level security.
TENANTS = 3
_MIB = 1024 * 1024


class DrillError(UnhealthyError):
    """What was restored is not what was there, or does not work."""


@dataclass
class Drill:
    """What a drill came to. Times in seconds, sizes in bytes."""

    backup: str = ""
    lsn: str = ""
    source: str = ""
    tables: int = 0
    rows: int = 0
    database_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        total = sum(self.seconds.values())
        return (
            f"drill done: backup {self.backup} to {self.lsn}, {self.tables} tables and "
            f"{self.rows} rows the same, in {total:.0f} s"
        )

    def as_json(self) -> dict[str, Any]:
        restore = self.seconds.get("restore", 0.0)
        speed = self.database_bytes / _MIB / restore if restore else 0.0
        return {
            "backup": self.backup,
            "lsn": self.lsn,
            "source": self.source,
            "tables": self.tables,
            "rows": self.rows,
            "database_bytes": self.database_bytes,
            "seconds": {k: round(v, 1) for k, v in self.seconds.items()},
            "total_seconds": round(sum(self.seconds.values()), 1),
            "restore_mib_per_s": round(speed, 1),
            "findings": self.findings,
        }


def drill(config: Config) -> Drill:
    """Make one. Raises DrillError naming what differs, or whatever kept it from being made."""
    where = repository.read()
    with jobs.run(config, "drill", where.name) as run:
        throwaway.clear()
        made = Drill()
        try:
            _drill(config, made)
        finally:
            throwaway.clear()
            run.report = made.as_json()
        if made.findings:
            more = f" and {len(made.findings) - 5} more" if len(made.findings) > 5 else ""
            raise DrillError(
                f"backup {made.backup} restored to {made.lsn} is not right: "
                + "; ".join(made.findings[:5])
                + more
            )
        run.message = made.sentence
    return made


def _drill(config: Config, made: Drill) -> None:
    @contextlib.contextmanager
    def timed(part: str) -> Iterator[None]:
        clock = time.monotonic()
        yield
        made.seconds[part] = time.monotonic() - clock

    with timed("source"):
        made.source = _standby(config)
        made.lsn, there = _held_source(config, made.source)
    with timed("archive"):
        _archived(config, made.lsn)
    plan = _plan(config, made.lsn)
    made.backup = plan.backup
    with timed("restore"):
        throwaway.restore(config, plan)
    made.database_bytes = sum(f.stat().st_size for f in throwaway.DATA.rglob("*") if f.is_file())
    say(f"drill: {made.backup} restored, recovering to {made.lsn}")
    clock = time.monotonic()
    with throwaway.running(plan) as copy:
        made.seconds["recovery"] = time.monotonic() - clock
        with timed("compare"):
            for database in EVERY:
                with copy.connect(database) as db, db.transaction():
                    here = contents(db)
                made.findings += differences(database, there[database], here)
                made.tables += len(here)
                made.rows += sum(c.rows for c in here.values())
        with timed("amcheck"):
            made.findings += _amcheck()
        with timed("tests"):
            made.findings += _read_only_tests(copy, Path(config.sql_dir))


def _standby(config: Config) -> str:
    members = config.backup_patroni().members()
    able = [m for m in members if not m.leads and m.healthy and (m.lag or 0) <= LARGEST_LAG]
    if not able:
        raise PatroniError("no standby streams: a drill compares with one; nothing was done")
    return min(able, key=lambda m: m.lag or 0).name


def _held_source(config: Config, node: str) -> tuple[str, dict[str, dict[str, Content]]]:
    """`_source`, asked again if the standby was too busy: its replay is never held for long."""
    told = ""
    for _ in range(ATTEMPTS):
        try:
            return _source(config, node)
        except psycopg.errors.LockNotAvailable as error:
            told = str(error).partition("\n")[0]
            say(f"{node} is too busy: {told}")
    raise DrillError(
        f"{node} was too busy {ATTEMPTS} times ({told}), so nothing was compared: make the drill "
        "at a quieter hour (archive.drill_schedule)"
    )


def _source(config: Config, node: str) -> tuple[str, dict[str, dict[str, Content]]]:
    """What each database holds on the standby, all at the place in the WAL that is returned."""
    sessions = {
        name: psycopg.connect(config.backup_conninfo(name, node), autocommit=False)
        for name in EVERY
    }
    for db in sessions.values():
        db.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    try:
        with _held(config, node) as lsn:
            for db in sessions.values():
                # The first statement takes the transaction's snapshot.
                db.execute("SELECT 1")
        return lsn(), {name: contents(db) for name, db in sessions.items()}
    finally:
        for db in sessions.values():
            db.close()


@contextlib.contextmanager
def _held(config: Config, node: str) -> Iterator[Callable[[], str]]:
    """While the body runs, the standby's replay stands still; afterwards the result says where."""
    conninfo = config.backup_conninfo("postgres", node)
    answer: list[str | BaseException] = []

    def hold() -> None:
        try:
            with psycopg.connect(conninfo, autocommit=True) as db:
                row = db.execute("SELECT recovery.hold_replay()::text").fetchone()
                answer.append(str(row[0]) if row else "")
        except psycopg.Error as error:
            answer.append(error)

    def where() -> str:
        holder.join()
        [found] = answer
        if isinstance(found, BaseException):
            raise found
        return found

    with psycopg.connect(conninfo, autocommit=True) as signals:
        holder = threading.Thread(target=hold)
        holder.start()
        # Shared: granted only if nobody holds it alone, which is what the holder will do.
        while not answer and not _stands_still(signals):
            time.sleep(0.005)
        try:
            yield where
        finally:
            signals.execute("SELECT pg_catalog.pg_advisory_lock(%s, 11)", (_CLASS,))
            holder.join()


def _stands_still(db: psycopg.Connection[Any]) -> bool:
    row = db.execute(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks AS l WHERE l.locktype = 'advisory'"
        " AND l.classid = %s::pg_catalog.oid AND l.objid = 10::pg_catalog.oid AND l.granted)",
        (_CLASS,),
    ).fetchone()
    return row == (True,)


def _archived(config: Config, lsn: str) -> None:
    """See to it that the WAL up to there, and a record behind it, is in the repository."""
    with jobs.connect(config) as db:
        row = db.execute(
            "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_logical_emit_message("
            "false, 'elsapg', 'drill')), pg_catalog.pg_switch_wal() > %s::pg_catalog.pg_lsn",
            (lsn,),
        ).fetchone()
    assert row
    segment = str(row[0])
    deadline = time.monotonic() + ARCHIVED_S
    while time.monotonic() < deadline:
        newest = max((a["max"] or "" for a in backup.info(config).get("archive", [])), default="")
        if newest >= segment:
            return
        time.sleep(0.5)
    raise DrillError(
        f"WAL segment {segment} did not reach the archive within {ARCHIVED_S} s: archiving is "
        "stuck; `elsapg status` says more"
    )


def _plan(config: Config, lsn: str) -> Plan:
    """How a restore to there would go. Raises UsageError for WAL that is missing."""
    target, deadline = Target("lsn", lsn), time.monotonic() + SETTLES_S
    while True:
        try:
            return Repository(config.stanza).archive().plan(target)
        except UsageError:
            # A segment may be archived after the one behind it.
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def _amcheck() -> list[str]:
    """Damage in tables and indexes, each index compared with its table."""
    databases = [word for name in EVERY for word in ("--database", name)]
    done = subprocess.run(
        ["pg_amcheck", "--host", str(throwaway.RUN), "--username", "postgres", *databases,
         "--install-missing", "--heapallindexed", "--jobs=2", "--no-dependent-toast"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return []
    lines = (done.stdout + done.stderr).strip().splitlines()
    return [f"pg_amcheck: {' '.join(lines[:6])[:500]}"]


def _read_only_tests(copy: PrivateServer, sql_dir: Path) -> list[str]:
    """What should hold of any copy of these databases."""
    found: list[str] = []
    tree = read_tree(sql_dir)
    for database in DATABASES:
        with copy.connect(database) as db:
            db.execute("SET default_transaction_read_only = on")
            for step in examine(database, tree.migrations[database], read_ledger(db)):
                if step.problem:
                    found.append(f"{database}: {step.problem}")
            found += [f"{database}: {text}" for text in _structure(db)]
            found += [f"{database}: {text}" for text in _row_security(db)]
    return found


def _structure(db: psycopg.Connection[Any]) -> list[str]:
    rows = db.execute(
        "SELECT 'index ' || i.indexrelid::pg_catalog.regclass || ' is not valid'"
        " FROM pg_catalog.pg_index AS i WHERE NOT i.indisvalid"
        " UNION ALL SELECT 'constraint ' || c.conname || ' of '"
        " || c.conrelid::pg_catalog.regclass || ' was not validated'"
        " FROM pg_catalog.pg_constraint AS c WHERE NOT c.convalidated"
    ).fetchall()
    told = [str(row[0]) for row in rows]
    views = db.execute(
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_class AS c"
        " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'v' AND n.nspname = 'monitoring'"
    ).fetchall()
    for view in views:
        try:
            with db.transaction():
                db.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(*view)))
        except psycopg.Error as error:
            told.append(f"view {'.'.join(view)}: {' '.join(str(error).split())[:200]}")
    return told


def _row_security(db: psycopg.Connection[Any]) -> list[str]:
    """A tenant sees its own rows, and without a tenant nothing is seen."""
    told = []
    tables = db.execute(
        "SELECT n.nspname, c.relname, c.relrowsecurity AND c.relforcerowsecurity"
        " FROM pg_catalog.pg_class AS c"
        " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
        " JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'tenant_id'"
        " WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND NOT a.attisdropped"
        " AND n.nspname IN ('elsa_workflows', 'elsa_runtime')"
        " AND pg_catalog.has_table_privilege('elsa_app', c.oid, 'SELECT')"
    ).fetchall()
    for schema, name, forced in tables:
        table, label = sql.Identifier(schema, name), f"{schema}.{name}"
        if not forced:
            told.append(f"{label}: row-level security is not enabled and forced")
        tenants = db.execute(
            sql.SQL(
                "SELECT t.tenant_id, pg_catalog.count(*) FROM {} AS t WHERE t.tenant_id IS NOT NULL"
                " GROUP BY t.tenant_id ORDER BY 2 DESC, 1 LIMIT %s"
            ).format(table),
            (TENANTS,),
        ).fetchall()
        for tenant, count in [(None, 0), *tenants]:
            with db.transaction(force_rollback=True):
                db.execute("SET LOCAL ROLE elsa_app")
                if tenant is not None:
                    db.execute(
                        "SELECT pg_catalog.set_config('app.current_tenant_id', %s, true)", (tenant,)
                    )
                row = db.execute(
                    sql.SQL("SELECT pg_catalog.count(*) FROM {}").format(table)
                ).fetchone()
            if row != (count,):
                who = "without a tenant" if tenant is None else "a tenant"
                told.append(f"{label}: {who} sees {row[0] if row else 0} rows, not {count}")
    return told
