"""Retention: what has ended goes to the archive with its children, whatever comes in between."""

from __future__ import annotations

import random
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as within
from hypothesis import strategies as st
from sql_server import Server

pytestmark = pytest.mark.docker

DATABASE = "elsa_workflows"
NOW = datetime(2020, 6, 15, 2, 0, tzinfo=UTC)
DUE = NOW - timedelta(days=90)
SECOND = timedelta(seconds=1)
TABLES = ("workflow_instances", "activity_execution_records", "bookmarks")
ENDED = ("Completed", "Cancelled", "Faulted")


@pytest.fixture(autouse=True)
def emptied(server: Server) -> Iterator[None]:
    yield
    with server.connect(DATABASE, autocommit=True) as connection:
        connection.execute("SET search_path = ''")
        # TRUNCATE is refused by a trigger.
        connection.execute("SET session_replication_role = replica")
        for table in TABLES:
            connection.execute(
                f"TRUNCATE elsa_workflows.{table}, elsa_workflows.{table}_archive CASCADE".encode()
            )
        connection.execute("TRUNCATE elsa_workflows.workflow_instance_keys CASCADE")
        connection.execute("TRUNCATE elsapg.archived_month")
        # Months that these tests made, on either side.
        for (name,) in connection.execute(
            "SELECT p.name::text FROM elsapg.monthly_tables() AS t,"
            " elsapg.range_partitions(t.name) AS p"
            " WHERE NOT p.is_default AND (t.is_archive OR p.to_at < now())"
        ).fetchall():
            connection.execute(f"DROP TABLE {name}".encode())


@contextmanager
def session(server: Server, role: str = "postgres") -> Iterator[psycopg.Connection[Any]]:
    with server.connect(DATABASE, role, autocommit=True) as connection:
        connection.execute("SET search_path = ''")
        yield connection


def months(connection: psycopg.Connection[Any], first: datetime, count: int) -> None:
    connection.execute(
        "SELECT elsa_workflows.create_monthly_partitions(%s, %s)", (count - 1, first)
    )


def instance(
    connection: psycopg.Connection[Any],
    name: str,
    *,
    tenant: str = "a",
    status: str = "Completed",
    created: datetime = DUE - timedelta(days=1),
    finished: datetime | None = None,
    faulted: datetime | None = None,
    children: int = 2,
) -> None:
    connection.execute(
        "INSERT INTO elsa_workflows.workflow_instances (id, definition_id, definition_version,"
        " workflow_state, status, created_at, finished_at, faulted_at, tenant_id)"
        " VALUES (%s, 'flow', 1, '{\"variables\": {\"a\": 1}}', %s, %s, %s, %s, %s)",
        (name, status, created, finished, faulted, tenant),
    )
    for number in range(children):
        child(connection, name, f"{name}-{number}", tenant, created + number * timedelta(days=20))
        connection.execute(
            "INSERT INTO elsa_workflows.bookmarks (id, bookmark_id, bookmark_hash,"
            " workflow_instance_id, activity_node_id, activity_type_name, tenant_id)"
            " VALUES (%s, 'b', 'h', %s, 'n', 'T', %s)",
            (f"{name}-{number}", name, tenant),
        )


def child(
    connection: psycopg.Connection[Any], parent: str, name: str, tenant: str, started: datetime
) -> None:
    connection.execute(
        "INSERT INTO elsa_workflows.activity_execution_records (id, workflow_instance_id,"
        " activity_id, activity_node_id, activity_type, activity_type_version, started_at, status,"
        " payload, tenant_id)"
        " VALUES (%s, %s, 'a', 'n', 'T', 1, %s, 'Completed', '{\"orderId\": \"1\"}', %s)",
        (name, parent, started, tenant),
    )


def step(connection: psycopg.Connection[Any], now: datetime = NOW, limit: int = 2000) -> int | None:
    row = connection.execute(
        "SELECT elsa_workflows.cleanup_old_data(%s, %s)", (limit, now)
    ).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def clean(connection: psycopg.Connection[Any], now: datetime = NOW, limit: int = 2000) -> int:
    """All of it, as the job does; returns how many instances were archived."""
    moved = 0
    for _ in range(10_000):
        done = step(connection, now, limit)
        if done is None:
            return moved
        moved += done
    raise AssertionError("retention does not come to an end")


def ids(connection: psycopg.Connection[Any], table: str) -> set[str]:
    rows = connection.execute(f"SELECT id FROM elsa_workflows.{table} ORDER BY id".encode())
    found = [row[0] for row in rows.fetchall()]
    assert len(found) == len(set(found))
    return set(found)


def keys(connection: psycopg.Connection[Any]) -> set[str]:
    return ids(connection, "workflow_instance_keys")


@pytest.mark.parametrize("status", ENDED)
@pytest.mark.parametrize("column", ["finished", "faulted"])
@pytest.mark.parametrize(
    ("ended", "goes"), [(DUE - SECOND, True), (DUE, False), (DUE + SECOND, False)]
)
def test_the_boundary_is_exact(
    server: Server, status: str, column: str, ended: datetime, goes: bool
) -> None:
    with session(server) as connection:
        months(connection, DUE - timedelta(days=1), 3)
        ends: dict[str, Any] = {column: ended}
        instance(connection, "i", status=status, **ends)
        assert clean(connection) == int(goes)
        for table in TABLES:
            assert bool(ids(connection, f"{table}_archive")) == goes
            assert bool(ids(connection, table)) != goes
        assert keys(connection) == (set() if goes else {"i"})


def test_finished_counts_where_both_are_set(server: Server) -> None:
    with session(server) as connection:
        instance(connection, "late", finished=DUE + SECOND, faulted=DUE - SECOND)
        instance(connection, "early", finished=DUE - SECOND, faulted=DUE + SECOND)
        assert clean(connection) == 1
        assert ids(connection, "workflow_instances_archive") == {"early"}


@pytest.mark.parametrize("status", ["Running", "Suspended", "", "Aborted", "completed", "Zombie"])
def test_what_has_not_ended_stays(server: Server, status: str) -> None:
    with session(server) as connection:
        instance(connection, "i", status=status, finished=DUE - timedelta(days=500))
        instance(connection, "j", status="Completed")  # says so, but has no end
        assert clean(connection) == 0
        assert ids(connection, "workflow_instances") == {"i", "j"}
        assert ids(connection, "bookmarks") == {"i-0", "i-1", "j-0", "j-1"}


def test_rows_arrive_as_they_were(server: Server) -> None:
    def all_rows(connection: psycopg.Connection[Any], suffix: str) -> list[Any]:
        found = []
        for table in TABLES:
            rows = connection.execute(
                f"SELECT to_jsonb(t) - 'archived_at' FROM elsa_workflows.{table}{suffix} AS t"
                " ORDER BY t.id".encode()
            )
            found.append(rows.fetchall())
        return found

    with session(server) as connection:
        months(connection, DUE - timedelta(days=1), 1)
        instance(connection, "i", finished=DUE - SECOND)
        instance(connection, "j", tenant="b", faulted=DUE - SECOND, status="Faulted")
        before = all_rows(connection, "")
        assert clean(connection) == 2
        assert all_rows(connection, "_archive") == before
        # Two months of children, of which one has no partition here either: none in the default.
        strays = connection.execute(
            "SELECT count(*) FROM elsa_workflows.workflow_instances_archive_default"
        ).fetchone()
        assert strays == (0,)


def test_a_row_that_was_restored_and_ended_again_replaces_its_archived_version(
    server: Server,
) -> None:
    with session(server) as connection:
        instance(connection, "i", finished=DUE - SECOND, children=1)
        assert clean(connection) == 1
        instance(connection, "i", finished=DUE - 2 * SECOND, status="Cancelled", children=2)
        assert clean(connection) == 1
        rows = connection.execute(
            "SELECT status, finished_at FROM elsa_workflows.workflow_instances_archive"
        ).fetchall()
        assert rows == [("Cancelled", DUE - 2 * SECOND)]
        assert ids(connection, "activity_execution_records_archive") == {"i-0", "i-1"}


def test_batches_are_bounded(server: Server) -> None:
    with session(server) as connection:
        for number in range(7):
            instance(connection, f"i{number}", finished=DUE - SECOND, children=0)
        assert [step(connection, limit=3) for _ in range(4)] == [3, 3, 1, None]


def test_another_isolation_level_is_refused(server: Server) -> None:
    with session(server) as connection:
        instance(connection, "i", finished=DUE - SECOND)
        connection.execute("SET default_transaction_isolation = 'repeatable read'")
        with pytest.raises(psycopg.errors.InvalidTransactionState, match="READ COMMITTED"):
            step(connection)


def test_a_child_on_its_way_keeps_its_instance_for_the_next_run(server: Server) -> None:
    with session(server) as connection, server.connect(DATABASE) as writer:
        instance(connection, "busy", finished=DUE - SECOND)
        instance(connection, "idle", finished=DUE - SECOND)
        child(writer, "busy", "late", "a", DUE)
        assert clean(connection) == 1
        assert ids(connection, "workflow_instances") == {"busy"}
        writer.commit()
        assert clean(connection) == 1
        assert "late" in ids(connection, "activity_execution_records_archive")
        assert ids(connection, "activity_execution_records") == set()


def test_an_instance_that_is_being_changed_is_left_alone_and_the_writer_never_waits(
    server: Server,
) -> None:
    with session(server) as connection, server.connect(DATABASE) as writer:
        instance(connection, "i", finished=DUE - SECOND)
        writer.execute("UPDATE elsa_workflows.workflow_instances SET status = 'Running'")
        assert clean(connection) == 0
        writer.commit()
        assert clean(connection) == 0
        assert ids(connection, "workflow_instances") == {"i"}


def test_a_child_that_is_being_changed_is_not_waited_for_long(server: Server) -> None:
    """Its writer may want the instance next, which the batch has locked: the batch gives way."""
    with session(server) as connection, server.connect(DATABASE) as writer:
        instance(connection, "i", finished=DUE - SECOND)
        writer.execute("UPDATE elsa_workflows.activity_execution_records SET status = 'x'")
        began = time.monotonic()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            clean(connection)
        assert time.monotonic() - began < 2
        writer.execute("UPDATE elsa_workflows.workflow_instances SET name = 'changed'")
        writer.commit()
        assert clean(connection) == 1
        rows = connection.execute(
            "SELECT DISTINCT i.name, a.status FROM elsa_workflows.workflow_instances_archive AS i,"
            " elsa_workflows.activity_execution_records_archive AS a"
        ).fetchall()
        assert rows == [("changed", "x")]


def test_other_tenants_do_not_see_the_archive(server: Server) -> None:
    with session(server) as connection:
        instance(connection, "of-a", finished=DUE - SECOND)
        instance(connection, "of-b", tenant="b", finished=DUE - SECOND)
        clean(connection)
        for role in ("elsa_app", "elsa_readonly"):
            for tenant, seen in (("a", ["of-a"]), ("b", ["of-b"]), ("c", []), ("", [])):
                with server.connect(DATABASE, role) as reader:
                    reader.execute(
                        "SELECT set_config('app.current_tenant_id', %s, true)", (tenant,)
                    )
                    rows = reader.execute(
                        "SELECT id FROM elsa_workflows.workflow_instances_archive"
                    )
                    assert [row[0] for row in rows.fetchall()] == seen
                    for table in TABLES[1:]:
                        found = reader.execute(
                            f"SELECT DISTINCT a.tenant_id FROM elsa_workflows.{table}_archive"
                            " AS a".encode()
                        ).fetchall()
                        assert found == ([(tenant,)] if seen else [])
        with (
            server.connect(DATABASE, "elsa_app") as writer,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            writer.execute("DELETE FROM elsa_workflows.workflow_instances_archive")


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly", "elsa_host"])
@pytest.mark.parametrize(
    "call",
    [
        "elsa_workflows.cleanup_old_data()",
        "elsa_workflows.archive_batch()",
        "elsapg.archive_children('{}', '{}')",
        "elsapg.hand_over_month('elsa_workflows.workflow_instances', now(), 'true')",
    ],
)
def test_the_application_does_not_run_retention(server: Server, role: str, call: str) -> None:
    with (
        server.connect(DATABASE, role) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(f"SELECT {call}".encode())


def test_the_jobs_role_runs_it_and_is_no_superuser(server: Server) -> None:
    with session(server) as connection:
        instance(connection, "i", finished=DUE - SECOND)
        connection.execute("SET SESSION AUTHORIZATION elsa_jobs")
        assert connection.execute("SELECT current_setting('is_superuser')").fetchone() == ("off",)
        assert clean(connection) == 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SET session_replication_role = replica")


def test_the_functions_leave_triggers_on(server: Server) -> None:
    with session(server) as connection, connection.transaction():
        instance(connection, "i", finished=DUE - SECOND)
        assert step(connection) == 1
        assert connection.execute("SHOW session_replication_role").fetchone() == ("origin",)
        with pytest.raises(psycopg.errors.ForeignKeyViolation), connection.transaction():
            child(connection, "i", "orphan", "a", DUE)


def test_nothing_but_records_and_bookmarks_refers_to_the_keys(server: Server) -> None:
    """elsapg.archive_children removes keys with the cascades off: it must know all children."""
    with session(server) as connection:
        rows = connection.execute(
            "SELECT k.conrelid::regclass::text FROM pg_constraint AS k"
            " WHERE k.confrelid = 'elsa_workflows.workflow_instance_keys'::regclass"
            " AND k.conparentid = 0 ORDER BY 1"
        ).fetchall()
        assert rows == [
            ("elsa_workflows.activity_execution_records",), ("elsa_workflows.bookmarks",)
        ]  # fmt: skip


def partitions(connection: psycopg.Connection[Any], table: str) -> set[str]:
    rows = connection.execute(
        "SELECT right(name::text, 7) FROM elsapg.range_partitions(%s::regclass)"
        " WHERE NOT is_default AND from_at < '2021-01-01'",
        (f"elsa_workflows.{table}",),
    )
    return {row[0] for row in rows.fetchall()}


def test_emptied_months_are_dropped_and_no_others(server: Server) -> None:
    with session(server) as connection:
        months(connection, datetime(2020, 1, 1, tzinfo=UTC), 6)
        january = datetime(2020, 1, 10, tzinfo=UTC)
        instance(connection, "gone", created=january, finished=january, children=1)
        instance(
            connection, "stays", created=january + timedelta(days=31), status="Running", children=1
        )
        clean(connection)
        # March ended 90 days ago only partly.
        assert partitions(connection, "workflow_instances") == {
            "2020_02", "2020_03", "2020_04", "2020_05", "2020_06",
        }  # fmt: skip
        assert partitions(connection, "activity_execution_records") == {
            "2020_02", "2020_03", "2020_04", "2020_05", "2020_06",
        }  # fmt: skip
        assert ids(connection, "workflow_instances") == {"stays"}
        assert keys(connection) == {"stays"}


def test_a_month_in_use_is_not_waited_for(server: Server) -> None:
    with session(server) as connection, server.connect(DATABASE) as reader:
        months(connection, datetime(2020, 1, 1, tzinfo=UTC), 1)
        reader.execute("SELECT count(*) FROM elsa_workflows.workflow_instances")
        clean(connection)
        assert partitions(connection, "workflow_instances") == {"2020_01"}
        reader.rollback()
        clean(connection)
        assert partitions(connection, "workflow_instances") == set()


@contextmanager
def archive_months(connection: psycopg.Connection[Any], value: int) -> Iterator[None]:
    update = "UPDATE elsapg.setting SET value = %s WHERE name = 'archive_months'"
    connection.execute(update, (value,))
    try:
        yield
    finally:
        connection.execute(update, (0,))


def test_old_months_of_the_archive_are_dropped_but_what_came_late_stays(server: Server) -> None:
    with session(server) as connection:
        for name, created in (("old", 2018), ("long", 2019)):
            begin = datetime(created, 2, 10, tzinfo=UTC)
            months(connection, begin, 1)
            instance(connection, name, created=begin, finished=begin, children=1)
        assert clean(connection) == 2
        year_ago = NOW - timedelta(days=400)
        for table in TABLES:
            connection.execute(
                f"UPDATE elsa_workflows.{table}_archive SET archived_at = CASE"
                " WHEN id LIKE 'old%%' THEN %s ELSE %s END".encode(),
                (year_ago, NOW - timedelta(days=300)),
            )
        clean(connection)
        assert ids(connection, "workflow_instances_archive") == {"old", "long"}  # 0: for ever
        with archive_months(connection, 12):
            clean(connection)
        for table, left in zip(TABLES, ({"long"}, {"long-0"}, {"long-0"}), strict=True):
            assert ids(connection, f"{table}_archive") == left


# -- a backlog: months change hands as they are ------------------------------------------------

MARCH = datetime(2019, 3, 1, tzinfo=UTC)
STAY = (
    ("Suspended", None, None),
    ("Suspended", None, None),
    ("Completed", None, None),
    ("Completed", DUE, None),
    ("Completed", DUE, MARCH),
    ("Faulted", None, DUE),
    ("Aborted", MARCH, None),
    ("Cancelling", MARCH, None),
    ("Executing", MARCH, None),
    ("Running", MARCH, MARCH),
)


def backlog(connection: psycopg.Connection[Any], per_month: int = 11000) -> None:
    """Two months of ended instances, created through each month; every tenth one's second record
    lies a month later. And a few that have not ended."""
    months(connection, MARCH, 4)
    connection.execute(
        "INSERT INTO elsa_workflows.workflow_instances (id, definition_id, definition_version,"
        " workflow_state, status, created_at, finished_at, faulted_at, tenant_id)"
        " SELECT 'm' || m || '-' || g, 'flow', 1, '{}',"
        " CASE WHEN g %% 5 = 0 THEN 'Faulted' ELSE 'Completed' END, c.at,"
        " CASE WHEN g %% 5 = 0 THEN NULL ELSE c.at END, CASE WHEN g %% 5 = 0 THEN c.at END,"
        " 't' || g %% 3"
        " FROM generate_series(0, 1) AS m, generate_series(1, %(n)s) AS g,"
        " LATERAL (SELECT %(march)s + make_interval(months => m)"
        " + g * interval '30 days' / %(n)s AS at) AS c",
        {"n": per_month, "march": MARCH},
    )
    connection.execute(
        "INSERT INTO elsa_workflows.activity_execution_records (id, workflow_instance_id,"
        " activity_id, activity_node_id, activity_type, activity_type_version, started_at, status,"
        " tenant_id)"
        " SELECT i.id || '-' || k, i.id, 'a', 'n', 'T', 1, i.created_at + CASE"
        " WHEN k = 1 AND i.id LIKE '%7' THEN interval '31 days' ELSE interval '1 second' END,"
        " 'Completed', i.tenant_id"
        " FROM elsa_workflows.workflow_instances AS i, generate_series(0, 1) AS k"
    )
    connection.execute(
        "INSERT INTO elsa_workflows.bookmarks (id, bookmark_id, bookmark_hash,"
        " workflow_instance_id, activity_node_id, activity_type_name, tenant_id)"
        " SELECT i.id, 'b', 'h', i.id, 'n', 'T', i.tenant_id"
        " FROM elsa_workflows.workflow_instances AS i WHERE i.id LIKE '%00'"
    )
    for number, (status, finished, faulted) in enumerate(STAY):
        instance(
            connection, f"open{number}", status=status, finished=finished, faulted=faulted,
            created=MARCH + timedelta(days=number),
        )  # fmt: skip


def everything(connection: psycopg.Connection[Any]) -> dict[str, tuple[int, int]]:
    """Of each table, live and archive together: how many rows, how many different ones."""
    found = {}
    for table in TABLES:
        row = connection.execute(
            "SELECT count(*), count(DISTINCT (u.tenant_id, u.id)) FROM ("
            f" SELECT tenant_id, id FROM elsa_workflows.{table} UNION ALL"
            f" SELECT tenant_id, id FROM elsa_workflows.{table}_archive) AS u".encode()
        ).fetchone()
        assert row is not None
        found[table] = (row[0], row[1])
    return found


def orphans(connection: psycopg.Connection[Any]) -> int:
    """Children without a key, and keys and live instances without each other."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM elsa_workflows.activity_execution_records AS a"
        "  WHERE NOT EXISTS (SELECT FROM elsa_workflows.workflow_instance_keys AS k"
        "  WHERE k.tenant_id = a.tenant_id AND k.id = a.workflow_instance_id))"
        " + (SELECT count(*) FROM elsa_workflows.bookmarks AS a"
        "  WHERE NOT EXISTS (SELECT FROM elsa_workflows.workflow_instance_keys AS k"
        "  WHERE k.tenant_id = a.tenant_id AND k.id = a.workflow_instance_id))"
        " + (SELECT count(*) FROM elsa_workflows.workflow_instances AS i"
        "  WHERE NOT EXISTS (SELECT FROM elsa_workflows.workflow_instance_keys AS k"
        "  WHERE k.tenant_id = i.tenant_id AND k.id = i.id))"
    ).fetchone()
    assert row is not None
    return int(row[0])


def final_state_is_right(connection: psycopg.Connection[Any]) -> None:
    opened = {f"open{n}" for n in range(len(STAY))}
    assert ids(connection, "workflow_instances") == opened
    assert keys(connection) == opened
    children = {f"{name}-{number}" for name in opened for number in range(2)}
    assert ids(connection, "activity_execution_records") == children
    assert ids(connection, "bookmarks") == children
    assert orphans(connection) == 0
    left = connection.execute("SELECT count(*) FROM elsapg.archived_month").fetchone()
    assert left == (0,)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_a_backlog_changes_hands_by_months_and_what_runs_stays(server: Server, zone: str) -> None:
    with session(server) as connection:
        backlog(connection)
        connection.execute("SELECT set_config('TimeZone', %s, false)", (zone,))
        before = everything(connection)
        moved = connection.execute(
            "SELECT c.relfilenode, c.oid::regclass::text FROM pg_class AS c WHERE c.oid IN ("
            "'elsa_workflows.workflow_instances_2019_03'::regclass,"
            "'elsa_workflows.activity_execution_records_2019_04'::regclass)"
        ).fetchall()
        for _ in range(200):
            done = step(connection, limit=3000)
            assert everything(connection) == before  # at each commit
            assert orphans(connection) == 0
            if done is None:
                break
        final_state_is_right(connection)
        # The very files: nothing was copied.
        for node, name in moved:
            now = connection.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE relfilenode = %s", (node,)
            ).fetchone()
            assert now is not None
            table, month = name[: -len("_2019_03")], name[-len("_2019_03") :]
            assert now[0] == f"{table}_archive{month}"
        # The handed-over months are as closed as all others.
        wrong = connection.execute(
            "SELECT c.relname FROM pg_class AS c"
            " WHERE c.relispartition AND c.relkind = 'r'"
            " AND c.relnamespace = 'elsa_workflows'::regnamespace"
            " AND (NOT c.relforcerowsecurity OR c.relowner <> 'elsa_owner'::regrole"
            "  OR EXISTS (SELECT FROM aclexplode(c.relacl) AS a WHERE a.grantee <> c.relowner))"
        ).fetchall()
        assert wrong == []


def test_a_child_that_comes_after_its_instance_went_is_taken_along_or_refused(
    server: Server,
) -> None:
    with session(server) as connection:
        backlog(connection)
        assert step(connection) == 0  # March is in the archive, its keys are here
        assert "m0-1" in ids(connection, "workflow_instances_archive")
        child(connection, "m0-1", "late", "t1", datetime.now(UTC))
        clean(connection)
        assert "late" in ids(connection, "activity_execution_records_archive")
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            child(connection, "m0-1", "too-late", "t1", datetime.now(UTC))
        final_state_is_right(connection)


def test_a_record_written_while_its_month_is_looked_at_stays_with_its_instance(
    server: Server,
) -> None:
    """The long look sees it not, because it is not committed; the look under the lock does."""
    with session(server) as connection, server.connect(DATABASE) as writer:
        backlog(connection)
        assert [step(connection), step(connection)] == [0, 0]  # both months of instances
        child(writer, "open1", "meanwhile", "a", MARCH + timedelta(days=3))
        done: list[Any] = []

        def look() -> None:
            with session(server) as other:
                done.append(step(other))

        looking = threading.Thread(target=look)
        looking.start()
        deadline = time.monotonic() + 20
        while connection.execute(
            "SELECT count(*) FROM pg_stat_activity AS a"
            " WHERE a.wait_event IN ('relation', 'PgSleep') AND a.query LIKE '%cleanup_old_data%'"
        ).fetchone() != (1,):
            assert time.monotonic() < deadline
        writer.commit()
        looking.join()
        assert done == [0]
        assert "meanwhile" in ids(connection, "activity_execution_records")
        clean(connection)
        assert "meanwhile" in ids(connection, "activity_execution_records")


def test_a_month_with_much_left_in_it_goes_by_rows(server: Server) -> None:
    with session(server) as connection:
        months(connection, MARCH, 1)
        connection.execute(
            "INSERT INTO elsa_workflows.workflow_instances (id, definition_id,"
            " definition_version, workflow_state, status, created_at, finished_at, tenant_id)"
            " SELECT g::text, 'flow', 1, '{}', CASE WHEN g % 10 = 0 THEN 'Running'"
            " ELSE 'Completed' END, timestamptz '2019-03-05 00:00+00',"
            " timestamptz '2019-03-05 00:00+00', 'a' FROM generate_series(1, 12000) AS g"
        )
        assert step(connection, limit=2000) == 2000
        assert clean(connection) == 8800
        assert len(ids(connection, "workflow_instances")) == 1200


# -- interrupted anywhere ----------------------------------------------------------------------


def test_interrupted_at_any_moment_it_loses_and_doubles_nothing(server: Server) -> None:
    chance = random.Random(4)
    with session(server) as connection:
        backlog(connection)
        before = everything(connection)
        killed = 0
        for _ in range(40):
            outcome: list[BaseException | None] = []
            started = threading.Event()
            pids: list[int] = []

            def run(
                outcome: list[BaseException | None] = outcome,
                pids: list[int] = pids,
                started: threading.Event = started,
            ) -> None:
                try:
                    with session(server) as worker:
                        pids.append(worker.info.backend_pid)
                        started.set()
                        clean(worker, limit=500)
                    outcome.append(None)
                except psycopg.OperationalError as error:
                    outcome.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            started.wait(10)
            thread.join(chance.uniform(0, 0.4))
            connection.execute("SELECT pg_terminate_backend(%s)", (pids[0],))
            thread.join()
            assert everything(connection) == before
            assert orphans(connection) == 0
            if outcome == [None]:
                break
            killed += 1
        assert killed >= 3
        clean(connection)
        assert everything(connection) == before
        final_state_is_right(connection)


def test_a_client_that_is_killed_leaves_whole_batches(server: Server) -> None:
    with session(server) as connection:
        for number in range(60):
            instance(connection, f"i{number}", finished=DUE - SECOND)
        before = everything(connection)
        for seconds in (0.05, 0.1, 0.2):
            client = subprocess.Popen(
                # In the foreground: an orphan would fall to process 1, the postmaster, who takes a
                # killed child for a crash.
                ["docker", "exec", server.container, "timeout", "--foreground", "-s", "KILL",
                 str(seconds),
                 "psql", "-h", "/tmp", "-U", "postgres", "-d", DATABASE, "-Xqc",
                 "DO $$ BEGIN WHILE elsa_workflows.cleanup_old_data(2, '2020-06-15 02:00+00')"
                 " IS NOT NULL LOOP COMMIT; END LOOP; END $$"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            client.wait()
            assert everything(connection) == before
            assert orphans(connection) == 0
        clean(connection)
        assert everything(connection) == before
        assert ids(connection, "workflow_instances") == set()


def test_two_runs_at_once_share_the_work(server: Server) -> None:
    with session(server) as connection:
        for number in range(200):
            instance(connection, f"i{number}", finished=DUE - SECOND, children=1)
        before = everything(connection)
        moved: list[int] = []
        barrier = threading.Barrier(3)

        def run() -> None:
            with session(server) as worker:
                barrier.wait()
                done: int | None = 0
                while done is not None:
                    # What waits for half a second gives way, and the job's next run goes on.
                    with suppress(psycopg.errors.LockNotAvailable):
                        done = step(worker, limit=10)
                        moved.append(done or 0)

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(moved) == 200
        assert everything(connection) == before
        assert ids(connection, "workflow_instances") == set()


def test_writers_go_on_while_a_backlog_is_archived(server: Server) -> None:
    waits: list[float] = []
    stop = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        number = 0
        try:
            with session(server) as writer:
                while not stop.is_set():
                    number += 1
                    now = datetime.now(UTC)
                    began = time.monotonic()
                    instance(writer, f"new{number}", status="Running", created=now, children=1)
                    writer.execute(
                        "UPDATE elsa_workflows.workflow_instances SET updated_at = now()"
                        " WHERE tenant_id = 'a' AND id = %s",
                        (f"new{number}",),
                    )
                    waits.append(time.monotonic() - began)
        except BaseException as error:
            failed.append(error)

    with session(server) as connection:
        backlog(connection)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            clean(connection)
        finally:
            stop.set()
            writer.join()
        assert failed == []
        assert len(waits) > 20
        assert statistics.median(waits) < 0.5
        assert max(waits) < 1.5 + 20 * statistics.median(waits)
        live = ids(connection, "workflow_instances")
        assert len([name for name in live if name.startswith("new")]) == len(waits)


@within(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([*ENDED, "Running", "Suspended"]),
            st.none() | st.integers(-200, 200),
            st.none() | st.integers(-200, 200),
            st.integers(0, 3),
        ),
        max_size=8,
    ),
    limit=st.integers(1, 4),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Pacific/Kiritimati"]),
)
def test_exactly_what_is_due_goes(
    server: Server, rows: list[tuple[str, int | None, int | None, int]], limit: int, zone: str
) -> None:
    """Days around the boundary, in any order and any state; one transaction, undone."""
    with server.connect(DATABASE) as connection:
        connection.execute("SELECT set_config('TimeZone', %s, false)", (zone,))
        due, children = set(), 0
        for number, (status, finished, faulted, count) in enumerate(rows):
            ends = [None if d is None else DUE + timedelta(days=d) for d in (finished, faulted)]
            instance(
                connection, str(number), status=status, finished=ends[0], faulted=ends[1],
                created=DUE - timedelta(days=20 * number), children=count,
            )  # fmt: skip
            ended = ends[0] or ends[1]
            if status in ENDED and ended is not None and ended < DUE:
                due.add(str(number))
                children += count
        assert clean(connection, limit=limit) == len(due)
        assert ids(connection, "workflow_instances_archive") == due
        assert ids(connection, "workflow_instances") == {str(n) for n in range(len(rows))} - due
        assert len(ids(connection, "activity_execution_records_archive")) == children
        assert len(ids(connection, "bookmarks_archive")) == children
        connection.rollback()


def test_elsa_runtime_has_its_own(server: Server) -> None:
    with server.connect("elsa_runtime") as connection:
        connection.execute(
            "INSERT INTO elsa_runtime.distributed_locks"
            " (resource_name, lock_id, locked_by, locked_at, expires_at)"
            " SELECT g::text, 'l', 'h', now() - interval '9 days',"
            " now() - g * interval '12 hours' + interval '1 minute' FROM generate_series(0, 6) AS g"
        )
        connection.execute("SET LOCAL SESSION AUTHORIZATION elsa_jobs")
        steps = [
            connection.execute("SELECT elsa_runtime.cleanup_old_data(3)").fetchone()
            for _ in range(3)
        ]
        assert steps == [(3,), (1,), (None,)]
        connection.rollback()
