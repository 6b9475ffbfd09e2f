"""Row-level security, attacked as the roles that a client can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sql_server import Server

pytestmark = pytest.mark.docker

TABLE = sql.SQL("elsa_workflows.workflow_definitions")
INSERT = (
    "INSERT INTO elsa_workflows.workflow_definitions"
    " (id, definition_id, version, name, materialized_workflow, tenant_id)"
    " VALUES (%(tenant)s || '-1', 'flow', 1, 'Flow', '{}', %(tenant)s)"
)
COUNT = "SELECT count(*) FROM elsa_workflows.workflow_definitions"


@pytest.fixture(autouse=True)
def rows(server: Server) -> Iterator[None]:
    with server.connect("elsa_workflows") as connection:
        for tenant in ("a", "b"):
            connection.execute(INSERT, {"tenant": tenant})
    yield
    with server.connect("elsa_workflows") as connection:
        connection.execute("DELETE FROM elsa_workflows.workflow_definitions")


@contextmanager
def session(server: Server, role: str, tenant: str | None) -> Iterator[psycopg.Connection[Any]]:
    with server.connect("elsa_workflows", role) as connection:
        if tenant is not None:
            connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", (tenant,))
        yield connection
        connection.rollback()


def count(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(COUNT).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly", "elsa_migrator"])
@pytest.mark.parametrize(("tenant", "seen"), [(None, 0), ("", 0), ("c", 0), ("*", 0), ("a", 1)])
def test_a_role_sees_its_tenants_rows_only(
    server: Server, role: str, tenant: str | None, seen: int
) -> None:
    with session(server, role, tenant) as connection:
        assert count(connection) == seen


def test_after_commit_the_setting_is_empty_and_matches_nothing(server: Server) -> None:
    with session(server, "elsa_app", "a") as connection:
        assert count(connection) == 1
        connection.commit()
        row = connection.execute("SELECT current_setting('app.current_tenant_id', true)").fetchone()
        assert row == ("",)
        assert count(connection) == 0


@pytest.mark.parametrize("tenant", [None, "", "a"])
@pytest.mark.parametrize("target", ["b", "", "default"])
def test_no_row_can_be_written_for_another_tenant(
    server: Server, tenant: str | None, target: str
) -> None:
    with (
        session(server, "elsa_app", tenant) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
    ):
        connection.execute(INSERT, {"tenant": target})


def test_no_row_can_be_moved_to_another_tenant(server: Server) -> None:
    with (
        session(server, "elsa_app", "a") as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
    ):
        connection.execute("UPDATE elsa_workflows.workflow_definitions SET tenant_id = 'b'")


def test_other_tenants_rows_can_be_neither_changed_nor_deleted(server: Server) -> None:
    with session(server, "elsa_app", "a") as connection:
        changed = connection.execute(
            "UPDATE elsa_workflows.workflow_definitions SET name = 'x' WHERE tenant_id = 'b'"
        )
        assert changed.rowcount == 0
        assert connection.execute("DELETE FROM elsa_workflows.workflow_definitions").rowcount == 1


def test_tenants_do_not_collide_on_definition_and_version(server: Server) -> None:
    # Rows a-1 and b-1 have the same definition and version; a second one of one tenant has not.
    with (
        session(server, "elsa_app", "a") as connection,
        pytest.raises(psycopg.errors.UniqueViolation, match="tenant_id_definition_id"),
    ):
        connection.execute(INSERT.replace("'-1'", "'-2'").encode(), {"tenant": "a"})


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly", "elsa_admin"])
def test_a_partition_cannot_be_read_directly(server: Server, role: str) -> None:
    with (
        session(server, role, "a") as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT * FROM elsa_workflows.workflow_definitions_default")


def test_the_owner_is_bound_too_also_in_the_partition(server: Server) -> None:
    with session(server, "elsa_migrator", "a") as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("elsa_owner",)
        assert count(connection) == 1
        rows = connection.execute("SELECT * FROM elsa_workflows.workflow_definitions_default")
        assert rows.fetchall() == []


@pytest.mark.parametrize("way", ["partition of", "attach", "granted later"])
def test_every_partition_is_closed_however_it_comes_to_be(server: Server, way: str) -> None:
    with session(server, "elsa_migrator", None) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS elsa_workflows")
        if way == "attach":
            connection.execute(
                "CREATE TABLE elsa_workflows.p (LIKE elsa_workflows.workflow_definitions"
                " INCLUDING ALL)"
            )
            connection.execute("GRANT SELECT ON elsa_workflows.p TO elsa_app")
            connection.execute(
                "ALTER TABLE elsa_workflows.workflow_definitions"
                " ATTACH PARTITION elsa_workflows.p FOR VALUES IN ('p')"
            )
        else:
            connection.execute(
                "CREATE TABLE elsa_workflows.p PARTITION OF elsa_workflows.workflow_definitions"
                " FOR VALUES IN ('p')"
            )
        if way == "granted later":
            connection.execute("GRANT SELECT ON elsa_workflows.p TO elsa_app, PUBLIC")
        row = connection.execute(
            "SELECT c.relrowsecurity, c.relforcerowsecurity,"
            " (SELECT count(*) FROM aclexplode(c.relacl) AS a WHERE a.grantee <> c.relowner)"
            " FROM pg_class AS c WHERE c.oid = 'elsa_workflows.p'::regclass"
        ).fetchone()
        assert row == (True, True, 0)
        # Through the parent it works as before.
        connection.execute("SELECT set_config('app.current_tenant_id', 'p', true)")
        connection.execute(INSERT, {"tenant": "p"})
        assert count(connection) == 1


def test_elsa_admin_works_across_tenants_but_bypasses_nothing(server: Server) -> None:
    with session(server, "elsa_admin", None) as connection:
        assert count(connection) == 2
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(
                "ALTER TABLE elsa_workflows.workflow_definitions DISABLE ROW LEVEL SECURITY"
            )


@pytest.mark.parametrize("statement", ["SET row_security = off", "SET ROLE elsa_admin"])
def test_a_session_cannot_talk_itself_out_of_it(server: Server, statement: str) -> None:
    with (
        session(server, "elsa_app", "a") as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())
        count(connection)


@pytest.mark.parametrize("role", ["elsa_worker", "elsa_readonly"])
def test_readers_cannot_write(server: Server, role: str) -> None:
    with (
        session(server, role, "a") as connection,
        pytest.raises(
            (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)
        ),
    ):
        connection.execute("DELETE FROM elsa_workflows.workflow_definitions")


def test_every_table_of_elsa_workflows_has_forced_row_security(server: Server) -> None:
    assert (
        server.rows(
            "SELECT relname FROM pg_class WHERE relnamespace = 'elsa_workflows'::regnamespace"
            " AND relkind IN ('r', 'p') AND NOT (relrowsecurity AND relforcerowsecurity)",
            database="elsa_workflows",
        )
        == []
    )
