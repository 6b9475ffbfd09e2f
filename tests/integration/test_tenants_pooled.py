"""Tenants through PgBouncer: clients that share one server connection share nothing else.

The contracts are run as docs/tenants.md has them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from elsapg.services import connect
from elsapg.services.deployment import Deployment
from tests.stacks import ROOT, running_stack

pytestmark = pytest.mark.docker

Connection = psycopg.Connection[Any]
SET = "SELECT set_config('app.current_tenant_id', %s, true)"
TABLE = "elsa_workflows.triggers"
INSERT = (
    f"INSERT INTO {TABLE} (id, workflow_definition_id, workflow_definition_version_id, name,"
    " activity_id, hash) VALUES (%s, 'd', 'v', 'n', 'a', 'pooled')"
)
COUNT = f"SELECT count(*) FROM {TABLE} WHERE hash = 'pooled'"
DOORS: tuple[connect.Via, ...] = ("pool", "session", "readonly")
BOUND = ("elsa_app", "elsa_worker", "elsa_readonly", "elsa_migrator")


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """One PgBouncer with one server connection per role: every client gets the same one."""
    settings = {
        "docker": {"pool_port": 8032},
        "pooler": {"instances": 1, "default_pool_size": 1, "reserve_pool_size": 0},
    }
    with running_stack("tenants", settings) as running:
        host = client(running, "elsa_host")
        with host:
            for tenant in ("a", "b"):
                with host.transaction():
                    host.execute(SET, (tenant,))
                    host.execute(f"{INSERT} ON CONFLICT DO NOTHING".encode(), (f"pooled-{tenant}",))
        yield running


def client(
    deployment: Deployment, role: str = "elsa_app", via: connect.Via = "pool", **more: Any
) -> Connection:
    """A client of its own, one statement per transaction unless it begins one."""
    uri = connect.libpq(connect.connection(deployment, role, via=via))
    return psycopg.connect(uri, autocommit=True, connect_timeout=10, **more)


def first(connection: Connection, query: str, *parameters: Any) -> Any:
    row = connection.execute(query.encode(), parameters or None).fetchone()
    assert row is not None
    return row[0]


# -- one server connection, two tenants --------------------------------------------------------


def test_two_clients_share_the_server_connection(deployment: Deployment) -> None:
    """What the other tests of this module rest on."""
    with client(deployment) as one, client(deployment) as two:
        assert first(one, "SELECT pg_backend_pid()") == first(two, "SELECT pg_backend_pid()")


def test_transactions_in_turn_never_see_each_other(deployment: Deployment) -> None:
    with client(deployment) as one, client(deployment) as two, client(deployment) as nobody:
        for _ in range(20):
            for connection, tenant in ((one, "a"), (two, "b")):
                with connection.transaction():
                    connection.execute(SET, (tenant,))
                    rows = connection.execute(
                        f"SELECT DISTINCT tenant_id FROM {TABLE}".encode(), prepare=True
                    ).fetchall()
                assert rows == [(tenant,)]
            assert first(nobody, COUNT) == 0


@pytest.mark.parametrize("how", ["rollback", "error", "disconnect"])
def test_a_transaction_that_breaks_off_leaves_no_context(deployment: Deployment, how: str) -> None:
    one = client(deployment)
    one.execute("BEGIN")
    one.execute(SET, ("b",))
    if how == "rollback":
        one.execute("ROLLBACK")
    elif how == "error":
        with pytest.raises(psycopg.errors.DivisionByZero):
            one.execute("SELECT 1 / 0")
    one.close()
    with client(deployment) as two:
        assert (
            first(two, "SELECT nullif(current_setting('app.current_tenant_id', true), '')") is None
        )
        assert first(two, COUNT) == 0


def test_a_context_outside_a_transaction_is_over_at_once(deployment: Deployment) -> None:
    with client(deployment) as one:
        one.execute(SET, ("a",))
        assert first(one, COUNT) == 0


# -- what a session leaves behind --------------------------------------------------------------

LEFT = {
    "SET": ("SET app.current_tenant_id = 'b'", COUNT, 0),
    "set_config": ("SELECT set_config('app.current_tenant_id', 'b', false)", COUNT, 0),
    "temporary table": (
        "CREATE TEMPORARY TABLE left_behind AS SELECT 'b' AS secret",
        "SELECT count(*) FROM pg_class WHERE relname = 'left_behind'",
        0,
    ),
    "held cursor": (
        "BEGIN; DECLARE left_open CURSOR WITH HOLD FOR SELECT 'b'; COMMIT",
        "SELECT count(*) FROM pg_cursors WHERE is_holdable",
        0,
    ),
    "advisory lock": (
        "SELECT pg_advisory_lock(4711)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        0,
    ),
    "LISTEN": ("LISTEN left_on", "SELECT count(*) FROM pg_listening_channels()", 0),
    "role": ("SET ROLE elsa_user", "SELECT current_user::text", "elsa_app"),
    "search_path": (
        "SET search_path = pg_temp",
        "SELECT current_setting('search_path') = 'pg_temp'",
        False,
    ),
    "timeout": (
        "SET statement_timeout = 7777",
        "SELECT current_setting('statement_timeout') <> '7777ms'",
        True,
    ),
    "row_security": ("SET row_security = off", "SELECT current_setting('row_security')", "on"),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT)
def test_what_a_session_leaves_does_not_reach_the_next_client(
    deployment: Deployment, what: str
) -> None:
    """The classic hole: in transaction mode the session is the next client's."""
    leave, look, expected = LEFT[what]
    with client(deployment) as one, client(deployment) as two:
        one.execute(leave.encode())
        try:
            assert first(two, look) == expected
        finally:  # whatever was found, the next test begins clean
            if one.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                one.execute("ROLLBACK")
            two.execute("DISCARD TEMP")
            for clean in [
                "RESET ALL",
                "CLOSE ALL",
                "UNLISTEN *",
                "SET SESSION AUTHORIZATION DEFAULT",
            ]:
                two.execute(clean.encode())
            two.execute("SELECT pg_advisory_unlock_all()")


def test_prepared_statements_outlive_the_clean_up(deployment: Deployment) -> None:
    """PgBouncer keeps the clients' prepared statements on the server connection."""
    with client(deployment) as one, client(deployment) as two:
        for number in range(12):
            for connection in (one, two):
                found = connection.execute("SELECT %s::int + 1", (number,), prepare=True).fetchone()
                assert found == (number + 1,)


# -- each role through its doors ---------------------------------------------------------------


@pytest.mark.parametrize("role", BOUND)
@pytest.mark.parametrize("via", DOORS)
def test_a_role_sees_its_tenant_by_every_door(
    deployment: Deployment, role: str, via: connect.Via
) -> None:
    with client(deployment, role, via) as connection:
        for tenant, seen in (("a", ["a"]), ("b", ["b"]), ("c", []), ("*", []), ("", [])):
            with connection.transaction():
                connection.execute(SET, (tenant,))
                rows = connection.execute(
                    f"SELECT tenant_id FROM {TABLE} WHERE hash = 'pooled'".encode()
                ).fetchall()
            assert rows == [(name,) for name in seen]
        assert first(connection, COUNT) == 0


@pytest.mark.parametrize("role", ["elsa_host", "elsa_admin"])
@pytest.mark.parametrize("via", DOORS)
def test_the_host_sees_all_by_every_door(
    deployment: Deployment, role: str, via: connect.Via
) -> None:
    with client(deployment, role, via) as connection:
        assert first(connection, COUNT) == 2


@pytest.mark.parametrize("via", DOORS)
def test_monitoring_sees_no_row_of_a_tenant_by_any_door(
    deployment: Deployment, via: connect.Via
) -> None:
    with (
        client(deployment, "monitoring", via) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(COUNT.encode())


@pytest.mark.parametrize(
    "attack",
    [
        "SET ROLE elsa_host",
        "SET SESSION AUTHORIZATION elsa_host",
        "SET row_security = off; SELECT * FROM elsa_workflows.triggers",
        "SELECT * FROM elsa_workflows.workflow_instances_default",
        "SELECT * FROM elsa_workflows.workflow_instance_keys",
        f"UPDATE {TABLE} SET tenant_id = 'b'",
        f"TRUNCATE {TABLE}",
        "SELECT lo_from_bytea(0, 'x')",
    ],
)
@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly"])
def test_an_attack_fails_through_the_pool_too(
    deployment: Deployment, role: str, attack: str
) -> None:
    refused = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)
    with client(deployment, role) as connection:
        connection.execute("BEGIN")
        connection.execute(SET, ("a",))
        with pytest.raises(refused):
            connection.execute(attack.encode())
        connection.execute("ROLLBACK")
        with connection.transaction():
            connection.execute("SET LOCAL row_security = on")


@pytest.mark.parametrize("option", ["-c app.current_tenant_id=b", "-c role=elsa_host"])
def test_a_client_cannot_bring_settings_along(deployment: Deployment, option: str) -> None:
    """In its start-up packet, where they would be the whole session's."""
    with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"):
        client(deployment, options=option)


# -- the contracts, as the page has them -------------------------------------------------------

PAGE = ROOT / "docs" / "tenants.md"


def block(language: str) -> str:
    """The page's example in a language."""
    [found] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def test_the_contract_for_psycopg(deployment: Deployment) -> None:
    with client(deployment) as connection:
        names: dict[str, Any] = {"connection": connection, "tenant": "a"}
        exec(compile(block("python"), str(PAGE), "exec"), names)  # our own page
        assert names["rows"] == []
        with connection.transaction():
            connection.execute(SET, ("a",))
            connection.execute(
                "INSERT INTO elsa_workflows.workflow_instances"
                " (id, definition_id, definition_version, workflow_state, status)"
                " VALUES ('contract', 'd', 1, '{}', 'Running')"
            )
        try:
            for tenant, seen in (("a", [("contract",)]), ("b", [])):
                names["tenant"] = tenant
                exec(compile(block("python"), str(PAGE), "exec"), names)
                assert names["rows"] == seen
        finally:
            with client(deployment, "elsa_host") as host:
                host.execute("DELETE FROM elsa_workflows.workflow_instances WHERE id = 'contract'")


def test_the_contract_for_psql(deployment: Deployment, tmp_path: Path) -> None:
    """In the PgBouncer's container, which has psql; the page's lines on standard input."""
    script = block("sql").replace("elsa_workflows.workflow_instances", TABLE)
    found = connect.connection(deployment, "elsa_app")
    for tenant in ("a", "b"):
        done = subprocess.run(
            [
                "docker", "exec", "-i", "-e", f"PGPASSWORD={found.password}",
                f"elsapg-{deployment.stack}-pgbouncer-1",
                "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-v", f"tenant={tenant}",
                "host=localhost port=6432 sslmode=require user=elsa_app dbname=elsa_workflows",
            ],
            input=script, capture_output=True, text=True, check=True,
        )  # fmt: skip
        # set_config answers with the tenant's name; then the rows.
        assert done.stdout.split() == [tenant, f"pooled-{tenant}"]


def test_the_contract_binds_whatever_the_tenant_is_called(deployment: Deployment) -> None:
    with client(deployment) as connection:
        for hostile in ("b' OR true --", "b\\'; SET ROLE elsa_host", "%s", "ü" * 255):
            with connection.transaction():
                connection.execute(SET, (hostile,))
                assert connection.execute(
                    sql.SQL("SELECT current_setting('app.current_tenant_id')")
                ).fetchone() == (hostile,)
                assert first(connection, COUNT) == 0
