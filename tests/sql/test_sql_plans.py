"""Row-level security costs no index: each index of the documents serves its query under it.

As elsa_app, in a tenant's context, with tables large enough for the planner to care. One tenant
owns most rows, so that a plan which reads the whole tenant and filters is not the cheapest by luck.
Each query is also planned as the superuser, whom no policy binds: it must use the same index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from sql_server import Server

pytestmark = pytest.mark.docker

W = "elsa_workflows."
FILL = """
INSERT INTO elsa_workflows.tenants (tenant_id, name) VALUES ('big', 'Big'), ('small', 'Small');
INSERT INTO elsa_workflows.workflow_definitions
    (id, definition_id, version, name, is_published, materialized_workflow, created_at, tenant_id)
SELECT n, 'd' || n / 5, n % 5, 'n', n % 500 = 0, '{}', now() - n * interval '1 minute', t.id
FROM generate_series(1, 20000) AS n
CROSS JOIN LATERAL (SELECT CASE WHEN n % 100 = 0 THEN 'small' ELSE 'big' END AS id) AS t;
INSERT INTO elsa_workflows.workflow_instances
    (id, definition_id, definition_version, workflow_state, status, correlation_id, created_at,
     finished_at, faulted_at, tenant_id)
SELECT
    n, 'd' || n % 300, 1,
    jsonb_build_object('variables', jsonb_build_object('orderId', n, 'v' || n % 1000, true)),
    CASE WHEN n % 400 = 0 THEN 'Faulted' WHEN n % 150 = 1 THEN 'Running' ELSE 'Completed' END,
    'c' || n, now() - n * interval '0.1 seconds',
    CASE WHEN n % 400 <> 0 AND n % 150 <> 1 THEN now() - n * interval '0.1 seconds' END,
    CASE WHEN n % 400 = 0 THEN now() END, t.id
FROM generate_series(1, 40000) AS n
CROSS JOIN LATERAL (SELECT CASE WHEN n % 100 = 0 THEN 'small' ELSE 'big' END AS id) AS t;
INSERT INTO elsa_workflows.activity_execution_records
    (id, workflow_instance_id, activity_id, activity_node_id, activity_type, activity_type_version,
     started_at, completed_at, status, payload, tenant_id)
SELECT
    i.id, i.id, 'a', 'n', 'type' || i.n % 300, 1, i.created_at,
    CASE WHEN i.n % 200 <> 0 THEN i.created_at + interval '50 milliseconds' END,
    CASE WHEN i.n % 200 = 0 THEN 'Running' ELSE 'Completed' END,
    jsonb_build_object('orderId', 'o' || i.id), i.tenant_id
FROM (SELECT *, id::integer AS n FROM elsa_workflows.workflow_instances) AS i;
INSERT INTO elsa_workflows.bookmarks
    (id, bookmark_id, bookmark_hash, workflow_instance_id, activity_node_id, activity_type_name,
     correlation_id, tenant_id)
SELECT i.id, 'b', 'h' || i.id, i.id, 'n', 'type' || i.n % 300, i.correlation_id, i.tenant_id
FROM (SELECT *, id::integer AS n FROM elsa_workflows.workflow_instances) AS i;
INSERT INTO elsa_workflows.triggers
    (id, workflow_definition_id, workflow_definition_version_id, name, activity_id, hash, tenant_id)
SELECT d.id, d.definition_id, d.id, 'n', 'a', 'h' || d.id, d.tenant_id
FROM elsa_workflows.workflow_definitions AS d;
INSERT INTO elsa_workflows.users (id, user_name, email, external_subject, tenant_id)
SELECT n, 'User' || n, 'User' || n || '@example.org', 's' || n, 'big'
FROM generate_series(1, 20000) AS n;
VACUUM ANALYZE;
"""
# Children go with their instances.
EMPTY = (
    "workflow_instances",
    "triggers",
    "workflow_definitions",
    "users",
    "tenants WHERE tenant_id <> 'default'",
)


@dataclass(frozen=True)
class Case:
    """A query that the documents want an index for, by the row of the checklist.

    `condition` must stand in the index's condition; `indexes` are those that may serve.
    """

    row: str
    table: str
    where: str
    indexes: str
    condition: str = ""
    tenant: str = "big"

    def __str__(self) -> str:
        return self.row

    @property
    def query(self) -> str:
        return f"SELECT id FROM elsa_workflows.{self.table} WHERE {self.where}"


SOON = "now() - interval '20 seconds'"
RECORDS = "activity_execution_records"
CASES = (
    Case("S0-27", "workflow_definitions", "definition_id = 'd77'",
         "idx_workflow_definitions_definition_id uk_workflow_definition_version", "definition_id"),
    Case("S0-28", "workflow_definitions", "true",
         "idx_workflow_definitions_tenant_id uk_workflow_definition_version"
         " workflow_definitions_pkey", "tenant_id", "small"),
    Case("S0-29", "workflow_definitions", "is_published",
         "idx_workflow_definitions_is_published", "is_published"),
    Case("S0-30", "workflow_definitions", "created_at > now() - interval '1 hour'",
         "idx_workflow_definitions_created_at", "created_at"),
    Case("S0-31", "workflow_instances", "definition_id = 'd77'",
         "idx_workflow_instances_definition_status", "definition_id"),
    Case("S0-32", "workflow_instances", "correlation_id = 'c77'",
         "idx_workflow_instances_correlation_id", "correlation_id"),
    Case("S0-33", "workflow_instances", "status = 'Faulted'",
         "idx_workflow_instances_status idx_workflow_instances_tenant_status", "status"),
    Case("S0-34", "workflow_instances", "true",
         "idx_workflow_instances_tenant_status workflow_instances_pkey", "tenant_id", "small"),
    Case("S0-35", "workflow_instances", f"created_at > {SOON}",
         "idx_workflow_instances_created_at", "created_at"),
    Case("S0-36", "workflow_instances", f"finished_at > {SOON}",
         "idx_workflow_instances_finished_at", "finished_at"),
    Case("S0-37", RECORDS, "workflow_instance_id = '77'",
         f"idx_{RECORDS}_workflow_time", "workflow_instance_id"),
    Case("S0-38", RECORDS, "activity_type = 'type77'",
         f"idx_{RECORDS}_activity_type", "activity_type"),
    Case("S0-39", RECORDS, "status = 'Running'", f"idx_{RECORDS}_status", "status"),
    Case("S0-40", RECORDS, f"started_at > {SOON}", f"idx_{RECORDS}_started_at", "started_at"),
    Case("S0-41", "bookmarks", "bookmark_hash = 'h77'",
         "idx_bookmarks_hash_tenant", "bookmark_hash"),
    Case("S0-42", "bookmarks", "workflow_instance_id = '77'",
         "idx_bookmarks_workflow_instance_id", "workflow_instance_id"),
    Case("S0-43", "bookmarks", "correlation_id = 'c77'",
         "idx_bookmarks_correlation_id", "correlation_id"),
    Case("S0-44", "bookmarks", "activity_type_name = 'type77'",
         "idx_bookmarks_activity_type_name", "activity_type_name"),
    Case("S0-45", "triggers", "workflow_definition_id = 'd77'",
         "idx_triggers_workflow_definition_id", "workflow_definition_id"),
    Case("S0-46", "triggers", "hash = 'h77'", "idx_triggers_hash", "hash"),
    Case("S0-47", "triggers", "true", "triggers_pkey", "tenant_id", "small"),
    Case("S0-51", "workflow_instances", "status = 'Completed'",
         "idx_workflow_instances_tenant_status", "status", "small"),
    Case("S0-52", "workflow_instances", "definition_id = 'd77' AND status = 'Running'",
         "idx_workflow_instances_definition_status", "status"),
    Case("S0-53", RECORDS, "workflow_instance_id = '77' AND started_at < now()",
         f"idx_{RECORDS}_workflow_time", "started_at"),
    Case("S0-54", "bookmarks", "bookmark_hash = 'h77'", "idx_bookmarks_hash_tenant", "tenant_id"),
    # Neither of these is an index's condition unless 044_leakproof.sql says that it may be one.
    Case("S0-55", "workflow_instances", """workflow_state -> 'variables' @> '{"orderId": 77}'""",
         "idx_workflow_instances_state_variables", "@>"),
    Case("S0-55 exists", "workflow_instances", "workflow_state -> 'variables' ? 'v77'",
         "idx_workflow_instances_state_variables", "?"),
    Case("S0-56", RECORDS, "payload ->> 'orderId' = 'o77'",
         f"idx_{RECORDS}_payload_order_id", "orderId"),
    Case("user's name", "users", "lower(user_name) = 'user77'", "uk_users_user_name", "lower"),
    Case("user's mail", "users", "lower(email) = 'user77@example.org'", "idx_users_email", "lower"),
    Case("instance by id", "workflow_instances", "id = '77'", "workflow_instances_pkey", "id ="),
    Case("bookmark by id", "bookmarks", "id = '77'", "bookmarks_pkey", "id ="),
    Case("active", "workflow_instances",
         "finished_at IS NULL AND faulted_at IS NULL AND status = 'Running'",
         "idx_workflow_instances_active", "status"),
)  # fmt: skip


@pytest.fixture(scope="module")
def filled(server: Server) -> Iterator[Server]:
    """The server with enough rows; emptied afterwards."""
    with server.connect("elsa_workflows", autocommit=True) as connection:
        for statement in FILL.split(";\n"):
            connection.execute(statement.encode())
        yield server
        for table in EMPTY:
            connection.execute(f"DELETE FROM {W}{table}".encode())


def scans(connection: psycopg.Connection[Any], query: str) -> dict[str, str]:
    """The condition of each index that a query's plan uses, by the index's name on the parent."""
    row = connection.execute(f"EXPLAIN (FORMAT JSON) {query}".encode()).fetchone()
    assert row is not None
    found: dict[str, str] = {}
    nodes = [row[0][0]["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes.extend(node.get("Plans", ()))
        if "Index Name" in node:
            name = connection.execute(
                "SELECT coalesce(pg_partition_root(c.oid)::oid, c.oid)::regclass::text"
                " FROM pg_class AS c WHERE c.relname = %s"
                " AND c.relnamespace = 'elsa_workflows'::regnamespace",
                (node["Index Name"],),
            ).fetchone()
            assert name is not None
            found[name[0].removeprefix(W)] = node.get("Index Cond", "")
    return found


def used(found: dict[str, str], case: Case) -> set[str]:
    """The indexes of the case that its condition is looked up in."""
    return {
        name
        for name, condition in found.items()
        if name in case.indexes.split() and case.condition in condition
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_tenants_query_uses_its_index(filled: Server, case: Case) -> None:
    with filled.connect("elsa_workflows", "elsa_app") as connection:
        connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", (case.tenant,))
        under_policies = scans(connection, case.query)
    with filled.connect("elsa_workflows") as connection:
        without = scans(connection, f"{case.query} AND tenant_id = '{case.tenant}'")
    assert used(under_policies, case), f"the plan uses {under_policies}"
    assert used(under_policies, case) == used(without, case)


def test_the_view_of_active_workflows_reads_its_index_only(filled: Server) -> None:
    for role, tenant in (("monitoring", ""), ("elsa_readonly", "big")):
        with filled.connect("elsa_workflows", role) as connection:
            connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", (tenant,))
            plan = "\n".join(
                row[0]
                for row in connection.execute(
                    "EXPLAIN (COSTS OFF) SELECT * FROM monitoring.active_workflows"
                )
            )
        assert "Index Only Scan" in plan, plan


@pytest.mark.parametrize(
    ("view", "index"),
    [
        ("workflow_performance", "idx_workflow_instances_finished_at"),
        ("slow_activities", "idx_activity_execution_records_completed_at"),
    ],
)
@pytest.mark.parametrize(("role", "tenant"), [("monitoring", ""), ("elsa_readonly", "big")])
def test_a_view_reads_its_period_only(
    filled: Server, view: str, index: str, role: str, tenant: str
) -> None:
    # As if what was loaded lay in the past: only the newest rows are in the period.
    with filled.connect("elsa_workflows") as connection:
        for table, column in (("workflow_instances", "finished_at"), (RECORDS, "completed_at")):
            connection.execute(
                f"UPDATE {W}{table} SET {column} = {column} - interval '2 days'"
                f" WHERE {column} < {SOON}".encode()
            )
            connection.execute(f"ANALYZE {W}{table}".encode())
        connection.execute(f"SET LOCAL ROLE {role}".encode())
        connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", (tenant,))
        found = scans(connection, f"SELECT * FROM monitoring.{view}")
        connection.rollback()
    assert "now()" in found.get(index, ""), found


def test_nothing_is_leakproof_but_what_was_looked_into(server: Server) -> None:
    # What PostgreSQL calls leakproof itself is older than the first object a user can make.
    with server.connect("postgres") as connection:
        own = {
            row[0]
            for row in connection.execute(
                "SELECT oid::regprocedure::text FROM pg_proc WHERE proleakproof"
            )
        }
    found = {
        row[0]
        for row in server.rows(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE proleakproof",
            database="elsa_workflows",
        )
    }
    assert found - own == {
        "jsonb_object_field(jsonb,text)",
        "jsonb_object_field_text(jsonb,text)",
        "jsonb_contains(jsonb,jsonb)",
        "jsonb_exists(jsonb,text)",
        "lower(text)",
    }
