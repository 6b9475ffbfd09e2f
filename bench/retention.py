"""Retention of a million ended instances, and what a foreground writer feels meanwhile.

The documents' INSERT … SELECT and DELETE against elsa_workflows.cleanup_old_data, as the job runs
it, on equal rows: first a backlog of five months, then one day's worth. All the while pgbench
starts small transactions at a fixed rate; latency counts from when each should have started.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.database import SEEDS, disk_server
from bench.record import machine, spread, table, write
from tests.sql.sql_server import PASSWORDS, Server, docker

BACKLOG = 1_000_000
DAY = 30_000
RECENT = 100_000
RATE = 100
QUIET_S = 20.0
OURS, DOCUMENTS = "elsa_workflows", "documents"

# Rows for both sides. Ids that grow, as UUIDv7 do; two records each; a bookmark left by one of a
# hundred. %(first)s: the first id; the rows lie evenly between two moments.
SOURCE = """
CREATE TEMPORARY TABLE source AS
SELECT
    lpad(to_hex(g), 32, '0') AS id,
    'tenant-' || g %% 20 AS tenant_id,
    'definition-' || g %% 50 AS definition_id,
    %(status)s AS status,
    timestamptz %(from)s
    + (g - %(first)s) * ((timestamptz %(to)s - timestamptz %(from)s) / %(rows)s) AS created_at,
    jsonb_build_object(
        'variables',
        jsonb_build_object('orderId', g, 'customer', 'c' || g %% 1000, 'total', g %% 977),
        'bookmarks', '[]'::jsonb, 'output', repeat('x', 300)
    ) AS state
FROM generate_series(%(first)s, %(first)s + %(rows)s - 1) AS g
"""
FILL = (
    """
INSERT INTO workflow_instances (
    id, definition_id, definition_version, workflow_state, status, correlation_id, name, created_at,
    updated_at, finished_at, tenant_id
)
SELECT
    id, definition_id, 1, state, status, 'c' || id, 'An order', created_at, created_at,
    CASE WHEN status <> 'Running' THEN created_at + interval '1 hour' END, tenant_id
FROM source
""",
    """
INSERT INTO activity_execution_records (
    id, workflow_instance_id, activity_id, activity_node_id, activity_type, activity_type_version,
    started_at, completed_at, status, payload, tenant_id
)
SELECT
    id || '-' || k, id, 'activity-' || k, 'node-' || k, 'Elsa.Activity' || k, 1,
    created_at + k * interval '10 minutes', created_at + k * interval '11 minutes', 'Completed',
    jsonb_build_object('orderId', id, 'result', repeat('y', 100)), tenant_id
FROM source, generate_series(1, 2) AS k
""",
    """
INSERT INTO bookmarks (
    id, bookmark_id, bookmark_hash, workflow_instance_id, activity_node_id, activity_type_name,
    created_at, tenant_id
)
SELECT id, 'b', 'h' || id, id, 'n', 'Elsa.Event', created_at, tenant_id
FROM source WHERE id LIKE '%00'
""",
    "DROP TABLE source",
)
FOREGROUND = """
\\set number random(1, 2000000000)
BEGIN;
SELECT set_config('app.current_tenant_id', 'tenant-1', true);
INSERT INTO workflow_instances (
    id, definition_id, definition_version, workflow_state, status, created_at, tenant_id
) VALUES (
    'f' || :client_id || '-' || :number, 'definition-1', 1, '{}', 'Running', now(), 'tenant-1'
);
INSERT INTO activity_execution_records (
    id, workflow_instance_id, activity_id, activity_node_id, activity_type, activity_type_version,
    started_at, status, tenant_id
) VALUES (
    'f' || :client_id || '-' || :number, 'f' || :client_id || '-' || :number, 'a', 'n', 'T', 1,
    now(), 'Completed', 'tenant-1'
);
UPDATE workflow_instances SET status = 'Suspended'
WHERE tenant_id = 'tenant-1' AND id = 'f' || :client_id || '-' || :number;
COMMIT;
"""
RUN = {
    DOCUMENTS: "SELECT cleanup_old_data()",
    # elsa_jobs.run_batches, without a ledger.
    OURS: "DO $$ BEGIN LOOP EXIT WHEN elsa_workflows.cleanup_old_data() IS NULL; COMMIT;"
    " END LOOP; END $$",
}
# Archived per instance; the documents' side loses the children.
ROWS = {DOCUMENTS: 1, OURS: 3.01}
TITLES = {DOCUMENTS: "documents", OURS: "elsapg"}


@dataclass(frozen=True)
class Phase:
    """One run of retention. Latencies are the foreground's, in milliseconds."""

    seconds: float
    wal_mib: float
    p50: float
    p99: float
    worst: float


def run(runs: int | None = None) -> Path:
    """Measure `runs` new servers (1) and write `results/retention`."""
    on = machine()
    found: dict[str, dict[str, list[Phase]]] = {}
    for number in range(runs or 1):
        with disk_server() as server:
            for side, phases in _measure(server).items():
                for name, phase in phases.items():
                    found.setdefault(side, {}).setdefault(name, []).append(phase)
                    print(f"retention {number + 1}: {TITLES[side]}, {name}: {phase}", flush=True)
    return _write(on, found)


def _measure(server: Server) -> dict[str, dict[str, Phase]]:
    with server.connect(autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {DOCUMENTS}".encode())
        connection.execute(f"GRANT CONNECT ON DATABASE {DOCUMENTS} TO elsa_app".encode())
    with server.connect(DOCUMENTS, autocommit=True) as connection:
        connection.execute((SEEDS / "retention.sql").read_bytes())
        connection.execute(
            "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO elsa_app"
        )
    found: dict[str, dict[str, Phase]] = {}
    for side in (DOCUMENTS, OURS):
        with server.connect(side, autocommit=True) as connection:
            if side == OURS:
                connection.execute(
                    "SELECT elsa_workflows.create_monthly_partitions(9, now() - interval '9 mon')"
                )
            # Five whole months, and what runs.
            _fill(connection, 1, BACKLOG, "-9 months", "-4 months", "Completed")
            _fill(connection, BACKLOG + 1, RECENT, "-1 month", "0 months", "Running")
            connection.execute("VACUUM ANALYZE")
        phases = found[side] = {}
        with _foreground(server, side) as latencies:
            time.sleep(QUIET_S)
            phases["nothing"] = Phase(QUIET_S, 0.0, *latencies(QUIET_S))
            phases["backlog"] = _clean(server, side, latencies)
        _check(server, side, BACKLOG)
        with server.connect(side, autocommit=True) as connection:
            # Of a month that has gone to the archive already: the way of every day.
            if side == OURS:
                connection.execute(
                    "SELECT elsa_workflows.create_monthly_partitions(1, now() - interval '5 mon')"
                )
            _fill(connection, 2 * BACKLOG, DAY, "-5 months 8 days", "-5 months 9 days", "Completed")
            connection.execute("VACUUM ANALYZE")
        with _foreground(server, side) as latencies:
            time.sleep(2)
            phases["one day"] = _clean(server, side, latencies)
        _check(server, side, BACKLOG + DAY)
    return found


def _fill(connection: Any, first: int, rows: int, begin: str, end: str, status: str) -> None:
    month = "(date_trunc('month', now(), 'UTC') + %s::interval)::text"
    moments = connection.execute(f"SELECT {month}, {month}".encode(), (begin, end))
    since, until = moments.fetchone()
    values = {"first": first, "rows": rows, "from": f"'{since}'", "to": f"'{until}'",
              "status": f"'{status}'"}  # fmt: skip
    connection.execute("SET synchronous_commit = off")
    connection.execute((SOURCE % values).encode())
    for statement in FILL:
        connection.execute(statement.encode())


def _clean(server: Server, side: str, latencies: Any) -> Phase:
    wal = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
    with server.connect(side, autocommit=True) as connection:
        before = connection.execute(wal.encode()).fetchone()
        began = time.monotonic()
        connection.execute(RUN[side].encode())
        seconds = time.monotonic() - began
        after = connection.execute(wal.encode()).fetchone()
    assert before is not None
    assert after is not None
    return Phase(seconds, float(after[0] - before[0]) / 1024**2, *latencies(seconds))


def _check(server: Server, side: str, archived: int) -> None:
    """Both did what they are to do; ours without losing a child."""
    tables = ["workflow_instances"] + (["activity_execution_records"] if side == OURS else [])
    for name, factor in zip(tables, (1, 2), strict=False):
        query = f"SELECT count(*) FROM {name}_archive"  # noqa: S608 - names of this file
        count = server.value(query, database=side)
        if count != archived * factor:
            raise RuntimeError(f"{side}: {name}_archive has {count} rows, not {archived * factor}")


@contextmanager
def _foreground(server: Server, side: str) -> Iterator[Any]:
    """pgbench in the background; gives a function: percentiles of the last so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "foreground.sql"
        file.write_text(FOREGROUND, encoding="utf-8")
        file.chmod(0o644)
        docker("cp", str(file), f"{server.container}:/tmp/foreground.sql")
    begin = (
        "rm -f /tmp/fg.*; echo $$ > /tmp/fg-pid; exec /usr/lib/postgresql/17/bin/pgbench -n -h /tmp"
        f" -U elsa_app -f /tmp/foreground.sql -c 4 -j 2 -R {RATE} -T 3600 -M prepared"
        f" -l --log-prefix=/tmp/fg {side}"
    )
    client = subprocess.Popen(
        ["docker", "exec", "-e", f"PGPASSWORD={PASSWORDS['elsa_app']}", server.container,
         "bash", "-c", begin],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip

    def latencies(seconds: float) -> tuple[float, float, float]:
        until = time.time()
        time.sleep(1.5)  # until the log is written
        lines = docker("exec", server.container, "bash", "-c", "cat /tmp/fg.*").splitlines()
        rows = [line.split() for line in lines]
        inside = [
            float(row[2]) / 1000
            for row in rows
            # The last line may be half a one.
            if len(row) == 7 and until - seconds <= float(row[4]) + float(row[5]) / 1e6 <= until
        ]
        if client.poll() is not None or len(inside) < RATE * seconds / 4:
            raise RuntimeError(
                f"{len(inside)} foreground transactions in {seconds:.1f} s of {side}"
            )
        cuts = statistics.quantiles(inside, n=100)
        return cuts[49], cuts[98], max(inside)

    try:
        yield latencies
    finally:
        docker("exec", server.container, "bash", "-c", "kill -INT $(cat /tmp/fg-pid)", check=False)
        client.wait(30)


def _write(on: dict[str, Any], found: dict[str, dict[str, list[Phase]]]) -> Path:
    def median(side: str, phase: str, of: str) -> float:
        return float(statistics.median(getattr(p, of) for p in found[side][phase]))

    rows: list[list[object]] = []
    for phase, title, count in (
        ("backlog", f"backlog of {BACKLOG:,} in five months", BACKLOG),
        ("one day", f"one day's {DAY:,}", DAY),
    ):
        times = {side: median(side, phase, "seconds") for side in (DOCUMENTS, OURS)}
        for side in (DOCUMENTS, OURS):
            rows.append([
                title, TITLES[side], f"{times[side]:.1f} s", f"{count / times[side]:,.0f}",
                f"{count * ROWS[side] / times[side]:,.0f}",
                f"{median(side, phase, 'wal_mib'):,.0f} MiB",
                f"{times[DOCUMENTS] / times[side]:.2f}",
                *(f"{median(side, phase, of):.1f} ms" for of in ("p50", "p99", "worst")),
            ])  # fmt: skip
    for side in (DOCUMENTS, OURS):
        rows.append([
            "nothing", TITLES[side], "-", "-", "-", "-", "-",
            *(f"{median(side, 'nothing', of):.1f} ms" for of in ("p50", "p99", "worst")),
        ])  # fmt: skip
    data = {
        TITLES[side]: {
            phase: {
                of: spread([getattr(p, of) for p in measured])
                for of in ("seconds", "wal_mib", "p50", "p99", "worst")
            }
            for phase, measured in phases.items()
        }
        for side, phases in found.items()
    }
    header = (
        "retention of", "side", "time", "instances/s", "rows archived/s", "WAL", "ratio",
        "foreground p50", "p99", "worst",
    )  # fmt: skip
    faster = median(DOCUMENTS, "backlog", "seconds") > median(OURS, "backlog", "seconds")
    # Against the same side without retention: tables with row-level security, months and keys take
    # longer as it is.
    added = {
        side: median(side, "backlog", "p99") - median(side, "nothing", "p99")
        for side in (DOCUMENTS, OURS)
    }
    markdown = table(header, rows) + (
        "\nEach instance has two activity records, one in a hundred a bookmark. The documents' side"
        " archives instances and loses their children to ON DELETE CASCADE; elsapg archives both."
        f" Foreground: {RATE} transactions a second, each an instance, a record and an update; on"
        " elsapg's side with row-level security, months and keys. A day's worth goes by rows there,"
        " a backlog by months.\n"
        f"\nThe backlog adds {added[DOCUMENTS]:.1f} ms to the foreground's p99 on the documents'"
        f" side, {added[OURS]:.1f} ms on elsapg's.\n"
        "\nGoal: the backlog faster, and less added to the p99, than on the documents' side; met:"
        f" {'yes' if faster and added[OURS] < added[DOCUMENTS] else 'NO'}\n"
    )
    return write("retention", "Retention", on, data, markdown)
