"""Roles, rights on databases, PgBouncer's function: who can do what, tried as that role."""

from __future__ import annotations

import subprocess

import psycopg
import pytest
from sql_server import Server
from syrupy.assertion import SnapshotAssertion

pytestmark = pytest.mark.docker

DATABASES = ["postgres", "template1", "elsa_workflows", "elsa_runtime"]
LOGINS = [
    "elsa_migrator",
    "elsa_app",
    "elsa_worker",
    "elsa_readonly",
    "elsa_host",
    "elsa_admin",
    "monitoring",
]


@pytest.mark.parametrize("database", DATABASES)
def test_public_may_not_connect_or_make_temporary_tables(server: Server, database: str) -> None:
    public = server.rows(
        "SELECT a.privilege_type FROM pg_database AS d, aclexplode(d.datacl) AS a"
        " WHERE d.datname = %s AND a.grantee = 0",
        (database,),
    )
    assert public == []
    assert server.value(
        "SELECT datacl IS NOT NULL FROM pg_database WHERE datname = %s", (database,)
    )


@pytest.mark.parametrize("role", [role for role in LOGINS if role != "monitoring"])
def test_the_applications_roles_do_not_reach_postgres(server: Server, role: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        server.connect("postgres", role)


def test_no_role_of_ours_is_a_superuser(server: Server) -> None:
    assert server.rows("SELECT rolname FROM pg_roles WHERE rolsuper") == [("postgres",)]
    assert server.rows(
        "SELECT rolname, rolcanlogin FROM pg_roles WHERE rolbypassrls AND NOT rolsuper ORDER BY 1"
    ) == [("backup", True), ("elsa_maintenance", False)]
    assert server.rows("SELECT rolname FROM pg_roles WHERE rolreplication AND NOT rolsuper") == [
        ("replicator",)
    ]


@pytest.mark.parametrize("database", ["elsa_workflows", "elsa_runtime"])
def test_what_a_migrator_makes_is_the_owners_and_the_applications_at_once(
    server: Server, database: str
) -> None:
    with server.connect(database, "elsa_migrator") as connection:
        connection.execute(f"CREATE TABLE {database}.made (id integer)".encode())
        connection.execute(f"CREATE FUNCTION {database}.made() RETURNS integer RETURN 1".encode())
        row = connection.execute(
            "SELECT c.relowner::regrole::text, has_table_privilege('elsa_app', c.oid, 'INSERT'),"
            " has_table_privilege('elsa_worker', c.oid, 'INSERT'),"
            " has_table_privilege('elsa_readonly', c.oid, 'SELECT'),"
            " has_function_privilege('elsa_app', %s, 'EXECUTE')"
            " FROM pg_class AS c WHERE c.oid = %s::regclass",
            (f"{database}.made()", f"{database}.made"),
        ).fetchone()
        connection.rollback()
    assert row == ("elsa_owner", True, False, True, False)


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly", "elsa_admin"])
@pytest.mark.parametrize("schema", ["public", "elsa_workflows", "elsapg", "elsa_jobs"])
def test_nobody_else_creates_tables(server: Server, role: str, schema: str) -> None:
    with server.connect("elsa_workflows", role) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.commit()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"CREATE TABLE {schema}.mine (id integer)".encode())


def test_pgbouncers_function_answers_for_applications_only(server: Server) -> None:
    with server.connect(autocommit=True) as connection:
        # The superuser of a cluster has all three attributes: each must be enough on its own.
        connection.execute("ALTER ROLE postgres PASSWORD 'x'")
        connection.execute("CREATE ROLE su LOGIN SUPERUSER PASSWORD 'x'")
        connection.execute("CREATE ROLE bypass LOGIN BYPASSRLS PASSWORD 'x'")
        connection.execute("CREATE ROLE expired LOGIN PASSWORD 'x' VALID UNTIL '2020-01-01'")
        connection.execute("CREATE ROLE nologin PASSWORD 'x'")
        connection.execute("CREATE ROLE repl LOGIN REPLICATION PASSWORD 'x'")
        try:
            connection.execute("SET ROLE pgbouncer_auth")
            found = {
                role: connection.execute(
                    "SELECT usename, passwd FROM pgbouncer.get_auth(%s)", (role,)
                ).fetchall()
                for role in [
                    *LOGINS,
                    "postgres",
                    "expired",
                    "nologin",
                    "repl",
                    "su",
                    "bypass",
                    "backup",
                    "elsa_jobs",
                ]
            }
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT rolpassword FROM pg_authid")
        finally:
            connection.execute("RESET ROLE")
            connection.execute("DROP ROLE expired, nologin, repl, su, bypass")
            connection.execute("ALTER ROLE postgres PASSWORD NULL")
    assert {role for role, rows in found.items() if rows} == set(LOGINS)
    assert all(found[role][0][1].startswith("SCRAM-SHA-256$4096:") for role in LOGINS)


def test_pgbouncers_function_is_for_pgbouncer_only(server: Server) -> None:
    with (
        server.connect(user="monitoring") as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT * FROM pgbouncer.get_auth('elsa_app')")


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("rewind", "SELECT pg_ls_dir('global', true, false)"),
        ("rewind", "SELECT pg_stat_file('global/pg_control', true)"),
        ("rewind", "SELECT pg_read_binary_file('global/pg_control')"),
        ("rewind", "SELECT pg_read_binary_file('global/pg_control', 0, 10, true)"),
        ("backup", "SELECT pg_backup_start('t', true); SELECT pg_backup_stop(false)"),
        ("backup", "SELECT pg_create_restore_point('t')"),
        ("backup", "SELECT pg_switch_wal()"),
        ("backup", "CHECKPOINT"),
        ("backup", "SELECT setting FROM pg_settings WHERE name = 'data_directory'"),
    ],
)
def test_services_work_without_a_superuser(server: Server, role: str, statement: str) -> None:
    with server.connect(autocommit=True) as connection:
        connection.execute(f"SET ROLE {role}".encode())
        rows = connection.execute(statement.encode()).fetchall() if "SELECT" in statement else [1]
        if "SELECT" not in statement:
            connection.execute(statement.encode())
        assert rows


def test_the_backup_role_dumps_rows_of_every_tenant(server: Server) -> None:
    with server.connect("elsa_workflows") as connection:
        connection.execute(
            "INSERT INTO elsa_workflows.workflow_definitions"
            " (id, definition_id, version, name, materialized_workflow, tenant_id)"
            " VALUES ('dump', 'dump', 1, 'dump-me', '{}', 'dumped-tenant')"
        )
    try:
        dump = subprocess.run(
            ["docker", "exec", server.container, "pg_dump", "-h", "/tmp", "-U", "postgres",
             "--role=backup", "elsa_workflows"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "dump-me" in dump
    finally:
        with server.connect("elsa_workflows") as connection:
            connection.execute("DELETE FROM elsa_workflows.workflow_definitions WHERE id = 'dump'")


@pytest.mark.parametrize("database", ["postgres", "elsa_workflows", "elsa_runtime"])
def test_every_object_has_a_comment(server: Server, database: str) -> None:
    uncommented = server.rows(
        """
        WITH ours AS (
            SELECT oid FROM pg_namespace
            WHERE nspname IN ('elsa_workflows', 'elsa_runtime', 'elsapg', 'elsa_jobs', 'pgbouncer')
        )
        SELECT oid::regnamespace::text FROM ours WHERE obj_description(oid, 'pg_namespace') IS NULL
        UNION ALL
        SELECT c.oid::regclass::text FROM pg_class AS c
        WHERE c.relnamespace IN (SELECT oid FROM ours) AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
            AND obj_description(c.oid, 'pg_class') IS NULL
        UNION ALL
        SELECT c.oid::regclass::text || '.' || a.attname
        FROM pg_class AS c INNER JOIN pg_attribute AS a ON c.oid = a.attrelid
        WHERE c.relnamespace IN (SELECT oid FROM ours) AND c.relkind IN ('r', 'p')
            AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
            AND col_description(c.oid, a.attnum) IS NULL
        UNION ALL
        SELECT p.oid::regprocedure::text FROM pg_proc AS p
        WHERE p.pronamespace IN (SELECT oid FROM ours) AND obj_description(p.oid, 'pg_proc') IS NULL
        UNION ALL
        SELECT rolname FROM pg_roles
        WHERE rolname !~ '^pg_' AND rolname <> 'postgres'
            AND shobj_description(oid, 'pg_authid') IS NULL
        """,
        database=database,
    )
    assert uncommented == []


@pytest.mark.parametrize("database", ["postgres", "elsa_workflows", "elsa_runtime"])
def test_no_function_of_ours_is_public(server: Server, database: str) -> None:
    public = server.rows(
        "SELECT p.oid::regprocedure::text FROM pg_proc AS p"
        " INNER JOIN pg_namespace AS n ON p.pronamespace = n.oid,"
        " aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a"
        " WHERE n.nspname IN ('elsa_workflows', 'elsa_runtime', 'elsapg', 'elsa_jobs', 'pgbouncer')"
        " AND a.grantee = 0",
        database=database,
    )
    assert public == []


# -- the whole table of rights -----------------------------------------------------------------
#
# A snapshot, so that a review sees every change of rights as a line. Effective rights, by whatever
# membership; of roles that can have a session. The owner, who has all of its own, is left out.

RIGHTS = """
WITH who AS (
    SELECT r.oid, r.rolname FROM pg_roles AS r
    WHERE r.rolname IN (
        'elsa_app', 'elsa_worker', 'elsa_readonly', 'elsa_host', 'elsa_admin', 'monitoring',
        'elsa_jobs', 'backup', 'pgbouncer_auth', 'rewind', 'replicator', 'elsa_maintenance',
        'elsa_auditor'
    )
),
ours AS (
    SELECT n.oid, n.nspname FROM pg_namespace AS n
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
),
relation_rights AS (
    SELECT c.relname, n.nspname, c.relkind, w.rolname,
        string_agg(
            CASE
                WHEN has_table_privilege(w.oid, c.oid, p.name) THEN p.name
                ELSE p.name || '(' || (
                    SELECT string_agg(a.attname, ', ' ORDER BY a.attnum) FROM pg_attribute AS a
                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                        AND has_column_privilege(w.oid, c.oid, a.attnum, p.name)
                ) || ')'
            END, ' ' ORDER BY p.n
        ) AS rights
    FROM ours AS n
    JOIN pg_class AS c ON c.relnamespace = n.oid
    CROSS JOIN who AS w
    CROSS JOIN unnest(
        ARRAY[
            'SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN'
        ]
    ) WITH ORDINALITY AS p (name, n)
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition
        AND has_schema_privilege(w.oid, n.oid, 'USAGE')
        AND (
            has_table_privilege(w.oid, c.oid, p.name)
            OR p.name IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
            AND has_any_column_privilege(w.oid, c.oid, p.name)
        )
    GROUP BY c.relname, n.nspname, c.relkind, w.rolname
),
sequence_rights AS (
    SELECT c.relname, n.nspname, w.rolname, string_agg(p.name, ' ' ORDER BY p.n) AS rights
    FROM ours AS n
    JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relkind = 'S'
    CROSS JOIN who AS w
    CROSS JOIN unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) WITH ORDINALITY AS p (name, n)
    WHERE has_schema_privilege(w.oid, n.oid, 'USAGE')
        AND has_sequence_privilege(w.oid, c.oid, p.name)
    GROUP BY c.relname, n.nspname, w.rolname
),
function_rights AS (
    SELECT p.oid::regprocedure::text AS name, p.prosecdef, o.rolname AS owner, w.rolname
    FROM ours AS n
    JOIN pg_proc AS p ON p.pronamespace = n.oid
    JOIN pg_roles AS o ON p.proowner = o.oid
    CROSS JOIN who AS w
    WHERE has_schema_privilege(w.oid, n.oid, 'USAGE')
        AND has_function_privilege(w.oid, p.oid, 'EXECUTE') AND w.oid <> p.proowner
        -- What comes with an extension, its release decides.
        AND NOT EXISTS (
            SELECT FROM pg_depend AS d
            WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
        )
)
SELECT 'database: ' || w.rolname || ': ' || string_agg(p.name, ' ' ORDER BY p.name)
FROM who AS w CROSS JOIN unnest(ARRAY['CONNECT', 'CREATE', 'TEMPORARY']) AS p (name)
WHERE has_database_privilege(w.oid, current_database(), p.name)
GROUP BY w.rolname
UNION ALL
SELECT 'schema ' || n.nspname || ': ' || w.rolname || ': '
    || string_agg(p.name, ' ' ORDER BY p.name)
FROM ours AS n CROSS JOIN who AS w CROSS JOIN unnest(ARRAY['CREATE', 'USAGE']) AS p (name)
WHERE has_schema_privilege(w.oid, n.oid, p.name)
GROUP BY n.nspname, w.rolname
UNION ALL
SELECT CASE WHEN relkind IN ('r', 'p') THEN 'table ' ELSE 'view ' END
    || nspname || '.' || relname || ': ' || rolname || ': ' || rights
FROM relation_rights
-- Everything of the owner's; pg_read_all_data; named once each, above.
WHERE rolname NOT IN ('elsa_maintenance', 'backup') OR rights <> 'SELECT'
UNION ALL
SELECT 'sequence ' || nspname || '.' || relname || ': ' || rolname || ': ' || rights
FROM sequence_rights WHERE rolname <> 'elsa_maintenance'
UNION ALL
SELECT 'function ' || name || CASE WHEN prosecdef THEN ' (as ' || owner || ')' ELSE '' END
    || ': ' || string_agg(rolname, ' ' ORDER BY rolname)
FROM function_rights WHERE rolname <> 'elsa_maintenance'
GROUP BY name, prosecdef, owner
UNION ALL
-- A new table's, a new function's: what nobody has asked for yet.
SELECT 'by default: ' || coalesce('in ' || n.nspname || ': ', '')
    || CASE d.defaclobjtype WHEN 'r' THEN 'table' WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'function'
        ELSE d.defaclobjtype::text END || ': '
    || CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
    || ': ' || string_agg(a.privilege_type, ' ' ORDER BY a.privilege_type)
FROM pg_default_acl AS d
LEFT JOIN pg_namespace AS n ON d.defaclnamespace = n.oid, aclexplode(d.defaclacl) AS a
WHERE a.grantee <> d.defaclrole
GROUP BY n.nspname, d.defaclobjtype, a.grantee
ORDER BY 1
"""


@pytest.mark.parametrize("database", ["postgres", "elsa_workflows", "elsa_runtime"])
def test_the_rights_are_these(server: Server, database: str, snapshot: SnapshotAssertion) -> None:
    """Every right of every role on every object: `--snapshot-update`, and read the difference."""
    lines = [line for (line,) in server.rows(RIGHTS, database=database)]
    assert lines
    assert "\n".join(lines) == snapshot


@pytest.mark.parametrize("database", ["postgres", "elsa_workflows", "elsa_runtime"])
def test_what_runs_as_another_is_closed(server: Server, database: str) -> None:
    """Every SECURITY DEFINER function of ours fixes its search_path, is not PUBLIC's, and runs as
    somebody who cannot log in; a superuser's are named here one by one."""
    superusers = {
        "pgbouncer.get_auth(text)",  # reads verifiers
        "elsa_jobs.prune_cron_details()",  # pg_cron's rows are their owners'
    }
    found = server.rows(
        "SELECT p.oid::regprocedure::text, o.rolsuper, o.rolcanlogin, p.proconfig,"
        " EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a"
        "   WHERE a.grantee = 0)"
        " FROM pg_proc AS p JOIN pg_roles AS o ON p.proowner = o.oid"
        " WHERE p.prosecdef AND p.pronamespace <> 'pg_catalog'::regnamespace"
        # pgaudit's two event triggers, which nobody can call.
        " AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_proc'::regclass"
        "   AND d.objid = p.oid AND d.deptype = 'e')",
        database=database,
    )
    for name, superuser, login, config, public in found:
        assert not public, name
        assert "search_path=pg_catalog, pg_temp" in (config or []), name
        if superuser:
            assert name in superusers
        else:
            assert not login, name


@pytest.mark.parametrize("database", ["elsa_workflows", "elsa_runtime"])
def test_nothing_is_granted_on_a_partition(server: Server, database: str) -> None:
    granted = server.rows(
        "SELECT c.oid::regclass::text, a.grantee::regrole::text, a.privilege_type"
        " FROM pg_class AS c, aclexplode(c.relacl) AS a"
        " WHERE c.relispartition AND c.relkind IN ('r', 'p') AND a.grantee <> c.relowner"
        " UNION ALL SELECT c.oid::regclass::text || '.' || b.attname, a.grantee::regrole::text,"
        " a.privilege_type FROM pg_class AS c JOIN pg_attribute AS b ON b.attrelid = c.oid,"
        " aclexplode(b.attacl) AS a WHERE c.relispartition AND a.grantee <> c.relowner",
        database=database,
    )
    assert granted == []


@pytest.mark.parametrize("database", ["postgres", "elsa_workflows", "elsa_runtime"])
def test_each_role_gets_where_it_belongs_and_nowhere_else(server: Server, database: str) -> None:
    """By the door that every login role has, with its right password."""
    everywhere = {"monitoring"}
    application = set(LOGINS) - everywhere
    for role in LOGINS:
        welcome = role in everywhere or (database != "postgres" and role in application)
        if welcome:
            server.connect(database, role).close()
        else:
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                server.connect(database, role)


@pytest.mark.parametrize(
    "role",
    [
        "elsa_jobs",
        "backup",
        "pgbouncer_auth",
        "rewind",
        "replicator",
        "elsa_owner",
        "elsa_user",
        "elsa_maintenance",
        "elsa_auditor",
    ],
)
def test_whoever_has_no_password_does_not_get_in_with_one(server: Server, role: str) -> None:
    for password in ("", "postgres", role):
        with pytest.raises(psycopg.OperationalError):
            server.connect("elsa_workflows", role, password=password)


def test_no_role_or_database_brings_a_tenant_along(server: Server) -> None:
    """ALTER ROLE … SET would make an unset context somebody's."""
    found = server.rows(
        "SELECT setrole::regrole::text, x FROM pg_db_role_setting, unnest(setconfig) AS x"
        " WHERE starts_with(x, 'app.')"
    )
    assert found == []
