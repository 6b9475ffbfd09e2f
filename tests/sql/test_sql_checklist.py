"""The design documents' checklist, row by row, on a bootstrapped server.

The ids are the checklist's numbers. What needs a whole stack (TLS, firewall, packages) is shown by
`elsapg verify`; those rows name the check that shows it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sql_server import Server
from tenant_tables import Connection, session

pytestmark = pytest.mark.docker

WORKFLOWS, RUNTIME = "elsa_workflows", "elsa_runtime"
TENANT = "checklist"


def row(number: str, *values: Any) -> Any:
    """One row of the checklist as a parameter set, with its number as the test's id."""
    return pytest.param(*values, id=number)


@pytest.fixture
def app(server: Server) -> Iterator[Connection]:
    """elsa_app in a tenant's transaction; the tenant and one instance are there. Rolled back."""
    with as_app(server, WORKFLOWS) as connection:
        yield connection


def as_app(server: Server, database: str) -> Any:
    return session(server, "elsa_app", TENANT, database)


@pytest.fixture
def owner(server: Server) -> Iterator[Connection]:
    """The superuser in elsa_workflows; rolled back."""
    with server.connect(WORKFLOWS) as connection:
        yield connection
        connection.rollback()


def insert(connection: Connection, table: str, **values: Any) -> None:
    """An INSERT with exactly these columns: the documents', in their spelling."""
    columns = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join(["%s"] * len(values))
    connection.execute(
        f"INSERT INTO {table} ({columns}) VALUES ({marks})".encode(), tuple(values.values())
    )


NOW = "2026-01-15 12:00:00+00"
DEFINITION = {
    "id": "v1", "definition_id": "d", "version": 1, "name": "n", "description": "x",
    "is_published": True, "is_latest": True, "materialized_workflow": "{}", "string_data": "s",
    "created_at": NOW, "updated_at": NOW, "tenant_id": TENANT,
}  # fmt: skip
INSTANCE = {
    "id": "i1", "definition_id": "d", "definition_version": 1, "workflow_state": "{}",
    "status": "Running", "sub_status": "Suspended", "correlation_id": "c", "name": "n",
    "incident_count": 0, "is_system": False, "created_at": NOW, "updated_at": NOW,
    "finished_at": None, "faulted_at": None, "tenant_id": TENANT,
}  # fmt: skip
RECORD = {
    "id": "r1", "workflow_instance_id": "i1", "activity_id": "a", "activity_node_id": "n",
    "activity_type": "t", "activity_type_version": 1, "activity_name": "n", "started_at": NOW,
    "completed_at": NOW, "has_bookmarks": False, "status": "Completed",
    "payload": '{"orderId": "7"}', "exception": None, "tenant_id": TENANT,
}  # fmt: skip
BOOKMARK = {
    "id": "b1", "bookmark_id": "b", "bookmark_hash": "h", "workflow_instance_id": "i1",
    "activity_node_id": "n", "activity_type_name": "t", "correlation_id": "c", "payload": "{}",
    "metadata": "{}", "created_at": NOW, "tenant_id": TENANT,
}  # fmt: skip
TRIGGER = {
    "id": "t1", "workflow_definition_id": "d", "workflow_definition_version_id": "v1",
    "name": "n", "activity_id": "a", "hash": "h", "payload": "{}", "created_at": NOW,
    "tenant_id": TENANT,
}  # fmt: skip
SNAPSHOT = {"id": "s1", "workflow_instance_id": "i1", "snapshot_data": "{}", "created_at": NOW}


# -- S0: tables --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "values"),
    [
        row("S0-11-workflow_definitions", "elsa_workflows.workflow_definitions", DEFINITION),
        row("S0-12-workflow_instances", "elsa_workflows.workflow_instances", INSTANCE),
        row(
            "S0-13-activity_execution_records", "elsa_workflows.activity_execution_records", RECORD
        ),
        row("S0-14-bookmarks", "elsa_workflows.bookmarks", BOOKMARK),
        row("S0-15-triggers", "elsa_workflows.triggers", TRIGGER),
        row("S0-18-execution_state_snapshots", "elsa_runtime.execution_state_snapshots", SNAPSHOT),
    ],
)
def test_a_table_takes_the_documents_columns(
    server: Server, table: str, values: dict[str, Any]
) -> None:
    with as_app(server, table.partition(".")[0]) as connection:
        if "workflow_instance_id" in values and table.startswith("elsa_workflows"):
            insert(connection, "elsa_workflows.workflow_instances", **INSTANCE)
        insert(connection, table, **values)
        found = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        assert found == (1,)


@pytest.mark.parametrize(
    ("database", "table", "columns"),
    [
        row("S0-16-tenants", WORKFLOWS, "tenants", "tenant_id name is_enabled created_at"),
        row(
            "S0-17-users", WORKFLOWS, "users",
            "id user_name email password_hash permissions tenant_id",
        ),
        row(
            "S0-20-worker_registration", RUNTIME, "worker_registration",
            "worker_id host_name state last_heartbeat_at",
        ),
        row(
            "S0-21-task_queue_state", RUNTIME, "task_queue_state",
            "queue_name task_id state payload available_at",
        ),
    ],
)  # fmt: skip
def test_a_table_that_the_documents_only_name(
    server: Server, database: str, table: str, columns: str
) -> None:
    with as_app(server, database) as connection:
        chosen = ", ".join(columns.split())
        # The worker fleet and the tenants are not the tenants' to write.
        connection.execute(f"SELECT {chosen} FROM {database}.{table}".encode())


@pytest.mark.parametrize("number", [row("S0-16-17-tenants-and-their-users", None)])
def test_a_tenant_and_its_users(server: Server, number: None) -> None:
    with session(server, "elsa_admin") as connection:
        insert(connection, "elsa_workflows.tenants", tenant_id="new", name="New")
        user = {"tenant_id": "new", "permissions": ["read"]}
        insert(connection, "elsa_workflows.users", id="u1", user_name="Ann", **user)
        for error, values in [
            (psycopg.errors.UniqueViolation, {"id": "u2", "user_name": "ANN", **user}),
            (
                psycopg.errors.ForeignKeyViolation,
                {"id": "u3", "user_name": "Bob", "tenant_id": "nobody"},
            ),
        ]:
            connection.execute("SAVEPOINT s")
            with pytest.raises(error):
                insert(connection, "elsa_workflows.users", **values)
            connection.execute("ROLLBACK TO SAVEPOINT s")


@pytest.mark.parametrize("number", [row("S0-19-distributed_locks", None)])
def test_locks_have_the_documents_columns(server: Server, number: None) -> None:
    with as_app(server, RUNTIME) as connection:
        connection.execute("SELECT elsa_runtime.acquire_lock('checklist-19', 'l', 'w', 1)")
        connection.commit()
    found = server.rows(
        "SELECT lock_id, locked_by, expires_at > locked_at"
        " FROM elsa_runtime.distributed_locks WHERE resource_name = 'checklist-19'",
        database=RUNTIME,
    )
    assert found == [("l", "w", True)]


@pytest.mark.parametrize("number", [row("S0-22-workflow_instances_archive", None)])
def test_the_archive_has_the_instances_columns(server: Server, number: None) -> None:
    """`INSERT … SELECT` by name works: the same columns with the same types, and archived_at."""
    columns = (
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute AS a"
        " WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped"
    )
    for table in ("workflow_instances", "activity_execution_records", "bookmarks"):
        live = set(server.rows(columns, (f"elsa_workflows.{table}",), database=WORKFLOWS))
        archive = set(
            server.rows(columns, (f"elsa_workflows.{table}_archive",), database=WORKFLOWS)
        )
        assert archive - live == {("archived_at", "timestamp with time zone")}
        assert live - archive == set()


# -- S0: constraints ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [row("S0-23-uk_workflow_definition_version", None)])
def test_a_version_is_there_once_per_tenant(app: Connection, number: None) -> None:
    insert(app, "elsa_workflows.workflow_definitions", **DEFINITION)
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        insert(app, "elsa_workflows.workflow_definitions", **{**DEFINITION, "id": "v2"})
    # The partition's part of uk_workflow_definition_version.
    name = caught.value.diag.constraint_name or ""
    assert name.startswith("workflow_definitions_default_tenant_id_definition_id_versio")


@pytest.mark.parametrize(
    ("table", "values"),
    [
        row("S0-24-activity-cascade", "elsa_workflows.activity_execution_records", RECORD),
        row("S0-25-bookmark-cascade", "elsa_workflows.bookmarks", BOOKMARK),
        row("S1-29-instances-have-activities", "elsa_workflows.activity_execution_records", RECORD),
        row("S1-30-instances-have-bookmarks", "elsa_workflows.bookmarks", BOOKMARK),
    ],
)
def test_children_go_with_their_instance(
    app: Connection, table: str, values: dict[str, Any]
) -> None:
    app.execute("SAVEPOINT s")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        insert(app, table, **values)
    app.execute("ROLLBACK TO SAVEPOINT s")
    insert(app, "elsa_workflows.workflow_instances", **INSTANCE)
    for number in range(3):  # 1:N
        insert(app, table, **{**values, "id": f"n{number}"})
    app.execute("DELETE FROM elsa_workflows.workflow_instances WHERE id = 'i1'")
    assert app.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() == (0,)


@pytest.mark.parametrize("number", [row("S0-26-tenant_id", None)])
def test_every_such_table_has_a_tenant(server: Server, number: None) -> None:
    found = server.rows(
        "SELECT c.relname, a.attnotnull FROM pg_attribute AS a JOIN pg_class AS c"
        " ON a.attrelid = c.oid WHERE a.attname = 'tenant_id'"
        " AND c.relnamespace = 'elsa_workflows'::regnamespace AND c.relname = ANY (%s)"
        " ORDER BY 1",
        (
            [
                "workflow_definitions", "workflow_instances", "activity_execution_records",
                "bookmarks", "triggers",
            ],
        ),
        database=WORKFLOWS,
    )  # fmt: skip
    assert len(found) == 5
    assert all(required for _, required in found)


# -- indexes -----------------------------------------------------------------------------------

DEFINITIONS, INSTANCES = "elsa_workflows.workflow_definitions", "elsa_workflows.workflow_instances"
RECORDS, BOOKMARKS = "elsa_workflows.activity_execution_records", "elsa_workflows.bookmarks"
TRIGGERS, LOCKS = "elsa_workflows.triggers", "elsa_runtime.distributed_locks"
SNAPSHOTS = "elsa_runtime.execution_state_snapshots"
TAGS = '"ElsaExtensions"."WorkflowTags"'
ACTIVITIES = '"ElsaExtensions"."CustomActivityDefinitions"'

# The documents' number, the table, the condition of the query that the index is for, and the
# index (or the ones, if several serve) that answers it. Where the name is not the column's, the
# migration's comment says which index it is part of.
INDEXES = [
    row("S0-27", DEFINITIONS, "definition_id = 'x'", "idx_workflow_definitions_definition_id"),
    row("S0-28", DEFINITIONS, "tenant_id = 'x'", "idx_workflow_definitions_tenant_id"),
    row("S0-29", DEFINITIONS, "is_published", "idx_workflow_definitions_is_published"),
    row("S0-30", DEFINITIONS, "created_at > now()", "idx_workflow_definitions_created_at"),
    row("S0-31", INSTANCES, "definition_id = 'x'", "idx_workflow_instances_definition_status"),
    row("S0-32", INSTANCES, "correlation_id = 'x'", "idx_workflow_instances_correlation_id"),
    row("S0-33", INSTANCES, "status = 'x'", "idx_workflow_instances_status"),
    row("S0-34", INSTANCES, "tenant_id = 'x'", "idx_workflow_instances_tenant_status"),
    row("S0-35", INSTANCES, "created_at > now()", "idx_workflow_instances_created_at"),
    row("S0-36", INSTANCES, "finished_at < now()", "idx_workflow_instances_finished_at"),
    row(
        "S0-37", RECORDS, "workflow_instance_id = 'x'",
        "idx_activity_execution_records_workflow_time",
    ),
    row("S0-38", RECORDS, "activity_type = 'x'", "idx_activity_execution_records_activity_type"),
    row("S0-39", RECORDS, "status = 'x'", "idx_activity_execution_records_status"),
    row("S0-40", RECORDS, "started_at > now()", "idx_activity_execution_records_started_at"),
    row("S0-41", BOOKMARKS, "bookmark_hash = 'x'", "idx_bookmarks_hash_tenant"),
    row("S0-42", BOOKMARKS, "workflow_instance_id = 'x'", "idx_bookmarks_workflow_instance_id"),
    row("S0-43", BOOKMARKS, "correlation_id = 'x'", "idx_bookmarks_correlation_id"),
    row("S0-44", BOOKMARKS, "activity_type_name = 'x'", "idx_bookmarks_activity_type_name"),
    row("S0-45", TRIGGERS, "workflow_definition_id = 'x'", "idx_triggers_workflow_definition_id"),
    row("S0-46", TRIGGERS, "hash = 'x'", "idx_triggers_hash"),
    row("S0-47", TRIGGERS, "tenant_id = 'x'", "triggers_pkey"),
    row("S0-48", LOCKS, "expires_at < now()", "idx_distributed_locks_expires_at"),
    row(
        "S0-49", SNAPSHOTS, "workflow_instance_id = 'x'",
        "idx_execution_state_snapshots_workflow_instance_id",
    ),
    row("S0-50", SNAPSHOTS, "created_at < now()", "idx_execution_state_snapshots_created_at"),
    row(
        "S0-51", INSTANCES, "tenant_id = 'x' AND status = 'x'",
        "idx_workflow_instances_tenant_status",
    ),
    row(
        "S0-52", INSTANCES, "definition_id = 'x' AND status = 'x'",
        "idx_workflow_instances_definition_status",
    ),
    row(
        "S0-53", RECORDS, "workflow_instance_id = 'x' AND started_at > now()",
        "idx_activity_execution_records_workflow_time",
    ),
    row(
        "S0-54", BOOKMARKS, "bookmark_hash = 'x' AND tenant_id = 'x'", "idx_bookmarks_hash_tenant"
    ),
    row(
        "S0-55", INSTANCES, """workflow_state -> 'variables' @> '{"a": 1}'""",
        "idx_workflow_instances_state_variables",
    ),
    row(
        "S0-56", RECORDS, "payload ->> 'orderId' = 'x'",
        "idx_activity_execution_records_payload_order_id",
    ),
    # S1 names the same indexes for Elsa's own tables, which Elsa's migrations index themselves;
    # the toolkit's tables answer the same questions.
    row("S1-10", DEFINITIONS, "definition_id = 'x'", "idx_workflow_definitions_definition_id"),
    row("S1-11", DEFINITIONS, "is_latest", "idx_workflow_definitions_is_latest"),
    row("S1-12", DEFINITIONS, "is_published", "idx_workflow_definitions_is_published"),
    row("S1-13", INSTANCES, "definition_id = 'x'", "idx_workflow_instances_definition_status"),
    row("S1-14", INSTANCES, "status = 'x'", "idx_workflow_instances_status"),
    row("S1-15", INSTANCES, "correlation_id = 'x'", "idx_workflow_instances_correlation_id"),
    row("S1-16", INSTANCES, "created_at > now()", "idx_workflow_instances_created_at"),
    row(
        "S1-17", RECORDS, "workflow_instance_id = 'x'",
        "idx_activity_execution_records_workflow_time",
    ),
    row("S1-18", RECORDS, "started_at > now()", "idx_activity_execution_records_started_at"),
    row("S1-19", RECORDS, "status = 'x'", "idx_activity_execution_records_status"),
    row("S1-20", BOOKMARKS, "workflow_instance_id = 'x'", "idx_bookmarks_workflow_instance_id"),
    row("S1-21", BOOKMARKS, "bookmark_hash = 'x'", "idx_bookmarks_hash_tenant"),
    row("S1-22", TRIGGERS, "workflow_definition_id = 'x'", "idx_triggers_workflow_definition_id"),
    row("S1-23", TRIGGERS, "hash = 'x'", "idx_triggers_hash"),
    # With the tenant, as row-level security always puts it there.
    row(
        "S1-24", TAGS, """"TenantId" = 'x' AND "WorkflowDefinitionId" = 'x'""",
        "idx_workflowtags_workflowdefinitionid",
    ),
    row("S1-25", TAGS, """"TenantId" = 'x' AND "Tag" = 'x'""", "idx_workflowtags_tag"),
    row(
        "S1-26", ACTIVITIES, """"TenantId" = 'x' AND "Name" = 'x'""",
        "idx_customactivitydefinitions_name",
    ),
    row(
        "S1-27", ACTIVITIES, """"TenantId" = 'x' AND "Category" = 'x'""",
        "idx_customactivitydefinitions_category",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("table", "condition", "index"), INDEXES)
def test_the_query_of_an_index_uses_it(
    server: Server, table: str, condition: str, index: str
) -> None:
    """The condition is looked up in the index, on every partition, and nothing is read whole."""
    schema = table.partition(".")[0].strip('"')
    with server.connect(RUNTIME if schema == RUNTIME else WORKFLOWS) as connection:
        there = connection.execute(
            "SELECT count(*) FROM pg_index AS i JOIN pg_class AS c ON i.indexrelid = c.oid"
            " WHERE i.indrelid = %s::regclass AND c.relname = %s AND i.indisvalid",
            (table, index),
        ).fetchone()
        assert there == (1,), "no valid index of that name"
        connection.execute("SET LOCAL enable_seqscan = off")
        # The planner may prefer another index of the same columns; without it, it must be this.
        for name in rivals(connection, table, index):
            connection.execute(f"DROP INDEX {name}".encode())
        plan = connection.execute(
            f"EXPLAIN (FORMAT JSON) SELECT 1 FROM {table} WHERE {condition}".encode()
        ).fetchone()
        assert plan is not None
        used, whole = read(plan[0][0]["Plan"])
        roots = {
            found[0]
            for name in used
            if (
                found := connection.execute(
                    "SELECT coalesce(pg_partition_root(c.oid), c.oid)::regclass::text"
                    " FROM pg_class AS c WHERE c.relname = %s AND c.relkind IN ('i', 'I')",
                    (name,),
                ).fetchone()
            )
        }
        connection.rollback()
    assert whole == []
    assert {re.sub(r"^.*\.", "", root).strip('"') for root in roots} == {index}


def rivals(connection: Connection, table: str, index: str) -> list[str]:
    """The table's other indexes, but for those that a constraint needs."""
    rows = connection.execute(
        "SELECT i.indexrelid::regclass::text FROM pg_index AS i"
        " JOIN pg_class AS c ON i.indexrelid = c.oid"
        " WHERE i.indrelid = %s::regclass AND c.relname <> %s"
        " AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = i.indexrelid)",
        (table, index),
    ).fetchall()
    return [name for (name,) in rows]


def read(plan: dict[str, Any]) -> tuple[set[str], list[str]]:
    """The indexes that a plan looks a condition up in, and what it reads whole."""
    used: set[str] = set()
    whole: list[str] = []
    if plan["Node Type"] == "Seq Scan":
        whole.append(plan["Relation Name"])
    if "Index Name" in plan:
        if "Index Cond" in plan or partial(plan):
            used.add(plan["Index Name"])
        else:
            whole.append(plan["Index Name"])
    for child in plan.get("Plans", []):
        below, above = read(child)
        used |= below
        whole += above
    return used, whole


def partial(plan: dict[str, Any]) -> bool:
    """A partial index may hold the condition in its own."""
    return "Filter" not in plan


# -- S0: partitions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "key"),
    [
        row("S0-57-definitions-by-tenant", "workflow_definitions", "LIST (tenant_id)"),
        row("S0-60-instances-by-month", "workflow_instances", "RANGE (created_at)"),
        row("S0-64-activities-by-time", "activity_execution_records", "RANGE (started_at)"),
    ],
)
def test_a_table_is_partitioned(server: Server, table: str, key: str) -> None:
    found = server.value(
        "SELECT pg_get_partkeydef(%s::regclass)", (f"elsa_workflows.{table}",), database=WORKFLOWS
    )
    assert found == key


@pytest.mark.parametrize(
    ("tenant", "name"),
    [
        row("S0-58-tenant-001", "tenant-001", "workflow_definitions_tenant_001"),
        row("S0-59-tenant-002", "tenant-002", "workflow_definitions_tenant_002"),
    ],
)
def test_a_tenant_gets_a_partition(owner: Connection, tenant: str, name: str) -> None:
    values = {**DEFINITION, "tenant_id": tenant}
    insert(owner, DEFINITIONS, **values)  # before it, in the DEFAULT partition
    owner.execute("SELECT elsa_workflows.add_tenant_partition(%s)", (tenant,))
    found = owner.execute(
        "SELECT tableoid::regclass::text FROM elsa_workflows.workflow_definitions"
        " WHERE tenant_id = %s",
        (tenant,),
    ).fetchall()
    assert [part.rpartition(".")[2] for (part,) in found] == [name]


@pytest.mark.parametrize(
    ("table", "month"),
    [
        row("S0-61-2025_11", "workflow_instances", "2025_11"),
        row("S0-62-2025_12", "workflow_instances", "2025_12"),
        row("S0-63-2025_q4-by-months", "workflow_instances", "2025_10"),
        row("S0-65-2025_q4-by-months", "activity_execution_records", "2025_10"),
    ],
)
def test_the_dated_partitions_can_be_made(owner: Connection, table: str, month: str) -> None:
    year, number = month.split("_")
    owner.execute(
        "SELECT elsa_workflows.create_monthly_partitions(0, make_timestamptz(%s, %s, 1, 0, 0, 0))",
        (int(year), int(number)),
    )
    bound = owner.execute(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = to_regclass(%s)",
        (f"elsa_workflows.{table}_{month}",),
    ).fetchone()
    assert bound is not None
    following = f"{year}-{int(number) + 1:02}-01" if number != "12" else f"{int(year) + 1}-01-01"
    assert bound[0] == (
        f"FOR VALUES FROM ('{year}-{number}-01 00:00:00+00') TO ('{following} 00:00:00+00')"
    )


@pytest.mark.parametrize("table", [
    row("S0-66-instances-ahead", "workflow_instances"),
    row("S0-66-activities-ahead", "activity_execution_records"),
    row("S0-69-create_monthly_partitions", "workflow_instances"),
])  # fmt: skip
def test_this_month_and_two_more_are_there(server: Server, table: str) -> None:
    names = server.rows(
        "SELECT to_regclass('elsa_workflows.' || %s || '_' || to_char("
        "date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => n), 'YYYY_MM'))"
        "::text FROM generate_series(0, 2) AS n",
        (table,),
        database=WORKFLOWS,
    )
    assert all(name for (name,) in names)
    with session(server, "elsa_jobs") as connection:  # again: nothing to do
        made = connection.execute("SELECT elsa_workflows.create_monthly_partitions()").fetchall()
    assert made == []


# -- S0: functions and jobs --------------------------------------------------------------------


@pytest.mark.parametrize("number", [row("S0-67-acquire_lock", None)])
def test_acquire_lock(server: Server, number: None) -> None:
    ask_for = "SELECT elsa_runtime.acquire_lock('checklist', %s, %s, 60)"
    with as_app(server, RUNTIME) as connection:
        held = [
            connection.execute(ask_for, who).fetchone()
            for who in [("l1", "w1"), ("l2", "w2"), ("l1", "w1")]
        ]
    assert held == [(True,), (False,), (True,)]


def snapshots(connection: Connection) -> list[str]:
    connection.execute(
        "INSERT INTO elsa_runtime.execution_state_snapshots"
        " (id, workflow_instance_id, snapshot_data, created_at, tenant_id) VALUES"
        " ('old', 'i', '{}', now() - interval '24 hours 1 minute', 'a'),"
        " ('new', 'i', '{}', now() - interval '23 hours 59 minutes', 'a')"
    )
    connection.execute("SET LOCAL ROLE elsa_jobs")
    connection.execute("SELECT elsa_runtime.cleanup_old_snapshots()")
    connection.execute("RESET ROLE")
    return [
        name
        for (name,) in connection.execute(
            "SELECT id FROM elsa_runtime.execution_state_snapshots WHERE tenant_id = 'a'"
        )
    ]


@pytest.mark.parametrize(
    "number", [row("S0-68-cleanup_old_snapshots", None), row("S0-73-kept-24-hours", None)]
)
def test_snapshots_are_kept_for_a_day(server: Server, number: None) -> None:
    with server.connect(RUNTIME) as connection:
        left = snapshots(connection)
        connection.rollback()
    assert left == ["new"]


@pytest.mark.parametrize(
    "number",
    [
        row("S0-70-cleanup_old_data", None),
        row("S0-71-archived-after-90-days", None),
        row("S0-72-deleted-after-archiving", None),
    ],
)
def test_ended_instances_are_archived_with_their_children(server: Server, number: None) -> None:
    """All three states, faulted ones by faulted_at; not what ended yesterday, nor what runs."""
    cases = {
        "Completed": ("finished_at", 91, True),
        "Cancelled": ("finished_at", 91, True),
        "Faulted": ("faulted_at", 91, True),
        "Recent": ("finished_at", 89, False),
        "Running": (None, 91, False),
    }
    with server.connect(WORKFLOWS) as connection:
        for name, (column, days, _) in cases.items():
            status = "Completed" if name == "Recent" else name
            values = {**INSTANCE, "id": name, "status": status, "created_at": days_ago(days + 1)}
            if column:
                values[column] = days_ago(days)
            insert(connection, INSTANCES, **values)
            insert(connection, RECORDS, **{**RECORD, "id": name, "workflow_instance_id": name})
            insert(connection, BOOKMARKS, **{**BOOKMARK, "id": name, "workflow_instance_id": name})
        connection.execute("SET LOCAL ROLE elsa_jobs")
        for _ in range(50):
            done = connection.execute("SELECT elsa_workflows.cleanup_old_data()").fetchone()
            if done in ((None,), None):
                break
        connection.execute("RESET ROLE")
        found = {
            table: {
                name
                for (name,) in connection.execute(
                    f"SELECT id FROM elsa_workflows.{table} WHERE tenant_id = %s".encode(),
                    (TENANT,),
                )
            }
            for table in [
                *(t.partition(".")[2] for t in (INSTANCES, RECORDS, BOOKMARKS)),
                "workflow_instances_archive",
                "activity_execution_records_archive",
                "bookmarks_archive",
            ]
        }
        connection.rollback()
    gone = {name for name, (_, _, archived) in cases.items() if archived}
    for table, names in found.items():
        assert names == (gone if table.endswith("_archive") else set(cases) - gone), table


def days_ago(days: int) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat()


@pytest.mark.parametrize("number", [row("S0-74-expired-locks-purged", None)])
def test_expired_locks_are_purged(server: Server, number: None) -> None:
    with server.connect(RUNTIME) as connection:
        connection.execute(
            "INSERT INTO elsa_runtime.distributed_locks"
            " (resource_name, lock_id, locked_by, locked_at, expires_at) VALUES"
            " ('old', 'l', 'w', now() - interval '3 days', now() - interval '2 days'),"
            " ('live', 'l', 'w', now(), now() + interval '1 minute')"
        )
        connection.execute("SET LOCAL ROLE elsa_jobs")
        connection.execute("SELECT elsa_runtime.purge_expired_locks()")
        connection.execute("RESET ROLE")
        left = connection.execute(
            "SELECT resource_name FROM elsa_runtime.distributed_locks"
            " WHERE resource_name IN ('old', 'live')"
        ).fetchall()
        connection.rollback()
    assert left == [("live",)]


@pytest.mark.parametrize("number", [row("S0-75-cleanup-old-data", None)])
def test_the_job_is_scheduled(server: Server, number: None) -> None:
    found = server.rows(
        "SELECT schedule, database, username, active FROM cron.job"
        " WHERE jobname = 'cleanup-old-data'"
    )
    assert found == [("0 2 * * *", "elsa_workflows", "elsa_jobs", True)]


# -- S0: queries -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["monitoring", "elsa_readonly"])
@pytest.mark.parametrize(
    ("view", "columns"),
    [
        row("S0-95-active-workflows", "active_workflows", "status, count, avg_duration_seconds"),
        row(
            "S0-96-workflow-performance", "workflow_performance",
            "definition_id, total_executions, avg_duration_seconds, p95_duration",
        ),
        row(
            "S0-97-slow-activities", "slow_activities",
            "activity_type, count, avg_duration_seconds, max_duration_seconds",
        ),
        row("S0-98-database-size", "database_size", "schemaname, tablename, size"),
    ],
)  # fmt: skip
def test_a_query_is_a_view(server: Server, view: str, columns: str, role: str) -> None:
    with session(server, role, TENANT) as connection:
        found = connection.execute(f"SELECT {columns} FROM monitoring.{view}".encode())
        assert len(found.fetchall()) <= 10


# -- S0: roles and row-level security ----------------------------------------------------------

RIGHTS = "SELECT INSERT UPDATE DELETE"


@pytest.mark.parametrize(
    ("role", "rights"),
    [
        row(
            "S0-99-elsa_app",
            "elsa_app",
            {DEFINITIONS: RIGHTS, INSTANCES: RIGHTS, RECORDS: RIGHTS, BOOKMARKS: RIGHTS},
        ),
        row(
            "S0-100-elsa_worker",
            "elsa_worker",
            {
                DEFINITIONS: "SELECT",
                INSTANCES: "SELECT INSERT UPDATE",
                RECORDS: "SELECT INSERT",
                BOOKMARKS: RIGHTS,
            },
        ),
        row(
            "S0-101-elsa_readonly",
            "elsa_readonly",
            {DEFINITIONS: "SELECT", INSTANCES: "SELECT", RECORDS: "SELECT", BOOKMARKS: "SELECT"},
        ),
        row(
            "S0-102-elsa_admin",
            "elsa_admin",
            {DEFINITIONS: RIGHTS, INSTANCES: RIGHTS, "elsa_workflows.tenants": RIGHTS},
        ),
    ],
)
def test_a_role_has_these_rights_and_no_others(
    server: Server, role: str, rights: dict[str, str]
) -> None:
    with session(server, role, TENANT) as connection:
        for table, wanted in rights.items():
            found = connection.execute(
                "SELECT string_agg(p, ' ' ORDER BY n) FROM unnest(%s::text[])"
                " WITH ORDINALITY AS x (p, n) WHERE has_table_privilege(%s, p)",
                ([*RIGHTS.split(), "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN"], table),
            ).fetchone()
            assert found == (wanted,), table


@pytest.mark.parametrize("number", [
    row("S0-103-rls-on-definitions", None),
    row("S0-104-tenant_isolation", None),
    row("S0-105-app.current_tenant_id", None),
])  # fmt: skip
def test_a_tenant_sees_its_definitions(server: Server, number: None) -> None:
    """On every other table, and by every attack: test_sql_tenants."""
    with server.connect(WORKFLOWS) as connection:
        for tenant in ("x", "y"):
            insert(connection, DEFINITIONS, **{**DEFINITION, "tenant_id": tenant})
        connection.execute("SET LOCAL ROLE elsa_app")
        found = []
        for context in ("x", "y", ""):
            connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", (context,))
            found.append(connection.execute(f"SELECT tenant_id FROM {DEFINITIONS}").fetchall())
        connection.execute("RESET ROLE")
        policy = connection.execute(
            "SELECT count(*) FROM pg_policies WHERE policyname = 'tenant_isolation'"
            " AND tablename = 'workflow_definitions' AND qual ~ 'app.current_tenant_id'"
        ).fetchone()
        connection.rollback()
    assert found == [[("x",)], [("y",)], []]
    assert policy == (1,)


# -- S1 ----------------------------------------------------------------------------------------

ID = "00000000-0000-0000-0000-000000000001"
CATEGORY = {
    "Id": ID, "Name": "c", "Description": "d", "Color": "#00ff00", "CreatedAt": NOW,
    "UpdatedAt": NOW,
}  # fmt: skip
TAG = {"Id": ID, "WorkflowDefinitionId": "d", "Tag": "t", "CreatedAt": NOW}
ACTIVITY = {
    "Id": ID, "Name": "n", "DisplayName": "n", "Description": "d", "Category": "c",
    "InputProperties": "[]", "OutputProperties": "[]", "AssemblyName": "a", "TypeName": "t",
    "Version": "1.0.0", "IsEnabled": True, "CreatedAt": NOW, "UpdatedAt": NOW,
}  # fmt: skip


@pytest.mark.parametrize(
    ("table", "values"),
    [
        row("S1-07-WorkflowCategories", '"ElsaExtensions"."WorkflowCategories"', CATEGORY),
        row("S1-08-WorkflowTags", TAGS, TAG),
        row("S1-09-CustomActivityDefinitions", ACTIVITIES, ACTIVITY),
    ],
)
def test_an_extension_table_takes_the_documents_columns(
    app: Connection, table: str, values: dict[str, Any]
) -> None:
    insert(app, table, **values)
    assert app.execute(f'SELECT "TenantId" FROM {table}'.encode()).fetchall() == [(TENANT,)]


@pytest.mark.parametrize(
    ("many", "values", "where"),
    [
        row(
            "S1-28-definitions-have-instances",
            INSTANCES,
            [{**INSTANCE, "id": "x1"}, {**INSTANCE, "id": "x2"}],
            "definition_id",
        ),
        row(
            "S1-31-definitions-have-triggers",
            TRIGGERS,
            [{**TRIGGER, "id": "x1"}, {**TRIGGER, "id": "x2"}],
            "workflow_definition_id",
        ),
        row(
            "S1-32-definitions-have-tags",
            TAGS,
            [{**TAG, "Tag": "t1"}, {**TAG, "Tag": "t2", "Id": ID[:-1] + "2"}],
            '"WorkflowDefinitionId"',
        ),
    ],
)
def test_a_definition_has_many(
    app: Connection, many: str, values: list[dict[str, Any]], where: str
) -> None:
    insert(app, DEFINITIONS, **DEFINITION)
    for value in values:
        insert(app, many, **value)
    found = app.execute(
        f"SELECT count(*) FROM {DEFINITIONS} AS d JOIN {many} AS m"
        f" ON d.definition_id = m.{where}".encode()
    ).fetchone()
    assert found == (2,)


@pytest.mark.parametrize("number", [row("S1-33-categories-have-definitions", None)])
def test_a_category_has_many_definitions_and_a_definition_one(
    app: Connection, number: None
) -> None:
    table = '"ElsaExtensions"."WorkflowDefinitionCategories"'
    insert(app, '"ElsaExtensions"."WorkflowCategories"', **CATEGORY)
    for definition in ("d1", "d2"):
        insert(app, table, WorkflowDefinitionId=definition, CategoryId=ID)
    app.execute("SAVEPOINT s")
    with pytest.raises(psycopg.errors.UniqueViolation):
        insert(app, table, WorkflowDefinitionId="d1", CategoryId=ID)
    app.execute("ROLLBACK TO SAVEPOINT s")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        insert(app, table, WorkflowDefinitionId="d3", CategoryId=ID[:-1] + "9")


# -- S1: security ------------------------------------------------------------------------------

VERIFY = Path(__file__).parents[1] / "infra"


@pytest.mark.parametrize(
    ("file", "check"),
    [
        row("S1-63-tls-to-the-pooler", "test_pooler.py", "test_nobody_gets_in_without_tls"),
        row("S1-63-tls-everywhere", "test_tls.py", None),
        row("S1-64-firewall", "test_configuration.py", None),
        row("S1-65-security-updates", "test_packages.py", None),
    ],
)
def test_a_check_of_verify_shows_it(file: str, check: str | None) -> None:
    """What needs a stack is shown on each stack, by `elsapg verify`."""
    tree = ast.parse((VERIFY / file).read_text(encoding="utf-8"))
    checks = {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and "test_" in n.name}
    assert checks if check is None else check in checks


@pytest.mark.parametrize("number", [
    row("S1-62-dedicated-user", None), row("S1-68-elsa_user", None),
])  # fmt: skip
def test_the_application_has_a_user_of_its_own(server: Server, number: None) -> None:
    found = server.rows(
        "SELECT r.rolcanlogin, r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolbypassrls"
        " OR r.rolreplication, pg_has_role('elsa_app', r.oid, 'USAGE'),"
        " (SELECT count(*) FROM pg_auth_members AS m WHERE m.member = r.oid)"
        " FROM pg_roles AS r WHERE r.rolname = 'elsa_user'"
    )
    assert found == [(False, False, True, 0)]


@pytest.mark.parametrize("number", [row("S1-66-audit", None)])
def test_writes_to_users_are_logged(server: Server, number: None) -> None:
    with session(server, "elsa_admin") as connection:
        connection.execute("SET LOCAL application_name = 'checklist'")
        connection.execute("UPDATE elsa_workflows.tenants SET name = 'checklist-audited'")
        connection.commit()
        connection.execute("UPDATE elsa_workflows.tenants SET name = 'Default'")
        connection.commit()
    assert re.search(r"AUDIT: OBJECT,.*WRITE,UPDATE.*checklist-audited", server.logs())


@pytest.mark.parametrize("number", [row("S1-67-encrypted-json", None)])
def test_a_json_value_is_stored_encrypted(app: Connection, number: None) -> None:
    ring = json.dumps({"current": "k1", "keys": {"k1": "A" * 43 + "="}})
    app.execute("SELECT elsa_crypto.use_keys(%s)", (ring,))
    values = app.execute(
        "SELECT elsa_crypto.encrypt(%s::jsonb, 'ssn') AS sealed", ('"123-45-6789"',)
    ).fetchone()
    assert values is not None
    assert "123-45" not in json.dumps(values[0])
    opened = app.execute(
        "SELECT elsa_crypto.decrypt(%s::jsonb, 'ssn')", (json.dumps(values[0]),)
    ).fetchone()
    assert opened == ("123-45-6789",)


@pytest.mark.parametrize("database", [WORKFLOWS, RUNTIME])
@pytest.mark.parametrize(
    "right",
    [
        row("S1-69-connect", "has_database_privilege('elsa_user', current_database(), 'CONNECT')"),
        row("S1-70-usage", "has_schema_privilege('elsa_user', current_database(), 'USAGE')"),
        row(
            "S1-71-dml",
            "(SELECT bool_and(has_table_privilege('elsa_user', c.oid, 'SELECT'))"
            " FROM pg_class AS c WHERE c.relnamespace = current_database()::regnamespace"
            " AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
            # Written by triggers, and by functions.
            " AND c.relname NOT IN ('workflow_instance_keys', 'distributed_locks'))",
        ),
        row(
            "S1-72-sequences",
            "EXISTS (SELECT FROM pg_default_acl AS d, aclexplode(d.defaclacl) AS a"
            " WHERE d.defaclobjtype = 'S' AND d.defaclnamespace = current_database()::regnamespace"
            " AND a.grantee = 'elsa_user'::regrole AND a.privilege_type = 'USAGE')",
        ),
    ],
)
def test_elsa_user_has_the_documents_rights(server: Server, database: str, right: str) -> None:
    assert server.value(f"SELECT {right}", database=database)
