"""Tenants: row-level security is in force, and no tenant can reach another's rows."""

from __future__ import annotations

import re
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
COMPARED = re.compile(
    r"""^\(\(?(tenant_id|"TenantId")\)?(::text)? = """
    r"""NULLIF\(current_setting\('app.current_tenant_id'::text, true\), ''::text\)\)$"""
)


def test_row_security_is_forced(facts: Facts, database: str) -> None:
    """Every table with a tenant has row-level security, forced on its owner too."""
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
        and all(COMPARED.search(p[c] or "") for c in ("qual", "with_check"))
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


def test_views_see_with_their_readers_eyes(facts: Facts, database: str) -> None:
    """No view shows a table with a tenant by the eyes of somebody who sees all tenants."""
    none(
        (v["relation"] for v in facts.database(database)["views"]),
        "ALTER VIEW … SET (security_invoker = true)",
    )


def test_no_role_or_database_brings_a_tenant_along(facts: Facts, primary: str) -> None:
    """Nobody's sessions begin as a tenant's: a transaction that names none sees nothing."""
    none(
        (
            f"{r['role'] or 'everybody'} in {r['database'] or 'every database'}: {r['setting']}"
            for r in facts.server(primary)["role_settings"]
            if r["setting"].startswith("app.")
        ),
        "ALTER ROLE … RESET it, or ALTER DATABASE … RESET it",
    )


def test_elsas_own_tables_are_all_isolated_or_none(facts: Facts) -> None:
    """Row-level security on Elsa's own tables, an opt-in, covers every one of them or none."""
    rows = facts.database("elsa_workflows")["elsa_tables"]
    if any(r["is_enabled"] for r in rows):
        none(
            (f"{r['relation']} is not covered" for r in rows if not r["is_complete"]),
            "an upgrade of Elsa brought it: `elsapg psql elsa_migrator -c "
            "'SELECT elsapg.enable_elsa_row_security()'`",
        )


def test_there_are_no_large_objects(facts: Facts, database: str) -> None:
    """Nobody can make a large object: they know no tenants, and one fails every pg_dump."""
    [row] = facts.database(database)["large_objects"]
    same(
        row,
        {"there": 0, "anybody": False},
        "take them away by lo_unlink, and EXECUTE on lo_create, lo_creat and lo_from_bytea from "
        "PUBLIC",
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


def test_a_session_leaves_nothing_in_the_pool(facts: Facts, pooler: str) -> None:
    """What a client sets for its session, against the contract, does not reach the next client."""
    setting = "app.elsapg_verify"  # any but the tenant's: this must not open the hole it looks for
    door = (pooler, "elsa_app", "elsa_workflows")
    look = f"SELECT pg_backend_pid(), nullif(current_setting('{setting}', true), '')"
    for _ in range(50):  # until both come to the same server connection
        with facts.connect(*door) as first, facts.connect(*door) as second:
            pid = first.execute(
                f"SELECT pg_backend_pid() FROM set_config('{setting}', 'left', false)"
            ).fetchone()[0]
            found = second.execute(look).fetchone()
            first.execute(f"RESET {setting}")
        if found[0] == pid:
            return same(
                found[1], None, "server_reset_query_always in PgBouncer; run `elsapg up --refresh`"
            )
    return unjudged("no two clients came to the same server connection")
