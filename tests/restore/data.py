"""Data as Elsa leaves it, over months and tenants; a writer that notes what was acknowledged; and
sums of tables that do not depend on the order of rows.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psycopg

from elsapg.services.deployment import Deployment
from tests.chaos.writes import Access

DATABASE = "elsa_workflows"
BUCKET = "/var/lib/s3/elsa-backups"
INSTANCES = 6000
TENANTS = 12
MONTHS = 6

_FILL = f"""
TRUNCATE elsa_workflows.bookmarks;
DELETE FROM elsa_workflows.activity_execution_records WHERE id LIKE 'filled-%';
DELETE FROM elsa_workflows.workflow_instances WHERE id LIKE 'filled-%';
SELECT elsa_workflows.create_monthly_partitions(0, now() - make_interval(months => m))
FROM generate_series(0, {MONTHS}) AS m;
INSERT INTO elsa_workflows.workflow_instances
    (id, definition_id, definition_version, workflow_state, status, created_at, updated_at,
     tenant_id)
SELECT 'filled-' || n, 'definition-' || n % 7, 1, jsonb_build_object('order', n), 'Suspended',
    s.at, s.at, 'tenant-' || n % {TENANTS}
FROM generate_series(1, {INSTANCES}) AS n
CROSS JOIN LATERAL (
    SELECT now() - make_interval(days => (n % {MONTHS * 30})) AS at
) AS s;
INSERT INTO elsa_workflows.activity_execution_records
    (id, workflow_instance_id, activity_id, activity_node_id, activity_type,
     activity_type_version, started_at, status, tenant_id)
SELECT i.id || '-' || k, i.id, 'a' || k, 'n' || k, 'Elsa.Event', 1, i.created_at, 'Completed',
    i.tenant_id
FROM elsa_workflows.workflow_instances AS i CROSS JOIN generate_series(1, 2) AS k
WHERE i.id LIKE 'filled-%';
INSERT INTO elsa_workflows.bookmarks
    (id, bookmark_id, bookmark_hash, workflow_instance_id, activity_node_id, activity_type_name,
     tenant_id)
SELECT i.id, i.id, md5(i.id), i.id, 'n1', 'Elsa.Event', i.tenant_id
FROM elsa_workflows.workflow_instances AS i WHERE i.id LIKE 'filled-%';
"""

TABLES = ("workflow_instances", "activity_execution_records", "bookmarks")


def fill(deployment: Deployment) -> None:
    """Instances, records and bookmarks of some months and tenants."""
    deployment.query(deployment.primary(), _FILL, DATABASE)


def sums(deployment: Deployment, node: str | None = None) -> dict[str, tuple[int, str]]:
    """By table: rows, and the sum of their hashes; of what was filled in, not of writers' rows."""
    where = node or deployment.primary()
    found = {}
    for table in TABLES:
        ((count, total),) = deployment.query(
            where,
            f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) "
            f"FROM elsa_workflows.{table} AS t WHERE id LIKE 'filled-%'",
            DATABASE,
        )
        found[table] = (int(count), total)
    return found


def archived(deployment: Deployment) -> str:
    """End the present WAL segment, and return its name when it is in the archive."""
    ((name,),) = deployment.query(
        deployment.primary(),
        "SELECT pg_walfile_name(pg_switch_wal()) "
        "FROM pg_logical_emit_message(false, 'elsapg', 'test')",
    )
    script = f"while ! find {BUCKET}/wal/archive -name '{name}-*' | grep -q .; do sleep 0.1; done"
    done = deployment.hosts.run("s3", "timeout", "60", "sh", "-c", script, timeout=90)
    assert done.code == 0, f"{name} does not reach the archive"
    return name


def clock(deployment: Deployment) -> float:
    """The primary's, in seconds since 1970."""
    sql = "SELECT extract(epoch FROM clock_timestamp())"
    return float(deployment.query(deployment.primary(), sql)[0][0])


@dataclass
class Written:
    """One row: when its transaction began, and when its commit was acknowledged."""

    begun: float
    acknowledged: float | None = None


@dataclass
class Writer:
    """Inserts instances through the pool, one per transaction, as an application does."""

    rows: dict[str, Written] = field(default_factory=dict)
    errors: int = 0

    def committed_before(self, moment: float) -> set[str]:
        """Rows that must be there after a restore to `moment`."""
        return {
            name
            for name, row in list(self.rows.items())
            if row.acknowledged is not None and row.acknowledged <= moment
        }

    def begun_after(self, moment: float) -> set[str]:
        """Rows that must not."""
        return {name for name, row in list(self.rows.items()) if row.begun > moment}


@contextlib.contextmanager
def writing(doors: Access, prefix: str) -> Iterator[Writer]:
    """A writer for as long as the block runs. The machine has one clock."""
    writer, stop = Writer(), threading.Event()

    def run() -> None:
        number = 0
        while not stop.is_set():
            try:
                with doors.connect("elsa_app") as db:
                    while not stop.is_set():
                        number += 1
                        name = f"{prefix}-{number}"
                        writer.rows[name] = Written(time.time())
                        with db.transaction():
                            db.execute("SELECT set_config('app.current_tenant_id', 't-w', true)")
                            db.execute(
                                "INSERT INTO elsa_workflows.workflow_instances (id, definition_id,"
                                " definition_version, workflow_state, status, tenant_id)"
                                " VALUES (%s, 'w', 1, '{}', 'Running', 't-w')",
                                (name,),
                            )
                        writer.rows[name].acknowledged = time.time()
                        stop.wait(0.02)
            except psycopg.Error:
                writer.errors += 1
                stop.wait(0.5)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield writer
    finally:
        stop.set()
        thread.join(60)


def present(deployment: Deployment, prefix: str, node: str | None = None) -> set[str]:
    """The writer's rows that are in the database."""
    rows = deployment.query(
        node or deployment.primary(),
        f"SELECT id FROM elsa_workflows.workflow_instances WHERE id LIKE '{prefix}-%'",
        DATABASE,
    )
    return {row[0] for row in rows}
