"""Tenants: row-level security is in force, and no tenant can reach another's rows."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.infra.facts import Facts, NotSo, judge, none, same, unjudged

TABLE = "elsa_workflows.workflow_definitions"
AGAIN = (
    "restore the policy from the table's migration in bootstrap_sql; until then, keep the "
    "application out"
)
TENANT = "NULLIF(current_setting('app.current_tenant_id'::text, true), ''::text)"


def test_row_security_is_forced(facts: Facts, database: str) -> None:
    """Every table with a tenant_id has row-level security, forced on its owner too."""
    none(
        (
            f"{r['relation']}: {'enabled, not forced' if r['enabled'] else 'off'}"
            for r in facts.database(database)["tables"]
            if r["tenants"] and not (r["enabled"] and r["forced"])
        ),
        f"ALTER TABLE … ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; {AGAIN}",
    )


def test_policies_compare_the_tenant(facts: Facts, database: str) -> None:
    """Each such table has a policy that lets through the tenant of the transaction only."""
    rows = facts.database(database)
    found = {
        p["relation"]
        for p in rows["policies"]
        if p["policy"] == "tenant_isolation"
        and p["cmd"] == "ALL"
        and p["roles"] == ["public"]
        and all("tenant_id" in p[c] and TENANT in p[c] for c in ("qual", "with_check") if p[c])
        and p["with_check"]
    }
    wanted = {r["relation"] for r in rows["tables"] if r["tenants"] and not r["partition"]}
    same(found, wanted, AGAIN)


def test_nobody_sees_all_but_administration(facts: Facts, database: str) -> None:
    """The only policies besides are elsa_host's and, for reading, monitoring's."""
    none(
        (
            f"{p['policy']} on {p['relation']} for {', '.join(p['roles'])}, {p['cmd']}"
            for p in facts.database(database)["policies"]
            if p["policy"] != "tenant_isolation"
            and p["roles"] != ["elsa_host"]
            and (p["roles"], p["cmd"]) != (["monitoring"], "SELECT")
        ),
        f"DROP POLICY it; {AGAIN}",
    )


def test_partitions_have_no_rights(facts: Facts, database: str) -> None:
    """Nobody has rights on a partition itself, which would go past its parent's policies."""
    none(
        (
            f"{r['relation']}: {', '.join(r['grants'])}"
            for r in facts.database(database)["tables"]
            if r["partition"] and r["grants"]
        ),
        "REVOKE them; the event trigger elsapg_guard_partitions should have",
    )


def test_the_guard_of_partitions_is_on(facts: Facts, database: str) -> None:
    """The event trigger that takes rights from new partitions is enabled."""
    found = {g["trigger"]: g["enabled"] for g in facts.database(database)["guards"]}
    same(
        found.get("elsapg_guard_partitions"),
        "O",
        "ALTER EVENT TRIGGER elsapg_guard_partitions ENABLE",
    )


# -- as the application ------------------------------------------------------------------------

INSERT = (
    f"INSERT INTO {TABLE} (id, definition_id, version, name, materialized_workflow, tenant_id)"
    " VALUES (%s, %s, 1, 'elsapg verify', '{}', %s)"
)
COUNT = f"SELECT count(*) FROM {TABLE} WHERE id = %s"


@pytest.fixture
def app(facts: Facts) -> Iterator[Any]:
    """elsa_app in a transaction through a pooler; rolled back whatever happens."""
    with facts.connect(facts.any_pooler, "elsa_app", "elsa_workflows") as connection:
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            connection.execute("ROLLBACK")


def _act_as(connection: Any, tenant: str) -> None:
    connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", (tenant,))


def _count(connection: Any, row: str) -> int:
    return int(connection.execute(COUNT, (row,)).fetchone()[0])


def _write(connection: Any, row: str, tenant: str) -> None:
    try:
        connection.execute(INSERT, (row, row, tenant))
    except psycopg.errors.InsufficientPrivilege as error:
        judge(False, f"a tenant cannot write its own row: {error.diag.message_primary}", AGAIN)


@pytest.fixture
def row() -> str:
    return f"elsapg-verify-{uuid.uuid4()}"


def test_a_tenant_sees_its_own_rows_only(app: Any, row: str) -> None:
    """A tenant reads what it wrote; another tenant does not see it."""
    _act_as(app, "elsapg-verify-a")
    _write(app, row, "elsapg-verify-a")
    same(_count(app, row), 1, f"the tenant does not see its own row; {AGAIN}")
    _act_as(app, "elsapg-verify-b")
    same(_count(app, row), 0, f"another tenant sees the row; {AGAIN}")


def test_without_a_tenant_nothing_is_seen(app: Any, row: str) -> None:
    """A transaction that names no tenant sees no row."""
    _act_as(app, "elsapg-verify-a")
    try:
        _write(app, row, "elsapg-verify-a")
    except NotSo as error:
        unjudged(error.found)
    _act_as(app, "")
    same(_count(app, row), 0, f"a row is seen without a tenant; {AGAIN}")


def test_a_tenant_cannot_write_for_another(app: Any, row: str) -> None:
    """A row of another tenant cannot be written."""
    _act_as(app, "elsapg-verify-a")
    try:
        app.execute(INSERT, (row, row, "elsapg-verify-b"))
    except psycopg.errors.InsufficientPrivilege:
        return
    judge(False, "tenant A wrote a row of tenant B", AGAIN)


def test_a_partition_cannot_be_read_directly(app: Any) -> None:
    """The application cannot go past the policies by naming a partition."""
    try:
        app.execute(f"SELECT count(*) FROM {TABLE}_default")
    except psycopg.errors.InsufficientPrivilege:
        return
    judge(False, f"elsa_app reads {TABLE}_default", f"REVOKE ALL ON TABLE {TABLE}_default")
