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


@pytest.fixture(autouse=True, scope="module")
def no_catch_up(server: Server) -> Iterator[None]:
    """What makes up for missed slots every five minutes would do so for this module's jobs too."""
    turn = "UPDATE cron.job SET active = %s WHERE jobname LIKE 'elsapg-catch-up%%'"
    with server.connect("postgres") as connection:
        assert connection.execute(turn, (False,)).rowcount > 0
    yield
    with server.connect("postgres") as connection:
        connection.execute(turn, (True,))


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


@pytest.fixture
def batches(server: Server) -> Iterator[str]:
    """A daily batched job of five rows in batches of two, due since ten minutes ago.

    Each row that it does remembers its transaction. elsa_jobs.effect.fail makes it fail there.
    """
    with server.connect(DATABASE) as connection:
        connection.execute(
            "CREATE TABLE elsa_jobs.effect (id integer, fail boolean DEFAULT false, xact xid8)"
        )
        connection.execute("INSERT INTO elsa_jobs.effect (id) SELECT generate_series(1, 5)")
        connection.execute(
            "CREATE FUNCTION elsa_jobs.effect_batch() RETURNS integer LANGUAGE plpgsql AS $$"
            " DECLARE v_done integer; BEGIN"
            " IF (SELECT bool_or(e.fail) FROM elsa_jobs.effect AS e WHERE e.xact IS NULL"
            "  AND e.id <= 2 + (SELECT coalesce(max(d.id), 0) FROM elsa_jobs.effect AS d"
            "  WHERE d.xact IS NOT NULL)) THEN RAISE division_by_zero; END IF;"
            " UPDATE elsa_jobs.effect AS e SET xact = pg_current_xact_id() WHERE e.id IN"
            "  (SELECT d.id FROM elsa_jobs.effect AS d WHERE d.xact IS NULL ORDER BY d.id LIMIT 2);"
            " GET DIAGNOSTICS v_done = ROW_COUNT; RETURN nullif(v_done, 0); END $$"
        )
        connection.execute("GRANT SELECT, UPDATE ON elsa_jobs.effect TO elsa_jobs")
        connection.execute("GRANT EXECUTE ON FUNCTION elsa_jobs.effect_batch() TO elsa_jobs")
        connection.execute(
            "INSERT INTO elsa_jobs.job"
            " (database, name, schedule, command, batched, catch_up, since)"
            " SELECT 'elsa_runtime', 'test-batches',"
            " to_char(at, 'FMMI FMHH24 * * *'), 'SELECT elsa_jobs.effect_batch()', true, '1 hour',"
            " now() - interval '20 minutes'"
            " FROM (SELECT now() AT TIME ZONE 'UTC' - interval '10 minutes' AS at) AS x"
        )
    yield "test-batches"
    with server.connect(DATABASE) as connection:
        connection.execute("DELETE FROM elsa_jobs.job WHERE name = 'test-batches'")
        connection.execute("DELETE FROM elsa_jobs.run WHERE job = 'test-batches'")
        connection.execute("DROP FUNCTION elsa_jobs.effect_batch()")
        connection.execute("DROP TABLE elsa_jobs.effect")


LEDGER = "SELECT done, attempts, error, finished_at IS NOT NULL FROM elsa_jobs.run WHERE job = %s"
TRANSACTIONS = "SELECT count(xact), count(DISTINCT xact) FROM elsa_jobs.effect"


def test_batches_commit_one_by_one_and_are_counted(server: Server, batches: str) -> None:
    with as_jobs(server) as connection:
        connection.execute("CALL elsa_jobs.run_batches('test-batches')")
        assert connection.execute(LEDGER, (batches,)).fetchall() == [(5, 1, None, True)]
        assert connection.execute(TRANSACTIONS).fetchall() == [(5, 3)]
        connection.execute("CALL elsa_jobs.run_batches('test-batches')")
        assert connection.execute(LEDGER, (batches,)).fetchall() == [(5, 1, None, True)]
    with server.connect(DATABASE, "monitoring") as connection:
        status = connection.execute(
            "SELECT last_done, last_succeeded_at IS NOT NULL, unfinished_since, overdue"
            " FROM elsa_jobs.status WHERE job = %s",
            (batches,),
        ).fetchall()
        assert status == [(5, True, None, False)]


def test_interrupted_batches_go_on_where_they_stopped(server: Server, batches: str) -> None:
    with as_jobs(server) as connection:
        slot = one(connection, "SELECT elsa_jobs.due_slots(%s)", batches)
        assert one(connection, "SELECT elsa_jobs.run_batch(%s, %s)", batches, slot)
        with connection.transaction(force_rollback=True):  # as a crash would
            assert one(connection, "SELECT elsa_jobs.run_batch(%s, %s)", batches, slot)
        assert connection.execute(LEDGER, (batches,)).fetchall() == [(2, 1, None, False)]
        assert one(
            connection,
            "SELECT unfinished_since IS NOT NULL FROM elsa_jobs.status WHERE job = %s", batches,
        )  # fmt: skip
        answers = [one(connection, "SELECT elsa_jobs.catch_up_batch()") for _ in range(3)]
        assert answers == [1, 1, None]
        assert connection.execute(LEDGER, (batches,)).fetchall() == [(5, 1, None, True)]
        assert connection.execute(TRANSACTIONS).fetchall() == [(5, 3)]


def test_a_failing_batch_keeps_those_before_it_and_is_tried_again(
    server: Server, batches: str
) -> None:
    with server.connect(DATABASE, autocommit=True) as connection:
        connection.execute("UPDATE elsa_jobs.effect SET fail = true WHERE id = 4")
        connection.execute("SET SESSION AUTHORIZATION elsa_jobs")
        connection.execute("SET client_min_messages = error")
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("CALL elsa_jobs.run_batches('test-batches')")
        assert connection.execute(LEDGER, (batches,)).fetchall() == [(2, 1, None, False)]
        # Once per catch-up, not for ever.
        assert one(connection, "SELECT elsa_jobs.catch_up_batch()") is None
        assert one(connection, "SELECT elsa_jobs.catch_up_batch()") is None
        error = "22012 division_by_zero"
        assert connection.execute(LEDGER, (batches,)).fetchall() == [(2, 2, error, False)]
        connection.execute("RESET SESSION AUTHORIZATION")
        connection.execute("UPDATE elsa_jobs.effect SET fail = false")
        connection.execute("SET SESSION AUTHORIZATION elsa_jobs")
        connection.execute("CALL elsa_jobs.run_batches('test-batches')")
        assert connection.execute(LEDGER, (batches,)).fetchall() == [(5, 3, None, True)]
        assert connection.execute(TRANSACTIONS).fetchall() == [(5, 3)]


def test_the_first_catch_up_leaves_batches_that_run_elsewhere(server: Server, batches: str) -> None:
    with as_jobs(server) as first, as_jobs(server) as second:
        slot = one(first, "SELECT elsa_jobs.due_slots(%s)", batches)
        with first.transaction():
            assert one(first, "SELECT elsa_jobs.run_batch(%s, %s)", batches, slot)
            assert not one(second, "SELECT elsa_jobs.run_batch(%s, %s)", batches, slot)
            assert one(second, "SELECT elsa_jobs.catch_up_batch()") is None
            second.execute("CALL elsa_jobs.run_batches('test-batches')")
    assert server.rows(TRANSACTIONS, database=DATABASE) == [(2, 1)]


def test_each_kind_of_job_is_run_its_way_only(server: Server, job: str) -> None:
    with as_jobs(server) as connection:
        with pytest.raises(psycopg.errors.WrongObjectType, match="does not run in batches"):
            connection.execute("CALL elsa_jobs.run_batches('test-job')")
        with server.connect(DATABASE) as owner:
            owner.execute("UPDATE elsa_jobs.job SET batched = true WHERE name = 'test-job'")
        with pytest.raises(psycopg.errors.WrongObjectType, match="runs in batches"):
            connection.execute("SELECT elsa_jobs.run_due('test-job')")
    assert effects(server) == 0


def test_the_documents_jobs_are_there_at_their_times(server: Server) -> None:
    jobs = server.rows(
        "SELECT jobname, schedule, database, command FROM cron.job"
        " WHERE jobname ~ '^(cleanup|create|mark)' ORDER BY 1"
    )
    cleanup = "CALL elsa_jobs.run_batches('cleanup-old-data')"
    assert jobs == [
        ("cleanup-old-data", "0 2 * * *", "elsa_workflows", cleanup),
        ("cleanup-old-data@elsa_runtime", "0 2 * * *", "elsa_runtime", cleanup),
        (
            "create-monthly-partitions", "15 0 * * *", "elsa_workflows",
            "SELECT elsa_jobs.run_due('create-monthly-partitions')",
        ),
        (
            "mark-dead-workers@elsa_runtime", "* * * * *", "elsa_runtime",
            "SELECT elsa_jobs.run_due('mark-dead-workers')",
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("database", ["postgres", "elsa_workflows", "elsa_runtime"])
def test_every_command_of_the_list_works_as_elsa_jobs(server: Server, database: str) -> None:
    commands = server.rows(
        "SELECT command FROM elsa_jobs.job WHERE database = current_database()", database=database
    )
    assert commands
    with server.connect(database) as connection:
        connection.execute("SET SESSION AUTHORIZATION elsa_jobs")
        for (command,) in commands:
            connection.execute(command.encode())
        connection.rollback()


@pytest.mark.slow
def test_pg_cron_runs_batches_with_commits(server: Server, batches: str) -> None:
    with server.connect("postgres", autocommit=True) as connection:
        connection.execute(
            "SELECT cron.schedule_in_database('test-batches', '* * * * *',"
            " 'CALL elsa_jobs.run_batches(''test-batches'')', 'elsa_runtime', 'elsa_jobs')"
        )
        try:
            deadline = time.monotonic() + 90
            while server.rows(LEDGER, (batches,), database=DATABASE) != [(5, 1, None, True)]:
                assert time.monotonic() < deadline, server.rows(
                    "SELECT status, return_message FROM elsa_jobs.cron_run"
                    " WHERE jobname = 'test-batches'"
                )
                time.sleep(0.5)
        finally:
            connection.execute(
                "SELECT cron.unschedule(j.jobid) FROM cron.job AS j"
                " WHERE j.jobname = 'test-batches'"
            )
    assert server.rows(TRANSACTIONS, database=DATABASE) == [(5, 3)]


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
        assert one(connection, "SELECT count(*) FROM elsa_jobs.status") == 6
    with server.connect("postgres", "monitoring") as connection:
        runs = connection.execute(
            "SELECT DISTINCT username, status FROM elsa_jobs.cron_run WHERE database = %s"
            " AND jobname LIKE 'elsapg-heartbeat%%' AND status <> 'running'",
            (database,),
        ).fetchall()
    assert runs == [("elsa_jobs", "succeeded")]
