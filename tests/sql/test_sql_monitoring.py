"""The monitoring views: what they count, and who sees whose rows in them (S0-95 … S0-98)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sql_server import Server

pytestmark = pytest.mark.docker

VIEWS = ("active_workflows", "workflow_performance", "slow_activities", "database_size")
ELSA = ("elsa_workflows", "elsa_runtime")
INSTANCE = """
INSERT INTO elsa_workflows.workflow_instances
    (id, definition_id, definition_version, workflow_state, status, created_at, finished_at,
     faulted_at, tenant_id)
VALUES
    (%(id)s, %(workflow)s, 1, '{}', %(status)s, now() - %(created)s::interval,
     now() - %(finished)s::interval, now() - %(faulted)s::interval, %(tenant)s)
"""
RECORD = """
INSERT INTO elsa_workflows.activity_execution_records
    (id, workflow_instance_id, activity_id, activity_node_id, activity_type, activity_type_version,
     started_at, completed_at, has_bookmarks, status, tenant_id)
VALUES
    (%(id)s, %(instance)s, 'a', 'n', %(type)s::text, 1, now() - %(started)s::interval,
     now() - %(completed)s::interval, %(type)s::text = 'Long', 'Completed', %(tenant)s)
"""


@pytest.fixture
def data(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """The superuser's connection; what it inserted is gone afterwards."""
    with server.connect("elsa_workflows", autocommit=True) as connection:
        yield connection
        connection.execute("DELETE FROM elsa_workflows.workflow_instances")


def instance(
    data: psycopg.Connection[Any],
    tenant: str,
    name: str,
    created: str,
    *,
    finished: str | None = None,
    faulted: str | None = None,
    status: str = "Running",
    workflow: str = "flow",
) -> None:
    """One instance; its times are how long ago."""
    data.execute(
        INSTANCE,
        {
            "id": name, "tenant": tenant, "workflow": workflow, "status": status,
            "created": created, "finished": finished, "faulted": faulted,
        },
    )  # fmt: skip


def record(
    data: psycopg.Connection[Any],
    tenant: str,
    name: str,
    kind: str,
    started: str,
    completed: str | None,
) -> None:
    """One record of instance `i`; its times are how long ago."""
    data.execute(
        RECORD,
        {
            "id": name, "instance": "i", "tenant": tenant, "type": kind, "started": started,
            "completed": completed,
        },
    )  # fmt: skip


@contextmanager
def reader(
    server: Server, role: str = "monitoring", tenant: str | None = None, database: str = ELSA[0]
) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    with server.connect(database, role, row_factory=dict_row) as connection:
        if tenant is not None:
            connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", (tenant,))
        yield connection


def view(connection: psycopg.Connection[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return connection.execute(f"SELECT * FROM monitoring.{name}".encode()).fetchall()


def test_active_workflows_counts_what_neither_finished_nor_faulted(
    server: Server, data: psycopg.Connection[Any]
) -> None:
    """S0-95"""
    instance(data, "a", "1", "10 s")
    instance(data, "b", "2", "30 s")
    instance(data, "a", "3", "5 s", status="Suspended")
    instance(data, "a", "4", "9 s", finished="1 s", status="Completed")
    # The documents' condition, finished_at IS NULL, counts this one.
    instance(data, "a", "5", "9 s", faulted="1 s", status="Faulted")
    with reader(server) as connection:
        found = {row["status"]: row for row in view(connection, "active_workflows")}
    assert {status: row["count"] for status, row in found.items()} == {"Running": 2, "Suspended": 1}
    assert 20 <= float(found["Running"]["avg_duration_seconds"]) < 25
    assert found["Running"]["oldest_created_at"] is not None


def test_workflow_performance_goes_by_the_end(
    server: Server, data: psycopg.Connection[Any]
) -> None:
    """S0-96"""
    for number in range(1, 100):
        instance(data, "a", f"i{number}", f"{1000 + number} s", finished="1000 s")
    # Created long before the last 24 hours: the documents' query does not see it.
    instance(data, "a", "long", "3 days", finished="1 hour")
    instance(data, "a", "before", "30 hours", finished="25 hours")
    instance(data, "a", "active", "1 hour")
    instance(data, "b", "other", "2 s", finished="1 s")
    with reader(server) as connection:
        first, second = view(connection, "workflow_performance")
    assert (first["definition_id"], first["tenant_id"], first["total_executions"]) == (
        "flow",
        "a",
        100,
    )
    assert float(first["avg_duration_seconds"]) == pytest.approx((4950 + 71 * 3600) / 100)
    # Between the 95th and the 96th of 100.
    assert float(first["p95_duration"]) == pytest.approx(95.05)
    assert float(first["max_duration_seconds"]) == 71 * 3600
    assert (second["tenant_id"], second["total_executions"]) == ("b", 1)


def test_workflow_performance_shows_the_ten_busiest(
    server: Server, data: psycopg.Connection[Any]
) -> None:
    """S0-96"""
    for number in range(12):
        for run in range(number + 1):
            instance(data, "a", f"{number}-{run}", "2 s", finished="1 s", workflow=f"w{number:02}")
    with reader(server) as connection:
        found = [row["definition_id"] for row in view(connection, "workflow_performance")]
    assert found == [f"w{number:02}" for number in range(11, 1, -1)]


def test_slow_activities_goes_by_completion(server: Server, data: psycopg.Connection[Any]) -> None:
    """S0-97"""
    instance(data, "a", "i", "1 day")
    # Started before the last hour: the documents' query does not see it.
    record(data, "a", "1", "Long", "2 hours", "10 minutes")
    record(data, "a", "2", "Slow", "100 s", "94 s")
    record(data, "a", "3", "Slow", "100 s", "90 s")
    record(data, "a", "4", "Quick", "100 s", "96 s")
    record(data, "a", "5", "Past", "3 hours", "2 hours")
    record(data, "a", "6", "Open", "50 minutes", None)
    with reader(server) as connection:
        found = view(connection, "slow_activities")
    averages = [(r["activity_type"], r["count"], float(r["avg_duration_seconds"])) for r in found]
    assert averages == [("Long", 1, 6600.0), ("Slow", 2, 8.0)]
    assert [float(r["max_duration_seconds"]) for r in found] == [6600.0, 10.0]
    assert [r["waited"] for r in found] == [1, 0]


@pytest.mark.parametrize("database", ELSA)
def test_database_size_measures_quoted_names_and_partitioned_tables(
    server: Server, database: str
) -> None:
    """S0-98"""
    with server.connect(database) as connection:
        connection.execute('CREATE SCHEMA "Some Schema"')
        connection.execute(
            'CREATE TABLE "Some Schema"."Mixed Case" AS SELECT generate_series(1, 1e5)'
        )
        connection.execute(
            "CREATE TABLE public.sliced (n integer PRIMARY KEY) PARTITION BY RANGE (n)"
        )
        for part, (low, high) in enumerate([(0, 300_000), (300_000, 600_000)]):
            connection.execute(
                f"CREATE TABLE public.sliced_{part} PARTITION OF public.sliced"
                f" FOR VALUES FROM ({low}) TO ({high})".encode()
            )
        connection.execute("INSERT INTO public.sliced SELECT generate_series(0, 599999)")
        row = connection.execute(
            "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class AS c"
            " WHERE c.relname IN ('sliced_0', 'sliced_1')"
        ).fetchone()
        assert row is not None
        connection.execute("SET LOCAL ROLE monitoring")
        with connection.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute("SELECT * FROM monitoring.database_size").fetchall()
        connection.rollback()
    assert len(found) <= 10
    assert [r["total_bytes"] for r in found] == sorted(
        (r["total_bytes"] for r in found), reverse=True
    )
    sizes = {(r["schemaname"], r["tablename"]): r for r in found}
    sliced = sizes["public", "sliced"]
    assert (sliced["total_bytes"], sliced["partitions"]) == (row[0], 2)
    assert sizes["Some Schema", "Mixed Case"]["total_bytes"] > 1_000_000
    assert not {name for _, name in sizes if name.startswith("sliced_")}


def test_a_tenant_sees_its_own_in_every_view(server: Server, data: psycopg.Connection[Any]) -> None:
    for tenant, many in (("a", 1), ("b", 3)):
        instance(data, tenant, "i", "1 day", finished="1 hour")
        for number in range(many):
            instance(data, tenant, f"r{number}", "1 minute")
            record(data, tenant, f"{number}", f"Slow-{tenant}", "100 s", "90 s")
    with reader(server, "elsa_readonly", "a") as connection:
        assert [r["count"] for r in view(connection, "active_workflows")] == [1]
        assert [r["tenant_id"] for r in view(connection, "workflow_performance")] == ["a"]
        assert [r["activity_type"] for r in view(connection, "slow_activities")] == ["Slow-a"]
    for role in ("monitoring", "elsa_host", "elsa_admin"):
        with reader(server, role) as connection:
            assert [r["count"] for r in view(connection, "active_workflows")] == [4]
            assert len(view(connection, "slow_activities")) == 2


@pytest.mark.parametrize("tenant", [None, "", "c"])
def test_without_a_tenant_of_its_own_a_report_sees_nothing(
    server: Server, data: psycopg.Connection[Any], tenant: str | None
) -> None:
    instance(data, "a", "i", "1 day", finished="1 hour")
    instance(data, "a", "j", "1 day")
    record(data, "a", "1", "Slow", "100 s", "90 s")
    with reader(server, "elsa_readonly", tenant) as connection:
        for name in VIEWS[:3]:
            assert view(connection, name) == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT workflow_state FROM elsa_workflows.workflow_instances",
        "SELECT * FROM elsa_workflows.workflow_instances",
        "SELECT correlation_id FROM elsa_workflows.workflow_instances",
        "SELECT payload FROM elsa_workflows.activity_execution_records",
        "SELECT exception FROM elsa_workflows.activity_execution_records",
        "SELECT count(*) FROM elsa_workflows.users",
        "SELECT count(*) FROM elsa_workflows.bookmarks",
    ],
)
def test_monitoring_reads_no_data(server: Server, statement: str) -> None:
    with reader(server) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.encode())


def test_monitoring_cannot_write_even_if_it_wants_to(server: Server) -> None:
    with reader(server) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SET TRANSACTION READ WRITE")
        connection.execute("DELETE FROM elsa_workflows.workflow_instances")


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker"])
def test_the_application_has_no_business_in_the_schema(server: Server, role: str) -> None:
    with (
        reader(server, role, "a") as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        view(connection, "active_workflows")


@pytest.mark.parametrize("database", ELSA)
def test_every_view_asks_with_the_readers_rights(server: Server, database: str) -> None:
    rows = server.rows(
        "SELECT c.relname, c.reloptions FROM pg_class AS c"
        " WHERE c.relnamespace = 'monitoring'::regnamespace AND c.relkind = 'v'",
        database=database,
    )
    assert rows
    assert [name for name, options in rows if "security_invoker=true" not in (options or [])] == []


def test_a_bootstrap_replaces_a_policy_that_was_widened(server: Server) -> None:
    table = "elsa_workflows.workflow_instances"
    with server.connect("elsa_workflows") as connection:
        connection.execute(f"DROP POLICY monitoring_access ON {table}".encode())
        connection.execute(f"CREATE POLICY monitoring_access ON {table} USING (true)".encode())
    server.bootstrap()
    assert server.rows(
        "SELECT cmd, roles::text FROM pg_policies"
        " WHERE policyname = 'monitoring_access' AND tablename = 'workflow_instances'",
        database="elsa_workflows",
    ) == [("SELECT", "{monitoring}")]
