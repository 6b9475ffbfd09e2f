"""Instances, their keys and their children: no orphan by any path, whoever does what meanwhile.

`workflow_instance_keys` has a row per instance, written by triggers; records and bookmarks
reference it. Why, and what it costs: docs/decisions/0013-integrity.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sql_server import Server
from tenant_tables import LOGINS, Connection, ask, session

pytestmark = pytest.mark.docker

DATABASE = "elsa_workflows"
INSTANCE = (
    "INSERT INTO elsa_workflows.workflow_instances"
    " (id, definition_id, definition_version, workflow_state, status, created_at, tenant_id)"
    " VALUES (%(id)s, 'd', 1, '{}', 'Running', %(at)s, %(tenant)s)"
)
RECORD = (
    "INSERT INTO elsa_workflows.activity_execution_records (id, workflow_instance_id, activity_id,"
    " activity_node_id, activity_type, activity_type_version, started_at, status, tenant_id)"
    " VALUES (%(id)s, %(instance)s, 'a', 'n', 't', 1, %(at)s, 'Running', %(tenant)s)"
)
BOOKMARK = (
    "INSERT INTO elsa_workflows.bookmarks (id, bookmark_id, bookmark_hash, workflow_instance_id,"
    " activity_node_id, activity_type_name, tenant_id)"
    " VALUES (%(id)s, 'b', 'h', %(instance)s, 'n', 't', %(tenant)s)"
)
JANUARY, FEBRUARY = "2026-01-15 12:00+00", "2026-02-15 12:00+00"
CHILDREN = {"activity_execution_records": RECORD, "bookmarks": BOOKMARK}

# What never holds: a child without its instance, an instance without its key, a key without either.
BROKEN = """
WITH i AS (SELECT tenant_id, id FROM elsa_workflows.workflow_instances),
k AS (SELECT tenant_id, id FROM elsa_workflows.workflow_instance_keys),
c AS (
    SELECT tenant_id, workflow_instance_id FROM elsa_workflows.activity_execution_records
    UNION SELECT tenant_id, workflow_instance_id FROM elsa_workflows.bookmarks
)
SELECT 'no key', * FROM (TABLE i EXCEPT TABLE k) AS x
UNION ALL SELECT 'no instance', * FROM (TABLE k EXCEPT TABLE i) AS x
UNION ALL SELECT 'orphan', * FROM (TABLE c EXCEPT TABLE i) AS x
UNION ALL
SELECT 'twice', tenant_id, id FROM elsa_workflows.workflow_instances
GROUP BY tenant_id, id HAVING count(*) > 1
"""


@pytest.fixture(autouse=True)
def whole(server: Server) -> Iterator[None]:
    """Each test begins empty; whatever it did, nothing is broken at its end."""
    clean(server)
    yield
    broken = server.rows(BROKEN, database=DATABASE)
    clean(server)
    assert broken == []


def clean(server: Server) -> None:
    with server.connect(DATABASE) as connection:
        connection.execute("DELETE FROM elsa_workflows.workflow_instances")


def values(tenant: str, name: str, at: str = JANUARY, instance: str = "i1") -> dict[str, str]:
    return {"id": name, "tenant": tenant, "at": at, "instance": instance}


def commit(server: Server, role: str, tenant: str | None, *statements: Any) -> None:
    with session(server, role, tenant) as connection:
        for statement, parameters in statements:
            connection.execute(statement, parameters)
        connection.commit()


def count(server: Server, table: str) -> int:
    return int(server.value(f"SELECT count(*) FROM elsa_workflows.{table}", database=DATABASE))


def insert_many(connection: Connection, tenant: str, number: int, at: str = JANUARY) -> None:
    """Instances i1 to i<number>, each with a bookmark."""
    connection.execute(
        "INSERT INTO elsa_workflows.workflow_instances"
        " (id, definition_id, definition_version, workflow_state, status, created_at, tenant_id)"
        " SELECT 'i' || n, 'd', 1, '{}', 'Running', %s, %s FROM generate_series(1, %s) AS n",
        (at, tenant, number),
    )
    connection.execute(
        "INSERT INTO elsa_workflows.bookmarks (id, bookmark_id, bookmark_hash,"
        " workflow_instance_id, activity_node_id, activity_type_name, tenant_id)"
        " SELECT 'b' || n, 'b', 'h', 'i' || n, 'n', 't', %s FROM generate_series(1, %s) AS n",
        (tenant, number),
    )


# -- no orphans --------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_host", "elsa_admin", "postgres"])
@pytest.mark.parametrize("child", CHILDREN)
@pytest.mark.parametrize("instance", ["nowhere", "i2"])
def test_no_orphan_is_inserted(server: Server, role: str, child: str, instance: str) -> None:
    """i2 is another tenant's: to this tenant, and for its rows, it does not exist."""
    commit(server, "elsa_host", None, (INSTANCE, values("b", "i2")))
    with (
        session(server, role, "a") as connection,
        pytest.raises(psycopg.errors.ForeignKeyViolation),
    ):
        connection.execute(CHILDREN[child].encode(), values("a", "c", instance=instance))


@pytest.mark.parametrize("role", ["elsa_app", "elsa_host"])
@pytest.mark.parametrize("child", CHILDREN)
def test_no_child_is_made_an_orphan(server: Server, role: str, child: str) -> None:
    commit(
        server,
        "elsa_host",
        None,
        (INSTANCE, values("a", "i1")),
        (INSTANCE, values("b", "i2")),
        (CHILDREN[child], values("a", "c")),
    )
    with session(server, role, "a") as connection:
        for change in ["workflow_instance_id = 'nowhere'", "workflow_instance_id = 'i2'"]:
            answer = ask(connection, f"UPDATE elsa_workflows.{child} SET {change}")
            assert answer.state == "23503", change
        # For the host, moving a child to a tenant that has no such instance is an orphan, too.
        if role == "elsa_host":
            answer = ask(connection, f"UPDATE elsa_workflows.{child} SET tenant_id = 'b'")
            assert answer.state == "23503"


def test_a_worker_does_not_move_a_record_to_another_instance(server: Server) -> None:
    with session(server, "elsa_worker", "a") as connection:
        for column in ["workflow_instance_id", "tenant_id", "started_at", "id", "activity_type"]:
            answer = ask(
                connection,
                f"UPDATE elsa_workflows.activity_execution_records SET {column} = {column}",
            )
            assert answer.state == "42501", column


@pytest.mark.parametrize("child", CHILDREN)
def test_no_orphan_is_loaded(server: Server, child: str) -> None:
    """COPY FROM is for those whom no policy binds: the superuser, who restores a dump."""
    with server.connect(DATABASE) as connection:
        columns, row = {
            "activity_execution_records": (
                "id, workflow_instance_id, activity_id, activity_node_id, activity_type,"
                " activity_type_version, started_at, status, tenant_id",
                f"c\tnowhere\ta\tn\tt\t1\t{JANUARY}\tRunning\ta\n",
            ),
            "bookmarks": (
                "id, bookmark_id, bookmark_hash, workflow_instance_id, activity_node_id,"
                " activity_type_name, tenant_id",
                "c\tb\th\tnowhere\tn\tt\ta\n",
            ),
        }[child]
        with (
            pytest.raises(psycopg.errors.ForeignKeyViolation),
            connection.cursor().copy(
                f"COPY elsa_workflows.{child} ({columns}) FROM STDIN".encode()
            ) as copy,
        ):
            copy.write(row)
        connection.rollback()


def test_loaded_instances_have_keys(server: Server) -> None:
    copy = (
        "COPY elsa_workflows.workflow_instances"
        " (id, definition_id, definition_version, workflow_state, status, created_at, tenant_id)"
        " FROM STDIN"
    )
    with server.connect(DATABASE) as connection, connection.cursor().copy(copy) as rows:
        for number in range(500):
            rows.write(f"i{number}\td\t1\t{{}}\tRunning\t{JANUARY}\ta\n")
    assert count(server, "workflow_instance_keys") == 500


def test_one_statement_cannot_make_an_instance_and_its_child(server: Server) -> None:
    """Known and documented: the keys come at the statement's end. Two statements work."""
    with session(server, "elsa_app", "a") as connection:
        answer = ask(
            connection,
            "WITH i AS (INSERT INTO elsa_workflows.workflow_instances"
            " (id, definition_id, definition_version, workflow_state, status)"
            " VALUES ('i1', 'd', 1, '{}', 'Running') RETURNING id)"
            " INSERT INTO elsa_workflows.bookmarks (id, bookmark_id, bookmark_hash,"
            " workflow_instance_id, activity_node_id, activity_type_name)"
            " SELECT 'c', 'b', 'h', i.id, 'n', 't' FROM i",
        )
        assert answer.state == "23503"
        connection.execute(INSTANCE.encode(), values("a", "i1"))
        connection.execute(BOOKMARK.encode(), values("a", "c"))
        connection.commit()


# -- deleting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["elsa_app", "elsa_host", "elsa_admin"])
def test_deleting_an_instance_removes_its_children(server: Server, role: str) -> None:
    for tenant in ("a", "b"):
        for number in (1, 2):
            commit(
                server,
                "elsa_host",
                None,
                (INSTANCE, values(tenant, f"i{number}")),
                (RECORD, values(tenant, f"r{number}", instance=f"i{number}")),
                (RECORD, values(tenant, f"s{number}", FEBRUARY, instance=f"i{number}")),
                (BOOKMARK, values(tenant, f"b{number}", instance=f"i{number}")),
            )
    commit(
        server, role, "a", ("DELETE FROM elsa_workflows.workflow_instances WHERE id = 'i1'", None)
    )
    # The host deletes i1 of both tenants, the application its own.
    left = 2 if role in ("elsa_host", "elsa_admin") else 3
    assert count(server, "workflow_instances") == left
    assert count(server, "workflow_instance_keys") == left
    assert count(server, "activity_execution_records") == 2 * left
    assert count(server, "bookmarks") == left


def test_deleting_many_removes_the_children_of_all(server: Server) -> None:
    with session(server, "elsa_host") as connection:
        for tenant in ("a", "b"):
            insert_many(connection, tenant, 3000)
        connection.commit()
        gone = connection.execute("DELETE FROM elsa_workflows.workflow_instances WHERE id <> 'i7'")
        assert gone.rowcount == 5998
        connection.commit()
    assert (count(server, "workflow_instance_keys"), count(server, "bookmarks")) == (2, 2)


def test_deleting_one_after_many_is_still_by_index(server: Server) -> None:
    """The trigger's plan is kept for the session: made for many, it must do for one."""
    with server.connect(DATABASE, autocommit=True) as connection:
        insert_many(connection, "a", 20000)
        connection.execute("ANALYZE elsa_workflows.workflow_instance_keys")
    with session(server, "elsa_app", "a") as connection:
        connection.execute("DELETE FROM elsa_workflows.workflow_instances WHERE id LIKE 'i1%%'", ())
        before = scans(connection, "^workflow_instance_keys$")
        connection.execute("DELETE FROM elsa_workflows.workflow_instances WHERE id = 'i2'")
        after = scans(connection, "^workflow_instance_keys$")
        assert after["seq_scan"] == before["seq_scan"]
        connection.rollback()


CHILDREN_AND_KEYS = "^(workflow_instance_keys|activity_execution_records|bookmarks)"


def scans(connection: Connection, tables: str, but: str = "") -> dict[str, int]:
    """What this transaction has read of these tables (a pattern) so far, except of one."""
    row = connection.execute(
        "SELECT sum(s.seq_scan), sum(s.seq_tup_read), sum(coalesce(s.idx_scan, 0)),"
        " sum(coalesce(s.idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables AS s"
        " WHERE s.schemaname = 'elsa_workflows' AND s.relname ~ %s"
        " AND s.schemaname || '.' || s.relname <> %s",
        (tables, but),
    ).fetchone()
    assert row is not None
    names = ("seq_scan", "seq_tup_read", "idx_scan", "idx_tup_fetch")
    return dict(zip(names, map(int, row), strict=True))


@pytest.mark.parametrize("parent", ["workflow_instances", "activity_execution_records"])
def test_dropping_a_month_reads_no_child(server: Server, parent: str) -> None:
    """It asks nobody: neither the keys nor the children are read. (Retention has removed the keys
    of a month before it drops it.)"""
    with server.connect(DATABASE) as connection:
        name = f"elsa_workflows.{parent}_2001_01"
        connection.execute(
            f"CREATE TABLE {name} PARTITION OF elsa_workflows.{parent}"
            " FOR VALUES FROM ('2001-01-01+00') TO ('2001-02-01+00')".encode()
        )
        insert_many(connection, "a", 2000, "2001-01-15+00")
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        before = scans(connection, CHILDREN_AND_KEYS, but=name)
        connection.execute(f"DROP TABLE {name}".encode())
        assert scans(connection, CHILDREN_AND_KEYS, but=name) == before
        connection.rollback()


def test_emptying_the_table_at_once_is_refused(server: Server) -> None:
    """TRUNCATE fires no trigger by row: it would leave keys, and children, without instances."""
    commit(server, "elsa_app", "a", (INSTANCE, values("a", "i1")), (BOOKMARK, values("a", "c")))
    with server.connect(DATABASE) as connection:
        answer = ask(connection, "TRUNCATE elsa_workflows.workflow_instances")
    assert answer.state != ""


# -- identity ----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_host", "elsa_admin", "postgres"])
@pytest.mark.parametrize(
    "change",
    [
        "id = 'other'",
        "tenant_id = 'b'",
        "created_at = created_at + interval '1 microsecond'",
        "created_at = created_at + interval '1 month'",
    ],
)
def test_identity_does_not_change(server: Server, role: str, change: str) -> None:
    commit(server, "elsa_app", "a", (INSTANCE, values("a", "i1")))
    with session(server, role, "a") as connection:
        answer = ask(connection, f"UPDATE elsa_workflows.workflow_instances SET {change}")
        assert answer.state == "23000", answer
        # What stays the same may be written.
        kept = ask(
            connection,
            "UPDATE elsa_workflows.workflow_instances"
            " SET id = id, tenant_id = tenant_id, created_at = created_at, status = 'Finished'",
        )
        assert (kept.state, kept.count) == ("", 1)


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_host"])
@pytest.mark.parametrize("at", [JANUARY, FEBRUARY, "2031-07-01+00"])
def test_an_id_is_unique_within_its_tenant_whatever_the_month(
    server: Server, role: str, at: str
) -> None:
    commit(server, "elsa_app", "a", (INSTANCE, values("a", "i1")))
    with session(server, role, "a") as connection, pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute(INSTANCE.encode(), values("a", "i1", at))
    commit(server, "elsa_app", "b", (INSTANCE, values("b", "i1", at)))
    assert count(server, "workflow_instances") == 2


def test_an_id_is_free_again_after_its_instance(server: Server) -> None:
    remove = ("DELETE FROM elsa_workflows.workflow_instances WHERE id = 'i1'", None)
    commit(server, "elsa_app", "a", (INSTANCE, values("a", "i1")))
    commit(server, "elsa_app", "a", remove, (INSTANCE, values("a", "i1", FEBRUARY)))
    assert count(server, "workflow_instance_keys") == 1


@pytest.mark.parametrize(
    ("clause", "same_month", "other_month"),
    [
        ("ON CONFLICT DO NOTHING", "", "23505"),
        ("ON CONFLICT (tenant_id, id, created_at) DO NOTHING", "", "23505"),
        ("ON CONFLICT (tenant_id, id, created_at) DO UPDATE SET status = 'x'", "", "23505"),
        (
            "ON CONFLICT ON CONSTRAINT workflow_instances_pkey DO UPDATE SET status = 'x'",
            "",
            "23505",
        ),
        # No index says so: a partitioned table cannot have one.
        ("ON CONFLICT (id) DO NOTHING", "42P10", "42P10"),
        ("ON CONFLICT (tenant_id, id) DO NOTHING", "42P10", "42P10"),
    ],
)
def test_which_upserts_work(server: Server, clause: str, same_month: str, other_month: str) -> None:
    """An upsert names all three; a second instance of one id and another time is an error."""
    commit(server, "elsa_app", "a", (INSTANCE, values("a", "i1")))
    with session(server, "elsa_app", "a") as connection:
        for at, expected in ((JANUARY, same_month), (FEBRUARY, other_month)):
            connection.execute("SAVEPOINT s")
            state = ""
            try:
                connection.execute(f"{INSTANCE} {clause}".encode(), values("a", "i1", at))
            except psycopg.Error as error:
                state = error.sqlstate or "?"
            connection.execute("ROLLBACK TO SAVEPOINT s")
            assert state == expected, at


# -- the keys themselves -----------------------------------------------------------------------


@pytest.mark.parametrize("role", [role for role in LOGINS if role != "elsa_migrator"])
def test_nobody_reaches_the_keys(server: Server, role: str) -> None:
    """The owner apart, who could drop them, too; and backup reads them, as everything."""
    with session(server, role, "a") as connection:
        for statement in [
            "SELECT * FROM elsa_workflows.workflow_instance_keys",
            "INSERT INTO elsa_workflows.workflow_instance_keys VALUES ('a', 'x')",
            "UPDATE elsa_workflows.workflow_instance_keys SET id = 'x'",
            "DELETE FROM elsa_workflows.workflow_instance_keys",
            "TRUNCATE elsa_workflows.workflow_instance_keys CASCADE",
            "SELECT elsa_workflows.add_instance_keys()",
            "SELECT elsa_workflows.remove_instance_keys()",
            "CREATE TEMPORARY TABLE old_rows (tenant_id text, id text); CREATE TRIGGER mine"
            " AFTER DELETE ON old_rows REFERENCING OLD TABLE AS old_rows"
            " FOR EACH STATEMENT EXECUTE FUNCTION elsa_workflows.remove_instance_keys()",
        ]:
            if role == "backup" and statement.startswith("SELECT *"):
                continue
            assert ask(connection, statement).state == "42501", statement


# -- two at once -------------------------------------------------------------------------------


class Other(threading.Thread):
    """A statement in another connection, which may have to wait."""

    def __init__(self, connection: Connection, action: Callable[[Connection], Any]) -> None:
        super().__init__(daemon=True)
        self.connection = connection
        self.action = action
        self.error: psycopg.Error | None = None
        self.start()

    def run(self) -> None:
        try:
            self.action(self.connection)
        except psycopg.Error as error:
            self.error = error

    def waits(self, server: Server) -> bool:
        """True once it waits for a lock; False if it has ended instead."""
        pid = self.connection.info.backend_pid
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if not self.is_alive():
                return False
            if server.value(
                "SELECT coalesce((SELECT wait_event_type = 'Lock' FROM pg_stat_activity"
                " WHERE pid = %s), false)",
                (pid,),
            ):
                return True
            time.sleep(0.01)
        raise AssertionError("neither waits nor ends")

    def state(self) -> str:
        self.join(20)
        assert not self.is_alive()
        return (self.error.sqlstate or "?") if self.error else ""


ISOLATIONS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
DELETE = "DELETE FROM elsa_workflows.workflow_instances WHERE id = 'i1'"


def begin(server: Server, role: str, isolation: str) -> Connection:
    """A transaction whose snapshot is taken."""
    connection = server.connect(DATABASE, role)
    connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
    connection.execute("SELECT set_config('app.current_tenant_id', 'a', true)")
    connection.execute("SELECT count(*) FROM elsa_workflows.workflow_instances")
    return connection


@pytest.mark.parametrize("deleter", ["elsa_app", "elsa_host"])
@pytest.mark.parametrize("child", CHILDREN)
@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("first", ["child", "delete"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_child_and_the_end_of_its_instance_at_once(
    server: Server, deleter: str, child: str, isolation: str, first: str, end: str
) -> None:
    """Whoever comes second waits for the first to end; then one of them has not happened."""
    commit(server, "elsa_app", "a", (INSTANCE, values("a", "i1")))
    with begin(server, "elsa_worker", isolation) as one, begin(server, deleter, isolation) as two:

        def insert(connection: Connection) -> None:
            connection.execute(CHILDREN[child].encode(), values("a", "c"))

        def delete(connection: Connection) -> None:
            connection.execute(DELETE)

        (now, what), (later, then) = (
            ((one, insert), (two, delete)) if first == "child" else ((two, delete), (one, insert))
        )
        what(now)
        other = Other(later, then)
        assert other.waits(server)
        now.commit() if end == "commit" else now.rollback()
        state = other.state()
        if state:
            later.rollback()
        else:
            later.commit()
    happened = (count(server, "workflow_instances"), count(server, child))
    if end == "rollback":
        assert (state, happened) == ("", (1, 1) if first == "delete" else (0, 0))
    elif first == "delete":
        # The reference is gone; a snapshot that still shows it does not help.
        assert state in ("23503", "40001")
        assert happened == (0, 0)
    elif isolation == "READ COMMITTED":
        assert (state, happened) == ("", (0, 0))  # removed with its instance
    else:
        assert (state, happened) == ("40001", (1, 1))


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_one_id_twice_at_once_in_two_months(server: Server, isolation: str, end: str) -> None:
    with begin(server, "elsa_app", isolation) as one, begin(server, "elsa_app", isolation) as two:
        one.execute(INSTANCE.encode(), values("a", "i1", JANUARY))
        other = Other(two, lambda c: c.execute(INSTANCE.encode(), values("a", "i1", FEBRUARY)))
        assert other.waits(server)
        one.commit() if end == "commit" else one.rollback()
        state = other.state()
        two.rollback() if state else two.commit()
    assert count(server, "workflow_instances") == 1
    assert state == "" if end == "rollback" else state in ("23505", "40001")


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_two_deletions_at_once(server: Server, isolation: str) -> None:
    commit(server, "elsa_app", "a", (INSTANCE, values("a", "i1")), (BOOKMARK, values("a", "c")))
    with begin(server, "elsa_app", isolation) as one, begin(server, "elsa_host", isolation) as two:
        one.execute(DELETE)
        other = Other(two, lambda c: c.execute(DELETE))
        assert other.waits(server)
        one.commit()
        state = other.state()
        two.rollback() if state else two.commit()
    assert state == ("" if isolation == "READ COMMITTED" else "40001")
    assert (count(server, "workflow_instances"), count(server, "bookmarks")) == (0, 0)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_child_of_an_instance_that_is_not_committed_yet(server: Server, isolation: str) -> None:
    """Another transaction's instance is none until it commits: refused at once, without waiting."""
    with begin(server, "elsa_app", isolation) as one, begin(server, "elsa_app", isolation) as two:
        one.execute(INSTANCE.encode(), values("a", "i1"))
        other = Other(two, lambda c: c.execute(BOOKMARK.encode(), values("a", "c")))
        assert other.state() == "23503"
        two.rollback()
        one.commit()
    assert (count(server, "workflow_instances"), count(server, "bookmarks")) == (1, 0)


# -- whatever happens in whatever order --------------------------------------------------------

NAMES = st.sampled_from(["i1", "i2", "i3"])
TENANTS = st.sampled_from(["a", "b"])
TIMES = st.sampled_from([JANUARY, FEBRUARY])
ROLES = st.sampled_from(["elsa_app", "elsa_host", "elsa_worker"])
STEPS = st.one_of(
    st.tuples(st.just("insert"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("many"), TENANTS, st.lists(NAMES, min_size=2, max_size=3), TIMES),
    st.tuples(st.just("ignore"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("upsert"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("merge"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("replace"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("delete"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("delete all"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("move"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("record"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("bookmark"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("savepoint"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("back"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("commit"), TENANTS, NAMES, TIMES),
    st.tuples(st.just("rollback"), TENANTS, NAMES, TIMES),
)
_COLUMNS = "id, definition_id, definition_version, workflow_state, status, created_at, tenant_id"
_ROW = "'d', 1, '{}'::jsonb, 'Running', %(at)s::timestamptz, %(tenant)s"
STATEMENTS = {
    "insert": INSTANCE,
    "many": f"INSERT INTO elsa_workflows.workflow_instances ({_COLUMNS})"
    f" SELECT x, {_ROW} FROM unnest(%(id)s::text[]) AS x",
    "ignore": f"{INSTANCE} ON CONFLICT DO NOTHING",
    "upsert": f"{INSTANCE} ON CONFLICT (tenant_id, id, created_at) DO UPDATE SET status = 'x'",
    "merge": "MERGE INTO elsa_workflows.workflow_instances AS w"
    " USING (VALUES (%(id)s), ('i3')) AS v (id) ON w.id = v.id AND w.tenant_id = %(tenant)s"
    " WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN"
    f" INSERT ({_COLUMNS}) VALUES (v.id, {_ROW})",
    "replace": "WITH gone AS (DELETE FROM elsa_workflows.workflow_instances"
    " WHERE id = %(id)s AND tenant_id = %(tenant)s RETURNING id)"
    f" INSERT INTO elsa_workflows.workflow_instances ({_COLUMNS})"
    f" SELECT id, {_ROW} FROM gone",
    "delete": "DELETE FROM elsa_workflows.workflow_instances WHERE id = %(id)s",
    "delete all": "DELETE FROM elsa_workflows.workflow_instances",
    "move": "UPDATE elsa_workflows.workflow_instances SET created_at = %(at)s WHERE id = %(id)s",
    "record": RECORD.replace("%(id)s", "gen_random_uuid()").replace("%(instance)s", "%(id)s"),
    "bookmark": BOOKMARK.replace("%(id)s", "gen_random_uuid()").replace("%(instance)s", "%(id)s"),
}


@given(role=ROLES, steps=st.lists(STEPS, min_size=1, max_size=16))
@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_happens_the_keys_are_the_instances(
    server: Server, role: str, steps: list[tuple[str, str, Any, str]]
) -> None:
    clean(server)
    with server.connect(DATABASE, role) as connection:
        saved = False
        for step, tenant, name, at in steps:
            connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", (tenant,))
            if step in ("commit", "rollback"):
                connection.commit() if step == "commit" else connection.rollback()
                saved = False
            elif step == "savepoint":
                connection.execute("SAVEPOINT mark")
                saved = True
            elif step == "back":
                if saved:
                    connection.execute("ROLLBACK TO SAVEPOINT mark")
            else:
                connection.execute("SAVEPOINT step")
                try:
                    connection.execute(
                        STATEMENTS[step].encode(), {"tenant": tenant, "id": name, "at": at}
                    )
                    connection.execute("RELEASE SAVEPOINT step")
                except psycopg.Error as error:
                    # Refused for what it is (a key, a reference, an identity, a right), never
                    # by something unforeseen.
                    assert error.sqlstate in ("23505", "23503", "23000", "42501", "21000"), error
                    connection.execute("ROLLBACK TO SAVEPOINT step")
        connection.commit()
    assert server.rows(BROKEN, database=DATABASE) == []
