"""The audit trail: an act that changes who may do what leaves a line; everyday work does not."""

from __future__ import annotations

import csv
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sql_server import SQL_DIR, Server

from elsapg import stackfile
from elsapg.definition.parameters import parameters
from elsapg.runner import scram

pytestmark = pytest.mark.docker

TENANT = "SELECT set_config('app.current_tenant_id', 'audited', true)"
DEFINITION = (
    "INSERT INTO elsa_workflows.workflow_definitions"
    " (id, definition_id, version, name, materialized_workflow)"
    " VALUES ('audit', 'audit', 1, 'audit', '{}')"
)
USER = "INSERT INTO elsa_workflows.users (id, user_name) VALUES ('u', 'u')"

LINE = re.compile(r"^\S+ \S+ UTC \[\d+\] (\w+)@(\w+)/\S* LOG:  AUDIT: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """A line of pgaudit, with who and where from log_line_prefix."""

    user: str
    database: str
    kind: str
    group: str
    command: str
    object: str
    statement: str


@pytest.fixture(scope="module")
def audited(server: Server) -> Iterator[Server]:
    """The server with production's parameters on audit and log, all set by a reload."""
    wanted = {
        name: value
        for name, value in parameters(stackfile.load({}, "test")).items()
        if name.startswith(("log_", "pgaudit.")) and name != "log_min_duration_statement"
    }
    with server.connect(autocommit=True) as db:
        for name, value in wanted.items():
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            db.execute(f"ALTER SYSTEM SET {name} = '{shown}'".encode())
        db.execute("SELECT pg_reload_conf()")
    until(lambda: server.value("SHOW log_parameter_max_length") == "0")
    waiting = server.rows("SELECT name FROM pg_settings WHERE pending_restart")
    assert not {name for (name,) in waiting} & set(wanted)
    with server.connect("elsa_workflows") as db:
        db.execute("INSERT INTO elsa_workflows.tenants (tenant_id, name) VALUES ('audited', 'a')")
    yield server
    with server.connect("elsa_workflows", autocommit=True) as db:
        for table in ("workflow_definitions", "users", "tenants"):
            db.execute(f"DELETE FROM elsa_workflows.{table} WHERE tenant_id = 'audited'".encode())
        db.execute("ALTER SYSTEM RESET ALL")
        db.execute("SELECT pg_reload_conf()")


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.05)


def log_of(server: Server, act: Callable[[], None]) -> str:
    """What the server logs because of an act. Its statements' texts are logged, too."""
    first, last = uuid.uuid4().hex, uuid.uuid4().hex
    server.value(f"SELECT '{first}'")
    act()
    server.value(f"SELECT '{last}'")
    logs = ""

    def arrived() -> bool:
        nonlocal logs
        logs = server.logs()
        return last in logs

    until(arrived)
    return logs.partition(first)[2].partition(last)[0]


def entries(log: str) -> list[Entry]:
    """The lines of pgaudit in a log: who and where from log_line_prefix, the rest is CSV."""
    found = []
    for user, database, text in LINE.findall(log):
        kind, _, _, group, command, _, name, statement, *_ = next(csv.reader([text]))
        found.append(Entry(user, database, kind, group, command, name, statement))
    return found


def audit(server: Server, role: str, *statements: str, database: str = "elsa_workflows") -> Any:
    """What of these statements, run as a role in one transaction, is audited."""

    def act() -> None:
        with server.connect(database, role) as db:
            # The log itself keeps quiet, as production's does; pgaudit does not.
            for statement in statements:
                db.execute(statement.encode())

    return entries(log_of(server, act))


GIVE_ALL = "UPDATE elsa_workflows.users SET permissions = '{all}'"
WRITES = [
    ("elsa_app", USER, "INSERT", "users"),
    ("elsa_app", GIVE_ALL, "UPDATE", "users"),
    ("elsa_host", "UPDATE elsa_workflows.users SET is_enabled = true", "UPDATE", "users"),
    ("elsa_app", "DELETE FROM elsa_workflows.users", "DELETE", "users"),
    ("elsa_admin", "UPDATE elsa_workflows.tenants SET name = 'b'", "UPDATE", "tenants"),
    ("postgres", GIVE_ALL, "UPDATE", "users"),
]


@pytest.mark.parametrize(("role", "statement", "command", "table"), WRITES)
def test_writes_to_users_and_tenants_are_audited(
    audited: Server, role: str, statement: str, command: str, table: str
) -> None:
    found = audit(audited, role, TENANT, statement)
    own = [entry for entry in found if entry.object == f"elsa_workflows.{table}"]
    assert [(e.user, e.database, e.kind, e.group, e.command) for e in own] == [
        (role, "elsa_workflows", "OBJECT", "WRITE", command)
    ]
    assert own[0].statement == statement


def test_copy_into_users_is_audited(audited: Server) -> None:
    """Row-level security forbids it to the application; it is a superuser's way."""

    def act() -> None:
        with audited.connect("elsa_workflows") as db:
            statement = b"COPY elsa_workflows.users (id, user_name, tenant_id) FROM STDIN"
            with db.cursor().copy(statement) as copy:
                copy.write_row(("c", "c", "audited"))

    found = entries(log_of(audited, act))
    assert ("postgres", "OBJECT", "elsa_workflows.users") in [
        (e.user, e.kind, e.object) for e in found
    ]


@pytest.mark.parametrize("role", ["elsa_migrator", "postgres"])
@pytest.mark.parametrize("table", ["users", "tenants"])
def test_truncate_which_would_leave_no_line_is_refused(
    server: Server, role: str, table: str
) -> None:
    with (
        server.connect("elsa_workflows", role) as db,
        pytest.raises(psycopg.errors.FeatureNotSupported, match="would not be audited"),
    ):
        db.execute(f"TRUNCATE elsa_workflows.{table} CASCADE".encode())


DDL = [
    ("CREATE POLICY p ON elsa_workflows.users USING (true)", "CREATE POLICY"),
    ("ALTER POLICY tenant_isolation ON elsa_workflows.users USING (true)", "ALTER POLICY"),
    ("DROP POLICY tenant_isolation ON elsa_workflows.users", "DROP POLICY"),
    ("ALTER TABLE elsa_workflows.users DISABLE ROW LEVEL SECURITY", "ALTER TABLE"),
    ("ALTER TABLE elsa_workflows.users NO FORCE ROW LEVEL SECURITY", "ALTER TABLE"),
    ("CREATE TABLE elsa_workflows.audited_table (id integer)", "CREATE TABLE"),
    ("DROP TABLE elsa_workflows.users", "DROP TABLE"),
    ("CREATE FUNCTION elsa_workflows.f() RETURNS integer RETURN 1", "CREATE FUNCTION"),
]


@pytest.mark.parametrize(("statement", "command"), DDL)
def test_policies_and_other_ddl_are_audited(audited: Server, statement: str, command: str) -> None:
    found = audit_and_undo(audited, "elsa_migrator", statement)
    assert ("elsa_migrator", "elsa_workflows", "SESSION", "DDL", command) in [
        (e.user, e.database, e.kind, e.group, e.command) for e in found
    ]
    assert statement in [e.statement for e in found]


ROLES = [
    ("CREATE ROLE audited_role", "CREATE ROLE"),
    ("ALTER ROLE elsa_app BYPASSRLS", "ALTER ROLE"),
    ("ALTER ROLE elsa_app SET app.current_tenant_id = 'x'", "ALTER ROLE"),
    ("GRANT elsa_host TO elsa_app", "GRANT ROLE"),
    ("REVOKE elsa_user FROM elsa_app", "REVOKE ROLE"),
    ("GRANT SELECT ON elsa_workflows.users TO elsa_worker", "GRANT"),
    ("REVOKE SELECT ON elsa_workflows.users FROM elsa_user", "REVOKE"),
    ("DROP ROLE IF EXISTS audited_role", "DROP ROLE"),
    ("ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC", "ALTER DEFAULT PRIVILEGES"),
]


@pytest.mark.parametrize(("statement", "command"), ROLES)
def test_roles_and_grants_are_audited(audited: Server, statement: str, command: str) -> None:
    found = audit_and_undo(audited, "postgres", statement)
    assert [(e.kind, e.command, e.statement) for e in found if e.user == "postgres"][:1] == [
        ("SESSION", command, statement)
    ]


def audit_and_undo(server: Server, role: str, statement: str) -> list[Entry]:
    def act() -> None:
        with server.connect("elsa_workflows", role) as db:
            db.execute(statement.encode())
            db.rollback()

    return entries(log_of(server, act))


EVERYDAY = {
    "elsa_app": [
        DEFINITION,
        "UPDATE elsa_workflows.workflow_definitions SET name = 'b' WHERE id = 'audit'",
        "SELECT * FROM elsa_workflows.workflow_definitions",
        "SELECT id FROM elsa_workflows.users",
        "SELECT name FROM elsa_workflows.tenants",
        "DELETE FROM elsa_workflows.workflow_definitions WHERE id = 'audit'",
    ],
    "elsa_worker": ["SELECT * FROM elsa_workflows.workflow_definitions"],
    "elsa_readonly": ["SELECT id, user_name FROM elsa_workflows.users"],
    "monitoring": ["SELECT * FROM pg_stat_activity"],
}


@pytest.mark.parametrize("role", EVERYDAY)
def test_everyday_work_leaves_no_line(audited: Server, role: str) -> None:
    assert audit(audited, role, TENANT, *EVERYDAY[role]) == []


def test_a_password_shows_neither_in_clear_nor_as_a_verifier(audited: Server) -> None:
    verifier = scram.verifier("some-Secret-42")
    for given, secret in [(verifier, verifier), ("some-Secret-42", "some-Secret-42")]:

        def act(given: str = given) -> None:
            with audited.connect() as db:
                # The server of the tests logs every statement; production's those of a second.
                db.execute("SET log_min_duration_statement = '1s'")
                db.execute(
                    sql.SQL("ALTER ROLE elsa_app PASSWORD {}").format(sql.Literal(given))
                )  # fmt: skip
                db.rollback()

        log = log_of(audited, act)
        assert [e.command for e in entries(log)] == ["ALTER ROLE"]
        assert "<REDACTED>" in log
        assert secret not in log
        assert secret.rpartition("$")[2] not in log


def test_bound_values_stay_out_of_the_trail(audited: Server) -> None:
    secret = f"secret-{uuid.uuid4().hex}"

    def act() -> None:
        with audited.connect("elsa_workflows", "elsa_app") as db:
            db.execute(TENANT.encode())
            db.execute(
                "INSERT INTO elsa_workflows.users (id, user_name, password_hash)"
                " VALUES ('bound', 'bound', %s)",
                (secret,),
            )

    log = log_of(audited, act)
    assert len(entries(log)) >= 1
    assert secret not in log


def test_nobody_but_a_superuser_can_switch_it_off(audited: Server) -> None:
    for role in ("elsa_app", "elsa_admin", "elsa_migrator"):
        for name in ("pgaudit.log", "pgaudit.role", "pgaudit.log_parameter"):
            with (
                audited.connect("elsa_workflows", role) as db,
                pytest.raises(psycopg.errors.InsufficientPrivilege),
            ):
                db.execute(f"SET {name} = 'on'".encode())


def test_the_auditor_holds_these_rights_and_uses_none(server: Server) -> None:
    held = server.rows(
        "SELECT c.relnamespace::regnamespace::text || '.' || c.relname, a.privilege_type"
        " FROM pg_class AS c, aclexplode(c.relacl) AS a"
        " WHERE a.grantee = 'elsa_auditor'::regrole ORDER BY 1, 2",
        database="elsa_workflows",
    )
    assert held == [
        (f"elsa_workflows.{table}", right)
        for table in ("tenants", "users")
        for right in ("DELETE", "INSERT", "UPDATE")
    ]
    assert not server.value(
        "SELECT has_schema_privilege('elsa_auditor', 'elsa_workflows', 'USAGE')",
        database="elsa_workflows",
    )
    assert not server.value("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'elsa_auditor'")
    assert server.rows(
        "SELECT FROM pg_auth_members WHERE 'elsa_auditor'::regrole IN (roleid, member)"
    ) == []  # fmt: skip


def test_elsas_own_users_are_audited_once_they_are_there(server: Server) -> None:
    grants = (SQL_DIR / "cluster" / "066_audit.sql").read_text(encoding="utf-8")
    with server.connect("elsa_workflows", "elsa_migrator", autocommit=True) as db:
        db.execute('CREATE TABLE "Elsa"."Users" ("Id" text PRIMARY KEY, "TenantId" text)')
        try:
            # As the next bootstrap does.
            with server.connect("elsa_workflows") as superuser:
                superuser.execute(grants.encode())
            for right in ("INSERT", "UPDATE", "DELETE"):
                assert server.value(
                    "SELECT has_table_privilege('elsa_auditor', '\"Elsa\".\"Users\"', %s)",
                    (right,),
                    database="elsa_workflows",
                )
        finally:
            db.execute('DROP TABLE "Elsa"."Users"')
