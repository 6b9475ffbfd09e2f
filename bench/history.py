"""Twelve months of a busy Elsa, made by SQL: the same rows for the seeds' tables and for ours.

200 tenants (the first has a tenth of all rows), 50 workflows, instances evenly over time; 2 % are
still active, 0.5 % faulted, most take minutes, one in a hundred takes days. The instances of the
last month have five activity records each; active ones have a bookmark.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from bench.database import SEEDS
from tests.sql.sql_server import Server

YEAR_S = 365 * 86400
BIG_TENANT = "tenant-000"
ACTIVITIES = 5

# n counts instances, oldest first; a row's properties follow from its number, so both sides, and
# each run, have the same ones. Ids grow with time, as UUIDv7 and ULID do.
_INSTANCES = """
SELECT
    (100000000000 + n)::text AS id,
    'workflow-' || lpad((h.a %% 50)::text, 2, '0') AS definition_id,
    1 + (h.a %% 3)::integer AS definition_version,
    jsonb_build_object(
        'variables',
        jsonb_build_object('orderId', n, 'amount', h.a %% 1000, 'region', 'region-' || h.a %% 7),
        'activities', jsonb_build_array('start', 'approve', 'ship')
    ) AS workflow_state,
    CASE
        WHEN e.faulted THEN 'Faulted'
        WHEN e.active OR e.ended_at > %(until)s
            THEN CASE WHEN h.b %% 3 = 0 THEN 'Running' ELSE 'Suspended' END
        WHEN h.b %% 40 = 0 THEN 'Cancelled'
        ELSE 'Completed'
    END AS status,
    CASE WHEN n %% 2 = 0 THEN 'order-' || n END AS correlation_id,
    c.at AS created_at,
    c.at AS updated_at,
    CASE
        WHEN NOT e.faulted AND NOT e.active AND e.ended_at <= %(until)s THEN e.ended_at
    END AS finished_at,
    CASE WHEN e.faulted THEN c.at END AS faulted_at,
    CASE
        WHEN n %% 10 = 0 THEN 'tenant-000'
        ELSE 'tenant-' || lpad((1 + h.c %% 199)::text, 3, '0')
    END AS tenant_id,
    n
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
CROSS JOIN LATERAL (
    SELECT
        hashint8extended(n, 1) & 1073741823 AS a,
        hashint8extended(n, 2) & 1073741823 AS b,
        hashint8extended(n, 3) & 1073741823 AS c,
        hashint8extended(n, 4) & 1073741823 AS d
) AS h
CROSS JOIN LATERAL (
    SELECT %(since)s::timestamptz + make_interval(secs => n * %(step)s::float8) AS at
) AS c
CROSS JOIN LATERAL (
    SELECT
        h.d %% 50 = 0 AS active,
        h.d %% 200 = 1 AS faulted,
        c.at + make_interval(
            secs => CASE WHEN h.b %% 100 = 0 THEN h.c %% 400000 ELSE 1 + h.c %% 600 END
        ) AS ended_at
) AS e
"""
_COLUMNS = (
    "id, definition_id, definition_version, workflow_state, status, correlation_id, created_at,"
    " updated_at, finished_at, faulted_at, tenant_id"
)
_RECORDS = """
SELECT
    i.id || '-' || a AS id,
    i.id AS workflow_instance_id,
    'activity-' || a AS activity_id,
    'node-' || a AS activity_node_id,
    'Elsa.Activity' || lpad(t.kind::text, 2, '0') AS activity_type,
    1 AS activity_type_version,
    s.started_at,
    CASE WHEN t.ended_at <= %(until)s THEN t.ended_at END AS completed_at,
    i.status = 'Suspended' AS has_bookmarks,
    CASE WHEN t.ended_at <= %(until)s THEN 'Completed' ELSE 'Running' END AS status,
    CASE
        WHEN a = 1 THEN jsonb_build_object('orderId', 'order-' || i.n, 'total', i.n %% 977)
        ELSE jsonb_build_object('step', a)
    END AS payload,
    i.tenant_id
FROM i
CROSS JOIN generate_series(1, 5) AS a
CROSS JOIN LATERAL (SELECT i.created_at + make_interval(secs => 0.2 * a) AS started_at) AS s
CROSS JOIN LATERAL (
    SELECT
        (i.n * 7 + a * 13) %% 40 AS kind,
        s.started_at + make_interval(
            secs => ((i.n * 7 + a * 13) %% 40) * (1 + i.n %% 10) * 0.05
        ) AS ended_at
) AS t
"""
_RECORD_COLUMNS = (
    "id, workflow_instance_id, activity_id, activity_node_id, activity_type,"
    " activity_type_version, started_at, completed_at, has_bookmarks, status, payload, tenant_id"
)
_BOOKMARKS = """
SELECT
    i.id || '-b' AS id,
    'bookmark-' || i.n AS bookmark_id,
    md5('bookmark-' || i.n) AS bookmark_hash,
    i.id AS workflow_instance_id,
    'node-2' AS activity_node_id,
    'Elsa.Event' AS activity_type_name,
    i.correlation_id,
    i.tenant_id
FROM i
WHERE i.status IN ('Running', 'Suspended')
"""
_BOOKMARK_COLUMNS = (
    "id, bookmark_id, bookmark_hash, workflow_instance_id, activity_node_id, activity_type_name,"
    " correlation_id, tenant_id"
)
_INSERT_INSTANCES = (
    f"INSERT INTO workflow_instances ({_COLUMNS}) SELECT {_COLUMNS}"  # noqa: S608
    f" FROM ({_INSTANCES}) AS made"
)
_INSERT_RECORDS = (
    f"INSERT INTO activity_execution_records ({_RECORD_COLUMNS})"  # noqa: S608
    f" SELECT {_RECORD_COLUMNS}"
    f" FROM (WITH i AS MATERIALIZED ({_INSTANCES}) {_RECORDS}) AS made"
)
_INSERT_BOOKMARKS = (
    f"INSERT INTO bookmarks ({_BOOKMARK_COLUMNS})"
    f" WITH i AS MATERIALIZED ({_INSTANCES}) {_BOOKMARKS}"
)


@dataclass(frozen=True)
class History:
    """What was made: `rows` instances, evenly over the year before `until`."""

    rows: int
    until: datetime

    @property
    def since(self) -> datetime:
        """The first instance's creation."""
        return self.until - timedelta(seconds=YEAR_S)

    @property
    def step_s(self) -> float:
        """Seconds between two instances."""
        return YEAR_S / self.rows

    def number(self, at: datetime) -> int:
        """The instance that is created at or after a moment."""
        return max(1, int((at - self.since).total_seconds() / self.step_s))

    def parameters(self, first: int, last: int, until: datetime) -> dict[str, object]:
        """What the statements want to know, for the instances `first` to `last`."""
        return {
            "first": first, "last": last, "since": self.since, "step": self.step_s, "until": until,
        }  # fmt: skip

    @property
    def first_with_records(self) -> int:
        """Instances from this one on have activity records: the last month's."""
        return self.rows - self.rows // 12 + 1

    def months(self) -> Iterator[tuple[datetime, datetime]]:
        """The months that the instances fall into, and the one after."""
        begin = self.since.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        while begin <= self.until + timedelta(days=31):
            end = (begin + timedelta(days=32)).replace(day=1)
            yield begin, end
            begin = end


def moment(seconds: float) -> datetime:
    """A time in UTC, by its seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)


def load_ours(server: Server, rows: int) -> History:
    """Fill the product's tables, month by month: filled first, attached afterwards.

    Raises RuntimeError if a month that is there already holds rows.
    """
    history = History(rows, datetime.now(UTC).replace(microsecond=0))
    with server.connect("elsa_workflows", autocommit=True) as connection:
        connection.execute("SET search_path = elsa_workflows, pg_catalog")
        for table in ("workflow_instances", "activity_execution_records"):
            _drop_months(connection, table)
        for month in history.months():
            _fill_month(connection, history, month, "workflow_instances")
        connection.execute(
            "INSERT INTO workflow_instance_keys SELECT tenant_id, id FROM workflow_instances"
            " ORDER BY tenant_id, id"
        )
        for month in history.months():
            _fill_month(connection, history, month, "activity_execution_records")
        whole = history.parameters(history.first_with_records, rows, history.until)
        connection.execute(sql.SQL(_INSERT_BOOKMARKS), whole)
        connection.execute("VACUUM (ANALYZE)")
    return history


def load_seeds(server: Server, history: History) -> None:
    """Make the database "seeds" and fill the seeds' tables with the same rows."""
    with server.connect("postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE seeds TEMPLATE template0")
        connection.execute("ALTER DATABASE seeds SET timezone = 'UTC'")
    with server.connect("seeds", autocommit=True) as connection:
        connection.execute((SEEDS / "queries.sql").read_bytes())
        connection.execute(
            sql.SQL(_INSERT_INSTANCES), history.parameters(1, history.rows, history.until)
        )
        recent = history.parameters(history.first_with_records, history.rows, history.until)
        connection.execute(sql.SQL(_INSERT_RECORDS), recent)
        connection.execute(sql.SQL(_INSERT_BOOKMARKS), recent)
        connection.execute((SEEDS / "queries_indexes.sql").read_bytes())
        connection.execute("VACUUM (ANALYZE)")


def go_on(server: Server, history: History, database: str, until: datetime) -> int:
    """Insert, as an application would, what was created since the load; how many instances."""
    first, last = history.rows + 1, history.number(until)
    with server.connect(database, autocommit=True) as connection:
        if database == "elsa_workflows":
            connection.execute("SET search_path = elsa_workflows, pg_catalog")
        values = history.parameters(first, last, until)
        for statement in (_INSERT_INSTANCES, _INSERT_RECORDS, _INSERT_BOOKMARKS):
            connection.execute(sql.SQL(statement), values)
    return last - first + 1


def _drop_months(connection: psycopg.Connection[Any], table: str) -> None:
    found = connection.execute(
        "SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = %s::regclass"
        " AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT'",
        (f"elsa_workflows.{table}",),
    ).fetchall()
    for (name,) in found:
        row = connection.execute(
            sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(name))
        ).fetchone()
        if row != (False,):
            raise RuntimeError(f"{name} holds rows; load into a new server")
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))


def _fill_month(
    connection: psycopg.Connection[Any],
    history: History,
    month: tuple[datetime, datetime],
    table: str,
) -> None:
    begin, end = month
    # Records start some seconds after their instance.
    first, last = history.number(begin - timedelta(hours=1)), history.number(end) + 1
    key, insert = "created_at", _INSERT_INSTANCES
    if table == "activity_execution_records":
        key, insert = "started_at", _INSERT_RECORDS
        first = max(first, history.first_with_records)
    names = {
        "partition": sql.Identifier(f"{table}_{begin:%Y_%m}"),
        "parent": sql.Identifier(table),
        "begin": sql.Literal(begin.isoformat()),
        "end": sql.Literal(end.isoformat()),
    }
    insert = insert.replace(f"INTO {table}", "INTO {partition}")
    insert += f" WHERE {key} >= {{begin}} AND {key} < {{end}}"
    with connection.transaction():
        connection.execute(
            sql.SQL(
                "CREATE TABLE {partition} (LIKE {parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"
            ).format(**names)
        )
        connection.execute(sql.SQL("ALTER TABLE {partition} OWNER TO elsa_owner").format(**names))
        connection.execute(
            sql.SQL(insert).format(**names),
            history.parameters(first, min(last, history.rows), history.until),
        )
        connection.execute(
            sql.SQL(
                "ALTER TABLE {parent} ATTACH PARTITION {partition}"
                " FOR VALUES FROM ({begin}) TO ({end})"
            ).format(**names)
        )
