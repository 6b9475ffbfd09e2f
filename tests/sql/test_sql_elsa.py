"""Elsa moves in: its own tables, row-level security on them, and the team's tables beside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from elsa_tables import UPSERT_BOOKMARK, bookmark, drop, migrate
from psycopg import errors, sql
from sql_server import Server

pytestmark = pytest.mark.docker

DATABASE = "elsa_workflows"
EXTENSIONS = (
    "CustomActivityDefinitions",
    "WorkflowCategories",
    "WorkflowDefinitionCategories",
    "WorkflowTags",
)
TENANT_ROLES = ["elsa_app", "elsa_worker", "elsa_readonly"]
WRITERS = ["elsa_app", "elsa_worker"]


@contextmanager
def session(
    server: Server, role: str, tenant: str | None = None
) -> Iterator[psycopg.Connection[Any]]:
    """A transaction of `role` that is rolled back; a superuser's role is taken by SET ROLE."""
    login = role not in ("backup", "elsa_jobs")
    with server.connect(DATABASE, role if login else "postgres") as connection:
        if not login:
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        if role == "elsa_readonly":
            # What it may do is to follow from its rights, not from a default it can change.
            connection.execute("SET default_transaction_read_only = off")
            connection.commit()
        if tenant is not None:
            connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", (tenant,))
        yield connection
        connection.rollback()


def values(connection: psycopg.Connection[Any], query: str, *parameters: object) -> list[Any]:
    rows = connection.execute(query.encode(), parameters or None).fetchall()
    return [row[0] for row in rows]


def bookmarks(connection: psycopg.Connection[Any]) -> set[str]:
    return set(values(connection, 'SELECT "Id" FROM "Elsa"."Bookmarks"'))


# -- schema "Elsa" -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsa(server: Server) -> Iterator[Server]:
    """Elsa 3.6's tables, made by the migrator."""
    with server.connect(DATABASE, "elsa_migrator", autocommit=True) as connection:
        migrate(connection, "3.6")
    yield server
    with server.connect(DATABASE, "elsa_migrator", autocommit=True) as connection:
        drop(connection)


@pytest.mark.parametrize("schema", ["Elsa", "quartz"])
def test_the_schema_is_there_and_the_owners(server: Server, schema: str) -> None:
    owner = server.value(
        "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = %s",
        (schema,),
        database=DATABASE,
    )
    assert owner == "elsa_owner"


def test_what_elsas_migrations_make_is_the_owners(elsa: Server) -> None:
    owners = elsa.rows(
        "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'Elsa'", database=DATABASE
    )
    assert owners == [("elsa_owner",)]
    assert (
        elsa.value("SELECT count(*) FROM pg_tables WHERE schemaname = 'Elsa'", database=DATABASE)
        == 18
    )


ALL = {"SELECT", "INSERT", "UPDATE", "DELETE"}


@pytest.mark.parametrize(
    ("role", "rights"),
    [
        ("elsa_app", ALL),
        ("elsa_worker", ALL),
        ("elsa_host", ALL),
        ("elsa_admin", ALL),
        ("elsa_readonly", {"SELECT"}),
        ("backup", {"SELECT"}),
        ("monitoring", set()),
        ("elsa_jobs", set()),
        ("pgbouncer_auth", set()),
    ],
)
def test_each_role_has_its_rights_on_every_table_and_no_others(
    elsa: Server, role: str, rights: set[str]
) -> None:
    found = elsa.rows(
        "SELECT array_agg(p ORDER BY p) FILTER (WHERE has_table_privilege(%s, t.oid, p))"
        " FROM pg_class AS t, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE',"
        " 'REFERENCES', 'TRIGGER', 'MAINTAIN']) AS p"
        " WHERE t.relnamespace = '\"Elsa\"'::regnamespace AND t.relkind = 'r' GROUP BY t.oid",
        (role,),
        database=DATABASE,
    )
    assert {frozenset(row[0] or ()) for row in found} == {frozenset(rights)}
    usage = elsa.value(
        "SELECT has_schema_privilege(%s, 'Elsa', 'USAGE')", (role,), database=DATABASE
    )
    assert usage == bool(rights)


@pytest.mark.parametrize("role", ["monitoring", "elsa_jobs"])
def test_who_has_no_rights_is_refused(elsa: Server, role: str) -> None:
    with session(elsa, role) as connection, pytest.raises(errors.InsufficientPrivilege):
        bookmarks(connection)


@pytest.mark.parametrize("role", [*WRITERS, "elsa_host", "elsa_admin"])
def test_elsas_upsert_inserts_and_updates(elsa: Server, role: str) -> None:
    with session(elsa, role) as connection:
        for hash_ in ("one", "two"):
            connection.execute(UPSERT_BOOKMARK, bookmark("b", "", hash_))
        assert values(connection, 'SELECT "Hash" FROM "Elsa"."Bookmarks"') == ["two"]


@pytest.mark.parametrize("role", ["elsa_readonly", "backup"])
def test_readers_read_and_do_not_write(elsa: Server, role: str) -> None:
    with session(elsa, role) as connection:
        assert bookmarks(connection) == set()
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(UPSERT_BOOKMARK, bookmark("b", ""))


@pytest.mark.parametrize("role", [*TENANT_ROLES, "elsa_host", "elsa_admin"])
@pytest.mark.parametrize(
    "statement",
    [
        'CREATE TABLE "Elsa".mine (id integer)',
        'ALTER TABLE "Elsa"."Bookmarks" ADD COLUMN mine integer',
        'DROP TABLE "Elsa"."Bookmarks"',
        'TRUNCATE "Elsa"."Bookmarks"',
        "CREATE TABLE quartz.mine (id integer)",
    ],
)
def test_only_the_migrator_changes_the_schema(elsa: Server, role: str, statement: str) -> None:
    with session(elsa, role) as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute(statement.encode())


def test_quartz_can_move_in(server: Server) -> None:
    with session(server, "elsa_migrator") as connection:
        connection.execute("CREATE TABLE quartz.qrtz_locks (lock_name text PRIMARY KEY)")
        for role, wanted in (("elsa_app", True), ("elsa_worker", True), ("elsa_readonly", False)):
            found = values(
                connection,
                "SELECT has_table_privilege(%s, 'quartz.qrtz_locks', 'INSERT')",
                role,
            )
            assert found == [wanted], role


def test_the_bootstrap_gives_rights_on_what_came_otherwise(elsa: Server) -> None:
    """A restored dump may bring tables without the rights."""
    with elsa.connect(DATABASE, autocommit=True) as connection:
        connection.execute(
            'REVOKE ALL ON ALL TABLES IN SCHEMA "Elsa"'
            " FROM elsa_user, elsa_worker, elsa_readonly, backup"
        )
    elsa.bootstrap()
    with session(elsa, "elsa_worker") as connection:
        connection.execute(UPSERT_BOOKMARK, bookmark("b", ""))
    with session(elsa, "elsa_readonly") as connection:
        assert bookmarks(connection) == set()


# -- row-level security on Elsa's tables ---------------------------------------------------

ROWS = {"shared": "*", "default": "", "legacy": None, "a1": "a", "b1": "b"}
SEEN = [
    (None, {"shared"}),
    ("", {"shared"}),
    ("*", {"shared"}),
    ("default", {"shared", "default", "legacy"}),
    ("a", {"shared", "a1"}),
    ("b", {"shared", "b1"}),
    ("nobody", {"shared"}),
]


def enable(server: Server) -> set[str]:
    with server.connect(DATABASE, "elsa_migrator") as connection:
        found = values(connection, "SELECT elsapg.enable_elsa_row_security()::text")
    return {name.removeprefix('"Elsa".').strip('"') for name in found}


def disable(server: Server) -> set[str]:
    with server.connect(DATABASE, "elsa_migrator") as connection:
        return set(values(connection, "SELECT elsapg.disable_elsa_row_security()::text"))


@pytest.fixture
def secured(elsa: Server) -> Iterator[Server]:
    """Rows of five kinds of tenant, under row-level security."""
    with elsa.connect(DATABASE) as connection:
        for id_, tenant in ROWS.items():
            connection.execute(UPSERT_BOOKMARK, bookmark(id_, tenant))
    enable(elsa)
    yield elsa
    disable(elsa)
    with elsa.connect(DATABASE) as connection:
        connection.execute('DELETE FROM "Elsa"."Bookmarks"')


def test_off_unless_asked_for(elsa: Server) -> None:
    state = elsa.rows(
        "SELECT DISTINCT is_enabled, is_complete FROM elsapg.elsa_row_security", database=DATABASE
    )
    assert state == [(False, False)]


def test_it_covers_every_table_with_a_tenant_and_a_second_time_none(elsa: Server) -> None:
    try:
        touched = enable(elsa)
        assert len(touched) == 17
        assert "__EFMigrationsHistory" not in touched
        assert enable(elsa) == set()
        state = elsa.rows(
            "SELECT DISTINCT is_enabled, is_complete FROM elsapg.elsa_row_security",
            database=DATABASE,
        )
        assert state == [(True, True)]
    finally:
        assert len(disable(elsa)) == 17
    assert disable(elsa) == set()
    left = elsa.value(
        "SELECT count(*) FROM pg_policies WHERE schemaname = 'Elsa'", database=DATABASE
    )
    assert left == 0


@pytest.mark.parametrize("role", TENANT_ROLES)
@pytest.mark.parametrize(("tenant", "seen"), SEEN)
def test_a_tenant_reads_its_rows_and_the_shared_ones(
    secured: Server, role: str, tenant: str | None, seen: set[str]
) -> None:
    with session(secured, role, tenant) as connection:
        assert bookmarks(connection) == seen


def test_after_commit_only_shared_rows_are_seen(secured: Server) -> None:
    with session(secured, "elsa_app", "a") as connection:
        assert bookmarks(connection) == {"shared", "a1"}
        connection.commit()
        assert bookmarks(connection) == {"shared"}


@pytest.mark.parametrize("role", WRITERS)
@pytest.mark.parametrize(
    ("tenant", "own"), [("a", ["a"]), ("default", ["", None]), (None, []), ("", []), ("*", [])]
)
def test_a_tenant_inserts_its_own_rows_only(
    secured: Server, role: str, tenant: str | None, own: list[str | None]
) -> None:
    for target in ("a", "b", "", None, "*", "default"):
        with session(secured, role, tenant) as connection:
            if target in own:
                connection.execute(UPSERT_BOOKMARK, bookmark("new", target))
                continue
            with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
                connection.execute(UPSERT_BOOKMARK, bookmark("new", target))


@pytest.mark.parametrize("role", WRITERS)
@pytest.mark.parametrize(
    ("tenant", "own"),
    [("a", {"a1"}), ("default", {"default", "legacy"}), (None, set()), ("", set()), ("*", set())],
)
def test_a_tenant_changes_and_deletes_its_own_rows_only(
    secured: Server, role: str, tenant: str | None, own: set[str]
) -> None:
    for statement in (
        'UPDATE "Elsa"."Bookmarks" SET "Hash" = %s',
        'DELETE FROM "Elsa"."Bookmarks"',
    ):
        with session(secured, role, tenant) as connection:
            parameters = ["x"] if "%s" in statement else []
            changed = values(connection, f'{statement} RETURNING "Id"', *parameters)
            assert set(changed) == own, statement


@pytest.mark.parametrize("role", WRITERS)
@pytest.mark.parametrize("target", ["b", "*", "", None])
def test_no_row_can_be_moved_out_of_its_tenant(
    secured: Server, role: str, target: str | None
) -> None:
    with (
        session(secured, role, "a") as connection,
        pytest.raises(errors.InsufficientPrivilege, match="row-level security"),
    ):
        connection.execute('UPDATE "Elsa"."Bookmarks" SET "TenantId" = %s', (target,))


@pytest.mark.parametrize("role", WRITERS)
@pytest.mark.parametrize("victim", ["b1", "shared", "default", "legacy"])
def test_elsas_upsert_cannot_take_over_anothers_row(
    secured: Server, role: str, victim: str
) -> None:
    with (
        session(secured, role, "a") as connection,
        pytest.raises(errors.InsufficientPrivilege, match="row-level security"),
    ):
        connection.execute(UPSERT_BOOKMARK, bookmark(victim, "a"))


@pytest.mark.parametrize(
    "statement",
    [
        "SET row_security = off",
        "SET ROLE elsa_host",
        "SET ROLE elsa_owner",
        "SET SESSION AUTHORIZATION elsa_host",
        'ALTER TABLE "Elsa"."Bookmarks" DISABLE ROW LEVEL SECURITY',
        'DROP POLICY elsapg_read ON "Elsa"."Bookmarks"',
        'CREATE POLICY mine ON "Elsa"."Bookmarks" USING (true)',
        "SELECT elsapg.disable_elsa_row_security()",
        "SELECT elsapg.enable_elsa_row_security()",
        'COPY "Elsa"."Bookmarks" FROM STDIN',
        'ALTER TABLE "Elsa"."Bookmarks" OWNER TO elsa_app',
    ],
)
@pytest.mark.parametrize("role", TENANT_ROLES)
def test_nobody_can_talk_himself_out_of_it(secured: Server, role: str, statement: str) -> None:
    with (
        session(secured, role, "a") as connection,
        pytest.raises((errors.InsufficientPrivilege, errors.FeatureNotSupported)),
    ):
        connection.execute(statement.encode())
        bookmarks(connection)


@pytest.mark.parametrize("role", TENANT_ROLES)
def test_copy_shows_a_tenants_rows_only(secured: Server, role: str) -> None:
    with session(secured, role, "a") as connection:
        query = 'COPY (SELECT "Id" FROM "Elsa"."Bookmarks" ORDER BY 1) TO STDOUT'
        with connection.cursor().copy(query) as copy:
            assert b"".join(copy) == b"a1\nshared\n"


def test_a_function_of_the_callers_sees_no_rows_before_the_policy(secured: Server) -> None:
    """A function that is not leakproof must not run on rows that the policy hides."""
    with session(secured, "elsa_app", "a") as connection:
        connection.execute(
            "CREATE FUNCTION pg_temp.spy(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001"
            " AS $$ BEGIN RAISE NOTICE 'spied %', $1; RETURN true; END $$"
        )
        notices: list[str] = []
        connection.add_notice_handler(lambda n: notices.append(n.message_primary or ""))
        connection.execute('SELECT "Id" FROM "Elsa"."Bookmarks" WHERE pg_temp.spy("Id")')
        assert sorted(notices) == ["spied a1", "spied shared"]


@pytest.mark.parametrize("role", ["elsa_host", "elsa_admin"])
@pytest.mark.parametrize("tenant", [None, "a"])
def test_background_work_reaches_every_tenant(
    secured: Server, role: str, tenant: str | None
) -> None:
    with session(secured, role, tenant) as connection:
        assert bookmarks(connection) == set(ROWS)
        assert connection.execute('UPDATE "Elsa"."Bookmarks" SET "Hash" = \'x\'').rowcount == 5
        connection.execute(UPSERT_BOOKMARK, bookmark("shared", "*"))
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute('ALTER TABLE "Elsa"."Bookmarks" DISABLE ROW LEVEL SECURITY')


@pytest.mark.parametrize("role", ["elsa_migrator", "backup"])
def test_migrations_and_dumps_see_every_row(secured: Server, role: str) -> None:
    with session(secured, role) as connection:
        assert bookmarks(connection) == set(ROWS)


@pytest.mark.parametrize("role", ["elsa_app", "elsa_host", "elsa_admin", "monitoring"])
def test_only_the_owner_switches_it(secured: Server, role: str) -> None:
    for function in ("enable_elsa_row_security", "disable_elsa_row_security"):
        with session(secured, role) as connection, pytest.raises(errors.InsufficientPrivilege):
            connection.execute(f"SELECT elsapg.{function}()".encode())


@pytest.mark.parametrize("role", ["elsa_admin", "monitoring", "elsa_migrator"])
def test_its_state_can_be_watched(secured: Server, role: str) -> None:
    with session(secured, role) as connection:
        query = "SELECT count(*) FROM elsapg.elsa_row_security WHERE is_complete"
        assert values(connection, query) == [17]


def test_a_login_of_its_own_gives_unchanged_elsa_a_context(secured: Server) -> None:
    """Elsa sets no context; a role's setting does, and a transaction's overrides it."""
    with secured.connect(DATABASE, autocommit=True) as connection:
        connection.execute("CREATE ROLE elsa_app_a LOGIN PASSWORD 'a' IN ROLE elsa_user")
        connection.execute("ALTER ROLE elsa_app_a SET app.current_tenant_id = 'a'")
    try:
        with secured.connect(DATABASE, "elsa_app_a", password="a") as connection:
            assert bookmarks(connection) == {"shared", "a1"}
            connection.execute("SELECT set_config('app.current_tenant_id', 'b', true)")
            assert bookmarks(connection) == {"shared", "b1"}
            connection.commit()
            assert bookmarks(connection) == {"shared", "a1"}
    finally:
        with secured.connect(DATABASE, autocommit=True) as connection:
            connection.execute("DROP ROLE elsa_app_a")


def test_a_tenant_called_default_is_refused_not_merged(elsa: Server) -> None:
    with elsa.connect(DATABASE) as connection:
        connection.execute(UPSERT_BOOKMARK, bookmark("d", "default"))
    try:
        with pytest.raises(errors.ReservedName, match='"Bookmarks" has rows of a tenant'):
            enable(elsa)
        enabled = elsa.value(
            "SELECT count(*) FROM elsapg.elsa_row_security WHERE is_enabled", database=DATABASE
        )
        assert enabled == 0
    finally:
        with elsa.connect(DATABASE) as connection:
            connection.execute('DELETE FROM "Elsa"."Bookmarks"')


def test_a_busy_table_is_given_up_and_nothing_is_changed(elsa: Server) -> None:
    with elsa.connect(DATABASE) as reader:
        reader.execute('SELECT * FROM "Elsa"."Bookmarks"')
        with pytest.raises(errors.LockNotAvailable):
            enable(elsa)
    enabled = elsa.value(
        "SELECT count(*) FROM elsapg.elsa_row_security WHERE is_enabled", database=DATABASE
    )
    assert enabled == 0


@pytest.mark.parametrize(
    "drift",
    [
        'ALTER TABLE "Elsa"."Bookmarks" DISABLE ROW LEVEL SECURITY',
        'ALTER TABLE "Elsa"."Bookmarks" FORCE ROW LEVEL SECURITY',
        'DROP POLICY elsapg_delete ON "Elsa"."Bookmarks"',
        'ALTER POLICY elsapg_read ON "Elsa"."Bookmarks" USING (true)',
        'ALTER POLICY elsapg_host ON "Elsa"."Bookmarks" TO elsa_user',
        'ALTER POLICY elsapg_read ON "Elsa"."Bookmarks" RENAME TO other',
        'CREATE POLICY open ON "Elsa"."Bookmarks" USING (true)',
        'DROP POLICY elsapg_read ON "Elsa"."Bookmarks";'
        'CREATE POLICY open ON "Elsa"."Bookmarks" USING (true)',
    ],
)
def test_what_somebody_changed_by_hand_is_seen_and_put_right(secured: Server, drift: str) -> None:
    query = "SELECT table_name::text FROM elsapg.elsa_row_security WHERE NOT is_complete"
    assert secured.rows(query, database=DATABASE) == []
    with secured.connect(DATABASE, "elsa_migrator") as connection:
        connection.execute(drift.encode())
    assert secured.rows(query, database=DATABASE) == [('"Elsa"."Bookmarks"',)]
    assert enable(secured) == {"Bookmarks"}
    assert secured.rows(query, database=DATABASE) == []
    with session(secured, "elsa_app", "a") as connection:
        assert bookmarks(connection) == {"shared", "a1"}


@pytest.fixture
def upgraded(secured: Server) -> Iterator[Server]:
    """Elsa 3.8, by an upgrade under row-level security; 3.6 again afterwards."""
    with secured.connect(DATABASE) as connection:
        for id_, tenant in (("l1", None), ("l2", "a"), ("l3", "")):
            connection.execute(
                'INSERT INTO "Elsa"."Labels" ("Id", "Name", "NormalizedName", "TenantId")'
                " VALUES (%s, %s, %s, %s)",
                (id_, id_, id_, tenant),
            )
    with secured.connect(DATABASE, "elsa_migrator", autocommit=True) as connection:
        migrate(connection, "3.8")
    yield secured
    with secured.connect(DATABASE, "elsa_migrator", autocommit=True) as connection:
        drop(connection)
        migrate(connection, "3.6")


def test_an_upgrade_of_elsa_runs_and_reaches_every_tenants_rows(upgraded: Server) -> None:
    with upgraded.connect(DATABASE) as connection:
        rows = connection.execute('SELECT "Id", "TenantId" FROM "Elsa"."Labels" ORDER BY 1')
        assert rows.fetchall() == [("l1", ""), ("l2", "a"), ("l3", "")]


def test_after_an_upgrade_the_new_tables_are_named_and_secured(upgraded: Server) -> None:
    new = {"BookmarkQueueDeadLetterItems", "WorkflowDefinitionRegistryGenerations"}
    query = "SELECT table_name::text FROM elsapg.elsa_row_security WHERE NOT is_complete"
    assert {row[0] for row in upgraded.rows(query, database=DATABASE)} == {
        f'"Elsa"."{name}"' for name in new
    }
    # They are open until somebody asks again.
    with upgraded.connect(DATABASE) as connection:
        for tenant in ("a", "b", "", "*"):
            connection.execute(
                'INSERT INTO "Elsa"."WorkflowDefinitionRegistryGenerations" VALUES (%s, 1)',
                (tenant,),
            )
    tenants = 'SELECT "TenantId" FROM "Elsa"."WorkflowDefinitionRegistryGenerations"'
    with session(upgraded, "elsa_app", "a") as connection:
        assert set(values(connection, tenants)) == {"a", "b", "", "*"}
    assert enable(upgraded) == new
    with session(upgraded, "elsa_app", "a") as connection:
        assert set(values(connection, tenants)) == {"a", "*"}
        connection.execute(
            'INSERT INTO "Elsa"."WorkflowDefinitionRegistryGenerations" VALUES (\'a\', 1)'
            ' ON CONFLICT ("TenantId") DO UPDATE SET "Generation" = EXCLUDED."Generation" + 1'
        )
    with session(upgraded, "elsa_worker", "default") as connection:
        assert set(values(connection, tenants)) == {"", "*"}


# Plans: Elsa's hot statements with its own filter on the tenant, as EF Core writes it.
FILTER = '("TenantId" = %(tenant)s OR "TenantId" = \'*\')'
HOT = {
    "by id": f'SELECT * FROM "Elsa"."Bookmarks" WHERE "Id" = \'a-7\' AND {FILTER}',
    "by hash": f'SELECT * FROM "Elsa"."Bookmarks" WHERE "Hash" = \'hash-7\' AND {FILTER}',
    "by instance": 'SELECT * FROM "Elsa"."Bookmarks"'
    f" WHERE \"WorkflowInstanceId\" = 'instance-of-a-7' AND {FILTER}",
    "delete": f'DELETE FROM "Elsa"."Bookmarks" WHERE "Id" = \'a-7\' AND {FILTER}',
    "of a tenant": f'SELECT * FROM "Elsa"."Bookmarks" WHERE {FILTER}',
}


def index_names(connection: psycopg.Connection[Any], query: str, tenant: str) -> set[str]:
    rows = connection.execute(
        f"EXPLAIN (FORMAT JSON) {query}".encode(), {"tenant": tenant}
    ).fetchone()
    assert rows is not None
    found: set[str] = set()
    left = [rows[0][0]["Plan"]]
    while left:
        node = left.pop()
        found |= {node[key] for key in ("Index Name",) if key in node}
        left += node.get("Plans", [])
    return found


def test_it_costs_no_index(secured: Server) -> None:
    with secured.connect(DATABASE) as connection:
        connection.execute(
            'INSERT INTO "Elsa"."Bookmarks"'
            ' ("Id", "ActivityTypeName", "CreatedAt", "Hash", "TenantId", "WorkflowInstanceId")'
            " SELECT 'a-' || i, 'Elsa.Event', now(), 'hash-' || i, 't-' || i %% 500,"
            " 'instance-of-a-' || i FROM generate_series(1, 20000) AS i".replace("%%", "%").encode()
        )
    with secured.connect(DATABASE, autocommit=True) as connection:
        connection.execute('ANALYZE "Elsa"."Bookmarks"')
    plans = {}
    for state in ("on", "off"):
        if state == "off":
            disable(secured)
        with session(secured, "elsa_app", "t-7") as connection:
            plans[state] = {name: index_names(connection, q, "t-7") for name, q in HOT.items()}
            if state == "on":
                alone = index_names(connection, 'SELECT * FROM "Elsa"."Bookmarks"', "t-7")
    assert plans["on"] == plans["off"]
    assert all(plans["on"].values())
    # Without a filter of Elsa's the policy itself finds the index.
    assert alone == {"IX_StoredBookmark_TenantId"}


# -- the team's tables beside Elsa's -------------------------------------------------------

CATEGORY = (
    'INSERT INTO "ElsaExtensions"."WorkflowCategories" ("Name", "Color") VALUES (%s, %s)'
    ' RETURNING "Id"'
)
FILE_UNDER = (
    'INSERT INTO "ElsaExtensions"."WorkflowDefinitionCategories"'
    ' ("WorkflowDefinitionId", "CategoryId") VALUES (%s, %s)'
)
TAG = 'INSERT INTO "ElsaExtensions"."WorkflowTags" ("WorkflowDefinitionId", "Tag") VALUES (%s, %s)'
ACTIVITY = (
    'INSERT INTO "ElsaExtensions"."CustomActivityDefinitions" ("Name", "TypeName", "Version")'
    " VALUES (%s, 'Acme.Activity', %s)"
)

COLUMNS = {
    "WorkflowCategories": "Id uuid, Name varchar(100), Description text, Color varchar(7),"
    " CreatedAt timestamptz, UpdatedAt timestamptz",
    "WorkflowTags": "Id uuid, WorkflowDefinitionId varchar(255), Tag varchar(50),"
    " CreatedAt timestamptz",
    "CustomActivityDefinitions": "Id uuid, Name varchar(100), DisplayName varchar(100),"
    " Description text, Category varchar(50), InputProperties jsonb, OutputProperties jsonb,"
    " AssemblyName varchar(255), TypeName varchar(255), Version varchar(20), IsEnabled boolean,"
    " CreatedAt timestamptz, UpdatedAt timestamptz",
    "WorkflowDefinitionCategories": "WorkflowDefinitionId varchar(255), CategoryId uuid,"
    " CreatedAt timestamptz",
}


@pytest.mark.parametrize("table", EXTENSIONS)
def test_s1_07_to_09_the_columns_are_the_documents(server: Server, table: str) -> None:
    found = server.value(
        "SELECT string_agg(attname || ' ' || replace(replace(format_type(atttypid, atttypmod),"
        " 'character varying', 'varchar'), 'timestamp with time zone', 'timestamptz'),"
        " ', ' ORDER BY attnum) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        (f'"ElsaExtensions"."{table}"',),
        database=DATABASE,
    )
    assert found == COLUMNS[table] + ", TenantId varchar(255)"


def test_every_table_column_and_index_has_a_comment(server: Server) -> None:
    uncommented = server.rows(
        "SELECT c.oid::regclass::text, NULL FROM pg_class AS c"
        " WHERE c.relnamespace = '\"ElsaExtensions\"'::regnamespace"
        " AND (c.relkind = 'r' OR (c.relkind = 'i' AND c.relname ^@ 'idx'))"
        " AND obj_description(c.oid, 'pg_class') IS NULL"
        " UNION ALL SELECT c.oid::regclass::text, a.attname"
        " FROM pg_class AS c INNER JOIN pg_attribute AS a ON c.oid = a.attrelid"
        " WHERE c.relnamespace = '\"ElsaExtensions\"'::regnamespace AND c.relkind = 'r'"
        " AND a.attnum > 0 AND col_description(c.oid, a.attnum) IS NULL",
        database=DATABASE,
    )
    assert uncommented == []


@pytest.mark.parametrize("table", EXTENSIONS)
def test_the_extension_tables_are_isolated(server: Server, table: str) -> None:
    found = server.rows(
        "SELECT c.relrowsecurity, c.relforcerowsecurity, array_agg(p.policyname ORDER BY 1)"
        " FROM pg_class AS c INNER JOIN pg_policies AS p"
        " ON p.schemaname = 'ElsaExtensions' AND c.relname = p.tablename"
        " WHERE c.oid = %s::regclass GROUP BY 1, 2",
        (f'"ElsaExtensions"."{table}"',),
        database=DATABASE,
    )
    assert found == [(True, True, ["host_access", "tenant_isolation"])]


@pytest.mark.parametrize("table", EXTENSIONS)
@pytest.mark.parametrize(
    ("role", "rights"),
    [
        ("elsa_app", ALL),
        ("elsa_host", ALL),
        ("elsa_admin", ALL),
        ("elsa_worker", {"SELECT"}),
        ("elsa_readonly", {"SELECT"}),
        ("backup", {"SELECT"}),
        ("monitoring", set()),
        ("elsa_jobs", set()),
    ],
)
def test_rights_on_the_extension_tables(
    server: Server, table: str, role: str, rights: set[str]
) -> None:
    found = server.rows(
        "SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE',"
        " 'REFERENCES', 'TRIGGER', 'MAINTAIN']) AS p WHERE has_table_privilege(%s, %s, p)",
        (role, f'"ElsaExtensions"."{table}"'),
        database=DATABASE,
    )
    assert {row[0] for row in found} == rights


def test_a_tenant_keeps_its_own_categories_tags_and_activities(server: Server) -> None:
    with session(server, "elsa_app") as connection:
        for tenant in ("a", "b"):
            connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", (tenant,))
            [category] = values(connection, CATEGORY, "Orders", "#A0b1C2")
            connection.execute(FILE_UNDER, ("flow", category))
            connection.execute(TAG, ("flow", "urgent"))
            connection.execute(ACTIVITY, ("SendInvoice", "1.0.0"))
        for table in EXTENSIONS:
            query = f'SELECT "TenantId" FROM "ElsaExtensions"."{table}"'
            assert values(connection, query) == ["b"]
        connection.execute("SELECT set_config('app.current_tenant_id', '', true)")
        for table in EXTENSIONS:
            assert values(connection, f'SELECT 1 FROM "ElsaExtensions"."{table}"') == []


@pytest.mark.parametrize("table", EXTENSIONS)
@pytest.mark.parametrize("tenant", [None, "", "b"])
def test_no_other_tenants_extension_row_can_be_written(
    server: Server, table: str, tenant: str | None
) -> None:
    columns, row = {
        "WorkflowCategories": ('"Name"', "'n'"),
        "WorkflowTags": ('"WorkflowDefinitionId", "Tag"', "'f', 't'"),
        "CustomActivityDefinitions": ('"Name", "TypeName"', "'n', 't'"),
        "WorkflowDefinitionCategories": (
            '"WorkflowDefinitionId", "CategoryId"',
            "'f', gen_random_uuid()",
        ),
    }[table]
    with (
        session(server, "elsa_app", tenant) as connection,
        pytest.raises(errors.InsufficientPrivilege, match="row-level security"),
    ):
        connection.execute(
            f'INSERT INTO "ElsaExtensions"."{table}" ({columns}, "TenantId")'
            f" VALUES ({row}, 'a')".encode()
        )


def test_a_category_of_another_tenant_does_not_exist(server: Server) -> None:
    with session(server, "elsa_app", "a") as connection:
        [category] = values(connection, CATEGORY, "Orders", None)
        connection.execute("SELECT set_config('app.current_tenant_id', 'b', true)")
        with pytest.raises(errors.ForeignKeyViolation, match="category_fkey"):
            connection.execute(FILE_UNDER, ("flow", category))


def test_a_key_tells_nothing_of_another_tenant(server: Server) -> None:
    with session(server, "elsa_app", "a") as connection:
        [category] = values(connection, CATEGORY, "Orders", None)
        connection.execute("SELECT set_config('app.current_tenant_id', 'b', true)")
        connection.execute(
            'INSERT INTO "ElsaExtensions"."WorkflowCategories" ("Id", "Name") VALUES (%s, %s)',
            (category, "Orders"),
        )


@pytest.mark.parametrize(
    ("statement", "parameters", "constraint"),
    [
        (CATEGORY, ("Orders", None), "uk_workflowcategories_name"),
        (TAG, ("flow", "urgent"), "idx_workflowtags_workflowdefinitionid"),
        (ACTIVITY, ("SendInvoice", "1.0.0"), "idx_customactivitydefinitions_name"),
    ],
)
def test_names_are_unique_within_a_tenant(
    server: Server, statement: str, parameters: tuple[Any, ...], constraint: str
) -> None:
    with session(server, "elsa_app", "a") as connection:
        connection.execute(statement.encode(), parameters)
        with pytest.raises(errors.UniqueViolation, match=constraint):
            connection.execute(statement.encode(), parameters)


@pytest.mark.parametrize("color", ["red", "#12345", "#12345g", "1234567", "#123\n56"])
def test_a_color_is_six_hexadecimal_digits(server: Server, color: str) -> None:
    with session(server, "elsa_app", "a") as connection, pytest.raises(errors.CheckViolation):
        connection.execute(CATEGORY, ("Orders", color))


def test_a_definition_has_one_category_and_loses_it_with_the_category(server: Server) -> None:
    """S1-33: categories 1:N definitions."""
    with session(server, "elsa_app", "a") as connection:
        [orders] = values(connection, CATEGORY, "Orders", None)
        [returns] = values(connection, CATEGORY, "Returns", None)
        for flow in ("one", "two"):
            connection.execute(FILE_UNDER, (flow, orders))
        with pytest.raises(errors.UniqueViolation), connection.transaction():
            connection.execute(FILE_UNDER, ("one", returns))
        connection.execute(
            'DELETE FROM "ElsaExtensions"."WorkflowCategories" WHERE "Id" = %s', (orders,)
        )
        left = 'SELECT count(*) FROM "ElsaExtensions"."WorkflowDefinitionCategories"'
        assert values(connection, left) == [0]


@pytest.fixture
def many(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """elsa_app's transaction of tenant a, with 50 tenants' 100 rows in each extension table."""
    with server.connect(DATABASE) as connection:
        for table, columns, row in (
            ("WorkflowCategories", '"Id", "Name"', "md5(t || '-' || i)::uuid, 'x' || i"),
            (
                "WorkflowDefinitionCategories",
                '"WorkflowDefinitionId", "CategoryId"',
                "'x' || i, md5(t || '-' || i)::uuid",
            ),
            ("WorkflowTags", '"WorkflowDefinitionId", "Tag"', "'x' || i, 'x' || i"),
            (
                "CustomActivityDefinitions",
                '"Name", "TypeName", "Category"',
                "'x' || i, 'x' || i, 'x' || i",
            ),
        ):
            connection.execute(
                f'INSERT INTO "ElsaExtensions"."{table}" ("TenantId", {columns})'
                f" SELECT chr(97 + t), {row}"
                " FROM generate_series(0, 49) AS t, generate_series(1, 100) AS i".encode()
            )
            connection.execute(f'ANALYZE "ElsaExtensions"."{table}"'.encode())
        connection.execute("SET ROLE elsa_app")
        connection.execute("SELECT set_config('app.current_tenant_id', 'a', true)")
        yield connection
        connection.rollback()


@pytest.mark.parametrize(
    ("table", "column", "index"),
    [
        ("WorkflowTags", "WorkflowDefinitionId", "idx_workflowtags_workflowdefinitionid"),
        ("WorkflowTags", "Tag", "idx_workflowtags_tag"),
        ("CustomActivityDefinitions", "Name", "idx_customactivitydefinitions_name"),
        ("CustomActivityDefinitions", "Category", "idx_customactivitydefinitions_category"),
        (
            "WorkflowDefinitionCategories",
            "CategoryId",
            "idx_workflowdefinitioncategories_categoryid",
        ),
    ],
)
def test_s1_24_to_27_each_index_serves_its_query(
    many: psycopg.Connection[Any], table: str, column: str, index: str
) -> None:
    value = "md5('0-7')::uuid" if column == "CategoryId" else "'x7'"
    query = f'SELECT * FROM "ElsaExtensions"."{table}" WHERE "{column}" = {value}'
    text = "\n".join(values(many, f"EXPLAIN {query}"))
    assert index in text
    conditions = [line for line in text.splitlines() if "Index Cond" in line]
    assert any(f'"{column}"' in line and '"TenantId"' in line for line in conditions), text
    assert len(values(many, query)) == 1
