"""Row-level security, attacked on every table with a tenant, as every role that can log in.

The tables come from the catalog. Tenants "a" and "b" have one row in each; "c" has none. What a
tenant asks about b's rows must be answered exactly as if b did not exist.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import psycopg
import pytest
from psycopg import sql
from sql_server import Server
from tenant_tables import (
    BOUND,
    DATABASES,
    DENIED,
    HOSTS,
    LOGINS,
    SETTING,
    Answer,
    Connection,
    Table,
    ask,
    clear,
    fill,
    session,
    tenant_tables,
)

pytestmark = pytest.mark.docker

TENANTS = ("a", "b")
CONTEXTS = [None, "", "*", "c", "a", "b"]


def named(role: str, tenant: str | None) -> str:
    return f"{role}-{'unset' if tenant is None else tenant or 'empty'}"


WHO = [pytest.param(r, t, id=named(r, t)) for r in LOGINS for t in CONTEXTS]
WRITERS = [pytest.param(r, t, id=named(r, t)) for r in LOGINS for t in (None, "", "a")]
# Who writes for all tenants has tests of its own.
BOUND_WRITERS = [param for param in WRITERS if param.values[0] not in HOSTS]
SEES_ALL = (*HOSTS, "backup")
# Monitoring counts rows of all tenants; columns that tell more are not granted (test_sql_roles).
COUNTED = ("workflow_instances", "activity_execution_records")


@pytest.fixture(scope="module")
def tables(server: Server) -> Iterator[dict[str, list[Table]]]:
    """The tables of each database, with a row of tenant a and one of tenant b in each."""
    found = {database: tenant_tables(server, database) for database in DATABASES}
    try:
        for database, its in found.items():
            with server.connect(database, autocommit=True) as connection:
                clear(connection, its, TENANTS)
                fill(connection, its, TENANTS)
                for table in its:  # statistics, for what estimates could tell
                    connection.execute(sql.SQL("ANALYZE {}").format(table.sql))
        yield found
    finally:
        for database, its in found.items():
            with server.connect(database, autocommit=True) as connection:
                clear(connection, its, TENANTS)


def targets(
    server: Server, tables: dict[str, list[Table]], role: str, tenant: str | None
) -> Iterator[tuple[Connection, Table]]:
    """Each table, with a transaction of `role` in the context of `tenant`."""
    for database, its in tables.items():
        if not its:
            continue
        with session(server, role, tenant, database) as connection:
            for table in its:
                yield connection, table


def allowed(connection: Connection, table: Table, right: str) -> bool:
    """Whether the session's role has `right` on the table; which rights it should have, the
    snapshot of test_sql_roles says."""
    row = connection.execute(
        "SELECT has_schema_privilege(%s, 'USAGE') AND has_table_privilege(c.oid, %s)"
        " FROM pg_class AS c JOIN pg_namespace AS n ON c.relnamespace = n.oid"
        " WHERE n.nspname = %s AND c.relname = %s",
        (table.schema, right, table.schema, table.name),
    ).fetchone()
    assert row is not None
    return bool(row[0])


def own(role: str, tenant: str | None, table: Table | None = None) -> list[str]:
    """Whose rows this role sees in this context."""
    if role in SEES_ALL or (role == "monitoring" and table and table.name in COUNTED):
        return list(TENANTS)
    return [tenant] if role in BOUND and tenant in TENANTS else []


def may_change(connection: Connection, table: Table, right: str, statement: str) -> bool:
    """Whether the role may run this: to lock rows, a right to change one column is enough."""
    any_column = statement.startswith("SELECT") and connection.execute(
        "SELECT has_any_column_privilege(c.oid, 'UPDATE')"
        " FROM pg_class AS c JOIN pg_namespace AS n ON c.relnamespace = n.oid"
        " WHERE n.nspname = %s AND c.relname = %s",
        (table.schema, table.name),
    ).fetchone() == (True,)
    return (any_column or allowed(connection, table, right)) and allowed(
        connection, table, "SELECT"
    )


def ours(tenants: Iterable[str]) -> list[str]:
    """Without the tenant that every bootstrapped database has."""
    return sorted(set(tenants) - {"default"})


def sql_of(template: str, table: Table) -> sql.Composed:
    return sql.SQL(template).format(  # type: ignore[arg-type]
        t=table.sql, tenant=table.column, first=sql.Identifier(table.key[-1])
    )


# -- the catalog -------------------------------------------------------------------------------


def test_every_table_of_elsa_workflows_has_a_tenant(
    server: Server, tables: dict[str, list[Table]]
) -> None:
    """No table of the application's data escapes the attacks below for want of a tenant."""
    named = {str(table) for table in tables["elsa_workflows"]}
    found = server.rows(
        "SELECT n.nspname || '.' || c.relname FROM pg_class AS c"
        " JOIN pg_namespace AS n ON c.relnamespace = n.oid"
        " WHERE n.nspname IN ('elsa_workflows', 'ElsaExtensions') AND c.relkind IN ('r', 'p')"
        " AND NOT c.relispartition",
        database="elsa_workflows",
    )
    assert {row[0] for row in found} == named
    assert len(named) >= 10


@pytest.mark.parametrize("database", DATABASES)
def test_row_security_is_forced_on_every_table_with_a_tenant_and_every_partition(
    server: Server, tables: dict[str, list[Table]], database: str
) -> None:
    bare = server.rows(
        "SELECT c.oid::regclass::text FROM pg_class AS c"
        " JOIN pg_namespace AS n ON c.relnamespace = n.oid"
        " WHERE c.relkind IN ('r', 'p') AND NOT (c.relrowsecurity AND c.relforcerowsecurity)"
        " AND n.nspname NOT IN ('Elsa', 'quartz')"  # Elsa's own: opt-in, elsapg's to switch on
        " AND (c.relispartition OR EXISTS (SELECT FROM pg_attribute AS a"
        "   WHERE a.attrelid = c.oid AND a.attname IN ('tenant_id', 'TenantId')))",
        database=database,
    )
    assert bare == []


def test_the_tenant_is_in_every_unique_key(server: Server, tables: dict[str, list[Table]]) -> None:
    """A key without it would tell one tenant, by a collision, what another has."""
    for database, its in tables.items():
        keys = server.rows(
            "SELECT i.indrelid::regclass::text, i.indexrelid::regclass::text FROM pg_index AS i"
            " WHERE i.indisunique AND i.indrelid = ANY (%s::text[]::regclass[])"
            " AND NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = i.indrelid"
            "   AND a.attname IN ('tenant_id', 'TenantId') AND a.attnum = ANY (i.indkey))",
            ([f'"{t.schema}"."{t.name}"' for t in its],),
            database=database,
        )
        assert keys == []


def test_the_tenant_is_in_every_reference(server: Server, tables: dict[str, list[Table]]) -> None:
    """A reference without it would tell one tenant, by its success, what another has."""
    for database, its in tables.items():
        references = server.rows(
            "SELECT k.conrelid::regclass::text, k.conname FROM pg_constraint AS k"
            " WHERE k.contype = 'f' AND k.conrelid = ANY (%s::text[]::regclass[])"
            " AND NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = k.conrelid"
            "   AND a.attname IN ('tenant_id', 'TenantId') AND a.attnum = ANY (k.conkey))",
            ([f'"{t.schema}"."{t.name}"' for t in its],),
            database=database,
        )
        assert references == []


@pytest.mark.parametrize("database", DATABASES)
def test_views_see_with_their_readers_eyes(server: Server, database: str) -> None:
    """A view runs with its owner's rights unless it says otherwise. Ours are either invoker's, or
    their owner is bound by forced row-level security (no superuser, no BYPASSRLS)."""
    seen = server.rows(
        "SELECT c.oid::regclass::text FROM pg_class AS c"
        " JOIN pg_namespace AS n ON c.relnamespace = n.oid"
        " JOIN pg_roles AS o ON c.relowner = o.oid"
        " WHERE c.relkind IN ('v', 'm') AND n.nspname !~ '^(pg_|information_schema$)'"
        " AND (o.rolsuper OR o.rolbypassrls OR c.relkind = 'm')"
        " AND NOT coalesce('security_invoker=true' = ANY (c.reloptions)"
        "   OR 'security_invoker=on' = ANY (c.reloptions), false)"
        " AND EXISTS (SELECT FROM pg_depend AS d JOIN pg_rewrite AS r ON d.objid = r.oid"
        "   JOIN pg_attribute AS a ON d.refobjid = a.attrelid"
        "   WHERE r.ev_class = c.oid AND d.refclassid = 'pg_class'::regclass"
        "   AND a.attname IN ('tenant_id', 'TenantId'))",
        database=database,
    )
    # What tells no rows but sums over all tenants, to monitoring: named here, one by one.
    assert {row[0] for row in seen} <= SUMS_OVER_ALL_TENANTS


SUMS_OVER_ALL_TENANTS: set[str] = set()


# -- reading -----------------------------------------------------------------------------------

READS = [
    "SELECT {tenant} FROM {t}",
    "SELECT {tenant} FROM {t} WHERE {tenant} = 'b' OR true",
    "SELECT {tenant} FROM ONLY {t}",
    "SELECT {tenant} FROM {t} TABLESAMPLE SYSTEM (100)",
    "SELECT {tenant} FROM {t} TABLESAMPLE BERNOULLI (100)",
    "WITH x AS MATERIALIZED (SELECT {tenant} FROM {t}) SELECT * FROM x",
    "SELECT y.{tenant} FROM (VALUES (1)) AS v"
    " LEFT JOIN LATERAL (SELECT {tenant} FROM {t}) AS y ON true WHERE y.{tenant} IS NOT NULL",
    "SELECT unnest((SELECT array_agg({tenant}) FROM {t}))",
    "SELECT DISTINCT {tenant} FROM {t} GROUP BY GROUPING SETS (({tenant}))",
    "SELECT max({tenant}) OVER () FROM {t}",
]


@pytest.mark.parametrize(("role", "tenant"), WHO)
def test_only_own_rows_are_read(
    server: Server, tables: dict[str, list[Table]], role: str, tenant: str | None
) -> None:
    holes = []
    for connection, table in targets(server, tables, role, tenant):
        expected = own(role, tenant, table)
        may = allowed(connection, table, "SELECT")
        for template in READS:
            answer = ask(connection, sql_of(template, table))
            seen = ours(row[0] for row in answer.rows)
            if answer.state:
                # A right on columns lets some of these through, and others not.
                wrong = may or answer.state != DENIED
            elif "ONLY" in template or "max" in template:
                wrong = not set(seen) <= set(expected)
            else:
                wrong = seen != expected
            if wrong:
                holes.append((str(table), template, answer.state, answer.text, seen))
    assert holes == []


@pytest.mark.parametrize(("role", "tenant"), WHO)
def test_copy_gives_own_rows_only(
    server: Server, tables: dict[str, list[Table]], role: str, tenant: str | None
) -> None:
    holes = []
    for connection, table in targets(server, tables, role, tenant):
        for template in [
            "COPY {t} ({tenant}) TO STDOUT",
            "COPY (SELECT {tenant} FROM {t}) TO STDOUT",
        ]:
            connection.execute("SAVEPOINT copy")
            try:
                # COPY of a partitioned table itself is refused, whoever asks.
                with connection.cursor().copy(sql_of(template, table)) as copied:
                    seen = ours(bytes(line).decode().strip() for line in copied)
                # Of a partitioned table, where policies hold, COPY t gives the parent's: none.
                if seen != own(role, tenant, table) and not (
                    template.startswith("COPY {t}") and not seen
                ):
                    holes.append((str(table), template, seen))
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.WrongObjectType) as error:
                if allowed_after_error(connection, table) and error.sqlstate == DENIED:
                    holes.append((str(table), template, [str(error)]))
            connection.execute("ROLLBACK TO SAVEPOINT copy")
    assert holes == []


def allowed_after_error(connection: Connection, table: Table) -> bool:
    connection.execute("ROLLBACK TO SAVEPOINT copy")
    return allowed(connection, table, "SELECT")


@pytest.mark.parametrize("role", LOGINS)
def test_nobody_reads_a_partition(
    server: Server, tables: dict[str, list[Table]], role: str
) -> None:
    """Directly, past its parent's policies: refused, or (the owner's, backup's) empty as told."""
    holes = []
    for database in DATABASES:
        with session(server, role, "a", database) as connection:
            partitions = connection.execute(
                "SELECT n.nspname, c.relname FROM pg_class AS c"
                " JOIN pg_namespace AS n ON c.relnamespace = n.oid"
                " WHERE c.relispartition AND c.relkind IN ('r', 'p')"
            ).fetchall()
            for schema, name in partitions:
                t = sql.Identifier(schema, name)
                for template in [
                    "SELECT count(*) FROM {t} HAVING count(*) > 0",
                    "DELETE FROM {t} RETURNING 1",
                    "UPDATE {t} SET tenant_id = tenant_id RETURNING 1",
                    "TRUNCATE {t}",
                    "LOCK TABLE {t} IN ACCESS EXCLUSIVE MODE",
                ]:
                    answer = ask(connection, sql.SQL(template).format(t=t))
                    # The owner may, to its own harm, and still sees no row; backup reads.
                    if role == "elsa_migrator":
                        wrong = bool(answer.rows)
                    elif role == "backup" and template.startswith("SELECT"):
                        wrong = answer.state != ""
                    else:
                        wrong = answer.state != DENIED
                    if wrong:
                        holes.append((name, template, answer))
    assert holes == []


# -- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "tenant"), WRITERS)
def test_only_own_rows_are_changed_and_removed(
    server: Server, tables: dict[str, list[Table]], role: str, tenant: str | None
) -> None:
    holes = []
    for connection, table in targets(server, tables, role, tenant):
        expected = [] if role == "backup" else own(role, tenant)
        for right, template in [
            ("UPDATE", "UPDATE {t} SET {tenant} = {tenant} RETURNING {tenant}"),
            ("UPDATE", "UPDATE {t} SET {first} = {first} WHERE true RETURNING {tenant}"),
            ("DELETE", "DELETE FROM {t} RETURNING {tenant}"),
            ("DELETE", "DELETE FROM {t} WHERE {tenant} = 'b' OR true RETURNING {tenant}"),
            ("UPDATE", "SELECT {tenant} FROM {t} FOR UPDATE"),
            ("UPDATE", "SELECT {tenant} FROM {t} FOR KEY SHARE"),
            (
                "DELETE",
                "MERGE INTO {t} AS m USING (VALUES ('a'), ('b')) AS v (x) ON m.{tenant} = v.x"
                " WHEN MATCHED THEN DELETE RETURNING m.{tenant}",
            ),
        ]:
            answer = ask(connection, sql_of(template, table))
            seen = ours(row[0] for row in answer.rows)
            if answer.state == "23503" and table.name == "tenants" and right == "DELETE":
                continue  # a tenant that has users stays
            if may_change(connection, table, right, template):
                if answer.state or seen != expected:
                    holes.append((str(table), template, answer))
            elif answer.state != DENIED:
                holes.append((str(table), template, answer))
    assert holes == []


@pytest.mark.parametrize(("role", "tenant"), BOUND_WRITERS)
def test_nothing_is_written_for_another(
    server: Server, tables: dict[str, list[Table]], role: str, tenant: str | None
) -> None:
    """By no form of INSERT, and the answer is the same whether the row is there (b-1) or not."""
    holes = []
    for connection, table in targets(server, tables, role, tenant):
        key = sql.SQL(", ").join(map(sql.Identifier, table.key))
        may = allowed(connection, table, "INSERT")
        for target in ["b", "new", "*", "default"]:
            answers: list[tuple[Answer, Answer]] = []
            for form in [
                sql.SQL(""),
                sql.SQL("ON CONFLICT DO NOTHING"),
                sql.SQL("ON CONFLICT ({}) DO NOTHING").format(key),
                sql.SQL("ON CONFLICT ({}) DO UPDATE SET {} = excluded.{}").format(
                    key, table.column, table.column
                ),
                sql.SQL("ON CONFLICT ({}) DO UPDATE SET {} = {}").format(
                    key, table.column, sql.Literal(tenant)
                ),
            ][: None if may and target in ("b", "new") else 1]:
                there, not_there = (
                    ask(connection, sql.Composed([table.insert(table.row(target, n)), form]))
                    for n in (1, 77)
                )
                answers.append((there, not_there))
            merge = (
                "MERGE INTO {t} AS m USING (SELECT 1) AS v ON false"
                " WHEN NOT MATCHED THEN INSERT ({columns}) VALUES ({values})"
            )
            there, not_there = (
                ask(
                    connection,
                    sql.SQL(merge).format(
                        t=table.sql,
                        columns=sql.SQL(", ").join(map(sql.Identifier, row)),
                        values=sql.SQL(", ").join(map(sql.Literal, row.values())),
                    ),
                )
                for row in (table.row(target, 1), table.row(target, 77))
            )
            answers.append((there, not_there))
            for there, not_there in answers:
                if there.state != DENIED or there != not_there:
                    holes.append((str(table), target, there, not_there))
    assert holes == []


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_migrator"])
def test_no_row_moves_to_another_tenant(
    server: Server, tables: dict[str, list[Table]], role: str
) -> None:
    holes = []
    for connection, table in targets(server, tables, role, "a"):
        for target in ["b", "", "*", "new"]:
            for template in [
                "UPDATE {t} SET {tenant} = {to}",
                "INSERT INTO {t} ({columns}) VALUES ({values}) ON CONFLICT ({key}) DO UPDATE"
                " SET {tenant} = {to}",
            ]:
                row = table.row("a")
                answer = ask(
                    connection,
                    sql.SQL(template).format(
                        t=table.sql,
                        tenant=table.column,
                        to=sql.Literal(target),
                        columns=sql.SQL(", ").join(map(sql.Identifier, row)),
                        values=sql.SQL(", ").join(map(sql.Literal, row.values())),
                        key=sql.SQL(", ").join(map(sql.Identifier, table.key)),
                    ),
                )
                # 23000: an instance's identity is refused before the policy is asked.
                identity = table.name == "workflow_instances" and answer.state == "23000"
                if answer.state != DENIED and not identity:
                    holes.append((str(table), target, template, answer))
    assert holes == []


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_migrator"])
def test_keys_of_others_do_not_collide(
    server: Server, tables: dict[str, list[Table]], role: str
) -> None:
    """Every value of b's row but the tenant, written as a: as if b's row were not there."""
    holes = []
    for connection, table in targets(server, tables, role, "a"):
        if not allowed(connection, table, "INSERT") or table.name in ("tenants",):
            continue
        rows = []
        for number in (1, 77):
            row = table.row("b", number) | {table.tenant: "a"}
            # What row of a's it belongs to is not what is asked here.
            row |= {c: "a-1" for c in row if c == "workflow_instance_id"}
            if "CategoryId" in row:
                row["CategoryId"] = table.row("a")["CategoryId"]
            rows.append(ask(connection, table.insert(row)))
        there, not_there = rows
        if there != not_there or there.state:
            holes.append((str(table), there, not_there))
    assert holes == []


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker"])
@pytest.mark.parametrize("child", ["activity_execution_records", "bookmarks"])
def test_references_do_not_tell_whether_anothers_row_exists(
    server: Server, tables: dict[str, list[Table]], role: str, child: str
) -> None:
    [table] = [t for t in tables["elsa_workflows"] if t.name == child]
    answers = []
    with session(server, role, "a") as connection:
        for instance in ("b-1", "b-77"):
            row = table.row("a", 9) | {"workflow_instance_id": instance}
            answers.append(ask(connection, table.insert(row)))
    assert [a.state for a in answers] == ["23503", "23503"]
    # The id that was asked for stands in the message, and nothing else may differ.
    assert answers[0].text.replace("b-1", "?") == answers[1].text.replace("b-77", "?")


@pytest.mark.parametrize("role", BOUND)
def test_rows_cannot_be_loaded_past_the_policies(
    server: Server, tables: dict[str, list[Table]], role: str
) -> None:
    """COPY FROM does not know policies, so PostgreSQL refuses it where they hold."""
    holes = []
    for connection, table in targets(server, tables, role, "a"):
        connection.execute("SAVEPOINT load")
        try:
            with connection.cursor().copy(sql_of("COPY {t} FROM STDIN", table)) as copy:
                copy.write("")
            holes.append((str(table), "COPY FROM worked"))
        except psycopg.Error as error:
            if error.sqlstate not in ("0A000", DENIED):
                holes.append((str(table), str(error)))
        connection.execute("ROLLBACK TO SAVEPOINT load")
    assert holes == []


@pytest.mark.parametrize("role", [role for role in LOGINS if role != "elsa_migrator"])
@pytest.mark.parametrize(
    "template",
    [
        "TRUNCATE {t}",
        "ALTER TABLE {t} DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE {t} NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE {t} OWNER TO CURRENT_USER",
        "ALTER TABLE {t} DISABLE TRIGGER ALL",
        "DROP POLICY tenant_isolation ON {t}",
        "CREATE POLICY mine ON {t} USING (true)",
        "CREATE RULE mine AS ON INSERT TO {t} DO ALSO NOTIFY mine",
        "CREATE INDEX mine ON {t} ({tenant})",
        "CREATE STATISTICS mine ON {tenant}, {first} FROM {t}",
        "CREATE TRIGGER mine AFTER INSERT ON {t} EXECUTE FUNCTION tsvector_update_trigger()",
        "COMMENT ON TABLE {t} IS 'mine'",
        "GRANT SELECT ON {t} TO PUBLIC",
    ],
)
def test_only_the_owner_changes_a_table(
    server: Server, tables: dict[str, list[Table]], role: str, template: str
) -> None:
    refused = {DENIED, "0LP01", "42P17"}  # 0LP01: no right to grant
    holes = [
        (str(table), answer)
        for connection, table in targets(server, tables, role, "a")
        if (answer := ask(connection, sql_of(template, table))).state not in refused
        # A grant that grants nothing is a warning only.
        and not (
            template.startswith("GRANT") and not answer.state and not granted(connection, table)
        )
    ]
    assert holes == []


def granted(connection: Connection, table: Table) -> bool:
    row = connection.execute(
        "SELECT has_table_privilege('public', %s, 'SELECT')", (f'"{table.schema}"."{table.name}"',)
    ).fetchone()
    return bool(row and row[0])


# -- what a session may try on itself ----------------------------------------------------------


@pytest.mark.parametrize("role", [role for role in LOGINS if role not in ("backup", "elsa_jobs")])
@pytest.mark.parametrize(
    "statement",
    [
        "SET ROLE postgres",
        "SET ROLE elsa_maintenance",
        "SET ROLE backup",
        "SET ROLE elsa_jobs",
        "SET ROLE elsa_auditor",
        "SET SESSION AUTHORIZATION postgres",
        "SET SESSION AUTHORIZATION elsa_jobs",
        "SET session_replication_role = replica",
        "SET allow_system_table_mods = on",
        "ALTER ROLE CURRENT_USER BYPASSRLS",
        "ALTER ROLE CURRENT_USER SUPERUSER",
        f"ALTER ROLE CURRENT_USER SET {SETTING} = 'b'",
        f"ALTER DATABASE elsa_workflows SET {SETTING} = 'b'",
        "GRANT elsa_host TO CURRENT_USER",
        "CREATE ROLE mine BYPASSRLS",
        "CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION elsapg.guard_partitions()",
        "ALTER EVENT TRIGGER elsapg_guard_partitions DISABLE",
        "CREATE FUNCTION public.mine(text) RETURNS boolean LEAKPROOF RETURN true",
        "ALTER FUNCTION pg_catalog.textlike(text, text) LEAKPROOF",
        "CREATE EXTENSION file_fdw",
        "CREATE PUBLICATION mine FOR ALL TABLES",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT * FROM pg_authid",
        "SELECT * FROM pg_statistic",
        "SELECT * FROM pg_largeobject",
        "SELECT pg_create_logical_replication_slot('mine', 'test_decoding')",
    ],
)
def test_a_session_cannot_talk_itself_out_of_it(server: Server, role: str, statement: str) -> None:
    with session(server, role, "a") as connection:
        answer = ask(connection, statement)
    assert answer.state == DENIED, answer


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly"])
def test_without_row_security_a_query_is_refused(server: Server, role: str) -> None:
    with session(server, role, "a") as connection:
        connection.execute("SET LOCAL row_security = off")
        answer = ask(connection, "SELECT * FROM elsa_workflows.bookmarks")
    assert (answer.state, "row-level security" in answer.text) == (DENIED, True)


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly"])
@pytest.mark.parametrize(
    "statement", ["SET ROLE elsa_host", "SET ROLE elsa_admin", "SET ROLE elsa_owner"]
)
def test_a_tenants_role_does_not_become_the_hosts(
    server: Server, role: str, statement: str
) -> None:
    with session(server, role, "a") as connection:
        assert ask(connection, statement).state == DENIED


LEAKS = [
    # A function that tells what it is given, as cheap as can be, so that it is tried first.
    (
        "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.000001 AS"
        " $$ BEGIN RAISE WARNING 'saw %', $1; RETURN true; END $$",
        "SELECT 1 FROM {t} WHERE pg_temp.leak({tenant}::text)",
    ),
    # The same as an operator.
    (
        "CREATE FUNCTION pg_temp.leak(text, text) RETURNS boolean LANGUAGE plpgsql COST 0.000001"
        " AS $$ BEGIN RAISE WARNING 'saw %', $1; RETURN true; END $$; CREATE OPERATOR"
        " pg_temp.<<<>>> (FUNCTION = pg_temp.leak, LEFTARG = text, RIGHTARG = text)",
        "SELECT 1 FROM {t} WHERE {tenant}::text OPERATOR(pg_temp.<<<>>>) 'x'",
    ),
    # A type's input function that tells what it cannot read.
    (None, "SELECT 1 FROM {t} WHERE ('saw ' || {tenant})::integer = 1"),
    (None, "SELECT 1 FROM {t} WHERE 1 / (CASE {tenant} WHEN 'b' THEN 0 ELSE 1 END) = 1"),
    # In an expression of an aggregate's filter, of a sort, of a join.
    (None, "SELECT count(*) FILTER (WHERE ('saw ' || {tenant})::integer = 1) FROM {t}"),
    (None, "SELECT 1 FROM {t} ORDER BY ('saw ' || {tenant})::integer"),
    (
        None,
        "SELECT 1 FROM {t} AS x JOIN (VALUES (1)) AS v (n)"
        " ON ('saw ' || x.{tenant})::integer = v.n",
    ),
    # In a policy-guarded write.
    (None, "DELETE FROM {t} WHERE ('saw ' || {tenant})::integer = 1"),
    (None, "UPDATE {t} SET {tenant} = {tenant} WHERE ('saw ' || {tenant})::integer = 1"),
]


@pytest.mark.parametrize("role", BOUND)
@pytest.mark.parametrize("tenant", [None, "a"])
def test_functions_of_ones_own_are_not_shown_others_rows(
    server: Server, tables: dict[str, list[Table]], role: str, tenant: str | None
) -> None:
    """The policy comes first: whatever may tell what it sees is tried on permitted rows only."""
    told: list[str] = []
    for connection, table in targets(server, tables, role, tenant):
        connection.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
        for make, template in LEAKS:
            connection.execute("SAVEPOINT made")
            if make is None or not ask_kept(connection, make).state:
                answer = ask(connection, sql_of(template, table))
                told.append(answer.text)
                if answer.state == "22012":
                    told.append(f"saw b: {table} {template}")
            connection.execute("ROLLBACK TO SAVEPOINT made")
    assert [text for text in told if "saw b" in text] == []
    if tenant == "a" and role == "elsa_app":  # it is tried, on its own rows
        assert any("saw a" in text for text in told)


def ask_kept(connection: Connection, statement: str) -> Answer:
    """As `ask`, but what was done stays."""
    connection.execute("SAVEPOINT kept")
    try:
        connection.execute(statement.encode())
        return Answer("", "", (), 0)
    except psycopg.Error as error:
        connection.execute("ROLLBACK TO SAVEPOINT kept")
        return Answer(error.sqlstate or "?", str(error), (), -1)


@pytest.mark.parametrize("role", [*BOUND, "monitoring", "elsa_jobs"])
def test_statistics_tell_no_values(
    server: Server, tables: dict[str, list[Table]], role: str
) -> None:
    """pg_stats holds the most common values of a column, of all tenants together."""
    for database, its in tables.items():
        with session(server, role, "a", database) as connection:
            for view in ("pg_stats", "pg_stats_ext", "pg_stats_ext_exprs"):
                answer = ask(
                    connection,
                    f"SELECT tablename FROM {view} WHERE schemaname IN"
                    " ('elsa_workflows', 'elsa_runtime', 'ElsaExtensions')"
                    " AND tablename = ANY (%s)",
                    ([t.name for t in its],),
                )
                assert (answer.state, answer.rows) == ("", ()), view


# -- plans, cursors and functions that outlive a context ---------------------------------------


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan", "auto"])
def test_a_plan_made_for_one_tenant_serves_another(
    server: Server, tables: dict[str, list[Table]], mode: str
) -> None:
    """A prepared statement is planned once; whose rows it gives is decided when it runs."""
    with server.connect("elsa_workflows", "elsa_app") as connection:
        connection.execute(f"SET plan_cache_mode = {mode}".encode())
        connection.commit()
        for table in tables["elsa_workflows"]:
            if not allowed(connection, table, "SELECT"):
                continue
            connection.execute(sql_of("PREPARE own AS SELECT {tenant} FROM {t}", table))
            connection.commit()
            for _, tenant in itertools.product(range(4), ("a", "b", "", "c")):
                connection.execute("SELECT set_config(%s, %s, true)", (SETTING, tenant))
                rows = connection.execute("EXECUTE own").fetchall()
                connection.commit()
                assert rows == [(tenant,)] * (tenant in TENANTS), (str(table), tenant)
            connection.execute("DEALLOCATE own")
            connection.commit()


def test_a_context_ends_with_its_transaction(
    server: Server, tables: dict[str, list[Table]]
) -> None:
    count = "SELECT count(*) FROM elsa_workflows.bookmarks"
    with server.connect("elsa_workflows", "elsa_app") as connection:
        connection.execute("SELECT set_config(%s, 'a', true)", (SETTING,))
        assert connection.execute(count).fetchone() == (1,)
        connection.commit()
        # Empty, not unset; and both see nothing.
        left = connection.execute("SELECT current_setting(%s, true)", (SETTING,)).fetchone()
        assert left == ("",)
        assert connection.execute(count).fetchone() == (0,)


def test_a_context_ends_with_its_savepoint(server: Server, tables: dict[str, list[Table]]) -> None:
    count = "SELECT count(*) FROM elsa_workflows.bookmarks"
    with session(server, "elsa_app") as connection:
        connection.execute("SAVEPOINT s")
        connection.execute("SELECT set_config(%s, 'a', true)", (SETTING,))
        assert connection.execute(count).fetchone() == (1,)
        connection.execute("ROLLBACK TO SAVEPOINT s")
        assert connection.execute(count).fetchone() == (0,)


@pytest.mark.parametrize("reset", ["RESET ALL", "DISCARD ALL", f"RESET {SETTING}"])
def test_resetting_leaves_no_context(
    server: Server, tables: dict[str, list[Table]], reset: str
) -> None:
    with server.connect("elsa_workflows", "elsa_app", autocommit=True) as connection:
        connection.execute(f"SET {SETTING} = 'b'".encode())
        connection.execute(reset.encode())
        count = connection.execute("SELECT count(*) FROM elsa_workflows.bookmarks").fetchone()
    assert count == (0,)


def test_a_snapshot_that_is_shared_shares_no_rows(
    server: Server, tables: dict[str, list[Table]]
) -> None:
    with (
        session(server, "elsa_app", "b") as other,
        server.connect("elsa_workflows", "elsa_app") as connection,
    ):
        row = other.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(row[0])))
        connection.execute("SELECT set_config(%s, 'a', true)", (SETTING,))
        rows = connection.execute("SELECT tenant_id FROM elsa_workflows.bookmarks").fetchall()
    assert rows == [("a",)]


@pytest.mark.parametrize(
    "hostile", ["b' OR '1'='1", "b'; SET ROLE postgres; --", "a\\", "%", "_", "A"]
)
def test_a_context_is_a_value_and_never_sql(
    server: Server, tables: dict[str, list[Table]], hostile: str
) -> None:
    for connection, table in targets(server, tables, "elsa_app", hostile):
        if allowed(connection, table, "SELECT"):
            assert ask(connection, sql_of("SELECT * FROM {t}", table)).rows == ()


# -- the host ----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", HOSTS)
def test_the_host_writes_for_every_tenant_and_bypasses_nothing(
    server: Server, tables: dict[str, list[Table]], role: str
) -> None:
    with session(server, role) as connection:
        rows = connection.execute(
            "UPDATE elsa_workflows.bookmarks SET correlation_id = 'x' RETURNING tenant_id"
        ).fetchall()
        assert sorted(rows) == [("a",), ("b",)]
        [instance] = [t for t in tables["elsa_workflows"] if t.name == "workflow_instances"]
        connection.execute(instance.insert(instance.row("anybody")))
        off = ask(connection, "ALTER TABLE elsa_workflows.bookmarks DISABLE ROW LEVEL SECURITY")
        assert off.state == DENIED


def test_a_row_without_a_tenant_is_its_contexts(server: Server) -> None:
    """A tenant need not name itself; without a context a row would be "default", and is refused."""
    insert = (
        "INSERT INTO elsa_workflows.triggers (id, workflow_definition_id,"
        " workflow_definition_version_id, name, activity_id, hash)"
        " VALUES ('t', 'd', 'v', 'n', 'a', 'h') RETURNING tenant_id"
    )
    with session(server, "elsa_app", "a") as connection:
        assert ask(connection, insert).rows == (("a",),)
    with session(server, "elsa_app") as connection:
        assert ask(connection, insert).state == DENIED
    with session(server, "elsa_host") as connection:
        assert ask(connection, insert).rows == (("default",),)


# -- partitions, however they come to be -------------------------------------------------------


@pytest.mark.parametrize("way", ["partition of", "attach", "granted later", "in another schema"])
def test_every_partition_is_closed_however_it_comes_to_be(server: Server, way: str) -> None:
    parent = "elsa_workflows.workflow_definitions"
    with session(server, "elsa_migrator") as connection:
        name = "public_p.p" if way == "in another schema" else "elsa_workflows.p"
        if way == "in another schema":
            connection.execute("CREATE SCHEMA public_p")
        if way == "attach":
            connection.execute(f"CREATE TABLE {name} (LIKE {parent} INCLUDING ALL)".encode())
            connection.execute(f"GRANT SELECT ON {name} TO elsa_app".encode())
            connection.execute(
                f"ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES IN ('p')".encode()
            )
        else:
            connection.execute(
                f"CREATE TABLE {name} PARTITION OF {parent} FOR VALUES IN ('p')".encode()
            )
        if way in ("granted later", "in another schema"):
            connection.execute(f"GRANT SELECT ON {name} TO elsa_app, PUBLIC".encode())
        row = connection.execute(
            "SELECT c.relrowsecurity, c.relforcerowsecurity,"
            " (SELECT count(*) FROM aclexplode(c.relacl) AS a WHERE a.grantee <> c.relowner)"
            " FROM pg_class AS c WHERE c.oid = %s::regclass",
            (name,),
        ).fetchone()
        assert row == (True, True, 0)
        # Through the parent it works as before.
        connection.execute("SELECT set_config(%s, 'p', true)", (SETTING,))
        connection.execute(
            f"INSERT INTO {parent} (id, definition_id, version, name, materialized_workflow)"
            " VALUES ('p', 'p', 1, 'p', '{}')".encode()
        )
        assert connection.execute(f"SELECT count(*) FROM {parent}".encode()).fetchone() == (1,)


# -- what all tenants share --------------------------------------------------------------------


@pytest.mark.parametrize("database", DATABASES)
@pytest.mark.parametrize("role", LOGINS)
def test_nobody_makes_large_objects(server: Server, role: str, database: str) -> None:
    """They know no tenants, and a single one fails every pg_dump: "backup" may not read it."""
    with session(server, role, None, database) as connection:
        for make in ["lo_create(0)", "lo_creat(-1)", "lo_from_bytea(0, 'x')"]:
            assert ask(connection, f"SELECT {make}").state == DENIED, make


@pytest.mark.parametrize("role", ["elsa_app", "elsa_host", "elsa_admin"])
def test_a_temporary_table_does_not_stand_in_for_a_real_one(server: Server, role: str) -> None:
    """Through a pool, the next client of the server connection would write into it."""
    with session(server, role, "a") as connection:
        connection.execute("CREATE TEMPORARY TABLE bookmarks (tenant_id text)")
        row = connection.execute(
            "SELECT to_regclass('bookmarks') = 'elsa_workflows.bookmarks'::regclass"
        )
        assert row.fetchone() == (True,)


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly", "elsa_jobs"])
@pytest.mark.parametrize("database", DATABASES)
def test_statements_of_others_are_not_told(server: Server, role: str, database: str) -> None:
    """pg_stat_statements holds the statements of every tenant, for all have one role."""
    with session(server, role, "a", database) as connection:
        assert ask(connection, "SELECT query FROM public.pg_stat_statements").state == DENIED


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly"])
def test_locks_of_others_are_not_told(server: Server, role: str) -> None:
    """A lock's row has all that releasing it needs, and its name may name another's instance."""
    with session(server, role, "a", "elsa_runtime") as connection:
        assert ask(connection, "SELECT * FROM elsa_runtime.distributed_locks").state == DENIED
