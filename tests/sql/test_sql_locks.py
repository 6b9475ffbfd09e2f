"""Distributed locks under contention: never two holders, tokens that only grow."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sql_server import Server

pytestmark = pytest.mark.docker

LEVELS = ["read committed", "repeatable read", "serializable"]
ZONES = ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Asia/Kolkata"]
CLIENTS = 32


@contextmanager
def client(
    server: Server, level: str = "read committed", zone: str = "UTC", role: str = "elsa_worker"
) -> Iterator[psycopg.Connection[Any]]:
    with server.connect("elsa_runtime", role, autocommit=True) as connection:
        connection.execute(
            "SELECT set_config('default_transaction_isolation', %s, false)", (level,)
        )
        connection.execute("SELECT set_config('TimeZone', %s, false)", (zone,))
        yield connection


def call(connection: psycopg.Connection[Any], function: str, *arguments: Any) -> Any:
    marks = ", ".join(["%s"] * len(arguments))
    row = connection.execute(
        f"SELECT elsa_runtime.{function}({marks})".encode(), arguments
    ).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture
def resource() -> str:
    return f"resource-{random.getrandbits(64):x}"


@pytest.mark.parametrize("zone", [*ZONES[:3], "mixed"])
@pytest.mark.parametrize("level", [*LEVELS, "mixed"])
def test_32_clients_never_overlap_and_tokens_grow(
    server: Server, resource: str, level: str, zone: str
) -> None:
    """Each holder notes when it was told yes and when it began to let go, by one clock."""
    held: list[tuple[float, float, int]] = []
    problems: list[str] = []
    begin = threading.Barrier(CLIENTS)

    def work(number: int) -> None:
        own = LEVELS[number % 3] if level == "mixed" else level
        there = ZONES[number % len(ZONES)] if zone == "mixed" else zone
        try:
            with client(server, own, there) as connection:
                begin.wait(60)
                began = time.monotonic()
                # On a machine that has other work, until there is something to compare.
                while (spent := time.monotonic() - began) < 2 or (len(held) <= 5 and spent < 60):
                    lock = f"{number}-{time.monotonic_ns()}"
                    try:
                        token = call(
                            connection, "acquire_fenced_lock", resource, lock, f"w{number}", 30
                        )
                    except psycopg.errors.SerializationFailure:
                        continue  # SERIALIZABLE may refuse a commit; then nothing is held
                    if token is None:
                        time.sleep(random.uniform(0, 0.02))
                        continue
                    taken = time.monotonic()
                    time.sleep(random.uniform(0, 0.01))
                    held.append((taken, time.monotonic(), token))
                    while True:
                        try:
                            if not call(connection, "release_lock", resource, lock, f"w{number}"):
                                problems.append(f"{number} lost a lock that had 30 s")
                            break
                        except psycopg.errors.SerializationFailure:
                            continue
        except Exception as error:
            problems.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    held.sort()
    assert len(held) > 5
    for earlier, later in itertools.pairwise(held):
        assert earlier[1] <= later[0], "two holders at once"
        assert earlier[2] < later[2], "a later holder has a lower token"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("zone", ZONES)
def test_a_session_in_another_zone_or_level_cannot_steal(
    server: Server, resource: str, level: str, zone: str
) -> None:
    with client(server) as holder, client(server, level, zone) as thief:
        assert call(holder, "acquire_lock", resource, "one", "me", 60) is True
        assert call(thief, "acquire_lock", resource, "two", "thief", 60) is False
        assert call(thief, "renew_lock", resource, "two", "thief", 60) is False
        assert call(thief, "release_lock", resource, "one", "thief") is False
        assert call(thief, "acquire_lock", resource, "one", "thief", 60) is False
        assert call(holder, "release_lock", resource, "one", "me") is True
        assert call(thief, "acquire_lock", resource, "two", "thief", 60) is True


@pytest.mark.parametrize("level", LEVELS)
def test_an_uncommitted_holder_is_answered_at_once(
    server: Server, resource: str, level: str
) -> None:
    with client(server) as holder, client(server, level) as other, holder.transaction():
        assert call(holder, "acquire_lock", resource, "one", "me", 60)
        other.execute("SET statement_timeout = '2s'")
        assert call(other, "acquire_lock", resource, "two", "other", 60) is False


@pytest.mark.parametrize("level", LEVELS)
def test_a_refused_try_in_an_open_transaction_blocks_nobody(
    server: Server, resource: str, level: str
) -> None:
    with client(server) as holder, client(server, level) as other:
        assert call(holder, "acquire_lock", resource, "one", "me", 60)
        holder.execute("SET statement_timeout = '2s'")
        with other.transaction():
            assert call(other, "acquire_lock", resource, "two", "other", 60) is False
            assert call(holder, "renew_lock", resource, "one", "me", 60) is True
            assert call(holder, "release_lock", resource, "one", "me") is True


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_an_old_snapshot_gets_no_instead_of_an_error(
    server: Server, resource: str, level: str
) -> None:
    with client(server) as holder, client(server, level) as other, other.transaction():
        other.execute("SELECT 1")  # takes the snapshot
        assert call(holder, "acquire_lock", resource, "one", "me", 60) is True
        assert call(other, "acquire_lock", resource, "two", "other", 60) is False


def test_a_lock_is_not_born_expired_in_an_old_transaction(server: Server, resource: str) -> None:
    # The table is elsa_host's to read.
    with client(server, role="elsa_host") as connection, connection.transaction():
        connection.execute("SELECT pg_sleep(1.2)")
        assert call(connection, "acquire_lock", resource, "one", "me", 1)
        row = connection.execute(
            "SELECT expires_at > clock_timestamp() FROM elsa_runtime.distributed_locks"
            " WHERE resource_name = %s",
            (resource,),
        ).fetchone()
        assert row == (True,)


def test_an_expired_lock_goes_to_the_next_with_a_higher_token(
    server: Server, resource: str
) -> None:
    with client(server) as connection:
        first = call(connection, "acquire_fenced_lock", resource, "one", "me", 1)
        assert call(connection, "acquire_fenced_lock", resource, "one", "me", 1) == first
        time.sleep(1.1)
        assert call(connection, "renew_lock", resource, "one", "me", 60) is False
        second = call(connection, "acquire_fenced_lock", resource, "two", "other", 60)
        assert second > first
        assert call(connection, "release_lock", resource, "one", "me") is False


def test_the_same_holder_after_expiry_gets_a_new_token(server: Server, resource: str) -> None:
    # In between somebody else might have held it and written.
    with client(server) as connection:
        first = call(connection, "acquire_fenced_lock", resource, "one", "me", 1)
        time.sleep(1.1)
        assert call(connection, "acquire_fenced_lock", resource, "one", "me", 1) > first


def test_renewing_moves_the_end(server: Server, resource: str) -> None:
    with client(server) as connection:
        call(connection, "acquire_lock", resource, "one", "me", 1)
        assert call(connection, "renew_lock", resource, "one", "me", 60) is True
        time.sleep(1.1)
        assert call(connection, "acquire_lock", resource, "two", "other", 60) is False


@pytest.mark.parametrize(
    ("arguments", "state", "says"),
    [
        ((None, "l", "w", 1), "22004", "resource_name must not be NULL"),
        (("r", None, "w", 1), "22004", "lock_id"),
        (("r", "l", None, 1), "22004", "locked_by"),
        (("r", "l", "w", None), "22004", "duration_seconds"),
        (("", "l", "w", 1), "22023", "1 to 255 characters"),
        (("r" * 256, "l", "w", 1), "22023", "1 to 255 characters"),
        (("r", "l", "w", 0), "22023", "1 to 86400"),
        (("r", "l", "w", -5), "22023", "1 to 86400"),
        (("r", "l", "w", 86401), "22023", "1 to 86400"),
        (("r", "l", "w", 2147483647), "22023", "1 to 86400"),
    ],
)
@pytest.mark.parametrize("function", ["acquire_lock", "renew_lock"])
def test_what_cannot_be_meant_is_refused(
    server: Server, function: str, arguments: tuple[Any, ...], state: str, says: str
) -> None:
    with client(server) as connection, pytest.raises(psycopg.Error, match=says) as caught:
        call(connection, function, *arguments)
    assert caught.value.sqlstate == state


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE elsa_runtime.distributed_locks SET locked_by = 'thief'",
        "DELETE FROM elsa_runtime.distributed_locks",
        "INSERT INTO elsa_runtime.distributed_locks VALUES ('r', 'l', 'w', now(), now(), 1)",
        "SELECT nextval('elsa_runtime.fencing_token_seq')",
    ],
)
def test_there_is_no_way_around_the_functions(server: Server, role: str, statement: str) -> None:
    with (
        client(server, role=role) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


def test_reports_cannot_lock(server: Server, resource: str) -> None:
    with (
        client(server, role="elsa_readonly") as connection,
        pytest.raises(
            (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)
        ),
    ):
        call(connection, "acquire_lock", resource, "one", "me", 1)


# --- crashes, open transactions, ends -----------------------------------------------------------


def test_a_crashed_holders_lock_lasts_until_its_end(server: Server, resource: str) -> None:
    with client(server) as other:
        with client(server) as holder:
            assert call(holder, "acquire_lock", resource, "one", "me", 2) is True
            server.value("SELECT pg_terminate_backend(%s)", (holder.info.backend_pid,))
        assert call(other, "acquire_lock", resource, "two", "other", 60) is False
        deadline = time.monotonic() + 10
        while not call(other, "acquire_lock", resource, "two", "other", 60):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_crash_before_the_commit_leaves_no_lock(server: Server, resource: str) -> None:
    with client(server) as other:
        with client(server) as holder:
            holder.execute("BEGIN")
            assert call(holder, "acquire_lock", resource, "one", "me", 60) is True
            server.value("SELECT pg_terminate_backend(%s, 5000)", (holder.info.backend_pid,))
            holder.close()
        assert call(other, "acquire_lock", resource, "two", "other", 60) is True


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("known", [True, False])
def test_a_lease_that_ends_in_an_open_transaction_is_nobodys_until_it_commits(
    server: Server, resource: str, level: str, known: bool
) -> None:
    with client(server) as holder, client(server, level) as other:
        if known:  # the name has a row already
            call(holder, "acquire_lock", resource, "zero", "me", 60)
            call(holder, "release_lock", resource, "zero", "me")
        other.execute("SET statement_timeout = '2s'")
        with holder.transaction():
            assert call(holder, "acquire_lock", resource, "one", "me", 1) is True
            holder.execute("SELECT pg_sleep(1.1)")
            assert call(other, "acquire_lock", resource, "two", "other", 60) is False
        assert call(holder, "renew_lock", resource, "one", "me", 60) is False
        assert call(other, "acquire_lock", resource, "two", "other", 60) is True


@pytest.mark.parametrize("change", ["renew_lock", "release_lock"])
def test_nobody_waits_for_a_holder_that_is_slow_to_commit(
    server: Server, resource: str, change: str
) -> None:
    """Also not once the lease that others still see has ended."""
    with client(server) as holder, client(server) as other:
        other.execute("SET statement_timeout = '2s'")
        assert call(holder, "acquire_lock", resource, "one", "me", 1) is True
        with holder.transaction():
            more = (60,) if change == "renew_lock" else ()
            assert call(holder, change, resource, "one", "me", *more) is True
            assert call(other, "acquire_lock", resource, "two", "other", 60) is False
            holder.execute("SELECT pg_sleep(1.1)")
            assert call(other, "acquire_lock", resource, "two", "other", 60) is False
        assert call(other, "acquire_lock", resource, "two", "other", 60) is (
            change == "release_lock"
        )


def test_a_rolled_back_release_releases_nothing(server: Server, resource: str) -> None:
    with client(server) as holder, client(server) as other:
        assert call(holder, "acquire_lock", resource, "one", "me", 60) is True
        with holder.transaction(force_rollback=True):
            assert call(holder, "release_lock", resource, "one", "me") is True
        assert call(other, "acquire_lock", resource, "two", "other", 60) is False
        assert call(holder, "renew_lock", resource, "one", "me", 60) is True


@pytest.mark.parametrize("stranger", [("one", "other"), ("two", "me"), ("two", "other")])
def test_a_stranger_can_neither_renew_nor_release(
    server: Server, resource: str, stranger: tuple[str, str]
) -> None:
    with client(server) as connection:
        assert call(connection, "acquire_lock", resource, "one", "me", 60) is True
        assert call(connection, "acquire_lock", resource, *stranger, 60) is False
        assert call(connection, "renew_lock", resource, *stranger, 60) is False
        assert call(connection, "release_lock", resource, *stranger) is False
        assert call(connection, "renew_lock", resource, "one", "me", 60) is True


def test_a_no_writes_nothing(server: Server, resource: str) -> None:
    with client(server) as holder, client(server) as other, other.transaction():
        assert call(holder, "acquire_lock", resource, "one", "me", 60) is True
        assert call(other, "acquire_lock", resource, "two", "other", 60) is False
        assert call(other, "renew_lock", resource, "two", "other", 60) is False
        assert call(other, "release_lock", resource, "two", "other") is False
        row = other.execute("SELECT pg_current_xact_id_if_assigned()").fetchone()
        assert row == (None,)


# --- arguments ----------------------------------------------------------------------------------

# PostgreSQL has no NUL in text, and no lone surrogates in UTF-8.
NAMES = st.none() | st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300),
    st.sampled_from(["", " ", "x" * 255, "x" * 256, "ä" * 255, "\N{GRINNING FACE}" * 255]),
)
SECONDS = st.none() | st.one_of(
    st.integers(-(2**31), 2**31 - 1), st.sampled_from([0, 1, 86400, 86401])
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.tuples(NAMES, NAMES, NAMES),
    seconds=SECONDS,
    level=st.sampled_from(LEVELS),
    zone=st.sampled_from(ZONES),
)
def test_every_argument_is_either_meant_or_refused(
    server: Server,
    names: tuple[str | None, str | None, str | None],
    seconds: int | None,
    level: str,
    zone: str,
) -> None:
    missing = None in names or seconds is None
    wrong = any(n is not None and not 1 <= len(n) <= 255 for n in names) or (
        seconds is not None and not 1 <= seconds <= 86400
    )
    with client(server, level, zone, "elsa_host") as connection:
        if missing or wrong:
            for function in ("acquire_lock", "acquire_fenced_lock", "renew_lock"):
                with pytest.raises(psycopg.Error) as caught:
                    call(connection, function, *names, seconds)
                assert caught.value.sqlstate in {"22004"} | ({"22023"} if wrong else set())
                assert missing or caught.value.sqlstate == "22023"
            return
        assert call(connection, "acquire_lock", *names, seconds) is True
        row = connection.execute(
            "SELECT extract(epoch FROM expires_at - clock_timestamp())::float8"
            " FROM elsa_runtime.distributed_locks WHERE resource_name = %s",
            (names[0],),
        ).fetchone()
        assert row is not None
        assert seconds - 5 < row[0] <= seconds
        assert call(connection, "renew_lock", *names, seconds) is True
        assert call(connection, "release_lock", *names) is True
        assert call(connection, "release_lock", *names) is False


# --- storage ------------------------------------------------------------------------------------


def test_a_lock_is_updated_in_place(server: Server, resource: str) -> None:
    def counted() -> tuple[int, int]:
        return server.rows(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
            " WHERE relid = 'elsa_runtime.distributed_locks'::regclass",
            database="elsa_runtime",
        )[0]

    with client(server) as connection:
        call(connection, "acquire_lock", resource, "one", "me", 60)
        connection.execute("SELECT pg_stat_force_next_flush()")
        before = counted()
        for _ in range(100):
            assert call(connection, "release_lock", resource, "one", "me")
            assert call(connection, "acquire_lock", resource, "one", "me", 60)
        connection.execute("SELECT pg_stat_force_next_flush()")
        after = counted()
    assert after[0] - before[0] == 200
    assert after[1] - before[1] == 200


def test_the_purge_reads_the_index_on_expires_at(server: Server) -> None:
    with server.connect("elsa_runtime") as connection:
        connection.execute(
            "INSERT INTO elsa_runtime.distributed_locks"
            " (resource_name, lock_id, locked_by, expires_at)"
            " SELECT 'plan-' || n, 'l', 'w', now() - make_interval(mins => 50000 - n)"
            " FROM generate_series(1, 50000) AS n"
        )
        connection.execute(
            "SELECT brin_summarize_new_values('elsa_runtime.idx_distributed_locks_expires_at')"
        )
        connection.execute("ANALYZE elsa_runtime.distributed_locks")
        rows = connection.execute(
            "EXPLAIN SELECT ctid FROM elsa_runtime.distributed_locks"
            " WHERE expires_at < now() - interval '34 days' LIMIT 1000 FOR UPDATE SKIP LOCKED"
        ).fetchall()
        connection.rollback()
    assert "on idx_distributed_locks_expires_at" in "\n".join(row[0] for row in rows)
