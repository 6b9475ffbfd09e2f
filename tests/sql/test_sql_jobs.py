"""Scheduled jobs: pg_cron runs them as elsa_jobs in their database, each slot exactly once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sql_server import Server

pytestmark = pytest.mark.docker

DATABASE = "elsa_runtime"


@contextmanager
def as_jobs(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """A session with the rights of a job. elsa_jobs itself cannot log in from outside."""
    with server.connect(DATABASE, autocommit=True) as connection:
        connection.execute("SET SESSION AUTHORIZATION elsa_jobs")
        yield connection


@pytest.fixture
def job(server: Server) -> Iterator[str]:
    """A minutely job that pg_cron does not know, promised for the last ten minutes."""
    with server.connect(DATABASE) as connection:
        connection.execute(
            "CREATE TABLE elsa_jobs.effect (at timestamptz DEFAULT clock_timestamp())"
        )
        connection.execute("GRANT SELECT, INSERT ON elsa_jobs.effect TO elsa_jobs")
        connection.execute(
            "INSERT INTO elsa_jobs.job (database, name, schedule, command, catch_up, since)"
            " VALUES ('elsa_runtime', 'test-job', '* * * * *',"
            " 'INSERT INTO elsa_jobs.effect DEFAULT VALUES', '1 hour',"
            " date_trunc('minute', now()) - interval '10 minutes')"
        )
    yield "test-job"
    with server.connect(DATABASE) as connection:
        connection.execute("DELETE FROM elsa_jobs.job WHERE name = 'test-job'")
        connection.execute("DELETE FROM elsa_jobs.run WHERE job = 'test-job'")
        connection.execute("DROP TABLE elsa_jobs.effect")


def one(connection: psycopg.Connection[Any], query: str, *parameters: Any) -> Any:
    row = connection.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row[0]


def effects(server: Server) -> int:
    return int(server.value("SELECT count(*) FROM elsa_jobs.effect", database=DATABASE))


def test_missed_slots_are_run_once_and_marked(server: Server, job: str) -> None:
    with as_jobs(server) as connection:
        ran = one(connection, "SELECT elsa_jobs.run_due(%s)", job)
        assert ran in (11, 12)  # the clock may pass a minute meanwhile
        assert effects(server) == ran
        again = one(connection, "SELECT elsa_jobs.run_due(%s)", job)
        assert again in (0, 1)
        late = one(
            connection, "SELECT count(*) FROM elsa_jobs.run WHERE job = %s AND caught_up", job
        )
        assert late >= 10


def test_one_lost_slot_is_filled_at_the_next_tick(server: Server, job: str) -> None:
    with as_jobs(server) as connection:
        one(connection, "SELECT elsa_jobs.run_due(%s)", job)
        connection.execute(
            "DELETE FROM elsa_jobs.run WHERE job = %s"
            " AND slot = date_trunc('minute', now()) - interval '3 minutes'",
            (job,),
        )
        before = effects(server)
        assert one(connection, "SELECT elsa_jobs.run_due(%s)", job) in (1, 2)
        assert effects(server) > before


def test_slots_beyond_the_window_and_before_since_are_left(server: Server, job: str) -> None:
    with server.connect(DATABASE) as connection:
        connection.execute(
            "UPDATE elsa_jobs.job SET catch_up = '3 minutes' WHERE name = %s", (job,)
        )
    with as_jobs(server) as connection:
        assert one(connection, "SELECT elsa_jobs.run_due(%s)", job) in (3, 4)


def test_a_slot_never_runs_twice_even_at_once(server: Server, job: str) -> None:
    slot = server.value("SELECT date_trunc('minute', now()) - interval '5 minutes'")
    answers: list[Any] = []
    barrier = threading.Barrier(8)

    def run() -> None:
        with as_jobs(server) as connection:
            barrier.wait()
            answers.append(one(connection, "SELECT elsa_jobs.run_slot(%s, %s)", job, slot))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 7 + [True]
    assert effects(server) == 1


def test_a_run_that_is_rolled_back_leaves_its_slot_due(server: Server, job: str) -> None:
    slot = server.value("SELECT date_trunc('minute', now()) - interval '5 minutes'")
    with as_jobs(server) as connection:
        with connection.transaction(force_rollback=True):  # as a crash would
            assert one(connection, "SELECT elsa_jobs.run_slot(%s, %s)", job, slot)
        assert effects(server) == 0
        assert one(connection, "SELECT elsa_jobs.run_slot(%s, %s)", job, slot)
    assert effects(server) == 1


def test_a_failing_job_is_written_down_tried_again_and_holds_up_no_other(
    server: Server, job: str
) -> None:
    with server.connect(DATABASE) as connection:
        connection.execute(
            "INSERT INTO elsa_jobs.job (database, name, schedule, command, since)"
            " VALUES ('elsa_runtime', 'a-failing-job', '* * * * *', 'SELECT 1 / 0',"
            " date_trunc('minute', now()) - interval '5 minutes')"
        )
    try:
        with as_jobs(server) as connection:
            connection.execute("SET client_min_messages = error")
            with pytest.raises(psycopg.errors.DivisionByZero):
                connection.execute("SELECT elsa_jobs.run_due('a-failing-job')")
            for _ in range(2):
                connection.execute("SELECT elsa_jobs.catch_up()")
            rows = connection.execute(
                "SELECT attempts, error, finished_at FROM elsa_jobs.run"
                " WHERE job = 'a-failing-job' ORDER BY slot LIMIT 1"
            ).fetchall()
            assert rows == [(2, "22012 division by zero", None)]
        assert effects(server) >= 8
        with server.connect(DATABASE, "monitoring") as connection:
            status = connection.execute(
                "SELECT last_error FROM elsa_jobs.status WHERE job = 'a-failing-job'"
            ).fetchall()
            assert status == [("22012 division by zero",)]
    finally:
        with server.connect(DATABASE) as connection:
            connection.execute("DELETE FROM elsa_jobs.job WHERE name = 'a-failing-job'")
            connection.execute("DELETE FROM elsa_jobs.run WHERE job = 'a-failing-job'")


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        ("no-such-job", "date_trunc('minute', now())"),
        (
            "elsapg-heartbeat",
            "date_trunc('minute', now()) + interval '7 seconds' - interval '1 hour'",
        ),
        ("elsapg-heartbeat", "date_trunc('minute', now()) + interval '5 minutes'"),
        ("elsapg-heartbeat", "NULL"),
    ],
)
def test_only_past_slots_of_known_jobs_run(server: Server, name: str, slot: str) -> None:
    with (
        as_jobs(server) as connection,
        pytest.raises((psycopg.errors.UndefinedObject, psycopg.errors.InvalidParameterValue)),
    ):
        connection.execute(f"SELECT elsa_jobs.run_slot(%s, {slot})".encode(), (name,))


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
@pytest.mark.parametrize(
    ("schedule", "newest"),
    [
        ("30 3 * * *", "03:30"),
        ("15 * * * *", ":15"),
        ("*/5 * * * *", None),
        ("* * * * *", None),
    ],
)
def test_slots_follow_the_schedule_in_utc_whatever_the_session_says(
    server: Server, job: str, schedule: str, newest: str | None, zone: str
) -> None:
    with server.connect(DATABASE) as connection:
        connection.execute(
            "UPDATE elsa_jobs.job SET schedule = %s, since = now() - interval '25 hours',"
            " catch_up = '1 day' WHERE name = %s",
            (schedule, job),
        )
    with as_jobs(server) as connection:
        connection.execute("SELECT set_config('TimeZone', %s, false)", (zone,))
        slots = [
            row[0]
            for row in connection.execute(
                "SELECT to_char(s AT TIME ZONE 'UTC', 'HH24:MI:SS')"
                " FROM elsa_jobs.due_slots(%s) AS s",
                (job,),
            )
        ]
    expected = {"30 3 * * *": (1,), "15 * * * *": (24,), "*/5 * * * *": (288,)}
    assert len(slots) in expected.get(schedule, (1440, 1441))
    assert all(slot.endswith(":00") for slot in slots)
    if newest is not None:
        assert all(newest in slot for slot in slots)


@pytest.mark.parametrize(
    "schedule", ["0 2 * * 1", "60 * * * *", "*/7 * * * *", "@daily", "0 2 1 * *"]
)
def test_a_schedule_that_the_ledger_cannot_follow_is_refused(server: Server, schedule: str) -> None:
    with (
        server.connect(DATABASE) as connection,
        pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.DataError)),
    ):
        connection.execute(
            "INSERT INTO elsa_jobs.job (database, name, schedule, command)"
            " VALUES ('elsa_runtime', 'x', %s, '')",
            (schedule,),
        )


def test_pg_cron_has_exactly_the_jobs_of_the_list(server: Server) -> None:
    wanted = server.rows("SELECT cron_name, schedule, database FROM elsa_jobs.job ORDER BY 1")
    found = server.rows(
        "SELECT jobname, schedule, database FROM cron.job WHERE username = 'elsa_jobs' ORDER BY 1"
    )
    assert found == wanted
    assert wanted
    for database in ("elsa_workflows", "elsa_runtime"):
        assert (
            server.rows(
                "SELECT cron_name, schedule, database FROM elsa_jobs.job ORDER BY 1",
                database=database,
            )
            == wanted
        )


def test_pruning_keeps_seven_days(server: Server) -> None:
    with server.connect("postgres", autocommit=True) as connection:
        connection.execute(
            "INSERT INTO cron.job_run_details (jobid, runid, status, start_time, end_time)"
            " VALUES (1, -1, 'succeeded', now() - interval '8 days', now() - interval '8 days'),"
            " (1, -2, 'succeeded', now() - interval '6 days', now() - interval '6 days')"
        )
        connection.execute(
            "INSERT INTO elsa_jobs.run (job, slot, started_at, finished_at)"
            " VALUES ('old', now() - interval '8 days', now(), now()),"
            " ('old', now() - interval '6 days', now(), now())"
        )
        connection.execute("SET ROLE elsa_jobs")
        connection.execute("SELECT elsa_jobs.prune()")
        connection.execute("RESET ROLE")
        assert one(connection, "SELECT count(*) FROM elsa_jobs.run WHERE job = 'old'") == 1
        rows = connection.execute("SELECT runid FROM cron.job_run_details WHERE runid < 0")
        assert rows.fetchall() == [(-2,)]
        connection.execute("DELETE FROM cron.job_run_details WHERE runid < 0")
        connection.execute("DELETE FROM elsa_jobs.run WHERE job = 'old'")


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly", "elsa_admin"])
def test_nobody_but_the_jobs_may_run_or_change_them(server: Server, role: str) -> None:
    for statement in (
        "SELECT elsa_jobs.run_due('elsapg-heartbeat')",
        "UPDATE elsa_jobs.job SET command = 'DROP TABLE x'",
        "DELETE FROM elsa_jobs.run",
    ):
        with (
            server.connect(DATABASE, role) as connection,
            pytest.raises(
                (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)
            ),
        ):
            connection.execute(statement.encode())


def test_the_jobs_role_cannot_log_in_or_schedule(server: Server) -> None:
    with pytest.raises(psycopg.OperationalError):
        server.connect("postgres", "elsa_jobs", password="")
    with as_jobs(server) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("UPDATE elsa_jobs.job SET command = 'SELECT 2'")
    with server.connect("postgres") as connection:
        connection.execute("SET ROLE elsa_jobs")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT cron.schedule('mine', '* * * * *', 'SELECT 1')")


@pytest.mark.slow
@pytest.mark.parametrize("database", ["elsa_workflows", "elsa_runtime"])
def test_the_heartbeat_beats_in_its_database_as_elsa_jobs(server: Server, database: str) -> None:
    deadline = time.monotonic() + 130
    beats: list[Any] = []
    while not beats and time.monotonic() < deadline:
        time.sleep(1)
        beats = server.rows(
            "SELECT slot FROM elsa_jobs.run WHERE job = 'elsapg-heartbeat'"
            " AND finished_at IS NOT NULL AND slot = date_trunc('minute', slot)",
            database=database,
        )
    assert beats
    with server.connect("elsa_runtime", "monitoring") as connection:
        assert one(connection, "SELECT count(*) FROM elsa_jobs.status") == 3
    with server.connect("postgres", "monitoring") as connection:
        runs = connection.execute(
            "SELECT DISTINCT username, status FROM elsa_jobs.cron_run WHERE database = %s"
            " AND jobname LIKE 'elsapg-heartbeat%%' AND status <> 'running'",
            (database,),
        ).fetchall()
    assert runs == [("elsa_jobs", "succeeded")]
