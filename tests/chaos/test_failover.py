"""The primary, or what it depends on, goes; a standby takes over, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from elsapg.services import status
from tests.chaos import proof
from tests.chaos.faults import Faults, Healthy, wait_for
from tests.chaos.writes import DATABASE, Access, ContinuousWrites

pytestmark = [pytest.mark.docker, pytest.mark.slow]

UnderWrites = Callable[..., Any]


def test_postmaster_killed(faults: Faults, under_writes: UnderWrites) -> None:
    """Patroni hands over to the standby, or PostgreSQL restarts in place: either is well."""

    def act(state: Healthy, writes: ContinuousWrites) -> None:
        faults.kill_postmaster(state.leader)
        writes.wait_for_progress()

    under_writes(act)


def test_what_outlives_its_postmaster_does_not_keep_it_down(
    faults: Faults, under_writes: UnderWrites
) -> None:
    """A part of the server does not notice: while it lives PostgreSQL cannot start again."""

    def act(state: Healthy, writes: ContinuousWrites) -> None:
        faults.freeze_part(state.leader, "pg_cron launcher")
        faults.kill_postmaster(state.leader)
        writes.wait_for_progress()

    under_writes(act)


def test_primary_container_killed(faults: Faults, under_writes: UnderWrites) -> None:
    def act(state: Healthy, writes: ContinuousWrites) -> None:
        faults.kill_container(state.leader)
        try:
            faults.wait_leader_other_than(state.leader)
            writes.wait_for_progress()
        finally:
            faults.start(state.leader)

    before = faults.wait_healthy()
    _, after = under_writes(act)
    assert after.leader != before.leader
    # The old primary came back by itself, as the standby that commits wait for.
    assert after.sync_standby == before.leader
    assert after.timeline > before.timeline


def test_primary_network_cut(faults: Faults, under_writes: UnderWrites) -> None:
    """The isolated primary must stop taking writes before the other one starts."""

    def act(state: Healthy, writes: ContinuousWrites) -> None:
        with faults.cut_off(state.leader):
            faults.wait_leader_other_than(state.leader)
            writes.wait_for_progress()

    before = faults.wait_healthy()
    _, after = under_writes(act)
    assert after.leader != before.leader


def test_primary_crash_restarted_by_docker(faults: Faults, under_writes: UnderWrites) -> None:
    def act(state: Healthy, writes: ContinuousWrites) -> None:
        before = faults.container(state.leader).attrs["State"]["StartedAt"]
        faults.crash(state.leader)

        def is_back() -> bool:
            now = faults.container(state.leader).attrs["State"]
            return bool(now["Running"]) and now["StartedAt"] != before

        wait_for(is_back, f"Docker restarts {state.leader}", 60)
        writes.wait_for_progress()

    under_writes(act)


def test_memory_runs_out(faults: Faults, under_writes: UnderWrites) -> None:
    """A session asks for more than its node may have: the kernel kills it, the server recovers, and
    `elsapg status` says what it was."""
    sort = "SELECT repeat(md5(g::text), 32) AS t FROM generate_series(1, 4000000) AS g ORDER BY 1"
    asks = ("-c", "SET work_mem = '8GB'", "-c", f"SELECT count(*) FROM ({sort} OFFSET 1) AS s")
    psql = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", DATABASE)

    def act(state: Healthy, writes: ContinuousWrites) -> None:
        done = faults.deployment.hosts.run(state.leader, *psql, *asks, timeout=120)
        assert "server closed the connection unexpectedly" in done.output, done.output
        writes.wait_for_progress()

    before = faults.wait_healthy()
    under_writes(act)
    told = [p for p in status.gather(faults.deployment).problems if "ran out of memory" in p]
    assert before.leader in [problem.partition(" ")[0] for problem in told]


def test_patroni_frozen(faults: Faults, under_writes: UnderWrites) -> None:
    """Patroni hangs and PostgreSQL does not: the standby takes over all the same.

    Until Patroni goes on, the old primary still believes that it leads: without a hardware
    watchdog nothing on its node can stop it. It has no synchronous standby, so it can
    acknowledge nothing, and the stable address does not lead to it.
    """

    def act(state: Healthy, writes: ContinuousWrites) -> None:
        faults.freeze(state.leader)
        try:
            faults.wait_leader_other_than(state.leader)
            writes.wait_for_progress()
        finally:
            faults.thaw(state.leader)

    before = faults.wait_healthy()
    _, after = under_writes(act, one_leader=False)
    assert after.leader != before.leader


@proof.twice
def test_standby_killed(faults: Faults, under_writes: UnderWrites) -> None:
    """Commits wait until Patroni has given the standby up, then go on; no client sees an error."""

    def act(state: Healthy, writes: ContinuousWrites) -> None:
        faults.kill_container(state.sync_standby)
        try:
            faults.wait_not_synchronous(state.leader)
            writes.wait_for_progress()
        finally:
            faults.start(state.sync_standby)

    before = faults.wait_healthy()
    report, after = under_writes(act)
    assert (after.leader, after.timeline) == (before.leader, before.timeline)
    proof.unnoticed(report)


def test_readers_return_to_the_standby(faults: Faults, doors: Access) -> None:
    proof.readers_return(faults, doors, faults.down)


@proof.twice
def test_standby_silently_unreachable(faults: Faults, under_writes: UnderWrites) -> None:
    """Its sockets stay open and nothing answers: only a time limit can tell."""

    def act(state: Healthy, writes: ContinuousWrites) -> None:
        with faults.paused(state.sync_standby):
            faults.wait_not_synchronous(state.leader)
            writes.wait_for_progress()

    before = faults.wait_healthy()
    report, after = under_writes(act)
    assert (after.leader, after.timeline) == (before.leader, before.timeline)
    proof.unnoticed(report)
