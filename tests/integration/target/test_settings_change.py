"""A changed setting touches only what it must: reload, restart in order, limits in place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.integration.target_stack import Target, eventually

pytestmark = pytest.mark.docker


@contextmanager
def kept_open(target: Target) -> Iterator[list[str]]:
    """One client of each PgBouncer that asks all the time; yields what went wrong."""
    failures: list[str] = []
    stop = threading.Event()
    pools = target.deployment.outputs["pools"]
    uri = target.uri()

    def ask(port: int) -> None:
        try:
            with psycopg.connect(uri, host="127.0.0.1", port=port, autocommit=True) as db:
                while not stop.wait(0.05):
                    db.execute("SELECT 1")
        except psycopg.Error as error:
            failures.append(f"{port}: {error}")

    threads = [threading.Thread(target=ask, args=(pool["port"],)) for pool in pools]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_figures_that_reload_restart_nothing(target: Target) -> None:
    containers, postmasters = target.process_starts(), target.postmasters()
    target.change("postgres", parameters={"work_mem": "5MB"})
    target.change("pooler", reserve_pool_size=7, max_client_conn=900)
    with kept_open(target) as failures:
        output = target.up()
    assert not failures
    assert " replaced" not in output
    assert set(target.setting("work_mem").values()) == {"5MB"}
    for pooler in target.deployment.poolers:
        rows = target.deployment.pooler_console(pooler, "SHOW CONFIG")
        values = {row["key"]: row["value"] for row in rows}
        assert (values["reserve_pool_size"], values["max_client_conn"]) == ("7", "900")
    assert target.process_starts() == containers
    assert target.postmasters() == postmasters


def test_a_parameter_that_postgresql_does_not_know_is_told(target: Target) -> None:
    target.change("postgres", parameters={"work_memory": "5MB"})
    output = target.up(code=6)
    assert "PostgreSQL knows no parameter work_memory" in output
    assert "postgres.parameters" in output


def test_a_restart_takes_the_standby_first(target: Target) -> None:
    target.wait_healthy()
    containers, before = target.process_starts(), target.postmasters()
    leader = target.deployment.primary()
    [standby] = set(target.deployment.nodes) - {leader}
    target.change("postgres", max_connections=101)
    target.up()
    assert set(target.setting("max_connections").values()) == {"101"}
    after = target.postmasters()
    assert float(before[standby]) < float(after[standby]) < float(after[leader])
    assert float(before[leader]) < float(after[leader])
    assert target.deployment.primary() == leader
    assert not any(m.get("pending_restart") for m in target.deployment.members())
    assert target.process_starts() == containers
    target.wait_healthy()

    # Lowered again: no standby may have less than the primary, so this takes two rounds.
    target.change("postgres", max_connections=100)
    target.up()
    assert set(target.setting("max_connections").values()) == {"100"}
    assert not any(m.get("pending_restart") for m in target.deployment.members())
    target.wait_healthy()


def test_more_memory_is_given_in_place(target: Target) -> None:
    before, ids = target.process_starts(), target.ids()
    target.change("postgres", memory_mb=800, cpus=1.5)
    target.up()
    assert target.ids() == ids
    assert target.process_starts() == before
    for node in target.deployment.nodes:
        host = target.container(node).attrs["HostConfig"]
        assert host["Memory"] == (800 + 256) * 1024 * 1024
        assert host["CpuQuota"] == 150_000
    # The buffers follow the memory, by a restart inside the container.
    assert set(target.setting("shared_buffers").values()) == {"200MB"}
    target.wait_healthy()


def test_another_replica_adds_a_standby_and_touches_no_postgres(target: Target) -> None:
    target.up()  # the settings that the tests before have put back
    target.wait_healthy()
    ids, postmasters = target.ids(), target.postmasters()
    target.change("postgres", replicas=2)
    with kept_open(target) as failures:
        target.up()
    assert not failures
    after = target.ids()
    assert set(after) - set(ids) == {"pg-3", "pg-3-agent"}
    assert {u for u in ids if ids[u] != after[u]} == set()
    assert {n: s for n, s in target.postmasters().items() if n in postmasters} == postmasters
    members = {m["name"]: m for m in target.deployment.members()}
    assert members["pg-3"]["state"] == "streaming"
    eventually(lambda: not target.problems())

    # And back: what it held is a copy, but it is data, and data goes when told so only.
    target.change("postgres", replicas=1)
    output = target.up(code=6)
    assert "volume-pg-3" in output
    assert "protected" in output
    target.forget_protection("volume-pg-3")
    target.up()
    assert set(target.ids()) == set(ids)
    eventually(lambda: not target.problems())
    target.unchanged()
