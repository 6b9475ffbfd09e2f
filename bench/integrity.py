"""What the promise costs that no record and no bookmark is without its instance, and its ways.

Six variants, each in a schema of its own, with our columns, indexes and months, but for the seeds':

- keys: as the product does it, a narrow table of keys that instances' triggers fill and children
  reference (cluster/057_instance_keys.sql);
- none: no integrity at all, the floor;
- composite: children carry the instance's creation, which a trigger fills in, and reference the
  partitioned parent by (tenant, id, created_at);
- triggers: a trigger on each child row locks its instance, one on instances deletes the children;
- copartitioned: children carry the instance's creation, told by the application, are partitioned by
  it, and each month of theirs references the same month of instances;
- seeds: the documents' unpartitioned tables and plain foreign keys.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from bench.database import SEEDS, disk_server, pgbench
from bench.record import machine, table, write
from tests.sql.sql_server import Server

MONTH_ROWS = int(os.environ.get("ELSAPG_BENCH_INTEGRITY_ROWS", "50000"))
RUNS = 3
SECONDS = 4
BULK = 100_000
DELETES = 2000
TENANT = "tenant-000"
TABLES = ("workflow_instances", "activity_execution_records", "bookmarks")
MONTHS = {
    "2026_01": ("2026-01-01", "2026-02-01"),
    "2026_02": ("2026-02-01", "2026-03-01"),
    "2026_03": ("2026-03-01", "2026-04-01"),
}
REMOVE_JANUARY = (
    "DELETE FROM {schema}.workflow_instances"
    " WHERE created_at >= '2026-01-01' AND created_at < '2026-02-01'"
)

# Each selects from rows (n, at), records from rows (n, at, a).
INSTANCE = (
    "INSERT INTO {schema}.workflow_instances (id, definition_id, definition_version,"
    " workflow_state, status, correlation_id, created_at, tenant_id)"
    " SELECT 'i' || n, 'workflow-' || n % 50, 1, jsonb_build_object('variables',"
    " jsonb_build_object('orderId', n)), 'Running', 'order-' || n, at, '{tenant}' FROM {rows}"
)
RECORD = (
    "INSERT INTO {schema}.activity_execution_records (id, workflow_instance_id, activity_id,"
    " activity_node_id, activity_type, activity_type_version, started_at, status, payload,"
    " tenant_id{column})"
    " SELECT 'i' || n || '-' || a, 'i' || n, 'a', 'n', 'type-' || a, 1, at, 'Running',"
    " jsonb_build_object('orderId', 'order-' || n), '{tenant}'{value} FROM {rows}"
)
BOOKMARK = (
    "INSERT INTO {schema}.bookmarks (id, bookmark_id, bookmark_hash, workflow_instance_id,"
    " activity_node_id, activity_type_name, tenant_id{column})"
    " SELECT 'i' || n || '-b', 'b', 'hash-' || n, 'i' || n, 'n', 'type', '{tenant}'{value}"
    " FROM {rows}"
)

SERIES = (
    "(SELECT n, timestamptz '{day}' + n * interval '0.1 seconds' AS at"
    " FROM generate_series({first}, {last}) AS n) AS i"
)
DELETE = (
    "SELECT nextval('{schema}.next') AS n \\gset\n"
    "DELETE FROM {schema}.workflow_instances WHERE tenant_id = '{tenant}' AND id = 'i' || :n;\n"
)

# Our tables again, with their columns and defaults; indexes are copied afterwards.
CLONE = """
CREATE SCHEMA {schema};
CREATE TABLE {schema}.workflow_instances
(LIKE elsa_workflows.workflow_instances INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
PRIMARY KEY (tenant_id, id, created_at)) PARTITION BY RANGE (created_at);
CREATE TABLE {schema}.activity_execution_records
(LIKE elsa_workflows.activity_execution_records INCLUDING DEFAULTS INCLUDING CONSTRAINTS{extra},
PRIMARY KEY (tenant_id, id, {key})) PARTITION BY RANGE ({key});
CREATE TABLE {schema}.bookmarks
(LIKE elsa_workflows.bookmarks INCLUDING DEFAULTS INCLUDING CONSTRAINTS{extra},
PRIMARY KEY (tenant_id, id{bookmark_key})){bookmark_months};
"""
EXTRA = ", instance_created_at timestamptz NOT NULL"
MONTH = """
CREATE TABLE {schema}.{table}_{month} PARTITION OF {schema}.{table}
FOR VALUES FROM ('{low}') TO ('{high}');
"""

KEYS = """
CREATE TABLE keys.workflow_instance_keys
(LIKE elsa_workflows.workflow_instance_keys INCLUDING ALL);
CREATE FUNCTION keys.add_keys() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$BEGIN
    INSERT INTO keys.workflow_instance_keys (tenant_id, id)
    SELECT n.tenant_id, n.id FROM new_rows AS n;
    RETURN NULL;
END$$;
CREATE FUNCTION keys.remove_keys() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$BEGIN
    DELETE FROM keys.workflow_instance_keys AS k USING old_rows AS o
    WHERE k.tenant_id = o.tenant_id AND k.id = o.id;
    RETURN NULL;
END$$;
CREATE TRIGGER add_keys AFTER INSERT ON keys.workflow_instances
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION keys.add_keys();
CREATE TRIGGER remove_keys AFTER DELETE ON keys.workflow_instances
REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION keys.remove_keys();
ALTER TABLE keys.activity_execution_records ADD FOREIGN KEY (tenant_id, workflow_instance_id)
REFERENCES keys.workflow_instance_keys (tenant_id, id) ON DELETE CASCADE;
ALTER TABLE keys.bookmarks ADD FOREIGN KEY (tenant_id, workflow_instance_id)
REFERENCES keys.workflow_instance_keys (tenant_id, id) ON DELETE CASCADE;
"""
COMPOSITE = """
CREATE FUNCTION composite.fill() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    SELECT i.created_at INTO new.instance_created_at FROM composite.workflow_instances AS i
    WHERE i.tenant_id = new.tenant_id AND i.id = new.workflow_instance_id;
    RETURN new;
END$$;
CREATE TRIGGER fill BEFORE INSERT ON composite.activity_execution_records
FOR EACH ROW EXECUTE FUNCTION composite.fill();
CREATE TRIGGER fill BEFORE INSERT ON composite.bookmarks
FOR EACH ROW EXECUTE FUNCTION composite.fill();
ALTER TABLE composite.activity_execution_records
ADD FOREIGN KEY (tenant_id, workflow_instance_id, instance_created_at)
REFERENCES composite.workflow_instances (tenant_id, id, created_at) ON DELETE CASCADE;
ALTER TABLE composite.bookmarks
ADD FOREIGN KEY (tenant_id, workflow_instance_id, instance_created_at)
REFERENCES composite.workflow_instances (tenant_id, id, created_at) ON DELETE CASCADE;
"""
TRIGGERS = """
CREATE FUNCTION triggers.check_instance() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    PERFORM FROM triggers.workflow_instances AS i
    WHERE i.tenant_id = new.tenant_id AND i.id = new.workflow_instance_id FOR KEY SHARE;
    IF NOT FOUND THEN RAISE EXCEPTION 'no instance %', new.workflow_instance_id; END IF;
    RETURN NULL;
END$$;
CREATE FUNCTION triggers.remove_children() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    DELETE FROM triggers.activity_execution_records AS a USING old_rows AS o
    WHERE a.tenant_id = o.tenant_id AND a.workflow_instance_id = o.id;
    DELETE FROM triggers.bookmarks AS b USING old_rows AS o
    WHERE b.tenant_id = o.tenant_id AND b.workflow_instance_id = o.id;
    RETURN NULL;
END$$;
CREATE TRIGGER check_instance AFTER INSERT ON triggers.activity_execution_records
FOR EACH ROW EXECUTE FUNCTION triggers.check_instance();
CREATE TRIGGER check_instance AFTER INSERT ON triggers.bookmarks
FOR EACH ROW EXECUTE FUNCTION triggers.check_instance();
CREATE TRIGGER remove_children AFTER DELETE ON triggers.workflow_instances
REFERENCING OLD TABLE AS old_rows
FOR EACH STATEMENT EXECUTE FUNCTION triggers.remove_children();
"""
COPARTITIONED_MONTH = """
ALTER TABLE copartitioned.workflow_instances_{month} ADD UNIQUE (tenant_id, id);
ALTER TABLE copartitioned.activity_execution_records_{month}
ADD FOREIGN KEY (tenant_id, workflow_instance_id)
REFERENCES copartitioned.workflow_instances_{month} (tenant_id, id) ON DELETE CASCADE;
ALTER TABLE copartitioned.bookmarks_{month} ADD FOREIGN KEY (tenant_id, workflow_instance_id)
REFERENCES copartitioned.workflow_instances_{month} (tenant_id, id) ON DELETE CASCADE;
"""


@dataclass(frozen=True)
class Variant:
    """One way to keep children with their instances; `drop` is how January goes.

    Children may carry their instance's creation, told by the application or filled in.
    """

    name: str
    title: str
    integrity: str = ""
    drop: tuple[str, ...] = ()
    carries_creation: bool = False
    told: bool = False


DETACH = (
    "DROP TABLE {schema}.activity_execution_records_2026_01",
    "ALTER TABLE {schema}.workflow_instances DETACH PARTITION {schema}.workflow_instances_2026_01",
)
VARIANTS = (
    Variant("seeds", "the seeds' foreign keys, one table", drop=(
        REMOVE_JANUARY,
    )),
    Variant("keys", "**keys and triggers by statement**", KEYS, drop=(
        *DETACH,
        # Nobody waits for these two: the month is out of sight already.
        "DELETE FROM {schema}.workflow_instance_keys AS k"
        " USING {schema}.workflow_instances_2026_01 AS i"
        " WHERE k.tenant_id = i.tenant_id AND k.id = i.id",
        "DROP TABLE {schema}.workflow_instances_2026_01",
    )),
    Variant("none", "no integrity", drop=(
        *DETACH, "DROP TABLE {schema}.workflow_instances_2026_01",
    )),
    Variant("composite", "composite key, filled in", COMPOSITE, carries_creation=True, drop=(
        "DROP TABLE {schema}.activity_execution_records_2026_01",
        # DETACH is refused while a row references the month.
        REMOVE_JANUARY,
        DETACH[1], "DROP TABLE {schema}.workflow_instances_2026_01",
    )),
    Variant("triggers", "triggers by row", TRIGGERS, drop=(
        *DETACH,
        "DELETE FROM {schema}.bookmarks AS b USING {schema}.workflow_instances_2026_01 AS i"
        " WHERE b.tenant_id = i.tenant_id AND b.workflow_instance_id = i.id",
        "DROP TABLE {schema}.workflow_instances_2026_01",
    )),
    Variant("copartitioned", "co-partitioned children", carries_creation=True, told=True, drop=(
        "DROP TABLE {schema}.bookmarks_2026_01",
        "DROP TABLE {schema}.activity_execution_records_2026_01",
        "DROP TABLE {schema}.workflow_instances_2026_01",
    )),
)  # fmt: skip
MEASURES = {
    "insert": "instance, 5 records and a bookmark, a row each",
    "bulk": f"{BULK:,} records in one statement",
    "delete": "instance with its children",
    "drop": "a month dropped, in all",
    "blocked": "of that, a reader of instances waits",
}


def run(runs: int | None = None) -> Path:
    """Measure each variant as often as told (3), in turns, and write the medians down."""
    on = machine()
    with disk_server() as server:
        collected: dict[str, dict[str, list[float]]] = {
            v.name: {m: [] for m in MEASURES} for v in VARIANTS
        }
        for number in range(runs or RUNS):
            turn = VARIANTS if number % 2 == 0 else VARIANTS[::-1]
            for variant in turn:
                for measure, ms in _measure(server, variant).items():
                    collected[variant.name][measure].append(ms)
    medians = {
        name: {measure: statistics.median(ms) for measure, ms in by.items()}
        for name, by in collected.items()
    }
    rows: list[list[object]] = [
        [variant.title, *(_cell(medians, variant.name, measure) for measure in MEASURES)]
        for variant in VARIANTS
    ]
    markdown = table(("children are kept by", *MEASURES.values()), rows) + (
        f"\nMilliseconds, and how many times the seeds'. Median of {runs or RUNS} runs; of each run"
        f" of pgbench, the median transaction of two clients. The month holds {MONTH_ROWS:,}"
        f" instances with five records and a bookmark each.\n"
    )
    data = {"month_rows": MONTH_ROWS, "ms": collected}
    return write("integrity", "Integrity across months", on, data, markdown)


def _cell(medians: Mapping[str, Mapping[str, float]], name: str, measure: str) -> str:
    ms, seeds = medians[name][measure], medians["seeds"][measure]
    return f"{ms:,.2f} ({ms / seeds:.2f})"


def _measure(server: Server, variant: Variant) -> dict[str, float]:
    schema = variant.name
    with server.connect("elsa_workflows", autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        _create(connection, variant)
        _load(connection, variant, "2026-01-02", 1, MONTH_ROWS)
        _load(connection, variant, "2026-02-02", MONTH_ROWS + 1, MONTH_ROWS + 2 * DELETES)
        connection.execute(f"CREATE SEQUENCE {schema}.next START {MONTH_ROWS + 1}".encode())
        connection.execute("VACUUM (ANALYZE)")
        found = {
            "insert": pgbench(server, _inserts(variant), clients=2, seconds=SECONDS),
            "bulk": _timed(connection, _bulk(variant)),
            "delete": pgbench(server, _delete(variant), clients=2, transactions=DELETES),
        }
        _expect_gone(connection, variant, MONTH_ROWS + 1)
        found["drop"], found["blocked"] = _drop(server, connection, variant)
        _expect_gone(connection, variant, 1)
        connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())
    print(f"integrity: {schema}: { {k: round(v, 2) for k, v in found.items()} }", flush=True)
    return found


def _create(connection: psycopg.Connection[Any], variant: Variant) -> None:
    schema = variant.name
    if schema == "seeds":
        connection.execute("CREATE SCHEMA seeds")
        connection.execute("SET search_path = seeds")
        for name in ("queries.sql", "queries_indexes.sql"):
            connection.execute((SEEDS / name).read_bytes())
        connection.execute("RESET search_path")
        return
    by = "instance_created_at" if variant.told else "started_at"
    text = CLONE.format(
        schema=schema,
        extra=EXTRA if variant.carries_creation else "",
        key=by,
        bookmark_key=f", {by}" if variant.told else "",
        bookmark_months=f" PARTITION BY RANGE ({by})" if variant.told else "",
    )
    for month, (low, high) in MONTHS.items():
        for name in TABLES if variant.told else TABLES[:2]:
            text += MONTH.format(schema=schema, table=name, month=month, low=low, high=high)
        if variant.told:
            text += COPARTITIONED_MONTH.format(month=month)
    connection.execute((text + variant.integrity).encode())
    for (definition,) in connection.execute(
        "SELECT pg_get_indexdef(x.indexrelid) FROM pg_index AS x"
        " WHERE NOT x.indisprimary AND x.indrelid = ANY (%s::regclass[])",
        ([f"elsa_workflows.{name}" for name in TABLES],),
    ).fetchall():
        copied = definition.replace(" ON ONLY ", " ON ").replace("elsa_workflows.", f"{schema}.")
        connection.execute(copied.encode())


def _texts(variant: Variant, template: str, rows: str, *, loading: bool = False) -> str:
    told = variant.told or (variant.carries_creation and loading)
    return template.format(
        schema=variant.name,
        tenant=TENANT,
        rows=rows,
        column=", instance_created_at" if told else "",
        value=", at" if told else "",
    )


def _load(
    connection: psycopg.Connection[Any], variant: Variant, day: str, first: int, last: int
) -> None:
    """Instances of one day with their children, past triggers and keys."""
    rows = SERIES.format(day=day, first=first, last=last)
    connection.execute("SET session_replication_role = replica")
    for template, source in (
        (INSTANCE, rows),
        (RECORD, f"{rows} CROSS JOIN generate_series(1, 5) AS a"),
        (BOOKMARK, rows),
    ):
        connection.execute(_texts(variant, template, source, loading=True).encode())
    if variant.name == "keys":
        connection.execute(
            "INSERT INTO keys.workflow_instance_keys (tenant_id, id)"
            " SELECT tenant_id, id FROM keys.workflow_instances ON CONFLICT DO NOTHING"
        )
    connection.execute("RESET session_replication_role")


def _inserts(variant: Variant) -> str:
    """A pgbench script: what one run of a small workflow writes, in a transaction."""
    row = "SELECT :n::bigint AS n, timestamptz '2026-03-01' + :s * interval '1 second' AS at"
    parts = [_texts(variant, INSTANCE, f"({row}) AS i")]
    parts += [_texts(variant, RECORD, f"({row}, {a} AS a) AS i") for a in range(1, 6)]
    parts.append(_texts(variant, BOOKMARK, f"({row}) AS i"))
    return (
        "\\set n random(1000000000, 9000000000000000)\n\\set s random(1, 2000000)\n"
        + ";\n".join(["BEGIN", *parts, "COMMIT"])
        + ";\n"
    )


def _bulk(variant: Variant) -> str:
    """Five more records of each of the first instances of January."""
    return _texts(
        variant,
        RECORD,
        "(SELECT n, timestamptz '2026-01-02' + n * interval '0.1 seconds' AS at, 10 + a AS a"
        " FROM generate_series(1, {many}) AS n CROSS JOIN generate_series(1, 5) AS a)"
        " AS i".replace("{many}", str(min(BULK // 5, MONTH_ROWS))),
    )


def _delete(variant: Variant) -> str:
    """A pgbench script: one instance of February goes, with its children."""
    return DELETE.format(schema=variant.name, tenant=TENANT)


def _expect_gone(connection: psycopg.Connection[Any], variant: Variant, number: int) -> None:
    """Raise AssertionError unless an instance and its children are no more."""
    left = [
        name
        for name, column in zip(TABLES, ("id", *["workflow_instance_id"] * 2), strict=True)
        if connection.execute(
            sql.SQL("SELECT FROM {} WHERE {} = %s").format(
                sql.Identifier(variant.name, name), sql.Identifier(column)
            ),
            (f"i{number}",),
        ).fetchone()
        is not None
    ]
    if variant.integrity or variant.told or variant.name == "seeds":
        assert not left, f"{variant.name}: instance i{number} is still in {left}"
    else:
        assert "workflow_instances" not in left


def _timed(connection: psycopg.Connection[Any], statement: str) -> float:
    began = time.perf_counter()
    connection.execute(statement.encode())
    return (time.perf_counter() - began) * 1000


def _drop(
    server: Server, connection: psycopg.Connection[Any], variant: Variant
) -> tuple[float, float]:
    """Milliseconds that January takes to go, and the longest that a reader waited meanwhile."""
    query = (
        f"SELECT count(*) FROM {variant.name}.workflow_instances"  # noqa: S608
        f" WHERE tenant_id = '{TENANT}' AND id = 'i{MONTH_ROWS + 2 * DELETES}'"
    ).encode()
    done = threading.Event()
    waited: list[float] = []

    def read() -> None:
        with server.connect("elsa_workflows", autocommit=True) as reader:
            while not done.is_set():
                began = time.perf_counter()
                reader.execute(query)
                waited.append((time.perf_counter() - began) * 1000)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        while len(waited) < 20:
            time.sleep(0.01)
        del waited[:]
        total = sum(_timed(connection, s.format(schema=variant.name)) for s in variant.drop)
    finally:
        done.set()
        thread.join()
    return total, max(waited, default=0.0)
