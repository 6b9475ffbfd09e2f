"""Database elsa_runtime beside its locks: snapshots, the worker fleet, queues of tasks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sql_server import Server

pytestmark = pytest.mark.docker

DATABASE = "elsa_runtime"
TABLES = ["execution_state_snapshots", "task_queue_state"]
WRITE = {
    "execution_state_snapshots": "INSERT INTO elsa_runtime.execution_state_snapshots"
    " (id, workflow_instance_id, snapshot_data, tenant_id) VALUES ('1', 'i', '{}', %s)",
    "task_queue_state": "INSERT INTO elsa_runtime.task_queue_state"
    " (queue_name, task_id, tenant_id) VALUES ('q', '1', %s)",
}
DENIED = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)


@pytest.fixture(autouse=True)
def clean(server: Server) -> Iterator[None]:
    yield
    with server.connect(DATABASE) as connection:
        for table in (*TABLES, "worker_registration"):
            connection.execute(f"DELETE FROM elsa_runtime.{table}".encode())


@contextmanager
def session(
    server: Server, role: str = "elsa_worker", tenant: str | None = "a", **options: Any
) -> Iterator[psycopg.Connection[Any]]:
    """A session whose every transaction is the tenant's: what an application does in each."""
    with server.connect(DATABASE, role, autocommit=True, **options) as connection:
        if tenant is not None:
            connection.execute("SELECT set_config('app.current_tenant_id', %s, false)", (tenant,))
        yield connection


def call(connection: psycopg.Connection[Any], function: str, *arguments: Any) -> Any:
    marks = ", ".join(["%s"] * len(arguments))
    row = connection.execute(
        f"SELECT elsa_runtime.{function}({marks})".encode(), arguments
    ).fetchone()
    assert row is not None
    return row[0]


def claim(
    connection: psycopg.Connection[Any],
    worker: str = "w",
    limit: int = 100,
    seconds: int = 60,
    queue: str = "q",
) -> list[tuple[str, str, int]]:
    """What was claimed: tenant, task, attempt."""
    return connection.execute(
        "SELECT tenant_id, task_id, attempt FROM elsa_runtime.claim_tasks(%s, %s, %s, %s)",
        (queue, worker, limit, seconds),
    ).fetchall()


# --- tenants ------------------------------------------------------------------------------------


@pytest.fixture
def two_tenants(server: Server) -> None:
    with server.connect(DATABASE) as connection:
        for table in TABLES:
            for tenant in ("a", "b"):
                connection.execute(WRITE[table].encode(), (tenant,))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly", "elsa_migrator"])
@pytest.mark.parametrize(("tenant", "seen"), [(None, 0), ("", 0), ("c", 0), ("*", 0), ("a", 1)])
def test_a_role_sees_its_tenants_rows_only(
    server: Server, two_tenants: None, table: str, role: str, tenant: str | None, seen: int
) -> None:
    with session(server, role, tenant) as connection:
        rows = connection.execute(f"SELECT tenant_id FROM elsa_runtime.{table}".encode())
        assert rows.fetchall() == [("a",)] * seen


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly"])
@pytest.mark.parametrize("tenant", [None, "", "c", "a"])
def test_the_view_of_queues_shows_a_tenant_its_own(
    server: Server, two_tenants: None, role: str, tenant: str | None
) -> None:
    with session(server, role, tenant) as connection:
        rows = connection.execute("SELECT tenant_id, pending FROM elsa_runtime.task_queue_status")
        assert rows.fetchall() == ([("a", 1)] if tenant == "a" else [])


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_migrator"])
@pytest.mark.parametrize("tenant", [None, "", "a"])
@pytest.mark.parametrize("target", ["b", "c", ""])
def test_no_row_can_be_written_for_another_tenant(
    server: Server, table: str, role: str, tenant: str | None, target: str
) -> None:
    with (
        session(server, role, tenant) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
    ):
        connection.execute(WRITE[table].encode(), (target,))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker"])
def test_other_tenants_rows_can_be_neither_changed_moved_nor_inferred(
    server: Server, two_tenants: None, table: str, role: str
) -> None:
    with session(server, role) as connection:
        name = f"elsa_runtime.{table}"
        changed = connection.execute(
            f"UPDATE {name} SET tenant_id = tenant_id WHERE tenant_id = 'b'".encode()
        )
        assert changed.rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            connection.execute(f"UPDATE {name} SET tenant_id = 'b'".encode())
        # The same id as another tenant's row: no conflict, so nothing is learnt from one.
        connection.execute("SELECT set_config('app.current_tenant_id', 'c', false)")
        inserted = connection.execute(
            f"{WRITE[table]} ON CONFLICT DO NOTHING".encode(), ("c",)
        ).rowcount
        assert inserted == 1


def test_a_task_of_another_tenant_cannot_be_touched_by_any_function(
    server: Server, two_tenants: None
) -> None:
    with session(server, "elsa_worker", "b") as owner, session(server, "elsa_worker") as thief:
        assert claim(owner, "w") == [("b", "1", 1)]
        call(thief, "enqueue_task", "q", "2")
        assert {row[0] for row in claim(thief, "w")} == {"a"}
        # Its own task "1" goes first, and b's, of the same name, worker and attempt, stays b's.
        assert call(thief, "complete_task", "q", "1", "w", 1) is True
        assert call(thief, "complete_task", "q", "1", "w", 1) is False
        assert call(thief, "fail_task", "q", "1", "w", 1, "no") is False
        assert call(thief, "extend_task_lease", "q", "1", "w", 1, 60) is False
        assert call(owner, "complete_task", "q", "1", "w", 1) is True


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("elsa_worker", "DELETE FROM elsa_runtime.task_queue_state"),
        ("elsa_readonly", "DELETE FROM elsa_runtime.execution_state_snapshots"),
        ("elsa_readonly", "UPDATE elsa_runtime.task_queue_state SET state = 'done'"),
        ("elsa_readonly", "SELECT elsa_runtime.enqueue_task('q', 't')"),
        ("elsa_readonly", "SELECT elsa_runtime.claim_tasks('q', 'w', 1, 1)"),
        ("elsa_readonly", "SELECT elsa_runtime.register_worker('w', 'h', '1', '{}', 1)"),
        ("elsa_app", "INSERT INTO elsa_runtime.worker_registration DEFAULT VALUES"),
        ("elsa_app", "UPDATE elsa_runtime.worker_registration SET state = 'dead'"),
        ("elsa_worker", "UPDATE elsa_runtime.worker_registration SET state = 'dead'"),
        ("elsa_admin", "DELETE FROM elsa_runtime.worker_registration"),
        ("elsa_worker", "SELECT elsa_runtime.mark_dead_workers()"),
        ("elsa_app", "SELECT elsa_runtime.cleanup_old_snapshots()"),
        ("elsa_worker", "SELECT elsa_runtime.snapshot_batch(1)"),
        ("elsa_host", "SELECT elsa_runtime.lock_batch(1)"),
        ("elsa_migrator", "SELECT elsa_runtime.task_batch(1)"),
        ("monitoring", "SELECT elsa_runtime.purge_expired_locks()"),
    ],
)
def test_least_privilege(server: Server, role: str, statement: str) -> None:
    with session(server, role) as connection, pytest.raises(DENIED):
        connection.execute(statement.encode())


# --- retention ----------------------------------------------------------------------------------


@contextmanager
def as_jobs(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """A session with the rights of a job. elsa_jobs itself cannot log in from outside."""
    with server.connect(DATABASE, autocommit=True) as connection:
        connection.execute("SET SESSION AUTHORIZATION elsa_jobs")
        yield connection


def add_snapshots(server: Server, *rows: tuple[str, str]) -> None:
    """Tenant and age, as an interval."""
    with server.connect(DATABASE) as connection:
        for number, (tenant, age) in enumerate(rows):
            connection.execute(
                "INSERT INTO elsa_runtime.execution_state_snapshots"
                " (id, workflow_instance_id, snapshot_data, created_at, tenant_id)"
                " VALUES (%s, 'i', '{}', now() - %s::interval, %s)",
                (f"s{number}", age, tenant),
            )


def snapshots(server: Server) -> set[str]:
    rows = server.rows("SELECT id FROM elsa_runtime.execution_state_snapshots", database=DATABASE)
    return {row[0] for row in rows}


def test_old_snapshots_of_all_tenants_go_and_young_ones_stay(server: Server) -> None:
    add_snapshots(server, ("a", "25 h"), ("b", "25 h"), ("a", "23 h 59 min"), ("c", "0"))
    with as_jobs(server) as connection:
        connection.execute("SELECT elsa_runtime.cleanup_old_snapshots()")
    assert snapshots(server) == {"s2", "s3"}


def test_the_age_is_the_stacks_setting(server: Server) -> None:
    add_snapshots(server, ("a", "25 h"), ("a", "49 h"))
    with server.connect(DATABASE) as connection:
        connection.execute("UPDATE elsapg.setting SET value = 48 WHERE name = 'snapshots_hours'")
        connection.execute("SELECT elsa_runtime.cleanup_old_snapshots()")
        rows = connection.execute("SELECT id FROM elsa_runtime.execution_state_snapshots")
        assert rows.fetchall() == [("s0",)]
        connection.rollback()


def test_a_batch_is_bounded_oldest_first_and_passes_over_rows_in_use(server: Server) -> None:
    add_snapshots(server, ("a", "30 h"), ("b", "40 h"), ("a", "50 h"), ("a", "60 h"))
    with server.connect(DATABASE) as user, as_jobs(server) as connection:
        user.execute(
            "SELECT FROM elsa_runtime.execution_state_snapshots WHERE id = 's3' FOR UPDATE"
        )
        connection.execute("SET lock_timeout = '2s'")
        assert call(connection, "snapshot_batch", 2) == 2
        assert snapshots(server) == {"s0", "s3"}
        user.rollback()
        assert call(connection, "snapshot_batch", 10) == 2
        assert call(connection, "snapshot_batch", 10) == 0


def test_locks_are_purged_a_day_after_their_end_and_tokens_still_grow(server: Server) -> None:
    resource = "purged"
    with session(server) as worker, as_jobs(server) as connection:
        first = call(worker, "acquire_fenced_lock", resource, "l", "w", 1)
        for age, left in (("23 h 59 min", 1), ("24 h 1 min", 0)):
            server.rows(
                "UPDATE elsa_runtime.distributed_locks SET expires_at = now() - %s::interval"
                " WHERE resource_name = %s RETURNING 1",
                (age, resource),
                database=DATABASE,
            )
            call(connection, "purge_expired_locks")
            assert (
                server.value(
                    "SELECT count(*) FROM elsa_runtime.distributed_locks WHERE resource_name = %s",
                    (resource,),
                    database=DATABASE,
                )
                == left
            )
        assert call(worker, "acquire_fenced_lock", resource, "l", "w", 1) > first


def test_done_tasks_go_with_time_and_no_others(server: Server) -> None:
    with server.connect(DATABASE) as connection:
        for state in ("pending", "failed", "dead", "done"):
            for age in ("23 h", "25 h"):
                connection.execute(
                    "INSERT INTO elsa_runtime.task_queue_state"
                    " (queue_name, task_id, state, tenant_id, updated_at)"
                    " VALUES ('q', %s, %s, 'a', now() - %s::interval)",
                    (f"{state} {age}", state, age),
                )
    with as_jobs(server) as connection:
        assert call(connection, "task_batch", 100) == 1
    left = server.rows("SELECT task_id FROM elsa_runtime.task_queue_state", database=DATABASE)
    assert ("done 25 h",) not in left
    assert len(left) == 7


@pytest.mark.parametrize("function", ["snapshot_batch", "lock_batch", "task_batch"])
@pytest.mark.parametrize("limit", [None, 0, -1])
def test_a_batch_has_a_size(server: Server, function: str, limit: int | None) -> None:
    with as_jobs(server) as connection, pytest.raises(psycopg.Error, match="1 or more") as caught:
        call(connection, function, limit)
    assert caught.value.sqlstate == "22023"


# --- workers ------------------------------------------------------------------------------------


def register(connection: psycopg.Connection[Any], worker: str = "w1", **given: Any) -> None:
    queues = given.get("queues", ["q"])
    call(connection, "register_worker", worker, "host-1", "1.0", queues, 4, ["http"], 15)


def state(server: Server, worker: str = "w1") -> str | None:
    rows = server.rows(
        "SELECT state FROM elsa_runtime.worker_registration WHERE worker_id = %s",
        (worker,),
        database=DATABASE,
    )
    return rows[0][0] if rows else None


def age(server: Server, worker: str, seconds: float) -> None:
    with server.connect(DATABASE) as connection:
        connection.execute(
            "UPDATE elsa_runtime.worker_registration"
            " SET last_heartbeat_at = last_heartbeat_at - make_interval(secs => %s)"
            " WHERE worker_id = %s",
            (seconds, worker),
        )


def live(server: Server, role: str = "elsa_app") -> set[str]:
    with session(server, role, None) as connection:
        rows = connection.execute("SELECT worker_id FROM elsa_runtime.live_workers").fetchall()
    return {row[0] for row in rows}


def test_a_workers_life(server: Server) -> None:
    with session(server, tenant=None) as worker, as_jobs(server) as job:
        register(worker)
        assert state(server) == "starting"
        assert call(worker, "heartbeat", "w1", 3) is True
        assert state(server) == "active"
        assert live(server) == {"w1"}
        assert call(worker, "drain_worker", "w1") is True
        assert call(worker, "heartbeat", "w1", 1) is True
        assert state(server) == "draining"
        assert call(job, "mark_dead_workers") == 0
        assert call(worker, "deregister_worker", "w1") is True
        assert call(worker, "deregister_worker", "w1") is False
        assert call(worker, "heartbeat", "w1", 0) is False
        assert live(server) == set()


@pytest.mark.parametrize(("silent", "dead"), [(40, False), (46, True)])
def test_three_missed_heartbeats_are_death(server: Server, silent: int, dead: bool) -> None:
    with session(server, tenant=None) as worker, as_jobs(server) as job:
        register(worker)
        register(worker, "w2")
        call(worker, "heartbeat", "w1", 3)
        age(server, "w1", silent)
        assert live(server, "elsa_readonly") == ({"w2"} if dead else {"w1", "w2"})
        assert call(job, "mark_dead_workers") == int(dead)
        assert state(server) == ("dead" if dead else "active")
        # The dead do not come back by a late heartbeat, but by registering.
        assert call(worker, "heartbeat", "w1", 3) is not dead
        assert call(worker, "drain_worker", "w1") is not dead
        register(worker)
        assert state(server) == "starting"
        assert call(worker, "heartbeat", "w1", 0) is True


def test_the_dead_are_forgotten_after_a_week(server: Server) -> None:
    with session(server, tenant=None) as worker, as_jobs(server) as job:
        for name, days in (("young", 6.9), ("old", 7.1)):
            register(worker, name)
            age(server, name, days * 86400)
        assert call(job, "mark_dead_workers") == 2
        assert (state(server, "young"), state(server, "old")) == ("dead", None)


@pytest.mark.parametrize(
    "arguments",
    [
        (None, "h", "1", ["q"], 1, [], 15),
        ("", "h", "1", ["q"], 1, [], 15),
        ("w", "", "1", ["q"], 1, [], 15),
        ("w", "h", None, ["q"], 1, [], 15),
        ("w", "h", "1", None, 1, [], 15),
        ("w", "h", "1", ["q"], 0, [], 15),
        ("w", "h", "1", ["q"], 1, [], 0),
        ("w", "h", "1", ["q"], 1, [], 3601),
    ],
)
def test_a_registration_without_sense_is_refused(
    server: Server, arguments: tuple[Any, ...]
) -> None:
    with session(server) as connection, pytest.raises(psycopg.errors.IntegrityError):
        call(connection, "register_worker", *arguments)


def test_heartbeats_update_in_place(server: Server) -> None:
    def counted() -> tuple[int, int]:
        return server.rows(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
            " WHERE relname = 'worker_registration'",
            database=DATABASE,
        )[0]

    with session(server, tenant=None) as worker:
        register(worker)
        call(worker, "heartbeat", "w1", 0)
        worker.execute("SELECT pg_stat_force_next_flush()")
        before = counted()
        for load in range(200):
            call(worker, "heartbeat", "w1", load)
        worker.execute("SELECT pg_stat_force_next_flush()")
        after = counted()
    assert after[0] - before[0] == 200
    assert after[1] - before[1] == 200


# --- tasks --------------------------------------------------------------------------------------


def task(server: Server, task_id: str = "t", tenant: str = "a") -> Any:
    return server.rows(
        "SELECT state, attempts, leased_by, last_error FROM elsa_runtime.task_queue_state"
        " WHERE task_id = %s AND tenant_id = %s",
        (task_id, tenant),
        database=DATABASE,
    )[0]


def end_leases(server: Server) -> None:
    with server.connect(DATABASE) as connection:
        connection.execute(
            "UPDATE elsa_runtime.task_queue_state SET lease_expires_at = clock_timestamp()"
            " WHERE state = 'leased'"
        )


def test_a_tasks_life(server: Server) -> None:
    with session(server, "elsa_app") as server_side, session(server) as worker:
        assert call(server_side, "enqueue_task", "q", "t", '{"order": 1}') is True
        assert call(server_side, "enqueue_task", "q", "t", '{"order": 2}') is False
        assert claim(worker) == [("a", "t", 1)]
        assert claim(worker) == []
        assert task(server)[:3] == ("leased", 1, "w")
        assert call(worker, "extend_task_lease", "q", "t", "w", 1, 120) is True
        assert call(worker, "complete_task", "q", "t", "w", 1) is True
        assert task(server) == ("done", 1, None, None)
        # Done is done: neither a second answer nor a second enqueueing brings it back.
        assert call(worker, "fail_task", "q", "t", "w", 1, "late") is False
        assert call(server_side, "enqueue_task", "q", "t") is False
        assert claim(worker) == []


def test_claims_go_by_priority_then_age_and_keep_to_the_limit_and_the_queue(
    server: Server,
) -> None:
    with session(server) as worker:
        for name, priority, at in (
            ("low", 0, "2020-01-01Z"),
            ("young", 5, "2021-01-01Z"),
            ("old", 5, "2020-01-01Z"),
            ("later", 9, "2999-01-01Z"),
        ):
            call(worker, "enqueue_task", "q", name, None, priority, at)
        call(worker, "enqueue_task", "other", "x", None, 9)
        assert [row[1] for row in claim(worker, limit=1)] == ["old"]
        assert {row[1] for row in claim(worker, limit=5)} == {"young", "low"}
        assert claim(worker) == []


def test_many_workers_never_get_one_task_twice(server: Server) -> None:
    tasks, workers = 400, 16
    with server.connect(DATABASE) as connection:
        connection.execute(
            "INSERT INTO elsa_runtime.task_queue_state (queue_name, task_id, priority, tenant_id)"
            " SELECT 'q', 't' || n, n %% 3, 'a' FROM generate_series(1, %s) AS n",
            (tasks,),
        )
    claimed: list[str] = []
    problems: list[str] = []
    begin = threading.Barrier(workers)

    def work(number: int) -> None:
        try:
            with session(server) as connection:
                begin.wait(60)
                while rows := claim(connection, f"w{number}", 3):
                    claimed.extend(row[1] for row in rows)
                    for _, name, attempt in rows:
                        if not call(connection, "complete_task", "q", name, f"w{number}", attempt):
                            problems.append(f"{name} was lost")
        except Exception as error:
            problems.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert sorted(claimed) == sorted(f"t{n}" for n in range(1, tasks + 1))
    states = server.rows(
        "SELECT DISTINCT state, attempts FROM elsa_runtime.task_queue_state", database=DATABASE
    )
    assert states == [("done", 1)]


def test_a_claim_passes_over_what_another_worker_is_claiming(server: Server) -> None:
    with session(server) as one, session(server) as two:
        for name in ("t1", "t2"):
            call(one, "enqueue_task", "q", name)
        two.execute("SET statement_timeout = '5s'")
        with one.transaction():
            assert [row[1] for row in claim(one, "one", 1)] == ["t1"]
            assert [row[1] for row in claim(two, "two", 9)] == ["t2"]


def test_an_ended_lease_comes_back_and_its_old_holder_is_told(server: Server) -> None:
    with session(server) as one, session(server) as two:
        call(one, "enqueue_task", "q", "t")
        assert claim(one, "one") == [("a", "t", 1)]
        end_leases(server)
        assert claim(two, "two") == [("a", "t", 2)]
        assert "one" in task(server)[3]
        assert call(one, "extend_task_lease", "q", "t", "one", 1, 60) is False
        assert call(one, "complete_task", "q", "t", "one", 1) is False
        assert call(one, "fail_task", "q", "t", "one", 1, "x") is False
        # Nor by having the right name and the wrong attempt.
        assert call(two, "complete_task", "q", "t", "two", 1) is False
        assert call(two, "complete_task", "q", "t", "two", 2) is True


def test_an_ended_lease_that_nobody_took_still_counts(server: Server) -> None:
    with session(server) as worker:
        call(worker, "enqueue_task", "q", "t")
        claim(worker)
        end_leases(server)
        assert call(worker, "extend_task_lease", "q", "t", "w", 1, 60) is True
        assert claim(worker) == []


@pytest.mark.parametrize("way", ["fails", "kills its worker"])
def test_a_poison_task_ends_dead(server: Server, way: str) -> None:
    with session(server) as worker:
        call(worker, "enqueue_task", "q", "t", None, 0, None, 3)
        for attempt in (1, 2, 3):
            assert claim(worker) == [("a", "t", attempt)]
            if way == "fails":
                assert call(worker, "fail_task", "q", "t", "w", attempt, "boom", 0) is True
            else:
                end_leases(server)
        assert claim(worker) == []
        found = task(server)
        assert found[:3] == ("dead", 3, None)
        assert ("boom" if way == "fails" else "the lease of w ended") in found[3]
        row = worker.execute("SELECT pending, leased, failed, dead FROM task_queue_status")
        assert row.fetchone() == (0, 0, 0, 1)


@pytest.mark.parametrize(("attempts", "seconds"), [(1, 2), (2, 4), (5, 32), (11, 2048), (12, 3600)])
def test_back_off_doubles_up_to_an_hour(server: Server, attempts: int, seconds: int) -> None:
    with session(server) as worker:
        call(worker, "enqueue_task", "q", "t", None, 0, None, 100)
        with server.connect(DATABASE) as connection:
            connection.execute(
                "UPDATE elsa_runtime.task_queue_state SET attempts = %s", (attempts - 1,)
            )
        claim(worker)
        assert call(worker, "fail_task", "q", "t", "w", attempts, "x") is True
        assert claim(worker) == []
        wait = server.value(
            "SELECT extract(epoch FROM available_at - updated_at)::float8"
            " FROM elsa_runtime.task_queue_state",
            database=DATABASE,
        )
        assert wait == pytest.approx(seconds, abs=0.5)


def test_a_host_claims_across_tenants_and_completes_in_each_tenants_name(server: Server) -> None:
    for tenant in ("a", "b"):
        with session(server, "elsa_app", tenant) as connection:
            call(connection, "enqueue_task", "q", "t")
    with session(server, "elsa_host", None) as host:
        assert sorted(claim(host)) == [("a", "t", 1), ("b", "t", 1)]
        host.execute("SELECT set_config('app.current_tenant_id', 'b', false)")
        assert call(host, "complete_task", "q", "t", "w", 1) is True
    assert (task(server, "t", "a")[0], task(server, "t", "b")[0]) == ("leased", "done")


@pytest.mark.parametrize("tenant", [None, ""])
def test_without_a_tenant_there_is_nothing_to_do(server: Server, tenant: str | None) -> None:
    with session(server) as owner:
        call(owner, "enqueue_task", "q", "t")
    with session(server, tenant=tenant) as worker:
        assert claim(worker) == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            call(worker, "enqueue_task", "q", "t2")


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("SELECT elsa_runtime.claim_tasks(NULL, 'w', 1, 1)", "queue_name and worker_id"),
        ("SELECT elsa_runtime.claim_tasks('q', NULL, 1, 1)", "queue_name and worker_id"),
        ("SELECT elsa_runtime.claim_tasks('q', 'w', 0, 1)", "limit must be 1 to 1000, not 0"),
        ("SELECT elsa_runtime.claim_tasks('q', 'w', NULL, 1)", "not NULL"),
        ("SELECT elsa_runtime.claim_tasks('q', 'w', 1, 0)", "1 to 86400, not 0"),
        ("SELECT elsa_runtime.claim_tasks('q', 'w', 1, 86401)", "1 to 86400"),
        ("SELECT elsa_runtime.extend_task_lease('q', 't', 'w', 1, -1)", "1 to 86400"),
        ("SELECT elsa_runtime.fail_task('q', 't', 'w', 1, 'x', -1)", "must not be negative: -1"),
        ("SELECT elsa_runtime.enqueue_task('', 't')", "queue_name_check"),
        ("SELECT elsa_runtime.enqueue_task('q', '')", "task_id_check"),
        ("SELECT elsa_runtime.enqueue_task(NULL, 't')", "not-null"),
        ("SELECT elsa_runtime.enqueue_task('q', 't', p_max_attempts => 0)", "attempts_check"),
    ],
)
def test_what_cannot_be_meant_is_refused(server: Server, statement: str, says: str) -> None:
    with session(server) as connection, pytest.raises(psycopg.Error, match=says):
        connection.execute(statement.encode())


@pytest.mark.parametrize(
    "change",
    [
        "state = 'leased'",
        "leased_by = 'w'",
        "state = 'leased', leased_by = 'w'",
        "state = 'lost'",
        "attempts = 6",
        "attempts = -1",
    ],
)
def test_a_write_around_the_functions_keeps_the_rules(server: Server, change: str) -> None:
    with session(server) as connection:
        call(connection, "enqueue_task", "q", "t")
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(f"UPDATE elsa_runtime.task_queue_state SET {change}".encode())


@pytest.mark.parametrize(
    ("role", "index"),
    [
        ("elsa_worker", "idx_task_queue_state_tenant_claim"),
        ("elsa_host", "idx_task_queue_state_claim"),
    ],
)
def test_a_claim_reads_an_index_in_order(server: Server, role: str, index: str) -> None:
    with server.connect(DATABASE) as connection:
        connection.execute(
            "INSERT INTO elsa_runtime.task_queue_state"
            " (queue_name, task_id, tenant_id, priority, state)"
            " SELECT 'q' || n % 5, n, 'tenant-' || n % 20, n % 4,"
            " CASE WHEN n % 10 = 0 THEN 'pending' ELSE 'done' END"
            " FROM generate_series(1, 60000) AS n"
        )
        connection.execute("ANALYZE elsa_runtime.task_queue_state")
        connection.execute(f"SET LOCAL ROLE {role}".encode())
        connection.execute("SELECT set_config('app.current_tenant_id', 'tenant-0', true)")
        plan = "\n".join(
            row[0]
            for row in connection.execute(
                "EXPLAIN SELECT task_id FROM elsa_runtime.task_queue_state AS t"
                " WHERE t.queue_name = 'q0' AND t.state IN ('pending', 'failed')"
                " AND t.available_at <= clock_timestamp()"
                " ORDER BY t.priority DESC, t.available_at LIMIT 10"
                " FOR NO KEY UPDATE SKIP LOCKED"
            ).fetchall()
        )
        connection.rollback()
    assert f"Index Scan using {index} " in plan
    assert "Sort" not in plan


class Model:
    """What the functions should do, told by a dictionary: task -> [state, attempts, holder].

    "ended" is a lease that has ended and that no claim has taken back yet.
    """

    LIMIT = 3

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.tasks: dict[str, list[Any]] = {}

    def enqueue(self, name: str, worker: str, attempt: int) -> None:
        added = call(self.connection, "enqueue_task", "q", name, None, 0, None, self.LIMIT)
        assert added is (name not in self.tasks)
        self.tasks.setdefault(name, ["pending", 0, None])

    def claim(self, name: str, worker: str, attempt: int) -> None:
        expected = {}
        for each, row in self.tasks.items():
            if row[0] == "ended":
                row[0], row[2] = self._after(row[1]), None
            if row[0] in ("pending", "failed"):
                row[:] = ["leased", row[1] + 1, worker]
                expected[each] = row[1]
        assert {row[1]: row[2] for row in claim(self.connection, worker)} == expected

    def complete(self, name: str, worker: str, attempt: int) -> None:
        done = call(self.connection, "complete_task", "q", name, worker, attempt)
        self._expect(done, name, worker, attempt, ["done", attempt, None])

    def fail(self, name: str, worker: str, attempt: int) -> None:
        done = call(self.connection, "fail_task", "q", name, worker, attempt, "x", 0)
        self._expect(done, name, worker, attempt, [self._after(attempt), attempt, None])

    def extend(self, name: str, worker: str, attempt: int) -> None:
        done = call(self.connection, "extend_task_lease", "q", name, worker, attempt, 60)
        self._expect(done, name, worker, attempt, ["leased", attempt, worker])

    def end(self, name: str, worker: str, attempt: int) -> None:
        self.connection.execute(
            "UPDATE elsa_runtime.task_queue_state SET lease_expires_at = clock_timestamp()"
            " WHERE state = 'leased' AND task_id = %s",
            (name,),
        )
        if name in self.tasks and self.tasks[name][0] == "leased":
            self.tasks[name][0] = "ended"

    def check(self) -> None:
        rows = self.connection.execute(
            "SELECT task_id, CASE WHEN lease_expires_at <= clock_timestamp() THEN 'ended'"
            " ELSE state END, attempts, leased_by FROM elsa_runtime.task_queue_state"
        ).fetchall()
        assert {row[0]: list(row[1:]) for row in rows} == self.tasks

    def _after(self, attempt: int) -> str:
        return "failed" if attempt < self.LIMIT else "dead"

    def _expect(self, done: bool, name: str, worker: str, attempt: int, then: list[Any]) -> None:
        known = self.tasks.get(name)
        held = known in (["leased", attempt, worker], ["ended", attempt, worker])
        assert done is held
        if held:
            self.tasks[name] = then


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    operations=st.lists(
        st.tuples(
            st.sampled_from(["enqueue", "claim", "complete", "fail", "extend", "end"]),
            st.sampled_from(["t0", "t1", "t2"]),
            st.sampled_from(["w0", "w1"]),
            st.integers(0, 4),  # the attempt that the worker believes to have
        ),
        max_size=25,
    )
)
def test_whatever_workers_do_a_task_is_its_lease_holders(
    server: Server, operations: list[tuple[str, str, str, int]]
) -> None:
    with session(server) as connection:
        connection.autocommit = False
        connection.execute("SELECT set_config('app.current_tenant_id', 'a', true)")
        model = Model(connection)
        for kind, *arguments in operations:
            getattr(model, kind)(*arguments)
            model.check()
        connection.rollback()
